"""Describe a mistake in params.yaml in one line, printable and short for any content of the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MAX_SHOWN = 100  # letters of a name or value


class KeyedError(ValueError):
    """An error that a check over several keys found in one of them."""

    def __init__(self, key: tuple[str, ...], reason: str):
        super().__init__(reason)
        self.key = key


def nearest(key: str, valid: Iterable[str], section: str = "", elsewhere: Iterable[str] = ()) -> str:
    """Return `; did you mean section.x?` for the valid key that is nearest, else the list of valid keys.

    `elsewhere` are full keys of other sections; one that ends in `key` is suggested, too.
    """
    prefix = f"{section}." if section else ""
    close = [f"{prefix}{name}" for name in difflib.get_close_matches(key, list(valid), n=1, cutoff=0.75)]
    close += [full for full in elsewhere if full.endswith(f".{key}")]
    close += [f"{prefix}{name}" for name in difflib.get_close_matches(key, list(valid), n=1)]
    return f"; did you mean {close[0]}?" if close else f"; valid keys: {', '.join(sorted(valid))}"


def dotted(key: Iterable[str]) -> str:
    """Return the full path of a key: sweep.initial_trials[0].momentum."""
    return ".".join(map(show, key)).replace(".[", "[")


def show(name: object) -> str:
    """Return a name for a message: on one line, printable and short."""
    text = str(name)
    return _cut(text if text.isprintable() else ascii(text))


def show_value(value: object) -> str:
    """Return a value for a message: text in quotes, lists as in YAML."""
    try:
        return _cut(repr(list(value) if isinstance(value, tuple) else value))
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def either(reasons: Iterable[str]) -> str:
    """Join the reasons why a value is none of several allowed kinds into one sentence."""
    return ", or ".join(dict.fromkeys(reasons))


def explain(error: Any) -> str:
    """Return the reason for one entry of ValidationError.errors()."""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "missing":
        return "is missing"
    if error["type"] in ("value_error", "assertion_error"):
        return str(message)
    got = f"(got {show_value(error['input'])})"
    if error["type"] == "string_pattern_mismatch":
        return f"must be lower-case letters, digits and hyphens {got}"
    if error["type"] in ("model_type", "dict_type"):
        return f"must be a mapping of keys to values {got}"
    if error["type"] == "tuple_type":
        return f"must be a list {got}"
    return f"must be {message} {got}"
