"""The section on the evaluation: accuracy, confusion matrix, calibration and mistakes on the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flywheel.commands.report.markup import (
    Html,
    chart,
    details,
    interval,
    join,
    note,
    parts,
    percent,
    scrolling,
    table,
    tag,
)
from flywheel.evaluation.report import EvaluationReport
from flywheel.metrics.report import Calibration, ConfusedPair, Mistake
from flywheel.pipeline.plotting import READABLE_CLASSES


def evaluation(
    report: EvaluationReport, labels: Mapping[str, str], images: Mapping[int, str], production: str | None
) -> list[Html]:
    """Return the test results of the sweep's best model. `production` is the label of the model in production."""
    model = labels.get(report.model, report.model)
    summary = (
        f"{model}: {percent(report.accuracy, 2)} of {report.n:,} test images, 95 % interval "
        f"{interval(report.interval, 2)}; expected calibration error {report.ece:.3f}."
    )
    rows = [
        (name, f"{one.support:,}", percent(one.precision), percent(one.recall), percent(one.f1))
        for name, one in report.per_class.items()
    ]
    head = ("class", "images", "precision", "recall", "F1")
    other = f"This is the sweep's best; in production is {production}, whose accuracy is at the top."
    return parts(
        tag("p", summary),
        note(other) if production not in (None, model) else None,
        tag(
            "div", matrix(report.confusion_matrix, [*report.per_class]), reliability(report.calibration), class_="pair"
        ),
        confused(report.most_confused),
        details("Each class", table(head, rows, "Precision, recall and F1 of each class")),
        tag("h3", "Most confident mistakes"),
        gallery(report.worst, images, "no mistake on test"),
    )


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Html:
    """Return a confusion matrix with a row for each true class, shaded by its part of that class."""
    if len(names) > READABLE_CLASSES:
        return note(f"{len(names)} classes: the confusion matrix is in evaluation.json and confusion_matrix.png.")
    rows = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        total = max(sum(row), 1)
        cells = []
        for j, count in enumerate(row):
            # Mistakes are rare: a fifth of the class is the darkest shade.
            shade = min(count / total, 1) if i == j else min(5 * count / total, 1)
            kind = "none" if not count else ("right" if i == j else "wrong") + (" dark" if shade > 0.55 else "")
            style = f"--shade:{100 * shade:.0f}%" if count else None
            cells.append(tag("td", count or "·", class_=kind, style=style))
        rows.append(tag("tr", tag("th", tag("span", name, title=name), scope="row"), *cells))
    head = tag("tr", tag("td"), *(tag("th", tag("span", name, title=name), scope="col") for name in names))
    caption = tag("caption", "Confusion matrix (a row a true class)")
    upright = " short" if max(map(len, names), default=0) <= 3 else ""
    drawn = tag("table", caption, tag("thead", head), tag("tbody", *rows), class_=f"matrix{upright}")
    return scrolling(drawn, "Confusion matrix")


def reliability(calibration: Calibration) -> Html:
    """Return accuracy against confidence."""
    description = "; ".join(
        f"confidence {percent(confidence, 0)}: accuracy {percent(accuracy, 0)} of {count:,}"
        for confidence, accuracy, count in zip(
            calibration.confidence, calibration.accuracy, calibration.count, strict=True
        )
    )
    title = "Reliability: accuracy against confidence"
    return chart("reliability", title, f"Reliability. {description}", calibration.model_dump(), 340)


def confused(pairs: Sequence[ConfusedPair]) -> Html:
    """Return the most confused pairs of classes."""
    if not pairs:
        return note("No two classes were confused.")
    items = [
        tag("li", tag("b", pair.label), " taken for ", tag("b", pair.prediction), f" {pair.count}×") for pair in pairs
    ]
    return join(tag("h3", "Most confused"), tag("ul", *items, class_="chips"))


def gallery(mistakes: Sequence[Mistake], images: Mapping[int, str], nothing: str) -> Html:
    """Return wrongly predicted images with label, prediction and confidence, the most confident first."""
    if not mistakes:
        return note(nothing)
    shots = []
    for one in mistakes:
        sure = percent(one.confidence, 0)
        description = f"image {one.id}: {one.label}, taken for {one.prediction} with {sure} confidence"
        image = tag("img", src=images[one.id], alt=description) if one.id in images else None
        shots.append(
            tag(
                "figure", image or tag("div", "?", class_="gone", title="the image is not in the store"),
                tag(
                    "figcaption", tag("b", one.label), tag("span", f"→ {one.prediction}"), tag("small", sure)
                ),
                title=description,
            )
        )  # fmt: skip
    return tag("div", *shots, class_="gallery")
