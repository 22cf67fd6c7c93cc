"""What the extension needs of a machine."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from kvcached import _C

# The C and C++ run time. Everything else is found at run time, or not needed.
ALLOWED = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+")


@pytest.fixture(scope="module")
def needed() -> list[str]:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf (binutils) is not installed")
    done = subprocess.run([readelf, "-d", _C.__file__], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", done.stdout)


def test_it_depends_on_the_c_and_cpp_run_time_alone(needed: list[str]) -> None:
    assert "libc.so.6" in needed
    assert [name for name in needed if not ALLOWED.fullmatch(name)] == []
