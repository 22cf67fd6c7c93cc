"""What users set in the environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kvcached.sizes import parse_size


class SettingsError(ValueError):
    """A variable that does not parse: its name, its value and what is allowed, in one line."""


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str | int) else value


def _log_level(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_log_level)
]


class Settings(BaseSettings):
    """The ``KVCACHED_*`` variables, read once at start. Sizes are bytes."""

    model_config = SettingsConfigDict(
        env_prefix="KVCACHED_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    enabled: bool = Field(
        True,
        validation_alias=AliasChoices("ENABLE_KVCACHED"),
        description="Whether engines start elastic.",
    )
    required: bool = Field(
        False, description="Refuse to start where the cache cannot be elastic."
    )
    limit: Size = Field(
        0,
        description="Most physical memory of the KV cache on each rank; 0 takes what the engine "
        "would have reserved. A size such as 512M or 4GiB.",
    )
    max_cached_tokens: int = Field(
        16000,
        ge=-1,
        description="Tokens of finished requests kept as a prefix cache; -1 for no cap, 0 for none.",
    )
    min_reserved_pages: int = Field(
        1, ge=0, description="Fewest free extents kept committed ahead of need."
    )
    max_reserved_pages: int = Field(
        10, ge=0, description="Most free extents kept committed ahead of need."
    )
    page_size_mb: int = Field(
        0,
        ge=0,
        description="Least MiB of one part of an extent; 0 chooses the smallest that fits the "
        "driver's granule.",
    )
    layout: Literal["auto", "block", "layer"] = Field(
        "auto", description="How the cache is laid out, where the engine leaves a choice."
    )
    ipc_name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="A name for this engine's entries in shared memory.",
    )
    shm_dir: str = Field(
        "", description="Directory for shared memory; empty for /dev/shm/kvcached-UID."
    )
    log_level: LogLevel = Field("INFO", description="Level of kvcached's own log lines.")

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


_ALLOWED = {
    bool: "true or false",
    int: "a whole number",
}


def _allowed(field: str) -> str:
    info = Settings.model_fields[field]
    annotation = info.annotation
    if annotation is bool:
        return "true or false"
    bounds = [str(bound.ge) for bound in info.metadata if getattr(bound, "ge", None) is not None]
    if annotation is int and bounds:
        return f"a whole number from {bounds[0]} on"
    if annotation is str:
        return "letters, digits, '.', '_' and '-'"
    choices = getattr(annotation, "__args__", None)
    return "one of " + ", ".join(map(str, choices)) if choices else "see the documentation"


def load() -> Settings:
    """Reads the environment. Raises SettingsError for the first variable that does not parse."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise SettingsError(f"kvcached: {first['ctx']['error']}") from None
        name = str(first["loc"][0])
        field = "enabled" if name == "ENABLE_KVCACHED" else name.removeprefix("KVCACHED_").lower()
        reason = first["msg"].removeprefix("Value error, ")
        if "allowed is" not in reason:
            reason = f"allowed is {_allowed(field)}"
        value = os.environ.get(variable_of(field), first["input"])
        raise SettingsError(f"kvcached: {variable_of(field)}={value}: {reason}") from None


#: Variables of the peer project that need nothing here, and why.
REPLACED = {
    "KVCACHED_AUTOPATCH": "nothing is patched; the plugin entry points attach kvcached",
    "KVCACHED_CONTIGUOUS_LAYOUT": "set KVCACHED_LAYOUT=block or layer",
    "KVCACHED_PAGE_PREALLOC_ENABLED": "set KVCACHED_MIN_RESERVED_PAGES and "
    "KVCACHED_MAX_RESERVED_PAGES",
}


def unread(environment: Mapping[str, str]) -> list[str]:
    """A line for each ``KVCACHED_*`` variable that is set and not read, with what to do."""
    known = {variable_of(field) for field in Settings.model_fields}
    lines = []
    for name in sorted(environment):
        if not name.startswith("KVCACHED_") or name in known:
            continue
        if name in REPLACED:
            lines.append(f"kvcached: {name} is not read: {REPLACED[name]}")
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        lines.append(f"kvcached: {name} is not read by this version{hint}")
    return lines
