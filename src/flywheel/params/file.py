"""params.yaml, a profile and overrides -> Params, or one line for each mistake.

The chosen profile overrides the file, and single values (`a.b=c`) override both. Each mistake is reported with its
origin (the file, the profile in it, or SET), the key's full path and, for an unknown key, the nearest valid one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import ValidationError

from flywheel import FlywheelError
from flywheel.params import Params, Sweep
from flywheel.params.base import Section
from flywheel.params.errors import dotted, either, explain, nearest, show, show_value

Key = tuple[str, ...]
# Keys of earlier versions.
RENAMED: dict[Key, Key] = {("sweep", "first"): ("sweep", "initial_trials")}
REMOVED: dict[Key, str] = {("evaluate",): "was removed with its only param, test_time_augmentation; delete it"}


class ParamsError(FlywheelError):
    """params.yaml, PROFILE or SET is wrong; one line per mistake."""


def load(path: Path | str = "params.yaml", profile: str = "cifar10", overrides: str = "") -> Params:
    """Return the params of a profile with overrides such as `sweep.trials=4 sweep.initial_trials=[{}]` applied.

    Raises ParamsError with one line per mistake.
    """
    tree = _read(path)
    if not isinstance(tree, dict):
        raise ParamsError(f"{path}: must be a mapping of sections such as data: and sweep:")
    profiles = tree.pop("profiles", None)
    if not isinstance(profiles, dict) or not profiles:
        raise ParamsError(f"{path}: profiles: must name at least one profile")
    if profile not in profiles:
        known = ", ".join(map(show, profiles))
        raise ParamsError(f"PROFILE={show(profile)}: unknown profile; choose one of {known}")
    over = {} if profiles[profile] is None else profiles[profile]
    if "profile" in tree:
        raise ParamsError(f"{path}: profile: unknown key; PROFILE=name chooses a profile")
    inside = f"profiles.{show(profile)}"
    layers: list[tuple[str, Any]] = [(f"{path}: {inside}.", over)]  # the last one first
    tree = overlay(tree, over, Params, f"{path}: ", f"{path}: {inside}")
    for key, value in parse_overrides(overrides):
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        if key.startswith("profile."):
            raise ParamsError("SET: profile: unknown key; PROFILE=name chooses a profile")
        layers.insert(0, ("SET: ", nested))
        tree = overlay(tree, nested, Params, f"{path}: ", "SET: ")
    try:
        return Params.model_validate({**tree, "profile": profile})
    except ValidationError as error:
        raise ParamsError("\n".join(_lines(error, str(path), layers))) from None


def parse_overrides(text: str) -> list[tuple[str, Any]]:
    """Split `a.b=c d.e=[x, y]` into keys and YAML values. Raises ParamsError."""
    pairs = []
    for item in re.split(r"\s+(?=[A-Za-z_][\w.]*=)", text.strip()):
        key, equals, value = item.partition("=")
        if not item:
            continue
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", key):
            raise ParamsError(f"SET: {show_value(item)} is not of the form section.key=value")
        try:
            pairs.append((key, _plain(yaml.load(value, Loader=_Loader))))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ParamsError(f"SET: {key}: {show_value(value)} is not a YAML value") from None
    return pairs


def overlay(base: Any, over: Any, model: type[Section], base_at: str, over_at: str) -> dict[str, Any]:
    """Return `base` with the values of `over`: sections and sweep.space are merged, other values replaced.

    `base_at` and `over_at` are the origins of the two, for the error when one is not a mapping.
    """
    for value, origin in ((base, base_at), (over, over_at)):
        if not isinstance(value, dict):
            raise ParamsError(
                f"{origin.removesuffix(': ')}: must be a mapping of keys to values (got {show_value(value)})"
            )
    merged = dict(base)
    for key, value in over.items():
        if kind := model.section(key):
            former = {} if base.get(key) is None else base[key]
            merged[key] = overlay(former, value, kind, _below(base_at, key), _below(over_at, key))
        elif model is Sweep and key == "space" and isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = {**base[key], **value}
        else:
            merged[key] = value
    return merged


def _below(origin: str, key: str) -> str:
    return f"{origin}{key}" if origin.endswith(": ") else f"{origin}.{key}"


def _read(path: Path | str) -> Any:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); run from the repository's root") from None
    except ValueError as error:
        raise ParamsError(f"--params: {error}") from None
    try:
        return _plain(yaml.load(data.decode(), Loader=_Loader))
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}:{data.count(10, 0, error.start) + 1}: not UTF-8 text") from None
    except yaml.reader.ReaderError as error:
        line = data.decode().count("\n", 0, error.position) + 1
        raise ParamsError(f"{path}:{line}: not valid YAML: a control character") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise ParamsError(
            f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {' '.join(reason.split())}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else show(str(error))
        raise ParamsError(f"{path}:1: not valid YAML: {reason}") from None


def _lines(error: ValidationError, path: str, layers: Sequence[tuple[str, Any]]) -> list[str]:
    """Return a line for each wrong key. It names the last layer that touched the key; a union's messages are joined."""
    reasons: dict[Key, list[str]] = {}
    for entry in error.errors():
        key = _key(entry["loc"])
        if key in RENAMED:
            reason = f"is now {dotted(RENAMED[key])}"
        elif key in REMOVED:
            reason = REMOVED[key]
        elif entry["type"] == "extra_forbidden":
            reason = f"unknown key{nearest(key[-1], _siblings(key), '.'.join(key[:-1]), list(_keys(Params)))}"
        else:
            cause = entry.get("ctx", {}).get("error")
            key = getattr(cause, "key", key)
            reason = explain(entry)
        reasons.setdefault(key, []).append(reason)
    for former, name in RENAMED.items():
        if former in reasons and reasons.get(name) == ["is missing"]:
            del reasons[name]
    lines = []
    for key, found in reasons.items():
        origin = next((origin for origin, layer in layers if _touches(layer, key)), f"{path}: ")
        lines.append(f"{origin}{dotted(key)}: {either(found)}")
    return lines


def _key(location: tuple[int | str, ...]) -> Key:
    """Return the key of an error: its location without the names that pydantic adds for the branches of a union."""
    model: type[Section] = Params
    for depth, part in enumerate(location):
        if kind := model.section(str(part)):
            model = kind
            continue
        field = model.model_fields.get(str(part))
        inside = location[depth + 1 :] if field and get_origin(field.annotation) in (dict, tuple) else ()
        found = (*location[: depth + 1], *inside)
        return tuple(f"[{name}]" if isinstance(name, int) else name for name in found if name != "[key]")
    return tuple(map(str, location))


def _siblings(key: Key) -> Sequence[str]:
    model: Any = Params
    for part in key[:-1]:
        model = model.model_fields[part].annotation
    return [name for name in model.model_fields if model is not Params or name != "profile"]


def _keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the full path of every key."""
    for name in model.model_fields:
        if kind := model.section(name):
            yield from _keys(kind, f"{prefix}{name}.")
        elif prefix:
            yield prefix + name


def _touches(layer: Any, key: Key) -> bool:
    """Tell whether a layer sets a key, a value that it is in, or (of a section) a key inside it."""
    for part in key:
        if not isinstance(layer, dict):
            return True
        if part not in layer:
            return False
        layer = layer[part]
    return True


def _plain(value: Any) -> Any:
    """Return the tree with keys as text and lists as tuples, as strict models require."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """YAML where 1e-3 is a number, a key occurs once in a mapping, and aliases are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[str] = []
        for key, _ in node.value:
            name = str(self.construct_object(key, deep=True))
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{show(name)} occurs twice", key.start_mark)
            seen.append(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date like 2026-13-01, a number of 5,000 digits
            raise yaml.constructor.ConstructorError(None, None, show(str(error)), node.start_mark) from None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"*{show(event.anchor)}: aliases are not read; write the value out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
