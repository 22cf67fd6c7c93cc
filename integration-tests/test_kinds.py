"""Every kind of KV cache, by small models with random weights: `nox -s vllm-kinds`.

Answers in bfloat16 and float16 depend on who shares a batch, and so do those of some of vLLM's
kernels for CPUs in any type. There requests go one by one (ONE_BY_ONE), so that both engines run
the same batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import elasticity
import kinds
import tiny_kinds
import tiny_model
import tiny_whisper
from comparison import assert_same
from elasticity import START_LINE
from engine import Scenario
from kinds import CROWD, ELASTIC, NOT_SERVED, PREFIXES, STATIC, Case, Notebook, Run

pytestmark = pytest.mark.kinds

ONE_BY_ONE: dict[str, Any] = {"max_num_seqs": 1}


def qwen(heads: int) -> Callable[[Path], Path]:
    """A Qwen 3 with so many heads of keys and values for its four of queries."""
    config = {**tiny_model.FULL_ATTENTION.config, "num_key_value_heads": heads}
    return functools.partial(tiny_model.write, tiny_model.TinyModel(f"tiny-qwen3-{heads}", config))


def made(kind: tiny_kinds.TinyKind) -> Callable[[Path], Path]:
    return functools.partial(tiny_kinds.write, kind)


_TILES = torch.cpu._is_amx_tile_supported()
_WIDE_REGISTERS = torch.cpu._is_avx512_supported() or _TILES
# With AMX vLLM's attention over latents takes no float32, and a bfloat16 engine for one request at
# a time ends by an illegal instruction (0.32).
LATENTS: dict[str, Any] = {"dtype": "bfloat16", **ONE_BY_ONE} if _TILES else ONE_BY_ONE
BFLOAT16: dict[str, Any] = {"dtype": "bfloat16", "max_num_seqs": 2 if _TILES else 1}
# vLLM's kernels for these need AVX-512 or AMX.
EIGHT_BITS_OUTCOME = (
    (ELASTIC, START_LINE) if _WIDE_REGISTERS else (NOT_SERVED, "FP8 KV cache on CPU requires")
)
EIGHT_BITS = [
    Case(f"cache of {name}", qwen(2), *EIGHT_BITS_OUTCOME, {"kv_cache_dtype": name})
    for name in ("fp8_e4m3", "fp8_e5m2")
]

CASES = [
    Case("MHA", qwen(4)),
    Case("GQA", qwen(2)),
    Case("MQA", qwen(1)),
    Case("float16", qwen(2), options={"dtype": "float16", **ONE_BY_ONE}),
    Case("bfloat16", qwen(2), options=BFLOAT16),
    Case("sliding window", functools.partial(tiny_model.write, tiny_model.SLIDING_WINDOW)),
    Case("windows and full attention in groups (Gemma 3)", made(tiny_kinds.GEMMA_3)),
    Case(
        "layers of several sizes, the last reading others' cache (Gemma 4)",
        made(tiny_kinds.GEMMA_4),
    ),
    Case("layers that read others' cache (Gemma 3n)", made(tiny_kinds.GEMMA_3N)),
    Case("windows and sinks (gpt-oss)", made(tiny_kinds.GPT_OSS)),
    Case("attention in chunks (Llama 4)", made(tiny_kinds.LLAMA_4)),
    Case("MLA (DeepSeek V2)", made(tiny_kinds.DEEPSEEK), options=LATENTS),
    Case("Mamba 2", made(tiny_kinds.MAMBA_2)),
    Case(
        "short convolutions and attention (LFM 2)",
        made(tiny_kinds.LFM_2),
        options=ONE_BY_ONE,
    ),
    Case(
        "gated delta rule and attention (Qwen 3 Next)",
        made(tiny_kinds.QWEN_3_NEXT),
        options={"dtype": "bfloat16", **ONE_BY_ONE},
    ),
    *(case for case in EIGHT_BITS if case.outcome != NOT_SERVED),
]

SPEECH = Case(
    "encoder and decoder (Whisper)",
    tiny_whisper.write,
    options={"max_model_len": 448, "max_num_batched_tokens": 2048},
    scenarios=(Scenario("transcribe"),),
)
ENCODER = Case(
    "encoder alone (BERT)",
    made(tiny_kinds.BERT),
    STATIC,
    "kvcached: vanilla: the model has no KV cache",
    {"runner": "pooling", "max_model_len": 1024, "max_num_batched_tokens": 1024},
    (Scenario("embed"),),
)

OTHER_TYPES = ["int8_per_token_head", "fp8_per_token_head", "int4_per_token_head", "nvfp4"]
REFUSED = [
    *(case for case in EIGHT_BITS if case.outcome == NOT_SERVED),
    *(
        Case(
            f"cache of {name}",
            qwen(2),
            NOT_SERVED,
            "FP8 KV cache on CPU requires",
            {"kv_cache_dtype": name},
        )
        for name in OTHER_TYPES
        if not _WIDE_REGISTERS  # what vLLM says of them there was not seen
    ),
    Case("Mamba 1", made(tiny_kinds.MAMBA), NOT_SERVED, "no attribute 'selective_scan_fwd'"),
    Case(
        "Mamba 2 beside attention (Falcon H1)",
        made(tiny_kinds.FALCON_H1),
        NOT_SERVED,
        "out of bounds for dimension 0",
    ),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def served(
    request: pytest.FixtureRequest, models: Path, new_shm_dir: Callable[[], Path]
) -> Iterator[Run]:
    notebook = Notebook(request)
    run = kinds.run(request.param, models, new_shm_dir())
    notebook.note(run.case, run.said)
    yield run
    notebook.close()


def test_it_says_that_it_is_elastic(served: Run) -> None:
    assert served.said.startswith(served.case.line)
    assert elasticity.not_attached(served.ours.log, served.ours.report["memory"]) is None


@pytest.mark.parametrize("scenario", [CROWD.name, PREFIXES.name])
def test_its_tokens_are_vanillas(served: Run, scenario: str) -> None:
    expected, actual = served.tokens(scenario)
    assert_same(expected, actual)


def test_its_answers_wander_so_that_equal_tokens_mean_something(served: Run) -> None:
    tokens, _ = served.tokens(CROWD.name)
    long = [answer for answer in tokens if len(answer) >= 50]
    assert len(long) > 10
    assert sum(len(set(answer)) > len(answer) / 3 for answer in long) > 0.9 * len(long)


def test_its_prefixes_are_found_as_in_vanilla(served: Run) -> None:
    vanilla, ours = (side.result(PREFIXES.name) for side in (served.vanilla, served.ours))
    # Somewhat fewer, above all in the second wave: the elastic engine keeps 3,200 tokens, and what
    # it drops goes by whole extents.
    first, second = ours["cached_tokens"]
    most_first, most_second = vanilla["cached_tokens"]
    assert 0.8 * most_first <= first <= most_first
    assert second <= most_second
    assert (second > 0) == (most_second > 0)


def test_its_pool_grows_with_the_load_and_comes_back(served: Run) -> None:
    before = served.ours.report["memory"]["resident"]
    samples = served.ours.result("grow_and_shrink")["samples"]
    most = max(sample["resident"] for sample in samples)
    left = served.ours.result("forget")["memory_one_second_later"]["resident"]
    assert most > 2 * before
    assert left - before < (most - before) / 2, "more than the slack stays"


def test_every_block_comes_back_and_nothing_stays_behind(served: Run) -> None:
    for scenario in served.case.scenarios:
        counts = served.ours.result(scenario.name)["blocks_after"]
        assert (counts["live"], counts["unfinished"]) == (0, 0)
    assert elasticity.complaints(served.ours.log) == []
    assert served.leftovers == []


def test_an_encoder_and_decoder_gets_the_same_tokens(
    models: Path, new_shm_dir: Callable[[], Path], note: Callable[[Case, str], None]
) -> None:
    run = kinds.run(SPEECH, models, new_shm_dir())
    assert run.said.startswith(SPEECH.line)
    expected, actual = run.tokens("transcribe")
    assert len({tuple(answer) for answer in expected}) > len(expected) / 2
    assert_same(expected, actual)
    assert run.ours.result("transcribe")["blocks_after"]["live"] == 0
    assert elasticity.complaints(run.ours.log) == []
    note(SPEECH, run.said)


def test_an_encoder_alone_has_no_cache_and_says_so(
    models: Path, new_shm_dir: Callable[[], Path], note: Callable[[Case, str], None]
) -> None:
    run = kinds.run(ENCODER, models, new_shm_dir())
    assert run.said == ENCODER.line
    expected, actual = (side.result("embed")["embeddings"] for side in (run.vanilla, run.ours))
    assert expected == actual
    note(ENCODER, run.said)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_vllm_itself_does_not_serve_it_on_this_cpu(
    case: Case, models: Path, note: Callable[[Case, str], None]
) -> None:
    note(case, kinds.refusal(case, models))
