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


MODEL: dict[str, Any] = {
    "is_hybrid_swa": False,
    "mambaish_config": None,
    "server_args": SimpleNamespace(pp_size=1),
    "model_config": SimpleNamespace(),
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
        ("disaggregation_mode", "decode", "PD disaggregation (decode)"),
        ("speculative_algorithm", "EAGLE", "speculative decoding (EAGLE)"),
        ("nnodes", 2, "several nodes"),
        ("schedule_policy", "shortest-prefill-first", "the policy shortest-prefill-first"),
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
    assert model_reason(SimpleNamespace(**MODEL)) is None
    assert model_reason(SimpleNamespace(**{**MODEL, "mambaish_config": object()})) is not None


def test_windows_in_a_hybrid_pool_are_covered_on_one_stage() -> None:
    hybrid = {**MODEL, "is_hybrid_swa": True}
    assert model_reason(SimpleNamespace(**hybrid)) is None
    several = {**hybrid, "server_args": SimpleNamespace(pp_size=2)}
    assert "several stages" in str(model_reason(SimpleNamespace(**several)))
    config = SimpleNamespace(hf_config=SimpleNamespace(architectures=["DeepseekV4ForCausalLM"]))
    other = {**hybrid, "model_config": config}
    assert "DeepSeek V4" in str(model_reason(SimpleNamespace(**other)))


def test_data_parallel_attention_is_covered_on_one_stage() -> None:
    assert reason(enable_dp_attention=True) is None
    assert "several stages" in str(reason(enable_dp_attention=True, pp_size=2))


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
