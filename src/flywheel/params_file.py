"""params.yaml, a profile and overrides -> Params, or one line for each mistake.

The chosen profile lies over the file, then single values (`a.b=c`). Each mistake is reported with the key's path and,
for an unknown key, the nearest valid one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flywheel import FlywheelError
from flywheel.params import Params, Section, Sweep, explain, nearest

# What pydantic puts behind a key to name the branch of a union: int, literal['auto'], function-after[…].
UNION_BRANCH = re.compile(r"(int|float)$|[a-z-]+\[|constrained-")


class ParamsError(FlywheelError):
    """params.yaml, PROFILE or SET is wrong; one line a mistake."""


def load(path: Path | str = "params.yaml", profile: str = "cifar10", overrides: str = "") -> Params:
    """Return the params of a profile with overrides such as `sweep.trials=4 sweep.first=[{}]` applied.

    Raises ParamsError with one line a mistake.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); run from the repository's root") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{path}: must be a mapping of sections such as data: and sweep:")
    profiles = tree.pop("profiles", None)
    if not isinstance(profiles, dict) or not profiles:
        raise ParamsError(f"{path}: profiles: must name at least one profile")
    if profile not in profiles:
        raise ParamsError(f"PROFILE={profile}: unknown profile; choose one of {', '.join(map(str, profiles))}")
    tree = overlay(tree, profiles[profile] or {}, Params, f"profiles.{profile}")
    for key, value in parse_overrides(overrides):
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        tree = overlay(tree, nested, Params, "SET")
    if "profile" in tree:
        raise ParamsError(f"{path}: profile: unknown key; PROFILE=name chooses a profile")
    try:
        return Params.model_validate({**_tuples(tree), "profile": profile})
    except ValidationError as error:
        raise ParamsError("\n".join(_lines(error, str(path)))) from None


def parse_overrides(text: str) -> list[tuple[str, Any]]:
    """Split `a.b=c d.e=[x, y]` into keys and YAML values. Raises ParamsError."""
    pairs = []
    for item in re.split(r"\s+(?=[A-Za-z_][\w.]*=)", text.strip()):
        key, equals, value = item.partition("=")
        if not item:
            continue
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", key):
            raise ParamsError(f"SET: {item!r} is not of the form section.key=value")
        try:
            pairs.append((key, yaml.load(value, Loader=_Loader)))
        except (yaml.YAMLError, ValueError):
            raise ParamsError(f"SET: {key}: {value!r} is not a YAML value") from None
    return pairs


def overlay(base: Any, over: Any, model: type[BaseModel], where: str) -> dict[str, Any]:
    """Return `base` with `over` put over it: sections and sweep.space merge, values are replaced whole."""
    if not isinstance(over, dict) or not isinstance(base, dict):
        raise ParamsError(f"{where}: must be a mapping of keys to values")
    merged = dict(base)
    for key, value in over.items():
        field = model.model_fields.get(key)
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, Section):
            merged[key] = overlay(base.get(key) or {}, value, kind, f"{where}.{key}")
        elif model is Sweep and key == "space" and isinstance(value, dict):
            merged[key] = {**(base.get(key) or {}), **value}
        else:
            merged[key] = value
    return merged


def _lines(error: ValidationError, path: str) -> list[str]:
    """Return a line for each key that is wrong; what the branches of a union say is one line."""
    reasons: dict[str, list[str]] = {}
    for entry in error.errors():
        location = [str(part) for part in entry["loc"] if not UNION_BRANCH.match(str(part))]
        if entry["type"] == "extra_forbidden":
            model: Any = Params
            for part in location[:-1]:
                model = model.model_fields[part].annotation
            reason = f"unknown key{nearest(location[-1], model.model_fields)}"
        else:
            reason = explain(entry)
        reasons.setdefault(".".join(location), []).append(reason)
    return [f"{path}: {key}{': ' if key else ''}{', or '.join(found)}" for key, found in reasons.items()]


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number and a key may stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key} stands twice (line {node.start_mark.line + 1} and below)")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
