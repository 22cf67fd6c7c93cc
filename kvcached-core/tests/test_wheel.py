"""What the wheel brings, and what its extension needs of a machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import files
from pathlib import Path

import pytest

from kvcached import _C

# The C and C++ run time. Everything else is found at run time, or not needed.
ALLOWED = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+")

# Of a line of `readelf --dyn-syms`: binding, section, name. A symbol of the C or C++ run time has
# a version, and Python's have none.
SYMBOL = re.compile(r"\s(LOCAL|GLOBAL|WEAK)\s+\w+\s+(\S+)\s+(\S+)")
VERSIONED = re.compile(r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+")
PYTHONS = re.compile(r"_?Py\w+")

# Built by g++ 12 it is 0.57 MB, and all files together are 0.76 MB. A C++ library linked in, or
# debugging information, would be far beyond.
MOST_OF_THE_EXTENSION = 1_000_000
MOST_OF_ALL_FILES = 1_500_000


def readelf(*options: str) -> str:
    program = shutil.which("readelf")
    if program is None:
        pytest.skip("readelf (binutils) is not installed")
    done = subprocess.run(
        [program, "-W", *options, _C.__file__], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_it_depends_on_the_c_and_cpp_run_time_alone() -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("-d"))
    assert "libc.so.6" in needed
    assert [name for name in needed if not ALLOWED.fullmatch(name)] == []


def test_it_looks_for_no_symbol_but_pythons_and_the_run_times() -> None:
    wanted = [
        name
        for binding, section, name in SYMBOL.findall(readelf("--dyn-syms"))
        if section == "UND" and binding == "GLOBAL"
    ]
    assert any(name == "PyModuleDef_Init" or name.startswith("PyModule_") for name in wanted)
    others = [
        name for name in wanted if not VERSIONED.fullmatch(name) and not PYTHONS.fullmatch(name)
    ]
    assert others == []


def test_it_is_small() -> None:
    assert Path(_C.__file__).stat().st_size < MOST_OF_THE_EXTENSION
    installed = [file for file in files("kvcached-core") or [] if file.suffix != ".pyc"]
    assert any(file.name.startswith("_C.") for file in installed)
    assert sum(Path(str(file.locate())).stat().st_size for file in installed) < MOST_OF_ALL_FILES
