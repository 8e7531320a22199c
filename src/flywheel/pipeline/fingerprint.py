"""Digest the code that determines a result. Comments, docstrings and layout do not change the digest."""

from __future__ import annotations

import ast
import functools
import hashlib
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
        source = source_of(module)
        found[module], imported = _read(source, source.read_bytes())
        waiting += imported
    return dict(sorted(found.items()))


@functools.cache
def _read(source: Path, content: bytes) -> tuple[str, list[str]]:
    """Return the digest of a module and what it imports; computed once for all stages of a process."""
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        raise FlywheelError(f"{source}:{error.lineno}: {error.msg}; fix it and run again") from None
    return digest(tree), imports(tree)


def digest(tree: ast.AST) -> str:
    """Return the digest of a module's code."""
    return hashlib.sha256("".join(_canonical(tree, [])).encode()).hexdigest()[:16]


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


def _canonical(node: object, text: list[str]) -> list[str]:
    """Add a tree without its docstrings to the text, without empty fields, which differ by Python's version."""
    if isinstance(node, ast.AST):
        text.append(type(node).__name__)
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
            if value is not None and value != [] and name not in ("type_comment", "kind"):
                text.append(f"({name}=")
                _canonical(value, text)
                text.append(")")
    elif isinstance(node, list):
        for item in node:
            _canonical(item, text)
            text.append(",")
    else:
        text.append(repr(node))
    return text
