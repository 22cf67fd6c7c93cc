"""What users set in the environment, and what they are told when it is wrong."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcached import settings, sizes
from kvcached.sizes import format_size, parse_size

# Variable, field, a good value, what it means.
GOOD = [
    ("ENABLE_KVCACHED", "enabled", "false", False),
    ("ENABLE_KVCACHED", "enabled", "1", True),
    ("ENABLE_KVCACHED", "enabled", " true ", True),
    ("KVCACHED_REQUIRED", "required", "yes", True),
    ("KVCACHED_LIMIT", "limit", "512M", 512 << 20),
    ("KVCACHED_LIMIT", "limit", "4GiB", 4 << 30),
    ("KVCACHED_LIMIT", "limit", "10GB", 10**10),
    ("KVCACHED_FLOOR", "floor", "512M", 512 << 20),
    ("KVCACHED_WEIGHT", "weight", "2.5", 2.5),
    ("KVCACHED_CAPACITY", "capacity", "4GiB", 4 << 30),
    ("KVCACHED_GPU_UTILIZATION", "gpu_utilization", "0.9", 0.9),
    ("KVCACHED_SHM_GROUP", "shm_group", "serving", "serving"),
    ("KVCACHED_LOG_FORMAT", "log_format", " json ", "json"),
    ("KVCACHED_MAX_CACHED_TOKENS", "max_cached_tokens", "-1", -1),
    ("KVCACHED_MIN_RESERVED_PAGES", "min_reserved_pages", "3", 3),
    ("KVCACHED_MAX_RESERVED_PAGES", "max_reserved_pages", "20", 20),
    ("KVCACHED_PAGE_SIZE_MB", "page_size_mb", "2", 2),
    ("KVCACHED_LAYOUT", "layout", "block", "block"),
    ("KVCACHED_IPC_NAME", "ipc_name", "shared_cache.2-b", "shared_cache.2-b"),
    ("KVCACHED_SHM_DIR", "shm_dir", "/run/kv", "/run/kv"),
    ("KVCACHED_LOG_LEVEL", "log_level", "debug", "DEBUG"),
    ("KVCACHED_SANITY_CHECK", "sanity_check", "true", True),
    ("KVCACHED_ZEROING", "zeroing", "steps", "steps"),
]

# Variable, a bad value, what must be named as allowed.
BAD = [
    ("ENABLE_KVCACHED", "maybe", "true or false"),
    ("KVCACHED_REQUIRED", "2", "true or false"),
    ("KVCACHED_FLOOR", "most", "4GiB"),
    ("KVCACHED_WEIGHT", "0", "0.001"),
    ("KVCACHED_CAPACITY", "-1", "4GiB"),
    ("KVCACHED_GPU_UTILIZATION", "1.5", "up to 1"),
    ("KVCACHED_LOG_FORMAT", "xml", "text or json"),
    ("KVCACHED_SHM_GROUP", "a/b", "letters, digits"),
    ("KVCACHED_SANITY_CHECK", "thorough", "true or false"),
    ("KVCACHED_ZEROING", "never", "auto, pager or steps"),
    ("KVCACHED_LIMIT", "much", "4GiB"),
    ("KVCACHED_LIMIT", "-5", "4GiB"),
    ("KVCACHED_LIMIT", "5X", "4GiB"),
    ("KVCACHED_LIMIT", "99999999T", "4GiB"),
    ("KVCACHED_MAX_CACHED_TOKENS", "-2", "from -1 on"),
    ("KVCACHED_MAX_CACHED_TOKENS", "1.5", "from -1 on"),
    ("KVCACHED_MIN_RESERVED_PAGES", "-1", "from 0 to"),
    ("KVCACHED_MAX_RESERVED_PAGES", "ten", "from 0 to"),
    ("KVCACHED_MAX_RESERVED_PAGES", "4294967296", "from 0 to"),
    ("KVCACHED_PAGE_SIZE_MB", "2MiB", "from 0 to"),
    ("KVCACHED_LAYOUT", "Block", "auto, extent, block or layer"),
    ("KVCACHED_IPC_NAME", "a/b", "letters, digits"),
    ("KVCACHED_LOG_LEVEL", "loud", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
]


@pytest.mark.parametrize(("variable", "field", "text", "value"), GOOD)
def test_a_variable_sets_its_field(
    clean_environment: pytest.MonkeyPatch, variable: str, field: str, text: str, value: object
) -> None:
    clean_environment.setenv(variable, text)
    assert getattr(settings.load(), field) == value


def test_every_field_is_tested_here() -> None:
    fields = {field for _, field, _, _ in GOOD}
    assert fields == set(settings.Settings.model_fields)
    # Any text is the path of a directory, as far as settings can tell.
    variables = {settings.variable_of(field) for field in fields - {"shm_dir"}}
    assert {variable for variable, _, _ in BAD} == variables


def test_every_field_says_what_it_is_and_what_is_allowed() -> None:
    for name, field in settings.Settings.model_fields.items():
        assert field.description, name
        assert any(isinstance(item, settings.Allowed) for item in field.metadata), name


@pytest.mark.parametrize("variable", sorted({case[0] for case in GOOD}))
def test_an_empty_variable_is_as_good_as_none(
    clean_environment: pytest.MonkeyPatch, variable: str
) -> None:
    default = settings.load()
    clean_environment.setenv(variable, "")
    assert settings.load() == default


@pytest.mark.parametrize(("variable", "text", "allowed"), BAD)
def test_a_bad_value_is_one_line_with_name_value_and_what_is_allowed(
    clean_environment: pytest.MonkeyPatch, variable: str, text: str, allowed: str
) -> None:
    clean_environment.setenv(variable, text)
    with pytest.raises(settings.SettingsError) as caught:
        settings.load()
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"kvcached: {variable}={text}: allowed is ")
    assert allowed in line


def test_slack_bounds_out_of_order_are_one_line_that_names_both(
    clean_environment: pytest.MonkeyPatch,
) -> None:
    clean_environment.setenv("KVCACHED_MIN_RESERVED_PAGES", "5")
    clean_environment.setenv("KVCACHED_MAX_RESERVED_PAGES", "4")
    with pytest.raises(settings.SettingsError) as caught:
        settings.load()
    line = str(caught.value)
    assert "\n" not in line
    assert "KVCACHED_MIN_RESERVED_PAGES=5" in line
    assert "KVCACHED_MAX_RESERVED_PAGES=4" in line
    assert "allowed is" in line


def test_equal_slack_bounds_are_in_order(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("KVCACHED_MIN_RESERVED_PAGES", "10")
    assert settings.load().min_reserved_pages == settings.load().max_reserved_pages


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("KVCACHED_LIMITS", "KVCACHED_LIMIT"),
        ("KVCACHED_MIN_RESERVED_PAGE", "KVCACHED_MIN_RESERVED_PAGES"),
        ("KVCACHED_LOGLEVEL", "KVCACHED_LOG_LEVEL"),
        ("KVCACHED_ENABLED", "ENABLE_KVCACHED"),
        ("KVCACHED_ENABLE", "ENABLE_KVCACHED"),
    ],
)
def test_a_mistyped_variable_is_answered_with_the_one_that_was_meant(
    typed: str, meant: str
) -> None:
    (line,) = settings.unread({typed: "1"})
    assert typed in line
    assert line.endswith(f"did you mean {meant}?")


def test_a_variable_like_none_of_ours_gets_no_guess() -> None:
    (line,) = settings.unread({"KVCACHED_XYZZY": "1"})
    assert line == "kvcached: KVCACHED_XYZZY is not read by this version"


def test_a_replaced_variable_is_answered_with_its_replacement() -> None:
    assert len(settings.unread(dict.fromkeys(settings.REPLACED, "1"))) == len(settings.REPLACED)
    (line,) = settings.unread({"KVCACHED_CONTIGUOUS_LAYOUT": "true"})
    assert "KVCACHED_LAYOUT" in line


def test_variables_that_are_read_or_not_ours_get_no_line() -> None:
    known = {settings.variable_of(field): "1" for field in settings.Settings.model_fields}
    assert settings.unread({**known, "PATH": "/bin", "VLLM_PLUGINS": "kvcached"}) == []


@given(st.integers(min_value=0, max_value=2**63))
def test_a_count_of_bytes_parses_to_itself(count: int) -> None:
    assert parse_size(str(count)) == parse_size(count) == parse_size(f" {count} B ") == count


@given(
    st.integers(min_value=0, max_value=10**9),
    st.sampled_from(["K", "M", "G", "T"]),
    st.sampled_from([str.upper, str.lower]),
)
def test_units_count_by_1024_and_by_1000_as_in_coreutils(
    number: int, unit: str, spell: type[str]
) -> None:
    power = "KMGT".index(unit) + 1
    assert parse_size(spell(f"{number}{unit}")) == number * 1024**power
    assert parse_size(spell(f"{number} {unit}iB")) == number * 1024**power
    assert parse_size(spell(f"{number}{unit}B")) == number * 1000**power


@given(st.integers(min_value=0, max_value=2**50))
def test_a_formatted_size_parses_to_nearly_itself(count: int) -> None:
    text = format_size(count)
    assert re.fullmatch(r"\d+(\.\d)? (B|[KMGT]iB)", text)
    unit = parse_size("1" + text.split()[1])
    assert abs(parse_size(text) - count) <= unit / 20 + 1  # half a digit, and a byte cut off


@given(st.text())
def test_any_text_parses_or_is_refused_with_what_is_allowed(text: str) -> None:
    refusal = ""
    try:
        size = parse_size(text)
    except ValueError as error:
        refusal = str(error)
    assert sizes.ALLOWED in refusal or size >= 0
