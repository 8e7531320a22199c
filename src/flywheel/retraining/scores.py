"""What a retraining did, before against after, on images that nobody trained on; and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from flywheel.data.dataset import Dataset
from flywheel.metrics import MetricsError, classification
from flywheel.metrics.comparison import compare
from flywheel.models.classifier import Classifier
from flywheel.pipeline.plotting import ACCENT, GOOD, INK, MUTED, drawing

SETS = ("test", "holdout", "unseen")


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of one model on test and on all simulation images, int64."""

    test: NDArray[np.int64]
    simulation: NDArray[np.int64]

    @classmethod
    def of(cls, classifier: Classifier, dataset: Dataset) -> Predictions:
        """Return the predictions of a classifier. Raises MetricsError when a probability is not finite."""
        found = []
        for name in ("test", "simulation"):
            probabilities = classifier.predict(dataset.images[dataset.indices[name]])
            if not np.isfinite(probabilities).all():
                raise MetricsError("the model gives probabilities that are not finite")
            found.append(probabilities.argmax(axis=1).astype(np.int64))
        return cls(*found)


def unseen(dataset: Dataset, seen: set[str] | None) -> NDArray[np.bool_]:
    """Return which simulation images have a hash that is not among `seen`; none when that is not known."""
    rows = dataset.hashes[dataset.indices["simulation"]]
    return np.array([seen is not None and row.tobytes().hex() not in seen for row in rows], bool)


def scores(
    dataset: Dataset, unseen: NDArray[np.bool_], model: Predictions, before: Predictions | None = None
) -> dict[str, Any]:
    """Return accuracy with its interval on test, holdout and unseen, and by class; with `before` what changed.

    holdout: all simulation images of that side, right and wrong alike, which no model ever trains on: the fair one.
    unseen: all that no arm or ancestor trained on. Its images of the side `train` are those that were answered
    rightly, so it flatters `before`.
    """
    names = dataset.class_names
    labels = {name: dataset.labels[dataset.indices[name]] for name in ("test", "simulation")}
    result: dict[str, Any] = {}
    classes: dict[str, dict[str, float]] = {name: {} for name in names}
    for part in SETS:
        split = "test" if part == "test" else "simulation"
        mask = {"holdout": dataset.holdout, "unseen": unseen}.get(part, np.ones(len(labels[split]), bool))
        truth, said = labels[split][mask], getattr(model, split)[mask]
        n, right = len(truth), int((said == truth).sum())
        result[part] = {
            "n": n,
            "accuracy": right / n if n else None,
            "interval": list(classification.wilson_interval(right, n)) if n else None,
        }
        for index in np.unique(truth):
            classes[names[index]][part] = float((said[truth == index] == index).mean())
        if before is not None and n:
            result[part] |= change(getattr(before, split)[mask], said, truth, names)
    return {**result, "per_class": classes}


def change(
    old: NDArray[np.int64], new: NDArray[np.int64], labels: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    """Return how many images are fixed and broken, and the difference in accuracy with its 95 % interval."""
    overall = compare(old, new, labels, class_names).overall
    return {
        "fixed": overall.fixed,
        "broken": overall.broken,
        "difference": overall.difference,
        "difference_interval": [overall.low, overall.high],
    }


def picture(report: Mapping[str, Any], path: Path) -> Path:
    """Draw accuracy before, after and of the control arm with intervals, and validation by epoch."""
    arms = [("before", report["before"], MUTED), ("with the failures", report["after"], GOOD)]
    if report["control"]:
        arms.append(("control", report["control"], ACCENT))
    parts = [part for part in ("test", "holdout") if report["after"][part]["n"]]
    with drawing(path, 9.6, 3.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for row, (name, scored, colour) in enumerate(arms):
            places = np.arange(len(parts)) + 0.22 * (row - (len(arms) - 1) / 2)
            values = np.array([scored[part]["accuracy"] for part in parts])
            low, high = np.array([scored[part]["interval"] for part in parts]).T
            left.errorbar(
                places, 100 * values, yerr=100 * np.array([values - low, high - values]), fmt="o", color=colour,
                markersize=8, capsize=4, linewidth=2, label=name,
            )  # fmt: skip
            for place, value, top in zip(places, values, high, strict=True):
                left.text(place, 100 * top, f"{value:.1%}", ha="center", va="bottom", color=INK, fontsize=9)
        left.set_xticks(range(len(parts)), [f"{part} (n = {report['after'][part]['n']:,})" for part in parts])
        left.tick_params(axis="x", length=0, colors=INK)
        left.set(xlim=(-0.6, len(parts) - 0.4), ylabel="accuracy (%)", title="Before and after")
        left.margins(y=0.15)
        left.grid(axis="y")
        left.legend(loc="lower left")
        for name, scored, colour in arms[1:]:
            epochs = report["epochs"] if name != "control" else scored["epochs"]
            numbers, heights = [e["epoch"] for e in epochs], [100 * e["accuracy"] for e in epochs]
            right.plot(numbers, heights, color=colour, linewidth=2, marker="o", markersize=4)
            kept = next(epoch for epoch in epochs if epoch["kept"])
            right.scatter(
                [kept["epoch"]], [100 * kept["accuracy"]], s=110, facecolors="none", edgecolors=colour, linewidths=2,
                label="kept" if name != "control" else None, zorder=3,
            )  # fmt: skip
        right.axhline(100 * report["before"]["validation"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        right.set(xlabel="epoch", ylabel="validation accuracy (%)", title="By epoch")
        right.grid(axis="y")
        right.legend(loc="best")
    return path
