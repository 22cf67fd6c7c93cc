"""What users set in the environment."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kvcached import sizes

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingsError(ValueError):
    """A variable that does not parse: its name, its value and what is allowed, in one line."""


@dataclass(frozen=True)
class Allowed:
    """What a field may be, as an error says it. Every field carries one."""

    text: str


def _size(value: object) -> object:
    return sizes.parse_size(value) if isinstance(value, str | int) else value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


# The native core counts bytes in 64 bits and extents in 32.
_MOST_BYTES = 2**63 - 1
_MOST_EXTENTS = 2**31 - 1

Flag = Annotated[bool, BeforeValidator(_stripped), Allowed("true or false")]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0, le=_MOST_BYTES), Allowed(sizes.ALLOWED)]
OptionalSize = Annotated[Size | None, Allowed(sizes.ALLOWED)]
Count = Annotated[
    int,
    Field(ge=0, le=_MOST_EXTENTS),
    Allowed(f"a whole number from 0 to {_MOST_EXTENTS}"),
]
Tokens = Annotated[int, Field(ge=-1), Allowed("a whole number from -1 on")]
Share = Annotated[float, Field(gt=0, le=1), Allowed("a number above 0 and up to 1")]
Weight = Annotated[float, Field(ge=0.001, le=1_000_000), Allowed("a number from 0.001 to 1000000")]
Layout = Annotated[
    Literal["auto", "extent", "block", "layer"],
    BeforeValidator(_stripped),
    Allowed("auto, extent, block or layer"),
]
Zeroing = Annotated[
    Literal["auto", "pager", "steps"],
    BeforeValidator(_stripped),
    Allowed("auto, pager or steps"),
]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_stripped), Allowed("text or json")]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_upper),
    BeforeValidator(_stripped),
    Allowed("DEBUG, INFO, WARNING, ERROR or CRITICAL"),
]
Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]*$"), Allowed("letters, digits, '.', '_' and '-'")
]
Directory = Annotated[str, Allowed("the path of a directory")]


class Settings(BaseSettings):
    """The ``KVCACHED_*`` variables, read once at start. Sizes are bytes."""

    model_config = SettingsConfigDict(
        env_prefix="KVCACHED_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    enabled: Flag = Field(
        default=True,
        validation_alias=AliasChoices("ENABLE_KVCACHED"),
        description="Whether engines start elastic.",
    )
    required: Flag = Field(
        default=False, description="Refuse to start where the cache cannot be elastic."
    )
    limit: Size = Field(
        default=0,
        description="Most physical memory of the KV cache on each rank; 0 takes what the engine "
        "would have reserved. A size such as 512M or 4GiB.",
    )
    floor: OptionalSize = Field(
        default=None,
        description="Physical memory of the KV cache guaranteed to each rank while it lives; unset "
        "takes one request of the longest length, at most the rank's equal share of the device. A "
        "size such as 512M or 4GiB.",
    )
    weight: Weight = Field(
        default=1.0,
        description="This engine's share where several want more than the device has, against the "
        "others' weights.",
    )
    capacity: Size = Field(
        default=0,
        description="Most physical memory that the KV caches of all engines on one device hold "
        "together; 0 takes what the device has. Where engines differ, the smallest counts.",
    )
    gpu_utilization: Share = Field(
        default=0.95,
        description="Share of the device's memory that may be used at all, weights and strangers "
        "included. Where engines differ, the smallest counts.",
    )
    max_cached_tokens: Tokens = Field(
        default=16000,
        description="Tokens of finished requests kept as a prefix cache; -1 for no cap, 0 for "
        "none.",
    )
    min_reserved_pages: Count = Field(
        default=1,
        description="Least memory kept committed ahead of need, in pages: what one driver call "
        "commits, which is an extent on the host and up to 64 MiB on a GPU.",
    )
    max_reserved_pages: Count = Field(
        default=10, description="Most memory kept committed ahead of need, in the same pages."
    )
    page_size_mb: Count = Field(
        default=0,
        description="Least MiB of one part of an extent; 0 chooses the smallest that fits the "
        "driver's granule.",
    )
    layout: Layout = Field(
        default="auto", description="How the cache is laid out, where the engine leaves a choice."
    )
    zeroing: Zeroing = Field(
        default="auto",
        description="Who zeroes fresh memory of a GPU: the pager, beside the engine's steps, or "
        "vLLM's steps themselves, on their own stream. auto is steps where nothing else writes to "
        "the cache beside them. SGLang's is the pager's to zero.",
    )
    ipc_name: Name = Field(
        default="", description="A name for this engine's entries in shared memory."
    )
    shm_dir: Directory = Field(
        default="", description="Directory for shared memory; empty for /dev/shm/kvcached-UID."
    )
    shm_group: Name = Field(
        default="",
        description="A group of users who share devices: its members' engines meet in "
        "/dev/shm/kvcached-GROUP. Empty: each user alone.",
    )
    sanity_check: Flag = Field(
        default=False,
        description="Check every step's blocks against the page table, and fill fresh and released "
        "memory with a pattern. Slow; for finding errors.",
    )
    log_level: LogLevel = Field(default="INFO", description="Level of kvcached's own log lines.")
    log_format: LogFormat = Field(
        default="text", description="How events are logged: a line of text, or of JSON."
    )

    @model_validator(mode="after")
    def _slack_bounds_in_order(self) -> Settings:
        if self.min_reserved_pages > self.max_reserved_pages:
            raise ValueError(
                f"KVCACHED_MIN_RESERVED_PAGES={self.min_reserved_pages} is above "
                f"KVCACHED_MAX_RESERVED_PAGES={self.max_reserved_pages}; "
                "allowed is a minimum up to the maximum"
            )
        return self


def variable_of(field: str) -> str:
    """The environment variable that sets a field."""
    return "ENABLE_KVCACHED" if field == "enabled" else f"KVCACHED_{field.upper()}"


def _allowed(field: str) -> str:
    metadata = Settings.model_fields[field].metadata
    return next(item.text for item in metadata if isinstance(item, Allowed))


def load() -> Settings:
    """Reads the environment. Raises SettingsError for the first variable that does not parse."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # no single variable is wrong; the validator wrote the line
            raise SettingsError(f"kvcached: {first['ctx']['error']}") from None
        where = str(first["loc"][0])
        field = next(name for name in Settings.model_fields if where in (name, variable_of(name)))
        variable = variable_of(field)
        # As it was written: pydantic tells what a validator made of it.
        value = os.environ.get(variable, first["input"])
        raise SettingsError(f"kvcached: {variable}={value}: allowed is {_allowed(field)}") from None


#: Variables of the peer project that need nothing here, and why.
REPLACED = {
    "KVCACHED_AUTOPATCH": "nothing is patched; the plugin entry points attach kvcached",
    "KVCACHED_CONTIGUOUS_LAYOUT": "set KVCACHED_LAYOUT=block or layer",
    "KVCACHED_IPC_TIMEOUT": "nothing waits for another process; a dead one is noticed at once",
    "KVCACHED_PAGE_PREALLOC_ENABLED": "set KVCACHED_MIN_RESERVED_PAGES and "
    "KVCACHED_MAX_RESERVED_PAGES",
}


def unread(environment: Mapping[str, str]) -> list[str]:
    """A line for each ``KVCACHED_*`` variable that is set and not read, with what to do."""
    fields = {field.upper(): variable_of(field) for field in Settings.model_fields}
    known = set(fields.values())
    lines = []
    for name in sorted(environment):
        if not name.startswith("KVCACHED_") or name in known:
            continue
        if name in REPLACED:
            lines.append(f"kvcached: {name} is not read: {REPLACED[name]}")
            continue
        # Without the prefix, which would make every name look like every other.
        close = difflib.get_close_matches(name.removeprefix("KVCACHED_"), fields, n=1)
        hint = f"; did you mean {fields[close[0]]}?" if close else ""
        lines.append(f"kvcached: {name} is not read by this version{hint}")
    return lines
