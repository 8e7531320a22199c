"""The picture of a gate's decision: old against new accuracy by class, and the differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel.pipeline.plotting import ACCENT, BAD, GOOD, GRID, INK, MUTED, READABLE_CLASSES, drawing, short_name


def draw(decision: Mapping[str, Any], path: Path) -> Path:
    """Draw a decision in which models were compared. Takes what gate.json holds."""
    classes: dict[str, Any] = decision["per_class"]
    # of more classes those that changed most
    chosen = sorted(classes, key=lambda name: -abs(classes[name]["difference"]))[:READABLE_CLASSES]
    names = [name for name in reversed(classes) if name in chosen]  # the first class on top
    rows = [(name, classes[name]) for name in names]
    whole = [(text, decision[key]) for text, key in (("holdout", "holdout"), ("test", "overall")) if decision[key]]
    margin, class_margin = (100 * decision["rules"][key] for key in ("margin", "class_margin"))
    count = len(rows) + len(whole)
    with drawing(path, 9.6, 0.36 * count + 1.9) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        verdict = "passes the gate" if decision["decision"] == "promote" else "production stays"
        labels = decision["labels"]
        figure.suptitle(
            f"{labels[decision['candidate']]} against {labels[decision['production']]}: {verdict}",
            x=0.01, ha="left", fontsize=12, fontweight="bold",
        )  # fmt: skip
        for place, (_, row) in enumerate(rows):
            old, new = 100 * row["old"], 100 * row["new"]
            left.plot([old, new], [place, place], color=GOOD if new >= old else BAD, linewidth=2, alpha=0.5, zorder=2)
            left.scatter(old, place, s=44, facecolor="white", edgecolor=MUTED, linewidth=1.6, zorder=3)
            left.scatter(new, place, s=40, color=GOOD if new >= old else BAD, zorder=4)
        place = len(rows)
        for key in ("production", "candidate"):
            value = 100 * decision["accuracy"][decision[key]]
            hollow = key == "production"
            left.scatter(
                value, place + len(whole) - 1, s=64, marker="D", linewidth=1.6, zorder=3,
                facecolor="white" if hollow else INK, edgecolor=MUTED if hollow else INK,
            )  # fmt: skip
        left.set(xlabel="accuracy on test (%)")
        left.scatter([], [], s=44, facecolor="white", edgecolor=MUTED, linewidth=1.6, label="production")
        left.scatter([], [], s=40, color=GOOD, label="candidate, not lower")
        left.scatter([], [], s=40, color=BAD, label="candidate, lower")
        for place, (_, row) in enumerate(rows + whole):
            low, high, middle = (100 * row[key] for key in ("low", "high", "difference"))
            of_class = place < len(rows)
            harmed = high < -class_margin if of_class else (high < 0 if place < count - 1 else low <= -margin)
            colour = BAD if harmed else GOOD if of_class else INK
            right.plot([low, high], [place, place], color=colour, linewidth=2 if of_class else 3, zorder=2)
            right.scatter(middle, place, s=34, color=colour, zorder=3)
        right.axvline(0, color=MUTED, linewidth=1)
        right.vlines(-class_margin, -0.5, len(rows) - 0.5, color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4)
        right.vlines(-margin, count - 1.5, count - 0.5, color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4)
        right.plot([], [], color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4, label="margin")
        right.plot([], [], color=BAD, linewidth=2, label="breaks its rule")
        right.set(xlabel="difference in points (95 % interval; of classes: all together)")
        for axis in (left, right):
            axis.axhline(len(rows) - 0.5, color=GRID, linewidth=1)
            axis.grid(axis="x")
            axis.set_axisbelow(True)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(-0.6, count - 0.4)
        left.set_yticks(range(count), [*map(short_name, names), *(name for name, _ in whole)], color=INK)
        figure.legend(loc="outside lower center", ncols=5)
    return path
