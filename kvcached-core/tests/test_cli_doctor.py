"""kvctl doctor, in environments that are made wrong in one way each."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_inventory import MIB, Holder, hold

import kvcached

__all__ = ["hold"]

Doctor = Callable[..., dict[str, list[dict[str, Any]]]]


def install(site: Path, name: str, version: str, entries: str = "", record: str = "") -> None:
    """Makes a distribution's metadata, as pip leaves it."""
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "RECORD").write_text(record)
    (metadata / "entry_points.txt").write_text(entries)


@pytest.fixture
def doctor(shm_dir: Path, tmp_path: Path) -> Doctor:
    """Runs the doctor with a site directory and variables; returns the findings by subject."""

    def run(**variables: str) -> dict[str, list[dict[str, Any]]]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("KVCACHED_", "VLLM_", "SGLANG_"))
        }
        path = os.pathsep.join(filter(None, (str(tmp_path), clean.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", "kvcached.cli", "--dir", str(shm_dir), "doctor", "--json"],
            env={**clean, "PYTHONPATH": path, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        found = json.loads(done.stdout)
        failures = sum(finding["level"] == "fail" for finding in found["findings"])
        assert done.returncode == (1 if failures else 0), done.stderr
        by_subject: dict[str, list[dict[str, Any]]] = {}
        for finding in found["findings"]:
            assert "\n" not in finding["text"]
            if finding["level"] == "fail":
                assert finding["advice"]
            by_subject.setdefault(finding["subject"], []).append(finding)
        return by_subject

    return run


def test_a_machine_that_is_well(doctor: Doctor, shm_dir: Path) -> None:
    found = doctor()
    for subject in ("python", "settings", "cpu", "shared memory", "directory", "ledgers"):
        assert [finding["level"] for finding in found[subject]] == ["ok"], subject
    assert kvcached.__version__ in found["python"][0]["text"]
    assert str(shm_dir) in found["directory"][0]["text"]


def test_the_peer_project_is_found_with_the_commands_that_replace_it(
    doctor: Doctor, tmp_path: Path
) -> None:
    install(tmp_path, "kvcached", "0.1.6")
    (finding,) = doctor()["peer"]
    assert finding["level"] == "fail"
    assert "kvcached 0.1.6 is another project" in finding["text"]
    assert finding["advice"].startswith(
        "pip uninstall -y kvcached; pip install --force-reinstall kvcached-core"
    )


def test_versions_that_differ_fail(doctor: Doctor, tmp_path: Path) -> None:
    install(tmp_path, "kvcached-core", kvcached.__version__)
    install(tmp_path, "kvcached-vllm", "9.9.9")
    (finding,) = doctor()["packages"]
    assert finding["level"] == "fail"
    assert "kvcached-vllm 9.9.9" in finding["text"]


def test_files_that_were_overwritten_fail(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("theirs")
    (tmp_path / "untouched.py").write_text("as it was")
    kept = base64.urlsafe_b64encode(hashlib.sha256(b"as it was").digest()).rstrip(b"=").decode()
    install(
        tmp_path,
        "kvcached-core",
        kvcached.__version__,
        record=f"ours.py,sha256=AAAA,6\nuntouched.py,sha256={kept},9\n",
    )
    findings = doctor()["files"]
    assert findings[0]["level"] == "fail"
    assert findings[0]["text"].startswith("ours.py of kvcached-core")
    assert "--force-reinstall" in findings[0]["advice"]


def test_an_entry_point_that_does_not_load_fails(doctor: Doctor, tmp_path: Path) -> None:
    install(
        tmp_path,
        "kvcached-vllm",
        kvcached.__version__,
        entries="[vllm.platform_plugins]\nkvcached = no_such_module:platform\n",
    )
    platform, general = doctor()["plugins"][:2]
    assert platform["level"] == "fail"
    assert "no_such_module:platform does not load" in platform["text"]
    assert "no entry point in vllm.general_plugins" in general["text"]


@pytest.mark.parametrize("allowed", ["", "lora,other"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_filter_that_keeps_us_out_fails(
    doctor: Doctor, tmp_path: Path, engine: str, allowed: str
) -> None:
    install(tmp_path, f"kvcached-{engine}", kvcached.__version__)
    variable = f"{engine.upper()}_PLUGINS"
    plugins = doctor(**{variable: allowed})["plugins"]
    assert any(f"{variable}={allowed}" in finding["text"] for finding in plugins)
    assert any("keeps kvcached out" in finding["text"] for finding in plugins)
    plugins = doctor(**{variable: "lora,kvcached"})["plugins"]
    assert not any("keeps kvcached out" in finding["text"] for finding in plugins)


def test_an_engine_that_is_not_supported_fails(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "abacus.py").write_text(
        "from kvcached.hooks import EngineInfo, hookimpl\n"
        "@hookimpl\n"
        "def kvcached_engine_info():\n"
        "    return EngineInfo('abacus', '1.0', '2.0 or later', 'refused')\n"
    )
    install(tmp_path, "abacus", "1.0", entries="[kvcached]\nabacus = abacus\n")
    (finding,) = doctor()["engines"]
    assert finding["level"] == "fail"
    assert "abacus 1.0 is not supported" in finding["text"]
    assert finding["advice"] == "install abacus 2.0 or later"


def test_variables_that_do_not_parse_fail_and_unread_ones_warn(doctor: Doctor) -> None:
    settings = doctor(KVCACHED_LIMIT="lots", KVCACHED_LIMITS="1")["settings"]
    assert [finding["level"] for finding in settings] == ["fail", "warn"]
    assert "KVCACHED_LIMIT=lots" in settings[0]["text"]
    assert "did you mean KVCACHED_LIMIT?" in settings[1]["text"]


def test_what_the_dead_left_is_told_with_the_command_that_removes_it(
    doctor: Doctor, hold: Callable[..., Holder], shm_dir: Path
) -> None:
    hold("vllm", "ab12", MIB).kill()
    (shm_dir / "vllm-ab12.0.row").write_bytes(b"\0" * 4096)
    found = doctor()
    assert found["ledgers"][0]["text"] == "vllm/ab12 is dead and its lease still there"
    assert found["rows"][0]["text"].startswith("1 left behind")
    assert found["ledgers"][0]["advice"] == found["rows"][0]["advice"] == "kvctl delete"


def test_a_ledger_of_another_version_fails(doctor: Doctor, shm_dir: Path) -> None:
    (shm_dir / "GPU-old.ledger").write_bytes(b"another version's")
    finding = doctor()["ledgers"][0]
    assert finding["level"] == "fail"
    assert f"rm {shm_dir / 'GPU-old.ledger'}" in finding["advice"]


def test_a_directory_that_everybody_may_write_is_a_warning(doctor: Doctor, shm_dir: Path) -> None:
    shm_dir.chmod(0o777)
    (finding,) = doctor()["directory"]
    assert (finding["level"], finding["advice"]) == ("warn", f"chmod 0700 {shm_dir}")
