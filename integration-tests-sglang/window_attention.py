"""A plugin for SGLang in the tests of hybrid pools, through SGLang's own registry of hooks.

SGLang's attention over PyTorch writes what a window's layers compute to their own pool's slots, and
reads it by the slots of full attention (0.5.14 to 0.5.23), which is right until the two part. With
this it reads where it has written, with kvcached and without.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_BACKEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"


def register() -> None:
    """SGLang's general plugin."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for step in ("extend", "decode"):
        HookRegistry.register(f"{_BACKEND}._run_sdpa_forward_{step}", by_own_slots, HookType.AROUND)


def by_own_slots(
    original: Callable[..., Any],
    self: Any,
    query: Any,
    output: Any,
    k_cache: Any,
    v_cache: Any,
    req_to_token: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    pool = self.token_to_kv_pool
    window = {buffer.data_ptr() for buffer in pool.swa_kv_pool.k_buffer}
    if k_cache.data_ptr() in window:
        req_to_token = pool.full_to_swa_index_mapping[req_to_token]
    return original(self, query, output, k_cache, v_cache, req_to_token, *args, **kwargs)


def installed(folder: Path) -> dict[str, str]:
    """The environment in which SGLang finds this plugin; `folder` keeps what it is found by."""
    info = folder / "window_attention-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: window_attention\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nwindow_attention = window_attention:register\n"
    )
    return {"PYTHONPATH": f"{folder}:{Path(__file__).parent}"}
