"""Compare two versions: params, data, code and metrics, and for models the accuracy on the same images.

Models are compared on test and holdout images that neither was trained on, as in the gate. Differences are B minus A,
with the paired 95 % intervals of `metrics.comparison`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from flywheel import FlywheelError
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import changes, flatten
from flywheel.registry import Registry, Version

NOT_COMPARED = frozenset({"fingerprint", "params", "recipe", "git", "versions", "stage", "metrics"})
MAX_WIDTH = 34  # letters of a value in the table


class CompareError(FlywheelError):
    """Two versions cannot be compared; the message says why and what to type."""


def versions(params: Params, registry: Registry, first: str, second: str) -> dict[str, Any]:
    """Return the differences between two versions of one type, ready for JSON. `first` is A, `second` B.

    Keys: a, b (label, ref, type, created), differences {params, data, made, metrics: {name: [of a, of b]}}, and of
    models `paired`: dataset, test, holdout, per_class, accuracy, calibration_error; None for other kinds.
    Raises CompareError.
    """
    if not first or not second:
        raise CompareError(
            f"which two? make compare A=name:version B=name:version PROFILE={params.profile}; make artifacts lists them"
        )
    a, b = (stage.named(params, registry, reference) for reference in (first, second))
    if a.type != b.type:
        raise CompareError(f"{a.label} is a {a.type} and {b.label} a {b.type}; name two of one type")
    old, new = _described(registry, a), _described(registry, b)
    differences = {
        part: {name: [old[part].get(name), new[part].get(name)] for name in changes(old[part], new[part])}
        for part in old
    }
    return {
        **{
            side: {"label": one.label, "ref": one.ref, "type": one.type, "created": one.created}
            for side, one in (("a", a), ("b", b))
        },
        "differences": differences,
        "paired": _paired(params, registry, a, b) if "model.json" in a.files else None,
    }


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a comparison."""
    a, b = result["a"]["label"], result["b"]["label"]
    if result["a"]["ref"] == result["b"]["ref"]:
        yield f"{a} and {b} are the same version"
        return
    wide = max(len(name) for rows in [*result["differences"].values(), {"": ()}] for name in rows) + 4
    yield f"{'':<{wide}}{_cut(f'A  {a}'):<{MAX_WIDTH + 2}}{_cut(f'B  {b}')}"
    for part, rows in result["differences"].items():
        yield part if rows else f"{part}: no difference"
        for name, (old, new) in rows.items():
            yield f"  {name:<{wide - 2}}{_cut(_shown(old)):<{MAX_WIDTH + 2}}{_cut(_shown(new))}"
    if result["paired"] is not None:
        yield from _paired_table(result["paired"])


def _described(registry: Registry, version: Version) -> dict[str, dict[str, Any]]:
    """Return params, data, code and metrics of a version, each flat."""
    metadata = version.metadata
    data = {role: ", ".join(map(registry.label, refs)) for role, refs in version.inputs.items()}
    git = metadata.get("git") or {}
    made = {"stage": metadata.get("stage"), "code": git.get("commit"), "code changed": git.get("dirty")}
    made |= metadata.get("versions") or {}
    metrics = {name: value for name, value in metadata.items() if name not in NOT_COMPARED}
    metrics |= dict(metadata.get("metrics") or {})
    metrics |= flatten({"examples": metrics.pop("examples", None) or {}}, 2)  # what a retraining was trained on
    return {
        # The recipe of a model overrides the defaults of its sweep.
        "params": flatten(
            {**metadata.get("params", {}), **({"recipe": r} if (r := metadata.get("recipe")) else {})}, 2
        ),
        "data": data,
        "made": made,
        # Without the figures of a retraining by split and class, because the paired comparison has them for both.
        "metrics": {name: value for name, value in flatten(metrics, 1).items() if not isinstance(value, dict | list)},
    }


def _paired(params: Params, registry: Registry, a: Version, b: Version) -> dict[str, Any]:
    dataset = stage.dataset_of(params, registry)
    for version in (a, b):
        sources = {ref.partition("@")[0] for ref in version.inputs.get("dataset", ())}
        if sources and params.dataset_name not in sources:
            raise CompareError(
                f"{version.label} was made from {', '.join(sorted(sources))}, and PROFILE={params.profile} has "
                f"{params.dataset_name}; name the profile, or SET=data.name=…, of its data"
            )

    from flywheel.gate import predictions
    from flywheel.metrics.comparison import compare
    from flywheel.models import classifier

    images = predictions.prepare(registry, dataset, [a, b])
    asked = [predictions.predict(version, classifier.load(registry.open(version)), images) for version in (a, b)]
    for version, answers in zip((a, b), asked, strict=True):
        if answers.class_names != images.labels.class_names:
            raise CompareError(f"{version.label} knows other classes than {dataset.label}, so nothing can be compared")
    if not len(images.labels.test):
        raise CompareError(f"every test image of {dataset.label} was seen by one of the two; run make data again")
    old, new = asked
    names = images.labels.class_names
    test = compare(old.test, new.test, images.labels.test, names)
    held = compare(old.holdout, new.holdout, images.labels.holdout, names) if len(images.labels.holdout) else None
    return {
        "dataset": dataset.ref,
        "left_out": images.labels.left_out,
        "test": {**asdict(test.overall), "p_value": test.p_value},
        "holdout": {**asdict(held.overall), "p_value": held.p_value} if held else None,
        "per_class": {name: asdict(difference) for name, difference in test.per_class.items()},
        "accuracy": {
            "test": [answers.accuracy(images.labels) for answers in asked],
            "holdout": [float((one.holdout == images.labels.holdout).mean()) for one in asked] if held else None,
        },
        "calibration_error": [answers.ece for answers in asked],
    }


def _paired_table(paired: Mapping[str, Any]) -> Iterator[str]:
    yield "on the same images, B minus A"
    yield f"  {'':<14}{'images':>7}{'A':>9}{'B':>9}{'points':>9}   {'95 % interval':<20}{'verdict':<16}p"
    for part in ("test", "holdout"):
        one = paired[part]
        if one is not None:
            first, second = paired["accuracy"][part]
            yield _row(part, one, f"{first:.2%}", f"{second:.2%}") + f"{one['p_value']:.3f}"
    classes = paired["per_class"]
    moved = {name: one for name, one in classes.items() if one["low"] > 0 or one["high"] < 0}
    for name, one in moved.items():
        yield _row(_cut(name, 12), one, "", "").rstrip()
    count = f"{len(moved)} of {len(classes)}" if moved else f"none of {len(classes)}"
    yield f"  classes that differ measurably on test: {count} (simultaneous intervals)"
    test = paired["test"]
    yield f"  test images that only B gets right: {test['fixed']}, only A: {test['broken']}"
    errors = ["–" if value is None else f"{value:.3f}" for value in paired["calibration_error"]]
    yield f"  calibration error: A {errors[0]}, B {errors[1]}"
    if paired["left_out"]:
        yield f"  {paired['left_out']} images left out: one of the two was trained on them"


def _row(name: str, one: Mapping[str, Any], first: str, second: str) -> str:
    verdict = "B is better" if one["low"] > 0 else "A is better" if one["high"] < 0 else "no difference"
    interval = f"{100 * one['low']:+.2f} to {100 * one['high']:+.2f}"
    points = f"{100 * one['difference']:+.2f}"
    return f"  {name:<14}{one['n']:>7,}{first:>9}{second:>9}{points:>9}   {interval:<20}{verdict:<16}"


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cut(text: str, most: int = MAX_WIDTH) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
