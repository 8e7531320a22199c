"""Every picture of the reports, in one style. Functions take data and a path and return the path."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flywheel import files

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
GOOD, BAD, ACCENT = "#2563eb", "#dc2626", "#f59e0b"
PALETTE = ("#2563eb", "#f59e0b", "#059669", "#7c3aed", "#dc2626", "#0891b2")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
DPI = 150
FEW_IMAGES = 10  # of a bin of the calibration
MAX_SIDE = 20.0  # inches
MAX_NAME = 18  # letters of a class's name
READABLE_CLASSES = 30  # beyond, a confusion matrix shows shades without numbers and names


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure of so many inches, in the style of all pictures, and write it atomically at the end."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)  # an alphabet without a font shows as boxes
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        with files.atomic(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})


def sample_grid(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    title: str,
    path: Path,
    columns: int = 10,
) -> Path:
    """Draw up to `columns` images (n, s, s, 3) of each of up to ten classes, a class a row."""
    shown = [index for index in range(len(class_names)) if (labels == index).any()][:10]
    side, gap = images.shape[1], max(1, images.shape[1] // 12)
    cell = side + gap
    # One mosaic, not an axis an image: a hundred axes take seconds to draw.
    mosaic = np.full((cell * len(shown) - gap, cell * columns - gap, 3), 255, np.uint8)
    for row, label in enumerate(shown):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            mosaic[row * cell : row * cell + side, column * cell : column * cell + side] = images[index]
    with drawing(path, 0.62 * columns + 1.4, 0.62 * len(shown) + 0.6) as figure:
        axis = figure.subplots()
        axis.imshow(mosaic, interpolation="nearest")
        axis.set_yticks(
            [row * cell + side / 2 for row in range(len(shown))], [short_name(class_names[i]) for i in shown]
        )
        axis.set_xticks([])
        axis.tick_params(length=0, colors=INK)
        axis.spines[:].set_visible(False)
        axis.set_title(title)
    return path


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


def worst_mistakes(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    confidence: NDArray[np.floating[Any]],
    class_names: Sequence[str],
    title: str,
    path: Path,
    columns: int = 6,
    rows: int = 4,
) -> Path:
    """Draw the most confident mistakes: the true class above, prediction and confidence below."""
    wrong = np.flatnonzero(predictions != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][: columns * rows]
    columns = max(1, min(columns, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    side = min(max(1.45, 5.4 / columns), 2.7)  # few mistakes are drawn larger; the title needs 5.4 inches
    width = max(side * columns, 5.4)
    with drawing(path, width, (side + 0.5) * rows + 0.4) as figure:
        figure.suptitle(textwrap.fill(title, int(8.2 * width)), x=0.01, ha="left", fontsize=12, fontweight="bold")
        if not len(shown):
            figure.text(0.5, 0.4, "no mistake", ha="center", color=MUTED)
            return path
        for place, axis in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            axis.axis("off")
            if place < len(shown):
                index = shown[place]
                above, below = (short_name(class_names[of[index]]) for of in (labels, predictions))
                axis.imshow(images[index], interpolation="nearest")
                axis.set_title(above, fontsize=9, fontweight="normal", loc="center", pad=3)
                axis.text(
                    0.5, -0.04, f"{below} {confidence[index]:.0%}", transform=axis.transAxes, ha="center", va="top",
                    fontsize=9, color=BAD, fontweight="bold",
                )  # fmt: skip
    return path


def search_history(trials: Sequence[Mapping[str, Any]], title: str, path: Path) -> Path:
    """Draw the accuracy of each trial in order, how it ended, and the best so far. Takes trials of sweep.json."""
    done = [trial for trial in trials if trial["accuracy"] is not None]
    with drawing(path, 7.2, 4.2) as figure:
        axis = figure.subplots()
        for status, marker, colour in (("finished", "o", GOOD), ("stopped", "v", MUTED), ("failed", "x", BAD)):
            members = [trial for trial in done if trial["status"] == status]
            if members:
                numbers, heights = [t["number"] for t in members], [100 * t["accuracy"] for t in members]
                axis.scatter(numbers, heights, marker=marker, color=colour, s=42, label=status, zorder=3)
        if done:
            best = np.maximum.accumulate([100 * trial["accuracy"] for trial in done])
            axis.step([t["number"] for t in done], best, where="post", color=ACCENT, linewidth=2, label="best so far")
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
        places = [trial[name] if numeric else options.index(trial[name]) + offset for trial in members]
        heights = [100 * trial["accuracy"] for trial in members]
        axis.scatter(places, heights, color=colour, s=36, alpha=0.85, label=kind, zorder=3)
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


def short_name(name: str) -> str:
    """Return a class name as a picture shows it: cut to fit, and never taken for a formula."""
    shown = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
    return shown.replace("$", r"\$")  # a class may be called $5, which is no formula
