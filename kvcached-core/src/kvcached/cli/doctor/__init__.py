"""``kvctl doctor``: what is wrong with this machine and environment, and what to do."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer  # noqa: TC002 - it reads the annotations itself
from rich.text import Text

from kvcached.cli.doctor import engines, environment, installation, leftovers, machine
from kvcached.cli.outcome import CommandError, Exit, console, say_json
from kvcached.cli.place import AsJson, configured_directory, directory_of, sharing_group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvcached.cli.doctor.finding import Finding

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(doctor)


def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Check installation, machine, environment and leftovers; exit code 1 if one fails."""
    findings = list(_examine(context))
    counts = Counter(finding.level for finding in findings)
    if as_json:
        say_json({**counts, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        output = console()
        for finding in findings:
            output.print(_line(finding))
    if counts["fail"]:
        raise CommandError(f"{counts['fail']} of {len(findings)} checks failed", Exit.FAILED)


def _examine(context: typer.Context) -> Iterator[Finding]:
    yield from installation.check()
    yield from environment.check()
    yield from engines.check()
    # A directory that cannot be had is a finding here, and no reason to end.
    try:
        directory = directory_of(context)
    except CommandError:
        own = f"/dev/shm/kvcached-{sharing_group() or os.getuid()}"
        directory = Path(configured_directory(context) or own)
    yield from machine.check(directory, shared=bool(sharing_group()))
    yield from leftovers.check(directory)


def _line(finding: Finding) -> Text:
    line = Text(f"{finding.level:<4} ", _STYLES[finding.level])
    line.append(f"{finding.subject}: {finding.text}", "default")
    if finding.advice:
        line.append(f"\n     -> {finding.advice}", "bold default")
    return line
