"""What is not covered is told by its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvcached_sglang.reasons import configuration_reason, model_reason, pool_reason

PLAIN: dict[str, Any] = {
    "enable_memory_saver": False,
    "enable_hierarchical_cache": False,
    "disaggregation_mode": "null",
    "speculative_algorithm": None,
    "pp_size": 1,
    "nnodes": 1,
}


def reason(**options: Any) -> str | None:
    return configuration_reason(SimpleNamespace(**{**PLAIN, **options}))


def test_a_plain_configuration_is_covered() -> None:
    assert reason() is None
    assert reason(tp_size=8, page_size=64, disable_radix_cache=True) is None


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("enable_memory_saver", True, "memory saver"),
        ("enable_hierarchical_cache", True, "HiCache"),
        ("enable_lmcache", True, "LMCache"),
        ("enable_dp_attention", True, "data-parallel attention"),
        ("disaggregation_mode", "decode", "PD disaggregation (decode)"),
        ("speculative_algorithm", "EAGLE", "speculative decoding (EAGLE)"),
        ("nnodes", 2, "several nodes"),
    ],
)
def test_an_option_that_is_not_covered_is_named(option: str, value: Any, said: str) -> None:
    found = reason(**{option: value})
    assert found is not None
    assert said in found
    assert found.endswith("not covered")


@pytest.mark.parametrize(
    "variable", ["SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", "SGLANG_USE_HND_KVCACHE"]
)
def test_sglangs_variables_count_only_where_they_are_on(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "0")
    assert reason() is None
    monkeypatch.setenv(variable, "true")
    found = reason()
    assert found is not None
    assert variable in found


def test_models_with_other_states_are_not_covered() -> None:
    plain = {"is_hybrid_swa": False, "mambaish_config": None}
    assert model_reason(SimpleNamespace(**plain)) is None
    for other in ({"is_hybrid_swa": True}, {"mambaish_config": object()}):
        assert model_reason(SimpleNamespace(**{**plain, **other})) is not None


class MHATokenToKVPool(SimpleNamespace):
    """As SGLang's, by name."""


@pytest.mark.parametrize(
    "different",
    [
        {"kv_cache_layout": "hnd"},
        {"use_hnd": True},
        {"is_quantized_kv_cache": True},
        {"enable_custom_mem_pool": True},
        {"use_dsa": True},
        {"size": 100},
    ],
)
def test_pools_laid_out_otherwise_are_not_covered(different: dict[str, Any]) -> None:
    plain = {"size": 128, "page_size": 16, "kv_cache_layout": "nhd"}
    assert pool_reason(MHATokenToKVPool(**plain)) is None
    assert pool_reason(MHATokenToKVPool(**{**plain, **different})) is not None
    assert pool_reason(SimpleNamespace(**plain)) is not None
