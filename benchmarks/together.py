"""A vLLM and an SGLang engine on one device, and load that moves between them.

Both are elastic and may hold `--capacity` together, which neither's bursts fit into beside the
other's. In each round a burst comes to the one, then to the other, then to both at once.

  failed         bursts in which a request failed
  peak           KV cache that the engine held at most; both may hold the capacity together
  output tokens/s  of a burst that came alone, and of one that shared the device
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import engines, models, scratch, sglang_arguments
from benchmarks.engines import EngineFailed
from benchmarks.gpu_memory import HAS_GPU
from benchmarks.meters import Meter
from benchmarks.report import Report, Row, Target, arguments_of
from benchmarks.samples import Samples

_SERVINGS = ("vllm", "sglang")


class Engine:
    """One engine's process, told what to do."""

    def __init__(
        self, serving: str, engine: dict[str, Any], options: argparse.Namespace, directory: Path
    ) -> None:
        self.serving = serving
        self.log = engines.logs_of(options, directory) / f"together-{serving}.log"
        self._answers = directory / f"{serving}.answers"
        order = {
            "serving": serving,
            "engine": engine,
            "answers": str(self._answers),
            "prompt_tokens": options.prompt_tokens,
            "output_tokens": options.output_tokens,
            "mixed": True,
        }
        variables = {
            **engines.ELASTIC,
            "KVCACHED_IPC_NAME": serving,
            "KVCACHED_CAPACITY": options.capacity,
            "HF_HUB_OFFLINE": "1",
        }
        # The engines' packages cannot share one environment.
        paths = [getattr(options, f"{serving}_path"), os.environ.get("PYTHONPATH")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.process = engines.start(
            [sys.executable, "-m", "benchmarks.together_engine", json.dumps(order)],
            engines.environment(directory / "rows", variables),
            self.log,
            stdin=subprocess.PIPE,
        )
        self._read = 0

    def tell(self, turn: int, requests: int) -> None:
        """Starts a burst."""
        assert self.process.stdin is not None
        line = json.dumps({"turn": turn, "requests": requests}) + "\n"
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()

    def answer(self, deadline: float) -> dict[str, Any]:
        """The next answer: the first says that it is ready. Raises EngineFailed."""
        while time.monotonic() < deadline and self.process.poll() is None:
            text = self._answers.read_text() if self._answers.exists() else ""
            lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
            if len(lines) > self._read:
                self._read += 1
                return dict(json.loads(lines[self._read - 1]))
            time.sleep(0.01)
        raise EngineFailed(f"{self.serving} gave no answer:\n{engines.last_lines(self.log)}")

    def end(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        engines.end_group(self.process)


def measure(report: Report, options: argparse.Namespace) -> None:
    """Runs both engines and adds every row."""
    with scratch.directory() as directory:
        model = models.find(options.model, directory)
        longest = options.prompt_tokens + options.output_tokens
        wanted = {
            "vllm": {
                **model.engine_arguments(),
                "max_model_len": longest,
                "enforce_eager": not HAS_GPU,
                **options.vllm,
            },
            "sglang": {**sglang_arguments.of(model, longest), **options.sglang},
        }
        report.note(engines=wanted, environment=engines.chosen())
        running: list[Engine] = []
        meter = None
        try:
            for serving in _SERVINGS:
                # One after the other: each measures the device while it starts.
                running.append(Engine(serving, wanted[serving], options, directory))
                running[-1].answer(time.monotonic() + options.patience)
                print(f"{serving} is ready", flush=True)
            meter = Meter([one.process.pid for one in running], directory / "rows")
            meter.start()
            bursts = play(running, options)
        finally:
            if meter is not None:
                meter.stop()
            for one in running:
                one.end()
    for serving in _SERVINGS:
        errors = [answer["error"] for _, answer in bursts[serving] if "error" in answer]
        report.add(
            Row(
                f"{serving}: failed",
                Samples("", [float(len(errors))]),
                Target(at_most=0),
                facts={"errors": errors},
            )
        )
        peak = max(reading.held_by.get(serving, 0) for reading in meter.readings)
        report.add(Row(f"{serving}: peak", Samples("MiB", [peak / (1 << 20)])))
        for kind in ("alone", "shared"):
            speeds = [
                answer["output_tokens_per_second"]
                for found, answer in bursts[serving]
                if found == kind and "error" not in answer
            ]
            if speeds:
                report.add(Row(f"{serving}: output tokens/s, {kind}", Samples("/s", speeds)))


def play(running: list[Engine], options: argparse.Namespace) -> dict[str, list[Any]]:
    """Every burst's kind and answer, by engine."""
    found: dict[str, list[Any]] = {one.serving: [] for one in running}
    for turn in range(options.rounds):
        for kind, group in (("alone", running[:1]), ("alone", running[1:]), ("shared", running)):
            for one in group:
                one.tell(turn, options.requests)
            for one in group:
                answer = one.answer(time.monotonic() + options.patience)
                found[one.serving].append((kind, answer))
                print(f"round {turn + 1}, {one.serving}, {kind}: {_line(answer)}", flush=True)
    return found


def _line(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return str(answer["error"])
    return f"{answer['output_tokens_per_second']:,.0f} output tokens/s"


def main() -> int:
    parser = arguments_of(__doc__ or "")
    add = parser.add_argument
    add("--model", default="tiny", help=models.NAMES)
    add("--rounds", type=int, default=3)
    add("--requests", type=int, default=256, help="requests of a burst")
    add("--prompt-tokens", type=int, default=512, help="the longest prompt")
    add("--output-tokens", type=int, default=128, help="the longest output")
    add("--capacity", default="16GiB", help="KV cache of both together: KVCACHED_CAPACITY")
    add("--patience", type=float, default=300, help="seconds for a start, or for a burst")
    for serving in _SERVINGS:
        add(f"--{serving}", type=json.loads, default={}, metavar="JSON", help="more arguments")
        add(f"--{serving}-path", default="", help="where its packages are, before PYTHONPATH")
    engines.add_logs_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.requests = 1, min(options.requests, 16)
    report = Report("together", options)
    try:
        measure(report, options)
    except EngineFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    return report.finish(f"{options.model}: a vLLM and an SGLang engine on one device")


if __name__ == "__main__":
    sys.exit(main())
