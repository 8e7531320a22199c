"""The plot of a retraining."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from flywheel.pipeline.plotting import GOOD, INK, MUTED, PALETTE, drawing
from flywheel.retraining.report import ArmScores, Trained


def draw(trained: Trained, path: Path) -> Path:
    """Draw accuracy before, after and of the other arms with intervals, and validation accuracy by epoch."""
    arms = [
        (name, scored, colour) for (name, _, scored), colour in zip(trained.rows(), (MUTED, *PALETTE), strict=False)
    ]
    epochs = [("kept", trained.epochs, GOOD)]
    epochs += [("", scored.epochs, colour) for _, scored, colour in arms if isinstance(scored, ArmScores)]
    parts = [part for part in ("test", "holdout") if getattr(trained.after, part).n]
    with drawing(path, 9.6, 3.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for row, (name, scored, colour) in enumerate(arms):
            positions = np.arange(len(parts)) + 0.22 * (row - (len(arms) - 1) / 2)
            found = [getattr(scored, part) for part in parts]
            values, (low, high) = np.array([one.accuracy for one in found]), np.array([one.interval for one in found]).T
            left.errorbar(
                positions, 100 * values, yerr=100 * np.array([values - low, high - values]), fmt="o", color=colour,
                markersize=8, capsize=4, linewidth=2, label=name,
            )  # fmt: skip
            for x, value, top in zip(positions, values, high, strict=True):
                left.text(x, 100 * top, f"{value:.1%}", ha="center", va="bottom", color=INK, fontsize=9)
        left.set_xticks(range(len(parts)), [f"{part} (n = {getattr(trained.after, part).n:,})" for part in parts])
        left.tick_params(axis="x", length=0, colors=INK)
        left.set(xlim=(-0.6, len(parts) - 0.4), ylabel="accuracy (%)", title="Before and after")
        left.margins(y=0.15)
        left.grid(axis="y")
        left.legend(loc="lower left")
        for label, results, colour in epochs:
            numbers, heights = [e.epoch for e in results], [100 * e.accuracy for e in results]
            right.plot(numbers, heights, color=colour, linewidth=2, marker="o", markersize=4)
            kept = next(epoch for epoch in results if epoch.kept)
            right.scatter(
                [kept.epoch], [100 * kept.accuracy], s=110, facecolors="none", edgecolors=colour, linewidths=2,
                label=label or None, zorder=3,
            )  # fmt: skip
        right.axhline(100 * trained.before.validation, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        right.set(xlabel="epoch", ylabel="validation accuracy (%)", title="By epoch")
        right.grid(axis="y")
        right.legend(loc="best")
    return path
