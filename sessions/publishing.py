"""What a public home needs: the wheel under every PyTorch, the site, the workflows."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

from sessions.builds import BUILD, ROOT, core_wheel, wheel_in

# The core's wheel under every PyTorch that it serves. 3.12 has all of them; the other Pythons have
# the oldest that they know, 2.8, and the newest.
TORCH = [
    *(("3.10", version) for version in ("2.4.0", "2.8.0", "2.14.1")),
    *(("3.11", version) for version in ("2.4.0", "2.8.0", "2.13.0", "2.15.0")),
    *(("3.12", f"2.{minor}.0") for minor in range(4, 16)),
    *(("3.13", version) for version in ("2.5.1", "2.8.0", "2.15.0")),
]


@nox.session(reuse_venv=False)
@nox.parametrize("python,torch", TORCH)
def torch(session: nox.Session, torch: str) -> None:
    """The core's wheel with one PyTorch, in an environment that is removed afterwards.

    `nox -s torch -- FOLDER` takes the wheels of a folder instead of building one for each ABI. pip
    prefers PyTorch's CPU build where an index has it (PIP_EXTRA_INDEX_URL); PyPI's takes 6 GB.
    """
    try:
        given = session.posargs
        wheel = wheel_in(session, Path(given[0])) if given else core_wheel(session)
        session.install("--no-cache-dir", f"torch=={torch}", "numpy", "pytest", str(wheel))
        check = f"import torch; assert torch.__version__.split('+')[0] == '{torch}'"
        session.run("python", "-c", check)
        session.run("pytest", "-q", "kvcached-core/tests/test_torch.py")
    finally:
        shutil.rmtree(session.virtualenv.location, ignore_errors=True)


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
