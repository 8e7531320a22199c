"""The pictures of an evaluation: confusion matrix and reliability. Functions take data and a path, return the path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flywheel.pipeline.plotting import BAD, GOOD, GRID, INK, MUTED, READABLE_CLASSES, drawing, short_name

FEW_IMAGES = 10  # of a bin of the calibration
MAX_SIDE = 20.0  # inches


def confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str], title: str, path: Path) -> Path:
    """Draw a confusion matrix: counts, shaded by the part of the true class; correct ones blue, mistakes red."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(6.0, 0.62 * len(class_names) + 1.8), MAX_SIDE)
    readable = len(class_names) <= READABLE_CLASSES
    with drawing(path, side + 0.4, side) as figure:
        axis = figure.subplots()
        right = np.eye(len(counts), dtype=bool)
        # Mistakes are rare: their shade runs over a fifth of the scale so that they show.
        axis.imshow(np.ma.masked_array(shares, ~right), cmap="Blues", vmin=0, vmax=1.25)
        axis.imshow(np.ma.masked_array(shares, right | (counts == 0)), cmap="Reds", vmin=0, vmax=0.2)
        for (row, column), count in np.ndenumerate(counts) if readable else ():
            dark = shares[row, column] > (0.6 if row == column else 0.12)
            axis.text(
                column, row, f"{count}" if count else "·", ha="center", va="center", fontsize=9,
                color="white" if dark else INK if count else GRID,
                fontweight="bold" if row == column else "normal",
            )  # fmt: skip
        names = [short_name(name) for name in class_names] if readable else []
        slanted = max(map(len, names), default=0) > 3
        axis.set_xticks(
            range(len(names)), names, rotation=45 if slanted else 0,
            ha="right" if slanted else "center", rotation_mode="anchor",
        )  # fmt: skip
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0, colors=INK)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="predicted", ylabel="true", title=title)
    return path


def reliability(calibration: Mapping[str, Any], title: str, path: Path) -> Path:
    """Draw accuracy against confidence, with the number of images below. Takes what `metrics.calibration` gives."""
    confidence, accuracy = np.array(calibration["confidence"]), np.array(calibration["accuracy"])
    count = np.array(calibration["count"])
    with drawing(path, 5.2, 5.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
        sizes = 20 + 130 * np.sqrt(count / count.max())
        few = count < FEW_IMAGES  # one image is right or wrong: its gap says nothing of the model
        for bins, colour, width, label in ((few, MUTED, 1.5, f"under {FEW_IMAGES} images"), (~few, GOOD, 6, "model")):
            if bins.any():
                gap = MUTED if colour is MUTED else BAD
                gaps = {"color": gap, "alpha": 0.35, "linewidth": width, "label": None if gap is MUTED else "gap"}
                top.vlines(confidence[bins], accuracy[bins], confidence[bins], **gaps)
                top.scatter(confidence[bins], accuracy[bins], s=sizes[bins], color=colour, zorder=3, label=label)
        top.set(xlim=(0, 1.02), ylim=(-0.02, 1.04), ylabel="accuracy", title=title)
        top.grid(axis="both")
        legend = top.legend(loc="upper left")
        for handle in legend.legend_handles:
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([40])
        bottom.bar(confidence, count, width=0.045, color=GOOD, alpha=0.8)
        bottom.set_yscale("log")
        bottom.set(xlabel="confidence", ylabel="images")
        bottom.grid(axis="y")
    return path
