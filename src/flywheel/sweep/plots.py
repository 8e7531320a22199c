"""The pictures of a sweep: search history, params against accuracy. Functions take data and a path, return the path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from flywheel.pipeline.plotting import ACCENT, BAD, GOOD, MUTED, PALETTE, drawing

# Of a trial of sweep.json, with the marker and colour of its point. A time budget leaves trials unfinished.
STATUSES = (("finished", "o", GOOD), ("stopped", "v", MUTED), ("unfinished", "D", MUTED), ("failed", "x", BAD))


def search_history(trials: Sequence[Mapping[str, Any]], title: str, path: Path) -> Path:
    """Draw the accuracy of each trial in order, how it ended, and the best so far. Takes trials of sweep.json."""
    done = [trial for trial in trials if trial["accuracy"] is not None]
    with drawing(path, 7.2, 4.2) as figure:
        axis = figure.subplots()
        for status, marker, colour in STATUSES:
            members = [trial for trial in done if trial["status"] == status]
            if members:
                numbers, heights = [t["number"] for t in members], [100 * t["accuracy"] for t in members]
                axis.scatter(numbers, heights, marker=marker, color=colour, s=42, label=status, zorder=3)
        judged = [trial for trial in done if trial["status"] != "failed"]  # a failed trial is never published
        if judged:
            best = np.maximum.accumulate([100 * trial["accuracy"] for trial in judged])
            axis.step([t["number"] for t in judged], best, where="post", color=ACCENT, linewidth=2, label="best so far")
        guided = [trial["number"] for trial in done if trial["bayesian"]]
        if guided:
            axis.axvspan(
                min(guided) - 0.5, max(guided) + 0.5, color=GOOD, alpha=0.06, linewidth=0, label="Bayesian"
            )  # fmt: skip
        axis.set(xlabel="trial", ylabel="validation accuracy (%)", title=title)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axis.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=4)  # inside it would lie over trials
    return path


def params_against_accuracy(
    trials: Sequence[Mapping[str, Any]], names: Sequence[str], logarithmic: Sequence[str], title: str, path: Path
) -> Path:
    """Draw validation accuracy against each searched param, coloured by architecture. Takes trials of sweep.json."""
    done = [trial for trial in trials if trial["accuracy"] is not None]
    names = [name for name in names if len({trial[name] for trial in done}) > 1] or names[:1]
    kinds = sorted({str(trial["architecture"]) for trial in done})
    colours = {kind: PALETTE[i % len(PALETTE)] for i, kind in enumerate(kinds)}
    columns = min(2, max(len(names), 1))
    rows = max(1, -(-len(names) // columns))
    with drawing(path, 4.2 * columns, 3.1 * rows + 0.7) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for axis, name in zip(axes, names, strict=False):
            _draw_param(axis, done, name, colours, name in logarithmic)
        for axis in axes[len(names) :]:
            axis.axis("off")
        if len(kinds) > 1:
            handles, texts = axes[0].get_legend_handles_labels()
            unique = dict(zip(texts, handles, strict=True))
            figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=len(kinds))
    return path


def _draw_param(
    axis: Axes, trials: Sequence[Mapping[str, Any]], name: str, colours: Mapping[str, str], logarithmic: bool
) -> None:
    numeric = logarithmic or all(isinstance(trial[name], float) for trial in trials)
    options = sorted({trial[name] for trial in trials}, key=lambda value: (str(type(value)), value))
    for kind, colour in colours.items():
        members = [trial for trial in trials if str(trial["architecture"]) == kind]
        offset = 0.0 if numeric else 0.12 * (list(colours).index(kind) - (len(colours) - 1) / 2)
        positions = [trial[name] if numeric else options.index(trial[name]) + offset for trial in members]
        heights = [100 * trial["accuracy"] for trial in members]
        axis.scatter(positions, heights, color=colour, s=36, alpha=0.85, label=kind, zorder=3)
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    if not numeric:
        axis.set_xticks(range(len(options)), [str(option) for option in options])
        axis.set_xlim(-0.5, len(options) - 0.5)
    axis.set_xlabel(name.replace("_", " "))
    if axis.get_subplotspec() is not None and axis.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axis.set_ylabel("validation accuracy (%)")
    axis.grid(axis="y")
