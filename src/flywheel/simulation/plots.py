"""The plots of a simulation. Functions take data and a path and return the path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from flywheel import files
from flywheel.pipeline.plotting import ACCENT, BAD, GOOD, INK, Images, drawing, worst_mistakes

COLUMNS, ROWS = 8, 5
CONFIDENCE_EDGES: list[float] = np.linspace(0, 1, 26).tolist()


def failures(
    images: Images,
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    confidence: NDArray[np.float64],
    class_names: Sequence[str],
    sent: int,
    path: Path,
) -> Path:
    """Draw up to forty failures, the most confident first, as `worst_mistakes` does."""
    title = f"{files.count(len(labels), 'failure')} of {sent:,} images"
    if len(labels) > COLUMNS * ROWS:
        title += f", the {COLUMNS * ROWS} most confident"
    return worst_mistakes(images, labels, predictions, confidence, class_names, title, path, COLUMNS, ROWS)


def confidence(right: NDArray[np.float64], wrong: NDArray[np.float64], path: Path) -> Path:
    """Draw the confidence of right and of wrong predictions."""
    with drawing(path, 6.4, 4.4) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        for axis, values, colour, name in ((top, right, GOOD, "right"), (bottom, wrong, BAD, "wrong")):
            axis.hist(values, CONFIDENCE_EDGES, color=colour, alpha=0.85)
            text = f"{name}: {len(values):,}"
            if len(values):
                text += f", median {np.median(values):.0%}"
            axis.text(0.01, 0.92, text, transform=axis.transAxes, va="top", color=INK, fontweight="bold")
            axis.set_ylabel("images")
            axis.grid(axis="y")
            axis.set_axisbelow(True)
            axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
            axis.set_ylim(0, None if len(values) else 1)
        bottom.set(xlim=(0, 1), xlabel="confidence")
        bottom.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
        top.set_title("Confidence of the prediction")
    return path


def latency_edges(milliseconds: NDArray[np.float64]) -> list[float]:
    """Return the edges of the bins of latencies, equally wide on a logarithmic axis."""
    edges: list[float] = np.geomspace(milliseconds.min() * 0.8, milliseconds.max() * 1.25, 40).tolist()
    return edges


def latency(milliseconds: NDArray[np.float64], path: Path) -> Path:
    """Draw the latencies on a logarithmic axis, with the percentiles of the report."""
    with drawing(path, 6.4, 3.6) as figure:
        axis = figure.subplots()
        axis.hist(milliseconds, latency_edges(milliseconds), color=GOOD, alpha=0.85)
        axis.set_xscale("log")
        for rank, (percentile, colour) in enumerate(((50, INK), (95, ACCENT), (99, BAD))):
            value = float(np.percentile(milliseconds, percentile))
            axis.axvline(value, color=colour, linewidth=1.5)
            axis.text(
                0.99, 0.95 - 0.09 * rank, f"p{percentile} {value:,.1f} ms", transform=axis.transAxes, ha="right",
                va="top", color=colour, fontweight="bold",
            )  # fmt: skip
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
        axis.set(xlabel="ms, from sending to the last byte of the answer", ylabel="images")
        axis.set_title(f"Latency of {files.count(len(milliseconds), 'answer')}")
        axis.grid(axis="y")
        axis.set_axisbelow(True)
    return path
