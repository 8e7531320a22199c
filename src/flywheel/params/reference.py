"""Write docs/params.md from the models: type, range, values by profile and description of every param."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.params.base import NOT_IDENTITY, Section, plain

HEADER = """# Params

Here you can look up each key of [`params.yaml`](../params.yaml): its type, range, value in each profile, and effect. If
you change an *identity* param, those of `data`, `sweep` and `evaluate` that use it run again; the others cause no new
start. `make docs` writes this page from the code that checks the params.
"""
EMPTY = "–"
TYPES = {
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping of recipe params to a value, a list or a range",
    "array": "list of mappings",
}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page(source: Path) -> str:
    """Return the page in Markdown."""
    tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    profiles = {name: params_file.load(source, name) for name in tree["profiles"]}
    parts = [HEADER]
    for name, field in Params.model_fields.items():
        if kind := Params.section(name):
            parts.append(f"## {name}\n\n{_text(kind.__doc__)}\n")
            columns = ("key", "type", *profiles, "identity", "what it does")
            parts.append(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
            sections = [getattr(loaded, name) for loaded in profiles.values()]
            parts.append("\n".join(_rows(name, kind, sections, NOT_IDENTITY not in field.metadata)) + "\n")
    return "\n".join(parts)


def _rows(path: str, kind: type[Section], sections: Sequence[Any], identity: bool) -> Iterator[str]:
    schemas = kind.model_json_schema()["properties"]
    for name, field in kind.model_fields.items():
        values = [getattr(section, name) for section in sections]
        if inner := kind.section(name):
            yield from _rows(f"{path}.{name}", inner, values, identity)
            continue
        counts = "yes" if identity and NOT_IDENTITY not in field.metadata else EMPTY
        cells = (f"`{path}.{name}`", _type(schemas[name]), *map(_value, values), counts, _text(field.description))
        yield f"| {' | '.join(cells)} |"


def _type(schema: Mapping[str, Any]) -> str:
    """Return a type with its limits, of its JSON schema."""
    kinds = schema.get("anyOf", [schema])
    names = [name for one in kinds for name in _names(one)]
    limits = [f"{sign} {one[key]:,}" for one in kinds for key, sign in LIMITS.items() if key in one]
    return ", ".join([" or ".join(names), *limits])


def _names(schema: Mapping[str, Any]) -> list[str]:
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [f"`{choice}`" for choice in choices] or [TYPES[schema["type"]]]


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
