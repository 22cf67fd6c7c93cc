"""The directory that kvctl looks at, and what is in it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kvcached import inventory, shm
from kvcached.cli.outcome import not_found, refused

#: Of the option that `program` declares.
DIRECTORY = "directory"


@dataclass(frozen=True)
class Reading:
    """What is in the directory at one moment."""

    directory: Path
    devices: list[inventory.Device]
    problems: list[inventory.Problem]

    @property
    def instances(self) -> list[inventory.Instance]:
        """The engines, by name."""
        return inventory.instances(self.devices)

    def find(self, name: str) -> inventory.Found:
        """Whom a name stands for; CommandError where it is nobody's."""
        try:
            return inventory.find(name, self.instances)
        except inventory.UnknownName as error:
            raise not_found(f"{error} in {self.directory}") from None

    def narrowed(self, name: str) -> Reading:
        """The same with the leases of one name alone; nobody's where it has ended meanwhile."""
        try:
            kept = set(inventory.find(name, self.instances).leases)
        except inventory.UnknownName:
            kept = set()
        narrowed = [
            dataclasses.replace(
                device, leases=tuple(lease for lease in device.leases if lease in kept)
            )
            for device in self.devices
        ]
        return dataclasses.replace(self, devices=narrowed)

    def device(self, id: str) -> inventory.Device:
        """The device of this id."""
        return next(device for device in self.devices if device.id == id)


def directory_of(context: typer.Context) -> Path:
    """What ``--dir`` or KVCACHED_SHM_DIR say, or the user's own; CommandError where it is none."""
    configured = configured_directory(context)
    if configured:
        if not Path(configured).is_dir():
            raise not_found(f"{configured}: no such directory; no engine has run there")
        return Path(configured)
    try:
        return shm.directory(group=sharing_group())
    except shm.SharedMemoryError as error:
        raise refused(str(error).removeprefix("kvcached: ")) from None


def configured_directory(context: typer.Context) -> str:
    """What ``--dir`` or KVCACHED_SHM_DIR say, or an empty text."""
    return context.find_root().params.get(DIRECTORY) or ""


def sharing_group() -> str:
    """The group of users who share devices. The settings read it, too; they cost 0.4 s."""
    return os.environ.get("KVCACHED_SHM_GROUP", "")


def read(context: typer.Context) -> Reading:
    """Everything in the directory that the command was given."""
    return reading(directory_of(context))


def reading(directory: Path) -> Reading:
    """Everything in a directory."""
    return Reading(directory, *inventory.devices(directory))


def _complete(context: typer.Context, incomplete: str) -> list[str]:
    try:
        found = read(context).instances
    except Exception:  # a shell that completes has no place for an error
        return []
    names = sorted({member.group for member in found} | {member.name for member in found})
    return [name for name in names if name.startswith(incomplete)]


def _argument(help: str) -> Any:
    return typer.Argument(help=help, autocompletion=_complete, show_default=False)


Name = Annotated[str, _argument("GROUP, or GROUP/INSTANCE; INSTANCE may be shortened.")]
AnyName = Annotated[str, _argument("GROUP or GROUP/INSTANCE; left out: all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
