"""Digest the code that determines a result. Comments, docstrings and layout do not change the digest."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from flywheel import FlywheelError

PACKAGE = Path(__file__).parents[1]

# Packages that store, record or show a result and do not change it. Everything else that a stage imports is its code.
# `params` is left out because the stage's identity has its values.
EXCLUDED = ("cli", "commands", "files", "params", "pipeline", "registry", "tracking")


def digests(*roots: str) -> dict[str, str]:
    """Return module -> digest for the root modules and all they import from this package, except EXCLUDED."""
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module in found or excluded(module):
            continue
        try:
            tree = ast.parse(source_of(module).read_bytes())
        except SyntaxError as error:
            raise FlywheelError(f"{source_of(module)}:{error.lineno}: {error.msg}; fix it and run again") from None
        found[module] = hashlib.sha256("".join(_canonical(_without_docstrings(tree))).encode()).hexdigest()[:16]
        waiting += imports(tree)
    return dict(sorted(found.items()))


def excluded(module: str) -> bool:
    """Return whether no fingerprint includes a module of this package."""
    parts = module.split(".")
    return len(parts) == 1 or parts[1] in EXCLUDED


def imports(tree: ast.AST) -> list[str]:
    """Return the modules of this package that a tree imports, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if _is_module(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module and _is_module(node.module):
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [member for member in members if _is_module(member)]
            found |= set(modules) if len(modules) == len(members) else {node.module, *modules}
    return sorted(found)


def source_of(module: str) -> Path:
    """Return the file of a module of this package."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return name.split(".")[0] == "flywheel" and source_of(name).is_file()


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                node.body = body[1:]
    return tree


def _canonical(node: object) -> Iterator[str]:
    """Yield the tree as text, without empty fields, because those differ among versions of Python."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if value is not None and value != [] and name not in ("type_comment", "kind"):
                yield f"({name}="
                yield from _canonical(value)
                yield ")"
    elif isinstance(node, list):
        for item in node:
            yield from _canonical(item)
            yield ","
    else:
        yield repr(node)
