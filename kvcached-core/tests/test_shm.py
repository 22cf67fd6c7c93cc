"""The directory where engines meet, and the names of rows in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvcached import shm

NOBODY = 65534


def test_a_missing_directory_is_made_for_its_owner_alone(shm_dir: Path) -> None:
    made = shm.directory(str(shm_dir / "rows"))
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert shm.directory(str(made)) == made


def test_without_setting_the_directory_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr(Path, "lstat", lambda _: os.stat_result([0o40700, 0, 0, 0, 4242, *[0] * 5]))
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert shm.directory() == Path("/dev/shm/kvcached-4242")


def test_a_missing_parent_is_named_with_advice(shm_dir: Path) -> None:
    with pytest.raises(shm.SharedMemoryError) as caught:
        shm.directory(str(shm_dir / "no" / "rows"))
    line = str(caught.value)
    assert "\n" not in line
    assert str(shm_dir / "no" / "rows") in line
    assert "No such file or directory" in line
    assert "KVCACHED_SHM_DIR" in line
    assert "--shm-size" in line


def test_a_file_in_the_place_of_the_directory_is_refused(shm_dir: Path) -> None:
    (shm_dir / "rows").touch()
    with pytest.raises(shm.SharedMemoryError, match="File exists; mount"):
        shm.directory(str(shm_dir / "rows"))


def test_a_directory_that_cannot_be_written_is_refused(shm_dir: Path) -> None:
    rows = shm_dir / "rows"
    rows.mkdir()
    rows.chmod(0o555)
    shm_dir.chmod(0o755)
    # Root may write anywhere, so it becomes nobody once it has imported what it needs.
    script = (
        "import os, sys; from kvcached import shm\n"
        f"if os.getuid() == 0: os.setuid({NOBODY})\n"
        "shm.directory(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(rows)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    refusal = f"SharedMemoryError: kvcached: {rows}: not a directory to write in"
    assert refusal in done.stderr


def test_the_default_directory_of_somebody_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, shm_dir: Path
) -> None:
    foreign = os.stat_result([0o40777, 0, 0, 0, NOBODY, *[0] * 5])
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr(Path, "lstat", lambda _: foreign)
    with pytest.raises(shm.SharedMemoryError, match=f"belongs to user {NOBODY}"):
        shm.directory()


def test_a_link_in_the_place_of_the_default_directory_is_refused(
    monkeypatch: pytest.MonkeyPatch, shm_dir: Path
) -> None:
    link = shm_dir / "link"
    link.symlink_to(shm_dir)
    info = link.lstat()
    monkeypatch.setattr(os, "getuid", lambda: info.st_uid)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr(Path, "lstat", lambda _: info)
    with pytest.raises(shm.SharedMemoryError, match="not a directory"):
        shm.directory()


def test_a_configured_directory_may_be_a_link_and_anybodys(shm_dir: Path) -> None:
    link = shm_dir / "link"
    (shm_dir / "rows").mkdir()
    link.symlink_to(shm_dir / "rows")
    assert shm.directory(str(link)) == link


def test_a_row_is_named_for_its_engine_and_rank(shm_dir: Path) -> None:
    assert shm.row_path(shm_dir, "kvcached_vllm-ab12-dp0", 3).name == "kvcached_vllm-ab12-dp0.3.row"


def test_odd_characters_in_an_engines_name_leave_no_directory(shm_dir: Path) -> None:
    path = shm.row_path(shm_dir, "../a b/ü", 0)
    assert path.parent == shm_dir
    assert path.name == "..-a-b--.0.row"


def test_rows_of_two_ranks_never_share_a_file(shm_dir: Path) -> None:
    assert len({shm.row_path(shm_dir, "e", rank) for rank in range(100)}) == 100


def test_a_directory_with_room_passes(shm_dir: Path) -> None:
    shm.check_room(shm_dir)


@pytest.mark.parametrize(
    ("flags", "blocks", "reason"),
    [
        (os.ST_RDONLY, 10**6, "Read-only file system"),
        (0, 3, "12288 bytes free, 4194304 needed"),
    ],
)
def test_a_file_system_without_room_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, shm_dir: Path, flags: int, blocks: int, reason: str
) -> None:
    found = SimpleNamespace(f_flag=flags, f_bavail=blocks, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    with pytest.raises(shm.SharedMemoryError) as caught:
        shm.check_room(shm_dir)
    line = str(caught.value)
    assert line.startswith(f"kvcached: {shm_dir}: {reason}; ")
    assert "--shm-size" in line
