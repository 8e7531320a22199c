"""The plot of a gate's decision: old against new accuracy by class, and the differences with their intervals."""

from __future__ import annotations

from pathlib import Path

from flywheel.gate.report import GateReport
from flywheel.pipeline.plotting import ACCENT, BAD, GOOD, GRID, INK, MUTED, READABLE_CLASSES, drawing, short_name


def draw(report: GateReport, path: Path) -> Path:
    """Draw a decision in which models were compared."""
    rules, classes = report.rules, report.per_class
    assert rules is not None
    # of more classes those that changed most
    chosen = sorted(classes, key=lambda name: -abs(classes[name].difference))[:READABLE_CLASSES]
    names = [name for name in reversed(classes) if name in chosen]  # the first class on top
    held = (("traffic", report.traffic), ("holdout", report.holdout), ("test", report.overall))
    totals = [(name, found) for name, found in held if found]
    margin, class_margin = 100 * rules.margin, 100 * rules.class_margin
    count = len(names) + len(totals)
    with drawing(path, 9.6, 0.36 * count + 2.1) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        verdict = "passes the gate" if report.decision == "promote" else "production stays"
        figure.suptitle(
            f"{report.labels[report.candidate]} against {report.labels[report.production or '']}: {verdict}",
            x=0.01, ha="left", fontsize=12, fontweight="bold",
        )  # fmt: skip
        for y, name in enumerate(names):
            old, new = 100 * classes[name].old, 100 * classes[name].new
            colour = GOOD if new >= old else BAD
            left.plot([old, new], [y, y], color=colour, linewidth=2, alpha=0.5, zorder=2)
            left.scatter(old, y, s=44, facecolor="white", edgecolor=MUTED, linewidth=1.6, zorder=3)
            left.scatter(new, y, s=40, color=colour, zorder=4)
        for ref, inside, edge in ((report.production or "", "white", MUTED), (report.candidate, INK, INK)):
            left.scatter(
                100 * report.accuracy[ref], count - 1, s=64, marker="D", linewidth=1.6, zorder=3, facecolor=inside,
                edgecolor=edge,
            )  # fmt: skip
        left.set(xlabel="accuracy on test (%)")
        left.scatter([], [], s=44, facecolor="white", edgecolor=MUTED, linewidth=1.6, label="production")
        left.scatter([], [], s=40, color=GOOD, label="candidate, not lower")
        left.scatter([], [], s=40, color=BAD, label="candidate, lower")
        for y, found in enumerate([*(classes[name] for name in names), *(found for _, found in totals)]):
            low, high, middle = 100 * found.low, 100 * found.high, 100 * found.difference
            of_class = y < len(names)
            harmed = high < -class_margin if of_class else not report.checks.get(totals[y - len(names)][0], True)
            colour = BAD if harmed else GOOD if of_class else INK
            right.plot([low, high], [y, y], color=colour, linewidth=2 if of_class else 3, zorder=2)
            right.scatter(middle, y, s=34, color=colour, zorder=3)
        right.axvline(0, color=MUTED, linewidth=1)
        right.vlines(-class_margin, -0.5, len(names) - 0.5, color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4)
        right.vlines(-margin, count - 1.5, count - 0.5, color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4)
        right.plot([], [], color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.4, label="margin")
        right.plot([], [], color=BAD, linewidth=2, label="breaks its rule")
        together = "of all classes together, of holdout and traffic together"
        right.set(xlabel=f"difference in points with its 95 % interval\n({together})")
        for axis in (left, right):
            axis.axhline(len(names) - 0.5, color=GRID, linewidth=1)
            axis.grid(axis="x")
            axis.set_axisbelow(True)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(-0.6, count - 0.4)
        left.set_yticks(range(count), [*map(short_name, names), *(name for name, _ in totals)], color=INK)
        figure.legend(loc="outside lower center", ncols=5)
    return path
