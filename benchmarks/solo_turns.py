"""Whose turn it is, between benchmarks.solo and its engines' processes.

An engine says that it is ready, and then, before every phase, waits to be told to go; after it, it
says that it is done. Two engines that live side by side so play the same phase one right after the
other: a machine that gets slower or faster meanwhile does so for both.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from typing import IO

_GO = "go\n"
_END = "end\n"
_DONE = b"+"
#: Before a phase: threads of the other engine still spin a moment for work that does not come.
_PAUSE_SECONDS = 0.3


class EngineSide:
    """In an engine's process: `to` is the pipe's end to write to, None where nobody takes turns."""

    def __init__(self, to: int | None) -> None:
        self._to = to

    def done(self) -> None:
        """Ready, or through with a phase."""
        if self._to is not None:
            os.write(self._to, _DONE)

    async def wait(self) -> bool:
        """Returns when it is this engine's turn; False where there are to be no more. Raises
        EOFError where nobody gives turns any more."""
        if self._to is None:
            return True
        told = await asyncio.to_thread(sys.stdin.readline)
        if told == _END:
            return False
        if told != _GO:
            raise EOFError("nobody gives turns any more")
        await asyncio.sleep(_PAUSE_SECONDS)
        return True


class RunnerSide:
    """In the benchmark's process: `go` is the engine's standard input, `done` the pipe's end to
    read from."""

    def __init__(self, go: IO[bytes], done: int) -> None:
        self._go = go
        self._done = done

    def let(self) -> None:
        """Tells the engine to play its next phase. Raises BrokenPipeError where it has ended."""
        self._tell(_GO)

    def end(self) -> None:
        """Tells the engine to report what it has played. Raises BrokenPipeError likewise."""
        self._tell(_END)

    def _tell(self, what: str) -> None:
        self._go.write(what.encode())
        self._go.flush()

    def wait(self, patience: float) -> bool:
        """Whether the engine is through; False where it ended, or took more than `patience` s."""
        readable, _, _ = select.select([self._done], [], [], patience)
        return bool(readable) and os.read(self._done, 1) == _DONE

    def close(self) -> None:
        os.close(self._done)
