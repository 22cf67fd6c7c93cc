"""The C++ suites, optimised, under sanitizers and on Arm64; and the core's package."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

from sessions.builds import BUILD, configure_and_test, keep_core_wheel, need


@nox.session
def native(session: nox.Session) -> None:
    """The C++ suites, optimised."""
    configure_and_test(session, "native", "-DCMAKE_BUILD_TYPE=Release")


@nox.session
@nox.parametrize(
    "sanitizer",
    # The first two get on with each other.
    [nox.param("address,undefined", id="address"), nox.param("thread", id="thread")],
)
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """The C++ suites under AddressSanitizer, UBSan and ThreadSanitizer."""
    configure_and_test(
        session,
        f"sanitize-{sanitizer.partition(',')[0]}",
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
    keep_core_wheel(session, wheel)
    session.install("pytest", "hypothesis", "nanobind")
    session.install("--force-reinstall", f"{wheel}[kvtop,telemetry]")
    session.run("pytest", "-q", "kvcached-core/tests")


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
    need(session, "aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    need(session, "qemu-aarch64", "qemu-user")
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
