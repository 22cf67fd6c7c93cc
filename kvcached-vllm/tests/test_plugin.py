"""What the two entry points answer to vLLM, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Each case runs in a forked child of one process that has paid for importing vLLM.
RUN_CASES = """
import json, logging, os, sys
import kvcached_vllm
import vllm.version

def answer(case):
    os.environ.update(case.get("env", {}))
    sys.path[:0] = case.get("path", [])
    sys.argv = ["vllm", *case.get("argv", [])]
    if "version" in case:
        vllm.version.__version__ = case["version"]
    said = []
    class Keep(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())
    logger = logging.getLogger("vllm.kvcached")
    logger.handlers, logger.level, logger.propagate = [Keep()], logging.DEBUG, False
    found = {"platform": kvcached_vllm.platform(), "again": kvcached_vllm.platform()}
    try:
        kvcached_vllm.register()
        found["refused"] = None
    except kvcached_vllm.NotElastic as error:
        found["refused"] = str(error)
    found["said"] = said
    found["heavy"] = [name for name in ("kvcached", "pydantic_settings") if name in sys.modules]
    return found

for case in json.load(sys.stdin):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(answer(case)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        print("ANSWER", pipe.read())
    os.wait()
"""

OURS = "kvcached_vllm.elastic_platform.ElasticPlatform"
BY_NAME = ["--worker-cls", "kvcached_vllm.cpu_worker.ElasticCPUWorker"]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "on": {"env": {"ENABLE_KVCACHED": "true"}},
    "off": {"env": {"ENABLE_KVCACHED": "0"}},
    "empty": {"env": {"ENABLE_KVCACHED": "", "KVCACHED_REQUIRED": " "}},
    "required": {"env": {"KVCACHED_REQUIRED": "true"}},
    "required and off": {"env": {"KVCACHED_REQUIRED": "1", "ENABLE_KVCACHED": "no"}},
    "bad": {"env": {"ENABLE_KVCACHED": "maybe"}},
    "bad demand": {"env": {"ENABLE_KVCACHED": "off", "KVCACHED_REQUIRED": "maybe"}},
    "old": {"version": "0.8.5"},
    "newest": {"version": "0.32.7rc1"},
    "unknown": {"version": "0.99.0"},
    "strange": {"version": "dev"},
    "required and old": {"version": "0.8.5", "env": {"KVCACHED_REQUIRED": "on"}},
    "cpu target": {"env": {"VLLM_TARGET_DEVICE": "cpu"}},
    "cpu target by name": {"env": {"VLLM_TARGET_DEVICE": "cpu"}, "argv": BY_NAME},
    "cpu target required": {"env": {"VLLM_TARGET_DEVICE": "cpu", "KVCACHED_REQUIRED": "1"}},
    "another": {"path": ["another"]},
    "another required": {"path": ["another"], "env": {"KVCACHED_REQUIRED": "1"}},
    "another not allowed": {"path": ["another"], "env": {"VLLM_PLUGINS": "kvcached"}},
    "another that declines": {"path": ["declines"]},
    "another that fails": {"path": ["fails"]},
}
BODIES = {
    "another": "return 'other.Platform'",
    "declines": "return None",
    "fails": "raise OSError('no such device')",
}


def write_platform(folder: Path, name: str) -> str:
    metadata = folder / name / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / name / f"{name}_platform.py").write_text(f"def plugin():\n    {BODIES[name]}\n")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    entry = f"[vllm.platform_plugins]\n{name} = {name}_platform:plugin\n"
    (metadata / "entry_points.txt").write_text(entry)
    return str(folder / name)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What every case was answered."""
    folder = tmp_path_factory.mktemp("platforms")
    paths = {name: write_platform(folder, name) for name in BODIES}
    cases = [
        {**case, "path": [paths[name] for name in case.get("path", [])]} for case in CASES.values()
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_CASES],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = [
        json.loads(line.removeprefix("ANSWER "))
        for line in done.stdout.splitlines()
        if line.startswith("ANSWER ")
    ]
    return dict(zip(CASES, found, strict=True))


ELASTIC = ["plain", "on", "empty", "required", "newest", "another not allowed"]
ELASTIC += ["another that declines", "another that fails"]
# Nobody ran these; the sources that are read are those of the version that is really installed.
ELASTIC += ["unknown", "strange"]


@pytest.mark.parametrize("case", ELASTIC)
def test_the_elastic_platform_is_named_without_a_word(
    answers: dict[str, dict[str, Any]], case: str
) -> None:
    answer = answers[case]
    assert answer["platform"] == answer["again"] == OURS
    assert answer["refused"] is None
    assert [line for line in answer["said"] if "vanilla" in line] == []


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("off", "ENABLE_KVCACHED=false"),
        ("old", "vLLM 0.8.5 is installed; the oldest version that works is"),
        ("another", "the platform plugin 'another' is active"),
    ],
)
def test_a_vanilla_engine_is_told_why_in_one_line_once(
    answers: dict[str, dict[str, Any]], case: str, reason: str
) -> None:
    answer = answers[case]
    assert answer["platform"] is answer["again"] is None
    assert answer["refused"] is None
    (line,) = answer["said"]
    assert line.startswith("kvcached: vanilla: ")
    assert reason in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("required and off", "but ENABLE_KVCACHED=false"),
        ("required and old", "vLLM 0.8.5 is installed"),
        ("cpu target required", "unset it, or pass --scheduler-cls"),
        ("another required", "the platform plugin 'another' is active"),
    ],
)
def test_what_the_user_demands_and_cannot_have_is_refused(
    answers: dict[str, dict[str, Any]], case: str, reason: str
) -> None:
    refusal = answers[case]["refused"]
    assert refusal.startswith("kvcached: KVCACHED_REQUIRED=true, but")
    assert reason in refusal
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("case", "variable"),
    [("bad", "ENABLE_KVCACHED=maybe"), ("bad demand", "KVCACHED_REQUIRED=maybe")],
)
def test_a_variable_that_does_not_parse_stops_the_engine(
    answers: dict[str, dict[str, Any]], case: str, variable: str
) -> None:
    assert answers[case]["platform"] is None
    assert answers[case]["refused"] == f"kvcached: {variable}: allowed is true or false"


def test_where_vllm_skips_platform_plugins_the_options_are_named(
    answers: dict[str, dict[str, Any]],
) -> None:
    (line,) = answers["cpu target"]["said"]
    assert "--scheduler-cls kvcached_vllm.scheduler.ElasticScheduler" in line
    assert "--worker-cls kvcached_vllm.cpu_worker.ElasticCPUWorker" in line


def test_who_passes_the_options_is_told_nothing(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["cpu target by name"]["said"] == []
    assert answers["cpu target by name"]["refused"] is None


def test_the_entry_points_import_nothing_of_ours(answers: dict[str, dict[str, Any]]) -> None:
    assert [case for case, answer in answers.items() if answer["heavy"]] == []


def test_the_module_imports_the_standard_library_alone() -> None:
    script = (
        "import sys; before = set(sys.modules); import kvcached_vllm;"
        "print([n for n in set(sys.modules) - before"
        " if n.partition('.')[0]"
        " not in {*sys.stdlib_module_names, '__mp_main__', 'kvcached_vllm'}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_entry_point_stays_a_function_once_the_platform_is_imported() -> None:
    script = (
        "import kvcached_vllm.elastic_platform; from importlib.metadata import entry_points;"
        "(found,) = entry_points(group='vllm.platform_plugins', name='kvcached');"
        "print('CALLABLE', callable(found.load()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "CALLABLE True" in done.stdout


@pytest.mark.parametrize(
    ("variables", "name"),
    [({}, "ElasticPlatform"), ({"ENABLE_KVCACHED": "false"}, "CpuPlatform")],
)
def test_vllm_takes_the_platform_and_it_stays_what_it_was(
    variables: dict[str, str], name: str
) -> None:
    pytest.importorskip("vllm")
    script = (
        "from vllm.platforms import current_platform as p\n"
        "print('PLATFORM', type(p).__name__, p.is_cpu() or p.is_cuda(), p.is_out_of_tree())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("PLATFORM"))
    _, found, known, out_of_tree = line.split()
    assert found == name or (name == "CpuPlatform" and found.endswith("Platform"))
    assert (known, out_of_tree) == ("True", "False")
