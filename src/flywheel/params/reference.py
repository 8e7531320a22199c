"""Write docs/params.md from the models: type, range, values by profile and description of every param."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo

from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.params.base import NOT_IDENTITY, Section, plain

HEADER = """# Params

Here you can look up each key of [`params.yaml`](../params.yaml): its type, range, value in each profile, and effect. If
you change an *identity* param, those of `data`, `sweep` and `evaluate` that use it run again; the others cause no new
start. `make docs` writes this page from the code that checks the params.
"""
EMPTY = "–"


def page(source: Path) -> str:
    """Return the page in Markdown."""
    tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    profiles = {name: params_file.load(source, name) for name in tree["profiles"]}
    parts = [HEADER]
    for name, field in Params.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            columns = " | ".join(profiles)
            parts.append(f"## {name}\n\n{_text(kind.__doc__)}\n")
            parts.append(f"| key | type | {columns} | identity | what it does |\n|{' --- |' * (len(profiles) + 4)}")
            sections = {profile: getattr(loaded, name) for profile, loaded in profiles.items()}
            identity = not any(mark is NOT_IDENTITY for mark in field.metadata)
            parts.append("\n".join(_rows(name, kind, sections, identity)) + "\n")
    return "\n".join(parts)


def _rows(path: str, kind: type[Section], values: Mapping[str, Any], identity: bool) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        held = {profile: getattr(value, name) for profile, value in values.items()}
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _rows(f"{path}.{name}", inner, held, identity)
            continue
        shown = " | ".join(_value(value) for value in held.values())
        counts = "yes" if identity and not any(mark is NOT_IDENTITY for mark in field.metadata) else EMPTY
        yield f"| `{path}.{name}` | {_type(field)} | {shown} | {counts} | {_text(field.description)} |"


def _type(field: FieldInfo) -> str:
    names = " or ".join(_names(field.annotation))
    limits = [text for mark in field.metadata for text in _limits(mark)]
    for part in get_args(field.annotation):
        limits += [text for mark in getattr(part, "__metadata__", ()) for text in _limits(mark)]
    return f"{names}{', ' if limits else ''}{', '.join(dict.fromkeys(limits))}"


def _names(kind: Any) -> list[str]:
    if hasattr(kind, "__metadata__"):
        return _names(kind.__origin__)
    if get_origin(kind) is Literal:
        return [f"`{choice}`" for choice in get_args(kind)]
    if get_origin(kind) in (Union, types.UnionType):
        return [name for part in get_args(kind) for name in _names(part)]
    if get_origin(kind) is dict:
        return ["mapping of recipe params to a value, a list or a range"]
    if get_origin(kind) is tuple:
        return ["list of mappings"]
    return {float: ["number"], int: ["whole number"], str: ["text"], bool: ["true or false"]}.get(kind, ["null"])


def _limits(mark: Any) -> Iterator[str]:
    if isinstance(mark, FieldInfo):
        for inner in mark.metadata:
            yield from _limits(inner)
    for kind, attribute, sign in (
        (annotated_types.Ge, "ge", "≥"), (annotated_types.Gt, "gt", ">"),
        (annotated_types.Le, "le", "≤"), (annotated_types.Lt, "lt", "<"),
    ):  # fmt: skip
        if isinstance(mark, kind):
            yield f"{sign} {getattr(mark, attribute):,}"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_domain(plain(domain))}" for name, domain in value.items())
    if isinstance(value, tuple):
        return f"`{yaml.safe_dump(plain(value), default_flow_style=True).strip()}`"
    return f"{plain(value)}"


def _domain(domain: Mapping[str, Any]) -> str:
    if "choices" in domain:
        return ", ".join(str(choice) for choice in domain["choices"])
    if "low" in domain:
        return f"{domain['low']:g} to {domain['high']:g}{' (log)' if domain['log'] else ''}"
    return ", ".join(f"{name} {_domain(inner)}" for name, inner in domain["domains"].items())


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
