"""Memory follows the load. Seen from /proc, within a second of the last request."""

from __future__ import annotations

import pytest

import conftest
from engine import Outcome

pytestmark = pytest.mark.contract

#: One extent of the tiny model on the host: a granule of 64 KiB in each of its four planes.
EXTENT_BYTES = 4 * 65536
EXTENT_TOKENS = 512
#: The extent of page 0, always there, and the smallest slack.
ALWAYS = 2 * EXTENT_BYTES
CACHED = -(-conftest.CACHED_TOKENS // EXTENT_TOKENS) * EXTENT_BYTES


def test_an_engine_that_has_served_nothing_holds_page_0_and_its_slack(roomy: Outcome) -> None:
    assert 0 < roomy.start["resident"] <= ALWAYS


def test_what_is_not_committed_is_reserved_without_access(roomy: Outcome) -> None:
    whole = 8192 // EXTENT_TOKENS * EXTENT_BYTES
    assert roomy.start["mapped"] + roomy.start["reserved"] >= whole
    assert roomy.start["mapped"] <= ALWAYS


def test_memory_grows_with_the_load(roomy: Outcome) -> None:
    assert roomy.scenarios["crowd"].peak > 3 * ALWAYS


def test_a_second_after_the_last_request_only_slack_and_the_cap_of_prefixes_remain(
    roomy: Outcome,
) -> None:
    for name, scenario in roomy.scenarios.items():
        assert scenario.after["resident"] <= ALWAYS + CACHED, name
        assert scenario.after["mapped"] <= ALWAYS + CACHED, name


def test_a_flushed_cache_holds_nothing(roomy: Outcome) -> None:
    assert roomy.scenarios["flush"].after["resident"] <= ALWAYS


def test_releasing_the_memory_occupation_gives_it_back(roomy: Outcome) -> None:
    # One short answer came after it.
    assert roomy.scenarios["release_and_resume"].after["resident"] <= ALWAYS + EXTENT_BYTES
