"""vLLM's sources, read and not run.

They are parsed, not imported: vLLM's platform plugin asks before vLLM knows its platform, and most
of vLLM cannot be imported then. So they may also be those of a vLLM that lies unpacked on a machine
where it cannot run. The standard library alone.
"""

from __future__ import annotations

import ast
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sources:
    """vLLM's modules, as files below one folder."""

    def __init__(self, root: Path) -> None:
        """`root` is the folder of the package vllm."""
        self._root = root
        self._parsed: dict[str, ast.Module | None] = {}

    def module(self, path: str) -> ast.Module | None:
        """A module by its path below the package, or None where there is none."""
        if path not in self._parsed:
            file = self._root / path
            self._parsed[path] = ast.parse(file.read_bytes()) if file.is_file() else None
        return self._parsed[path]

    def type(self, path: str, name: str) -> Type | None:
        """A class of a module, or None."""
        module = self.module(path)
        for node in module.body if module else ():
            if isinstance(node, ast.ClassDef) and node.name == name:
                return Type(node)
        return None

    def function(self, path: str, name: str) -> ast.FunctionDef | None:
        """A function of a module, or None."""
        module = self.module(path)
        for node in module.body if module else ():
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        return None

    def paths(self, pattern: str) -> Iterator[str]:
        """The modules whose path matches a glob pattern."""
        for file in sorted(self._root.glob(pattern)):
            yield str(file.relative_to(self._root))


class Type:
    """A class in a source."""

    def __init__(self, node: ast.ClassDef) -> None:
        self._node = node

    @cached_property
    def methods(self) -> dict[str, ast.FunctionDef]:
        """Its own methods and properties, by name."""
        return {node.name: node for node in self._node.body if isinstance(node, ast.FunctionDef)}

    @cached_property
    def attributes(self) -> set[str]:
        """Its fields, its properties, and what its methods assign to ``self``."""
        found = {
            node.target.id
            for node in self._node.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        found.update(self.methods)
        for node in ast.walk(self._node):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            for target in (each for one in targets for each in ast.walk(one)):
                if isinstance(target, ast.Attribute) and name_of(target.value) == "self":
                    found.add(target.attr)
        return found


def installed() -> Sources:
    """The vLLM of this environment. Raises ImportError where there is none."""
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("vLLM is not installed")
    return Sources(Path(next(iter(found.submodule_search_locations))))


def name_of(node: Any) -> str | None:
    """The name, or the last part of a dotted one, that an expression is; None for any other."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
