"""The hand-written _C.pyi says exactly what the module is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from miniature import Cache

from kvcached import _C

STUB = ast.parse(files("kvcached").joinpath("_C.pyi").read_text())
# What the binding layer can only call an object, a list or a text.
SHARPER = re.compile(r"\b(object|dict|ndarray|list(?!\[))")
SHARPER_TEXTS = {"Row.state", "Lease.resize"}


def stub_types() -> set[str]:
    """Classes that exist for type checkers alone."""
    return {
        node.name
        for node in STUB.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(d, ast.Name) and d.id == "type_check_only" for d in node.decorator_list)
    }


def decorators(node: ast.FunctionDef) -> set[str]:
    return {ast.unparse(decorator) for decorator in node.decorator_list}


def parameters(arguments: ast.arguments) -> str:
    """Names and defaults, without annotations."""
    plain = ast.parse(ast.unparse(arguments).join(["def f(", "): ..."])).body[0]
    assert isinstance(plain, ast.FunctionDef)
    for argument in [*plain.args.posonlyargs, *plain.args.args, *plain.args.kwonlyargs]:
        argument.annotation = None
    return ast.unparse(plain.args)


def in_stub() -> Iterator[str]:
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            yield f"{node.name}({parameters(node.args)})"
        elif isinstance(node, ast.ClassDef) and node.name not in stub_types():
            yield f"class {node.name}"
            for member in node.body:
                if isinstance(member, ast.AnnAssign):
                    yield f"{node.name}.{ast.unparse(member.target)}"
                elif isinstance(member, ast.FunctionDef):
                    yield stub_member(f"{node.name}.{member.name}", member)


def stub_member(name: str, member: ast.FunctionDef) -> str:
    found = decorators(member)
    if "property" in found:
        return f"property {name}"
    if f"{member.name}.setter" in found:
        return f"setter {name}"
    static = "static " if "staticmethod" in found else ""
    return f"{static}{name}({parameters(member.args)})"


def signature(function: Any) -> ast.FunctionDef:
    """A bound function's signature, from what nanobind keeps for stub generators."""
    ((text, _, defaults),) = function.__nb_signature__
    text = re.sub(r"\\(\d+)", lambda match: repr(defaults[int(match[1])]), text)
    text = text.replace("collections.abc.", "").replace("kvcached._C.", "")
    text = re.sub(r"ndarray\[.*\]", "ndarray", text)
    node = ast.parse(text.replace("def (", "def f(") + ": ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def bound() -> Iterator[tuple[str, Any]]:
    """Every public thing of the module, with what it is."""
    for name, thing in vars(_C).items():
        if not name.startswith("_"):
            yield name, thing
            if isinstance(thing, type) and not issubclass(thing, Exception):
                for member, value in vars(thing).items():
                    if not member.startswith("_") or member == "__init__":
                        yield f"{name}.{member}", value


def is_static_property(thing: object) -> bool:
    """Whether it is a property of the class itself, which a stub calls an attribute."""
    return type(thing).__name__ == "nb_static_property"


def in_module() -> Iterator[str]:
    for name, thing in bound():
        if isinstance(thing, type):
            yield f"class {name}"
        elif is_static_property(thing):
            yield name
        elif isinstance(thing, property):
            yield f"property {name}"
            if thing.fset is not None:
                yield f"setter {name}"
        elif hasattr(thing, "__nb_signature__"):
            static = "static " if "." in name and type(thing).__name__ == "nb_func" else ""
            yield f"{static}{name}({parameters(signature(thing).args)})"
        elif not name.endswith("__init__"):  # one that only refuses to construct
            yield name


def test_names_parameters_and_defaults_are_the_modules() -> None:
    assert sorted(in_stub()) == sorted(in_module())


def annotations(node: ast.FunctionDef) -> dict[str, str]:
    found = {argument.arg: argument.annotation for argument in node.args.args}
    found["return"] = node.returns
    return {name: ast.unparse(note) for name, note in found.items() if note is not None}


def stub_annotations() -> dict[str, dict[str, str]]:
    found = {}
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = annotations(node)
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and len(decorators(member)) < 2:
                    found.setdefault(f"{node.name}.{member.name}", annotations(member))
    return found


def module_annotations() -> dict[str, dict[str, str]]:
    found = {}
    for name, thing in bound():
        function = thing.fget if isinstance(thing, property) else thing
        if hasattr(function, "__nb_signature__") and not is_static_property(thing):
            found[name] = annotations(signature(function))
    return found


def test_types_are_the_modules_or_sharper() -> None:
    stub = stub_annotations()
    differences = [
        f"{name}: {what} is {said} in the module, {stub.get(name, {}).get(what)} in the stub"
        for name, notes in module_annotations().items()
        for what, said in notes.items()
        if name not in SHARPER_TEXTS
        and not SHARPER.search(said)
        and said != stub.get(name, {}).get(what)
    ]
    assert differences == []


def test_everything_in_the_stub_has_a_docstring() -> None:
    missing = [
        node.name
        for node in ast.walk(STUB)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        and not ast.get_docstring(node)
        and node.name != "block_id"
        and not (isinstance(node, ast.FunctionDef) and any("setter" in d for d in decorators(node)))
    ]
    assert missing == []


def test_a_rows_description_has_exactly_the_keys_and_types_of_the_stub(open_cache: Any) -> None:
    cache: Cache = open_cache()
    (node,) = (n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "RowDescription")
    declared = {
        ast.unparse(item.target): ast.unparse(item.annotation)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
    }
    declared["mode"] = "str"  # a Literal
    described = {key: type(value).__name__ for key, value in cache.row.describe().items()}
    assert described == declared


@pytest.mark.parametrize("state", ["absent", "wanted", "committed", "releasing", "denied"])
def test_the_stub_knows_every_extent_state(state: str) -> None:
    assert f"'{state}'" in stub_annotations()["Row.state"]["return"]
