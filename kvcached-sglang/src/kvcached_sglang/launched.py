"""What a launcher hands to SGLang where SGLang has no plugins yet: its scheduler's process.

``run_scheduler_process_func`` is an official parameter of ``launch_server()`` and an attribute of
``Engine``, for subclasses to set::

    class ElasticEngine(Engine):
        run_scheduler_process_func = staticmethod(launched.run_scheduler_process)

This module imports nothing of SGLang's, so that a spawned process is SGLang's own until then.
"""

from __future__ import annotations

import atexit
import types
from typing import Any


def run_scheduler_process(*args: Any, **kwargs: Any) -> None:
    """SGLang's ``run_scheduler_process()``, with the elastic scheduler in place of its own."""
    from sglang.srt.managers import scheduler

    from kvcached_sglang import contract_reason, required, say_once

    if (reason := contract_reason(launched=True)) is not None:
        if required():
            raise SystemExit(f"kvcached: KVCACHED_REQUIRED=true, but: {reason}")
        say_once(f"kvcached: vanilla: {reason}")
        scheduler.run_scheduler_process(*args, **kwargs)
        return
    from kvcached_sglang.launched_scheduler import ElasticScheduler

    run = _naming(scheduler.run_scheduler_process, "Scheduler", ElasticScheduler)
    run(*args, **kwargs)


def _naming(stock: types.FunctionType, name: str, meant: object) -> types.FunctionType:
    """A copy of a module's function that finds `meant` under a global name. SGLang's function names
    the class that it makes, and takes none; its module stays as it is."""
    names = {**stock.__globals__, name: meant}
    copy = types.FunctionType(
        stock.__code__, names, stock.__name__, stock.__defaults__, stock.__closure__
    )
    copy.__kwdefaults__ = stock.__kwdefaults__
    return copy


def other_server(server_args: Any) -> bool:
    """Whether these arguments ask for a server that takes no scheduler's process from us."""
    return any(
        getattr(server_args, option, False) for option in ("grpc_mode", "encoder_only", "use_ray")
    )


def clean_up_at_exit() -> None:
    """A launcher removes at its end what its killed schedulers left."""
    from kvcached_sglang import attachment

    atexit.register(attachment.clean_up)
