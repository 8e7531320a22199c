"""The sections on judgement: evaluation on the test images, and the gate with the control arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flywheel.commands.report.markup import (
    Html,
    chart,
    details,
    interval,
    join,
    note,
    parts,
    percent,
    points,
    scrolling,
    table,
    tag,
)
from flywheel.gate.report import AppliedRule, GateReport
from flywheel.pipeline.plotting import READABLE_CLASSES

WIDTH, MIDDLE = 180, 12  # pixels of a drawn interval
COMPARED = frozenset({"test", "best_ever", "holdout", "per_class"})  # checks that are differences
DECISIONS = {"promote": "promoted", "first": "first model", "keep": "production stays"}
PARTS = {
    "test": "the test images, as in training",
    "holdout": "production images that no model ever trains on",
    "unseen": "production images that neither arm nor an ancestor trained on",
}


def evaluation(
    report: Mapping[str, Any], labels: Mapping[str, str], images: Mapping[int, str], production: str | None
) -> list[Html]:
    """Return how good the sweep's best model is on the test images. `production` is the label of what serves."""
    model, names = labels.get(report["model"], report["model"]), list(report["per_class"])
    told = (
        f"{model}: {percent(report['accuracy'], 2)} of {report['n']:,} test images, 95 % interval "
        f"{interval(report['interval'], 2)}; expected calibration error {report['ece']:.3f}."
    )
    rows = [
        (name, f"{one['support']:,}", percent(one["precision"]), percent(one["recall"]), percent(one["f1"]))
        for name, one in report["per_class"].items()
    ]
    head = ("class", "images", "precision", "recall", "F1")
    return parts(
        tag("p", told),
        note(f"This is the sweep's best; in production is {production}, whose accuracy stands at the top.")
        if production not in (None, model)
        else None,
        tag("div", matrix(report["confusion_matrix"], names), reliability(report["calibration"]), class_="pair"),
        confused(report["most_confused"]),
        details("Each class", table(head, rows, "Precision, recall and F1 of each class")),
        tag("h3", "Most confident mistakes"),
        gallery(report["worst"], images, "no mistake on test"),
    )


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Html:
    """Return a confusion matrix: a row a true class, shaded by its part of that class; right blue, wrong orange."""
    if len(names) > READABLE_CLASSES:
        return note(f"{len(names)} classes: the confusion matrix is in evaluation.json and confusion_matrix.png.")
    rows = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        total = max(sum(row), 1)
        cells = []
        for j, count in enumerate(row):
            # Mistakes are rare: their shade runs over a fifth of the scale, so that they show.
            shade = min(count / total, 1) if i == j else min(5 * count / total, 1)
            kind = "none" if not count else ("right" if i == j else "wrong") + (" dark" if shade > 0.55 else "")
            style = f"--shade:{100 * shade:.0f}%" if count else None
            cells.append(tag("td", count or "·", class_=kind, style=style))
        rows.append(tag("tr", tag("th", tag("span", name, title=name), scope="row"), *cells))
    head = tag("tr", tag("td"), *(tag("th", tag("span", name, title=name), scope="col") for name in names))
    caption = tag("caption", "Confusion matrix (a row a true class)")
    upright = " short" if max(map(len, names), default=0) <= 3 else ""
    whole = tag("table", caption, tag("thead", head), tag("tbody", *rows), class_=f"matrix{upright}")
    return scrolling(whole, "Confusion matrix")


def reliability(calibration: Mapping[str, Any]) -> Html:
    """Return accuracy against confidence."""
    told = "; ".join(
        f"confidence {percent(confidence, 0)}: accuracy {percent(accuracy, 0)} of {count:,}"
        for confidence, accuracy, count in zip(
            calibration["confidence"], calibration["accuracy"], calibration["count"], strict=True
        )
    )
    shown = {key: calibration[key] for key in ("confidence", "accuracy", "count")}
    return chart("reliability", "Reliability: accuracy against confidence", f"Reliability. {told}", shown, 340)


def confused(pairs: Sequence[Mapping[str, Any]]) -> Html:
    """Return the pairs of classes that are taken for one another most often."""
    if not pairs:
        return note("No two classes were confused.")
    items = [
        tag("li", tag("b", pair["label"]), " taken for ", tag("b", pair["prediction"]), f" {pair['count']}×")
        for pair in pairs
    ]
    return join(tag("h3", "Most confused"), tag("ul", *items, class_="chips"))


def gallery(mistakes: Sequence[Mapping[str, Any]], images: Mapping[int, str], nothing: str) -> Html:
    """Return images that were got wrong, the most confident first: the truth, what was said, how sure."""
    if not mistakes:
        return note(nothing)
    shots = []
    for one in mistakes:
        told = (
            f"image {one['id']}: {one['label']}, taken for {one['prediction']} with {percent(one['confidence'], 0)} "
            "confidence"
        )
        image = tag("img", src=images[one["id"]], alt=told) if one["id"] in images else None
        shots.append(
            tag(
                "figure", image or tag("div", "?", class_="gone", title="the image is not in the store"),
                tag(
                    "figcaption", tag("b", one["label"]),
                    tag("span", f"→ {one['prediction']}"), tag("small", percent(one["confidence"], 0)),
                ),
                title=told,
            )
        )  # fmt: skip
    return tag("div", *shots, class_="gallery")


def gate(report: Mapping[str, Any], labels: Mapping[str, str]) -> list[Html]:
    """Return the last decision of the gate: what was compared, by which rule, and why it fell so."""
    labels = {**labels, **report["labels"]}
    candidate = labels.get(report["candidate"], report["candidate"])
    production = labels.get(report["production"] or "", "nothing")
    kind = "idle" if report["decision"] == "keep" else "good"
    head = tag(
        "p", tag("span", DECISIONS[report["decision"]], class_=f"badge {kind}"), " ", tag("code", candidate),
        " against ", tag("code", production), ".",
    )  # fmt: skip
    reasons = tag("ul", *(tag("li", reason) for reason in report["reasons"]))
    rows = [*GateReport.model_validate(report).applied_rules()]
    shown_parts = [head, reasons]
    if rows:
        scale = _scale(rows, report["rules"])
        shown = [
            (
                rule.name if rule.class_name is None else f"{rule.name}: {rule.class_name}", f"{rule.difference.n:,}",
                points(rule.difference.difference),
                f"{points(rule.difference.low)} to {points(rule.difference.high)}",
                drawn(rule.difference.difference, rule.difference.low, rule.difference.high, scale, rule.limit),
                f"{rule.bound} {points(rule.limit) if rule.limit else 0}", _verdict(rule.passed),
            )
            for rule in rows
        ]  # fmt: skip
        columns = ("compared on", "images", "points", "95 % interval", "", "rule", "")
        caption = "Differences in accuracy, candidate minus the other"
        shown_parts.append(table(columns, shown, caption, words=(0, 4, 5, 6)))
        shown_parts.append(note("In percentage points. The dashed line is what the rule allows."))
    if report["per_class"]:
        shown_parts.append(details("Each class", _classes(report)))
    others = {name: passed for name, passed in report["checks"].items() if name not in COMPARED}
    if others:
        marks = [f"{name.replace('_', ' ')} {'✓' if passed else '✕'}" for name, passed in others.items()]
        shown_parts.append(note(f"Also checked: {', '.join(marks)}."))
    reported = report.get("reported") or {}
    told = [
        f"{name} {_two(reported[key], form)}"
        for key, name, form in (("ece", "calibration error", "{:.3f}"), ("latency_ms", "ms for one image", "{:.1f}"))
        if reported.get(key)
    ]
    if reported.get("fixed") is not None:
        told.append(f"{reported['fixed']} test images fixed, {reported['broken']} broken")
    if told:
        shown_parts.append(note(f"Reported, not judged: {'; '.join(told)}."))
    return shown_parts


def control(report: Mapping[str, Any], labels: Mapping[str, str]) -> list[Html]:
    """Return what a retraining changed: before, after, and the control arm that had right answers instead."""
    arms = [
        ("before", labels.get(report["parent"], report["parent"]), report["before"]),
        ("with the failures", labels.get(report["candidate"], report["candidate"]), report["after"]),
    ]
    if report.get("control"):
        arms.append(("control", "as many right answers instead", report["control"]))
    shown_parts = [
        tag(
            "p", f"{report['hard_examples']:,} failures joined the training images. The control arm took the same "
            "steps with images that were answered rightly: what it gains is not due to the failures."
            if report.get("control")
            else f"{report['hard_examples']:,} failures joined the training images; there was no control arm "
            "(retrain.control).",
        ),
    ]  # fmt: skip
    shown = [part for part in PARTS if (report["after"].get(part) or {}).get("n")]
    bounds = [arm[part]["interval"] for _, _, arm in arms for part in shown if arm.get(part)]
    scale = (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else (0.0, 1.0)
    rows = [
        (
            part if number == 0 else "", join(name, tag("small", told)), f"{arm[part]['n']:,}",
            percent(arm[part]["accuracy"]), interval(arm[part]["interval"]),
            drawn(arm[part]["accuracy"], arm[part]["interval"][0], arm[part]["interval"][1], scale),
        )
        for part in shown
        for number, (name, told, arm) in enumerate(arms)
        if arm.get(part)
    ]  # fmt: skip
    head = ("images", "arm", "n", "accuracy", "95 % interval", "")
    shown_parts.append(table(head, rows, "Accuracy before and after", words=(0, 1, 5)))
    shown_parts.append(note("; ".join(f"{part}: {PARTS[part]}" for part in shown), "."))
    return shown_parts


def drawn(middle: float, low: float, high: float, scale: tuple[float, float], limit: float | None = None) -> Html:
    """Return an interval as a small drawing on a common scale, with 0 and a rule's limit where they lie on it."""

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


def _classes(report: Mapping[str, Any]) -> Html:
    rows = [
        (
            name, f"{one['n']:,}", percent(one["old"]), percent(one["new"]), points(one["difference"]),
            f"{points(one['low'])} to {points(one['high'])}",
        )
        for name, one in report["per_class"].items()
    ]  # fmt: skip
    head = ("class", "images", "old", "new", "points", "simultaneous 95 % interval")
    return table(head, rows, "Difference in each class")


def _scale(rows: Iterable[AppliedRule], rules: Mapping[str, float]) -> tuple[float, float]:
    ends = [abs(end) for rule in rows for end in (rule.difference.low, rule.difference.high)]
    widest = 1.05 * max([*ends, *(abs(value) for key, value in rules.items() if key.endswith("margin"))])
    return -widest, widest


def _verdict(passed: bool) -> Html:
    return tag("span", "✓ pass" if passed else "✕ fail", class_=f"badge {'good' if passed else 'bad'}")


def _two(values: Mapping[str, float | None], form: str) -> str:
    shown = [f"{form.format(value)} ({role})" for role, value in values.items() if value is not None]
    return ", ".join(shown)
