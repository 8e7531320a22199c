"""The one style of all pictures, and the drawings that several packages need."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flywheel import files

if TYPE_CHECKING:  # the report page imports this module for its constants
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

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
    "date.converter": "concise",
}
DPI = 150
MAX_NAME = 18  # letters of a class name
READABLE_CLASSES = 30  # with more, a picture or table does not name every class


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure (size in inches) in the style of all pictures; write it atomically at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)  # an alphabet without a font shows as boxes
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        with files.atomic(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})


def short_name(name: str) -> str:
    """Return a class name as a picture shows it: cut to fit, and never taken for a formula."""
    shown = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
    return shown.replace("$", r"\$")  # a class may be called $5, which is no formula


class Images(Protocol):
    """Images (n, s, s, 3) uint8, in memory or read when they are indexed."""

    def __getitem__(self, key: Any, /) -> NDArray[np.uint8]:
        """Return an image."""
        ...


def worst_mistakes(
    images: Images,
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
    import numpy as np

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
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.axis("off")
        for axis, index in zip(axes, shown, strict=False):
            above, below = (short_name(class_names[of[index]]) for of in (labels, predictions))
            axis.imshow(images[index], interpolation="nearest")
            axis.set_title(above, fontsize=9, fontweight="normal", loc="center", pad=3)
            axis.text(
                0.5, -0.04, f"{below} {confidence[index]:.0%}", transform=axis.transAxes, ha="center", va="top",
                fontsize=9, color=BAD, fontweight="bold",
            )  # fmt: skip
    return path
