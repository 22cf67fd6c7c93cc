"""Fixtures: configurations of a model that has no weights, and a pager to go under a block pool."""

from __future__ import annotations

import atexit
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before vLLM is imported anywhere. Nothing of the tests meets a running engine.
for _name in list(os.environ):
    if _name.startswith(("KVCACHED_", "VLLM_")) or _name == "ENABLE_KVCACHED":
        del os.environ[_name]
_SHM = tempfile.mkdtemp(prefix="kvcached-tests-")
os.environ["KVCACHED_SHM_DIR"] = _SHM
# What is registered first runs last: an engine's own cleanup comes before.
atexit.register(shutil.rmtree, _SHM, ignore_errors=True)
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["HF_HUB_OFFLINE"] = "1"

BLOCK_TOKENS = 16

_SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 260,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
    "hidden_act": "silu",
}
DENSE = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_SHAPE}
EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "decoder_sparse_step": 1,
    **_SHAPE,
}


def _engine_config(folder: Path, model: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    (folder / "config.json").write_text(json.dumps(model))
    arguments = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        max_model_len=512,
        block_size=BLOCK_TOKENS,
        enforce_eager=True,
    )
    return arguments.create_engine_config()


@pytest.fixture(scope="session")
def settled_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A dense model's VllmConfig as vLLM made it, our platform included. Not to be changed."""
    return _engine_config(tmp_path_factory.mktemp("dense"), DENSE)


@pytest.fixture(scope="session")
def settled_experts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same of a mixture of experts."""
    return _engine_config(tmp_path_factory.mktemp("experts"), EXPERTS)


@pytest.fixture
def vanilla_config(settled_config: Any) -> Any:
    """A VllmConfig with vLLM's own defaults, to be changed at will."""
    config = copy.deepcopy(settled_config)
    config.parallel_config.worker_cls = "vllm.v1.worker.cpu_worker.CPUWorker"
    config.scheduler_config.scheduler_cls = None
    return config


@pytest.fixture
def set_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets variables and forgets what was read and said of earlier ones."""
    import kvcached_vllm
    from kvcached_vllm import attach

    def forget() -> None:
        attach.settings.cache_clear()
        attach._vanilla_reasons.clear()
        kvcached_vllm._said.clear()

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    forget()
    yield set_all
    forget()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What we logged."""
    import logging

    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger = logging.getLogger("vllm.kvcached")
    handler = Keep()
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    return found
