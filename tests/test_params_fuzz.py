"""Any params.yaml and any SET give valid Params or one ParamsError that names the key or the line; nothing else."""

from __future__ import annotations

import copy
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import yaml
from hypothesis import HealthCheck, given, settings

from flywheel import files
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.params.base import Section
from flywheel.params.file import ParamsError

ROOT = Path(__file__).parents[1]
SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
TREE = yaml.safe_load(SHIPPED.replace("5e-4", "0.0005"))
PROFILES = sorted(TREE["profiles"])
Path_ = tuple[str | int, ...]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))  # 2,000 were tried once: docs/faults.md
steady = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES <= 60
)


def places(tree: Any, prefix: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every mapping, list and value of a tree."""
    if prefix:
        yield prefix
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*prefix, key))


PLACES = sorted(places(TREE), key=str)
WORDS = (
    "trials", "sweep", "space", "data", "int", "float", "a[0]", "constrained-", "per_architecture", "log_uniform",
    "uniform", "others", "on", "null", "profile", "profiles", "[key]", "first",
)  # fmt: skip
words = st.sampled_from(WORDS)
names = st.one_of(words, st.text(max_size=8), st.sampled_from(["a\nb", "\u2028", "кошка", "🐈", "\ud800", ""]))
numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([10**400, -(10**400), 2**63, 2**31, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, names, st.dates(), st.binary(max_size=3))
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(names, numbers), inner, max_size=3)),
    max_leaves=6,
)
domains = st.one_of(
    st.fixed_dictionaries({"uniform": st.lists(numbers, max_size=3)}),
    st.fixed_dictionaries({"log_uniform": st.lists(numbers, max_size=3)}),
    st.dictionaries(st.just("per_architecture"), st.dictionaries(names, junk, max_size=2), min_size=1),
)
values = st.one_of(junk, domains)


def check(path: Path, profile: str, overrides: str = "") -> tuple[Params | None, list[str]]:
    """Load; return the params, whose values others can use, or the lines of the error."""
    try:
        params = params_file.load(path, profile, overrides)
    except ParamsError as error:
        lines = str(error).split("\n")
        for line in lines:
            assert line.isprintable(), line
            assert len(line) < 600, line
            assert re.match(rf"{re.escape(str(path))}(:\d+)?: \S|SET: \S|PROFILE=", line), line
        return None, lines
    for section in (params.data, params.recipe, params.sweep, params.gate, params.promotion):
        assert isinstance(section, Section)
        files.digest_json(section.identity())
    for folder in (params.store, params.reports, params.cache):
        folder.exists()  # no character of it is one that the system refuses
    str(params.tracking.project).encode()
    return params, []


def load_text(data: str | bytes, profile: str, overrides: str = "") -> tuple[Params | None, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(data if isinstance(data, bytes) else data.encode(errors="surrogatepass"))
        loaded, lines = check(path, profile, overrides)
        return loaded, [line.removeprefix(f"{path}") for line in lines]


def test_the_shipped_file_is_valid_and_the_places_are_all_of_it() -> None:
    assert len(PLACES) > 100
    for profile in PROFILES:
        assert load_text(yaml.safe_dump(TREE), profile)[0]


@steady
@given(st.sampled_from(PLACES), values, st.sampled_from(PROFILES), st.sampled_from(["replace", "delete", "insert"]))
def test_one_change_is_valid_or_its_key_is_named(place: Path_, value: Any, profile: str, change: str) -> None:
    """The error names the key that was changed, or one it lies in, or one in it."""
    tree = copy.deepcopy(TREE)
    parent: Any = tree
    for part in place[:-1]:
        parent = parent[part]
    if change == "replace":
        parent[place[-1]] = value
    elif change == "delete":
        del parent[place[-1]]
    elif isinstance(parent, list):
        parent.insert(int(place[-1]), value)
    else:
        parent["inserted"] = value
        place = (*place[:-1], "inserted")
    loaded, lines = load_text(yaml.dump(tree, allow_unicode=True), profile)
    if loaded:
        return
    if re.match(r":\d+: not valid YAML", lines[0]):
        return  # a key that YAML takes for another (1 and "1"), or a character that it refuses
    if lines[0].startswith("PROFILE="):
        assert place[0] == "profiles"
        return

    def bare(key: str) -> str:
        return key.removeprefix(f"profiles.{profile}").removeprefix(".")

    key = bare(re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, place))))
    named = [bare(line.removeprefix(": ").partition(": ")[0]) for line in lines]
    fits = [name.startswith(key) or key.startswith(name) for name in named]
    # Two keys that must fit each other: the error may name either.
    pairs = {"data.source", "data.path", "sweep.searcher", "recipe.architecture", "sweep.initial_trials", "sweep.space"}
    assert any(fits) or any(name.startswith(pair) for name in named for pair in pairs), (key, lines)


LINES = SHIPPED.splitlines(keepends=True)
FRAGMENTS = (
    "&a", "*a", "<<: *a\n", "? [1]\n: 2\n", "!!binary x", "!!python/name:os.system", "---\n", "...\n", "\t",
    "\ttrials: 3\n", "{", "}", "[", "]", "- ", ": ", "#", "'", '"', "|", ">", "%", "@", "`", "\0", "\ufeff", "\x85",
    "  ", "\n", "data:\n", "  trials: 3\n", "2026-99-99", "0o9", "1:30", "~",
)  # fmt: skip
fragments = st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6))


@steady
@given(
    st.lists(st.tuples(st.integers(0, len(SHIPPED)), st.integers(0, 40), fragments), min_size=1, max_size=4),
    st.sampled_from(PROFILES),
)
def test_any_text_is_valid_or_refused(edits: list[tuple[int, int, str]], profile: str) -> None:
    text = SHIPPED
    for start, length, fragment in edits:
        text = text[:start] + fragment + text[start + length :]
    load_text(text, profile)


@steady
@given(st.sampled_from(range(len(LINES))), st.sampled_from(["twice", "indented", "outdented", "gone"]))
def test_a_line_twice_gone_or_moved_is_valid_or_refused(number: int, change: str) -> None:
    line = LINES[number]
    changed = {"twice": line + line, "indented": f"  {line}", "outdented": line.removeprefix("  "), "gone": ""}[change]
    for profile in PROFILES:
        _, errors = load_text("".join([*LINES[:number], changed, *LINES[number + 1 :]]), profile)
        key = re.match(r"\s*(\w+):", line)
        if change == "twice" and key:
            assert errors[0].startswith(f":{number + 2}: not valid YAML: {key[1]} occurs twice"), errors


@steady
@given(st.binary(max_size=60))
def test_any_bytes_are_refused(data: bytes) -> None:
    loaded, lines = load_text(data, "demo")
    assert loaded is None
    assert len(lines) == 1


keys = st.one_of(
    st.sampled_from(
        [".".join(map(str, p)) for p in PLACES if p[0] != "profiles" and not any(isinstance(x, int) for x in p)]
    ),
    st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=4).map(".".join),
)


def overrides_of(pairs: list[tuple[str, Any]]) -> str:
    texts = [v if isinstance(v, str) else yaml.dump(v, default_flow_style=True, width=10**6).strip() for _, v in pairs]
    return " ".join(f"{key}={text}" for (key, _), text in zip(pairs, texts, strict=True))


pairs = st.lists(st.tuples(keys, st.one_of(st.text(max_size=12), values)), max_size=3)


@steady
@given(st.one_of(pairs.map(overrides_of), st.text(max_size=40)), st.sampled_from(PROFILES))
def test_any_set_is_valid_or_refused_as_set(overrides: str, profile: str) -> None:
    _, lines = check(ROOT / "params.yaml", profile, overrides)
    assert all(line.startswith("SET: ") for line in lines), lines


@steady
@given(names)
def test_any_profile_is_valid_or_refused(profile: str) -> None:
    _, lines = check(ROOT / "params.yaml", profile)
    assert profile in PROFILES or lines == [line for line in lines if line.startswith("PROFILE=")] != []
