"""The program in an engine's process: builds a `vllm.LLM`, runs scenarios, writes a report.

Started by `engine.py` with one argument, the order as JSON. The report is written anew after
every scenario, so that a crash keeps what came before it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import scenarios
from session import Session


def main() -> None:
    order = json.loads(sys.argv[1])
    session = Session.open(**order["options"])
    report: dict[str, Any] = {
        **session.geometry(),
        "memory": session.memory().as_dict(),
        "results": {},
    }
    _write(order["report"], report)
    for name, arguments in order["scenarios"]:
        before = session.block_counts()
        result = getattr(scenarios, name)(session, **arguments)
        report["results"][name] = {
            **result,
            "blocks_before": before,
            "blocks_after": session.block_counts(),
            "memory_after": session.memory().as_dict(),
        }
        _write(order["report"], report)


def _write(path: str, report: dict[str, Any]) -> None:
    unfinished = Path(path + ".unfinished")
    unfinished.write_text(json.dumps(report))
    unfinished.rename(path)


if __name__ == "__main__":
    main()
