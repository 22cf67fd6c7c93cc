"""What users do with an engine beside plain answers: `nox -s vllm-kinds`.

Each feature runs on two engines that differ in nothing but kvcached.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import elasticity
import kinds
import tiny_adapters
import tiny_kinds
import tiny_model
from comparison import assert_same
from engine import Scenario
from kinds import CROWD, NOT_SERVED, TIDE, Case, Run

pytestmark = pytest.mark.kinds

QWEN = functools.partial(tiny_model.write, tiny_model.FULL_ATTENTION)
LLAMA = functools.partial(tiny_kinds.write, tiny_kinds.LLAMA)
MIXED = Scenario("mixed_lengths", {"requests": 32})

RunBoth = Callable[[Case], Run]


@pytest.fixture
def run_both(
    models: Path, new_shm_dir: Callable[[], Path], note: Callable[[Case, str], None]
) -> RunBoth:
    """Runs a case on both engines, with what must be so of every one."""

    def run(case: Case) -> Run:
        run = kinds.run(case, models, new_shm_dir())
        assert run.said.startswith(case.line)
        for scenario in case.scenarios:
            assert run.ours.result(scenario.name)["blocks_after"]["live"] == 0
        assert elasticity.complaints(run.ours.log) == []
        assert run.leftovers == []
        note(case, run.said)
        return run

    return run


def test_n_beams_and_logprobs_are_vanillas(run_both: RunBoth) -> None:
    scenarios = (Scenario("several_answers"), Scenario("beams"), Scenario("logprobs"))
    run = run_both(
        Case("`n`, beam search, logprobs of answers and prompts", QWEN, scenarios=scenarios)
    )
    for scenario in scenarios:
        assert_same(*run.tokens(scenario.name))
    for part in ("answers", "prompts"):
        expected, actual = (side.result("logprobs")[part] for side in (run.vanilla, run.ours))
        assert _flat(expected) == pytest.approx(_flat(actual), abs=1e-4)
    beams, _ = run.tokens("beams")
    assert all(len({tuple(beam) for beam in each}) == 4 for each in beams)


def _flat(requests: list[list[dict[str, float]]]) -> dict[str, float]:
    return {
        f"{number}:{position}:{token}": value
        for number, request in enumerate(requests)
        for position, entry in enumerate(request)
        for token, value in entry.items()
    }


def test_adapters_get_their_own_tokens_and_prefixes(run_both: RunBoth, models: Path) -> None:
    paths = [str(tiny_adapters.lora(models, seed)) for seed in (1, 2)]
    asking = Scenario("adapters", {"paths": paths})
    # One place more than there are: vLLM's operators for CPUs give who has no adapter the last one
    # (0.32 lora/ops/torch_ops/lora_ops.py indexes with -1).
    options = {"enable_lora": True, "max_loras": 3, "max_lora_rank": tiny_adapters.RANK}
    run = run_both(
        Case("LoRA, several adapters in a batch", LLAMA, options=options, scenarios=(asking,))
    )
    assert_same(*run.tokens("adapters"))
    tokens, _ = run.tokens("adapters")
    long = [tokens[n : n + 3] for n in range(0, len(tokens), 3) if len(tokens[n]) > 20]
    assert all(len({tuple(answer) for answer in three}) == 3 for three in long)


def test_guesses_by_n_grams_change_no_token(run_both: RunBoth) -> None:
    wish = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    case = Case(
        "speculation by n-grams",
        QWEN,
        options={"speculative_config": wish},
        scenarios=(Scenario("guessed"), MIXED),
    )
    run = run_both(case)
    for scenario in case.scenarios:
        assert_same(*run.tokens(scenario.name))
    assert run.ours.result("guessed")["guessed"] > 0
    assert run.ours.result("guessed")["accepted"] > 0


def test_guesses_by_an_eagle_head_change_no_token(run_both: RunBoth, models: Path) -> None:
    wish = {
        "method": "eagle",
        "model": str(tiny_adapters.eagle(models)),
        "num_speculative_tokens": 3,
    }
    case = Case(
        "speculation by an EAGLE head",
        LLAMA,
        options={"speculative_config": wish},
        scenarios=(Scenario("guessed"), MIXED),
    )
    run = run_both(case)
    for scenario in case.scenarios:
        assert_same(*run.tokens(scenario.name))
    assert run.ours.result("guessed")["guessed"] > 0


def test_a_connector_brings_back_what_it_stored(
    models: Path,
    new_shm_dir: Callable[[], Path],
    tmp_path: Path,
    note: Callable[[Case, str], None],
) -> None:
    def case(side: str) -> Case:
        folder = tmp_path / side
        folder.mkdir()
        wish = {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(folder)},
        }
        # It stores what a request's first step computes, so prompts must not come in parts.
        return Case(
            "KV connector: ExampleConnector",
            QWEN,
            options={"kv_transfer_config": wish, "max_num_batched_tokens": 16384},
            scenarios=(Scenario("stored_and_loaded"),),
        )

    run = kinds.run(case("vanilla"), models, new_shm_dir(), ours=case("elastic"))
    assert run.said.startswith(run.case.line)
    expected, actual = (
        side.result("stored_and_loaded")["rounds"] for side in (run.vanilla, run.ours)
    )
    for one, other in zip(expected, actual, strict=True):
        assert_same(one["tokens"], other["tokens"])
        assert one["cached_tokens"] == other["cached_tokens"]
    # Nothing was left in the engine's own cache before the second round.
    assert actual[0]["cached_tokens"] < actual[1]["cached_tokens"]
    assert actual[0]["tokens"] == actual[1]["tokens"]
    assert run.ours.result("stored_and_loaded")["blocks_after"]["live"] == 0
    assert elasticity.complaints(run.ours.log) == []
    note(run.case, run.said)


def test_blocks_stay_while_the_offloading_connector_reads_them(run_both: RunBoth) -> None:
    # vLLM's own way of copying wants a GPU.
    wish = offload(
        "OffloadingConnector",
        cpu_bytes_to_use=1 << 28,
        spec_name="SlowOffloading",
        spec_module_path="slow_offloading",
        offload_prompt_only=False,
    )
    stored = Scenario("stored_and_loaded")
    run = run_both(
        Case(
            "KV connector: OffloadingConnector, copying by other means",
            QWEN,
            options=wish,
            scenarios=(stored, CROWD, *TIDE),
        )
    )
    expected, actual = (
        side.result("stored_and_loaded")["rounds"] for side in (run.vanilla, run.ours)
    )
    for one, other in zip(expected, actual, strict=True):
        assert_same(one["tokens"], other["tokens"])
    # Nothing was left in the engine's own cache before the second round.
    assert actual[0]["cached_tokens"] < actual[1]["cached_tokens"]
    assert_same(*run.tokens(CROWD.name))


def test_kv_events_tell_what_is_in_the_cache(
    models: Path,
    new_shm_dir: Callable[[], Path],
    tmp_path: Path,
    note: Callable[[Case, str], None],
) -> None:
    def case(side: str) -> Case:
        endpoint = f"ipc://{tmp_path}/{side}"
        return Case(
            "KV events",
            QWEN,
            options={"kv_events_config": {"enable_kv_cache_events": True, "endpoint": endpoint}},
            scenarios=(Scenario("announced", {"endpoint": endpoint}),),
        )

    run = kinds.run(case("vanilla"), models, new_shm_dir(), ours=case("elastic"))
    assert run.said.startswith(run.case.line)
    vanilla, ours = (side.result("announced") for side in (run.vanilla, run.ours))
    assert_same(vanilla["tokens"], ours["tokens"])
    for side in (vanilla, ours):
        assert side["held"] > 0
        assert (side["unknown_to_listener"], side["gone_unannounced"]) == (0, 0)
        assert side["cleared"] == 1
    assert vanilla["removed"] == 0 < ours["removed"], "prefixes beyond 3,200 tokens leave"
    note(run.case, run.said)


def test_embeddings_are_vanillas(run_both: RunBoth) -> None:
    options = {"runner": "pooling", "convert": "embed"}
    run = run_both(
        Case(
            "pooling: embeddings of a decoder",
            QWEN,
            options=options,
            scenarios=(Scenario("embed"),),
        )
    )
    expected, actual = (side.result("embed")["embeddings"] for side in (run.vanilla, run.ours))
    assert all(math.dist(*pair) < 1e-6 for pair in zip(expected, actual, strict=True))


def offload(name: str, **extra: Any) -> dict[str, Any]:
    return {
        "kv_transfer_config": {
            "kv_connector": name,
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }
    }


REFUSED = [
    Case(
        "KV connector: OffloadingConnector",
        QWEN,
        NOT_SERVED,
        "CPU Offloading is currently only supported on CUDA-alike and XPU GPUs",
        offload("OffloadingConnector", cpu_bytes_to_use=1 << 28),
        (CROWD,),
    ),
    Case(
        "KV connector: NixlConnector",
        QWEN,
        NOT_SERVED,
        "NIXL is not available",
        offload("NixlConnector"),
        (CROWD,),
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_vllm_itself_does_not_serve_it_on_a_cpu(
    case: Case, models: Path, note: Callable[[Case, str], None]
) -> None:
    note(case, kinds.refusal(case, models))
