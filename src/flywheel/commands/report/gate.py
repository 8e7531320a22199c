"""The section on the gate: its last decision, and what the last retraining changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flywheel.commands.report.markup import Html, details, interval, join, note, percent, points, table, tag
from flywheel.gate.report import AppliedRule, GateReport, Rules
from flywheel.retraining.report import RetrainReport, Score

WIDTH, MIDDLE = 180, 12  # pixels of a drawn interval
COMPARED = frozenset({"test", "best_ever", "holdout", "per_class"})  # checks that are differences
DECISIONS = {"promote": "promoted", "first": "first model", "keep": "production stays"}
PARTS = {
    "test": "the test images, as in training",
    "holdout": "production images that no model ever trains on",
    "unseen": "production images that neither arm nor an ancestor trained on",
}


def gate(report: GateReport, labels: Mapping[str, str]) -> list[Html]:
    """Return the last decision: the comparisons, the rules and the reasons."""
    labels = {**labels, **report.labels}
    candidate = labels.get(report.candidate, report.candidate)
    production = labels.get(report.production or "", "nothing")
    kind = "idle" if report.decision == "keep" else "good"
    head = tag(
        "p", tag("span", DECISIONS[report.decision], class_=f"badge {kind}"), " ", tag("code", candidate),
        " against ", tag("code", production), ".",
    )  # fmt: skip
    children = [head, tag("ul", *(tag("li", reason) for reason in report.reasons))]
    rules = [*report.applied_rules()]
    if rules and report.rules:
        children.append(_rules(rules, report.rules))
        children.append(note("In percentage points. The dashed line is what the rule allows."))
    if report.per_class:
        children.append(details("Each class", _classes(report)))
    others = {name: passed for name, passed in report.checks.items() if name not in COMPARED}
    if others:
        marks = [f"{name.replace('_', ' ')} {'✓' if passed else '✕'}" for name, passed in others.items()]
        children.append(note(f"Also checked: {', '.join(marks)}."))
    if reported := _reported(report):
        children.append(note(f"Reported, not judged: {'; '.join(reported)}."))
    return children


def retraining(report: RetrainReport, labels: Mapping[str, str]) -> list[Html]:
    """Return the accuracies before and after a retraining, and those of the control arm."""
    arms = [
        ("before", labels.get(report.parent, report.parent), report.before),
        ("with the failures", labels.get(report.candidate, report.candidate), report.after),
    ]
    summary = f"{report.hard_examples:,} failures joined the training images"
    if report.control:
        arms.append(("control", "as many right answers instead", report.control))
        summary += (
            ". The control arm took the same steps with images that were answered correctly: what it gains is not due "
            "to the failures."
        )
    else:
        summary += "; there was no control arm (retrain.control)."
    shown = [part for part in PARTS if getattr(report.after, part).n]
    scores: list[tuple[str, Html, Score]] = []
    for part in shown:
        of_part = [(join(name, tag("small", label)), getattr(arm, part)) for name, label, arm in arms]
        scores += [(part if number == 0 else "", name, score) for number, (name, score) in enumerate(of_part)]
    bounds = [score.interval for _, _, score in scores if score.interval]
    scale = (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else (0.0, 1.0)
    rows = [
        (
            part, name, f"{score.n:,}", percent(score.accuracy), interval(score.interval),
            drawn(score.accuracy, *score.interval, scale) if score.accuracy is not None and score.interval else "",
        )
        for part, name, score in scores
    ]  # fmt: skip
    head = ("images", "arm", "n", "accuracy", "95 % interval", "")
    return [
        tag("p", summary),
        table(head, rows, "Accuracy before and after", words=(0, 1, 5)),
        note("; ".join(f"{part}: {PARTS[part]}" for part in shown), "."),
    ]


def drawn(middle: float, low: float, high: float, scale: tuple[float, float], limit: float | None = None) -> Html:
    """Return an interval drawn on a common scale, with marks at 0 and at the limit of a rule."""

    def x(value: float) -> float:
        part = (value - scale[0]) / (scale[1] - scale[0] or 1.0)
        return round(4 + (WIDTH - 8) * min(max(part, 0.0), 1.0), 1)

    marks = []
    if scale[0] < 0 < scale[1]:
        marks.append(tag("line", x1=x(0), x2=x(0), y1=0, y2=2 * MIDDLE, class_="zero"))
    if limit is not None:
        marks.append(tag("line", x1=x(limit), x2=x(limit), y1=0, y2=2 * MIDDLE, class_="limit"))
    return tag(
        "svg", *marks, tag("line", x1=x(low), x2=x(high), y1=MIDDLE, y2=MIDDLE, class_="range"),
        tag("circle", cx=x(middle), cy=MIDDLE, r=4), width=WIDTH, height=2 * MIDDLE, class_="interval",
        aria_hidden="true",
    )  # fmt: skip


def _rules(rules: Sequence[AppliedRule], limits: Rules) -> Html:
    ends = [abs(end) for rule in rules for end in (rule.difference.low, rule.difference.high)]
    widest = 1.05 * max(*ends, limits.margin, limits.class_margin)
    rows = [
        (
            rule.name if rule.class_name is None else f"{rule.name}: {rule.class_name}", f"{rule.difference.n:,}",
            points(rule.difference.difference), f"{points(rule.difference.low)} to {points(rule.difference.high)}",
            drawn(
                rule.difference.difference, rule.difference.low, rule.difference.high, (-widest, widest), rule.limit
            ),
            f"{rule.bound} {points(rule.limit) if rule.limit else 0}",
            tag("span", "✓ pass" if rule.passed else "✕ fail", class_=f"badge {'good' if rule.passed else 'bad'}"),
        )
        for rule in rules
    ]  # fmt: skip
    columns = ("compared on", "images", "points", "95 % interval", "", "rule", "")
    return table(columns, rows, "Differences in accuracy, candidate minus the other", words=(0, 4, 5, 6))


def _classes(report: GateReport) -> Html:
    rows = [
        (
            name, f"{one.n:,}", percent(one.old), percent(one.new), points(one.difference),
            f"{points(one.low)} to {points(one.high)}",
        )
        for name, one in report.per_class.items()
    ]  # fmt: skip
    head = ("class", "images", "old", "new", "points", "simultaneous 95 % interval")
    return table(head, rows, "Difference in each class")


def _reported(report: GateReport) -> list[str]:
    found, shown = report.reported, []
    for values, name, form in (
        (found.ece, "calibration error", "{:.3f}"), (found.latency_ms, "ms for one image", "{:.1f}")
    ):  # fmt: skip
        if known := {role: value for role, value in values.items() if value is not None}:
            shown.append(f"{name} {', '.join(f'{form.format(value)} ({role})' for role, value in known.items())}")
    if found.fixed is not None:
        shown.append(f"{found.fixed} test images fixed, {found.broken} broken")
    return shown
