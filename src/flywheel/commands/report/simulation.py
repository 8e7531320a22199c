"""The sections on the last simulation: its traffic and its failures."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel.commands.report.evaluation import confused, gallery
from flywheel.commands.report.markup import Html, chart, details, interval, note, parts, percent, table, tag, when
from flywheel.simulation.report import SimulationReport


def traffic(report: SimulationReport) -> list[Html]:
    """Return accuracy, latency and confidence."""
    models = ", ".join(f"{name} ({count:,})" for name, count in report.models.items())
    latency, errors = report.latency_ms, sum(report.errors.values())
    shown = [
        ("accuracy", percent(report.accuracy), f"95 % interval {interval(report.interval)}"),
        ("answers", f"{report.n:,}", f"{errors} images without one" if errors else "all answered"),
        ("requests a second", f"{report.requests_per_s:,.0f}", f"{report.retries:,} sent again"),
        ("latency, median", f"{latency.p50:,.1f} ms", f"p95 {latency.p95:,.1f}, p99 {latency.p99:,.1f}"),
    ]
    tiles = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", detail))) for name, value, detail in shown
    ]  # fmt: skip
    right, wrong = sum(report.confidence_histogram.right), sum(report.confidence_histogram.wrong)
    rows = [
        (name, f"{one.support:,}", percent(one.precision), percent(one.recall))
        for name, one in report.per_class.items()
    ]
    return parts(
        tag("p", "Simulated production requests, ", when(report.at), f", answered by {models}."),
        tag("dl", *tiles, class_="tiles"),
        tag(
            "div",
            chart(
                "confidence",
                "Confidence",
                f"Confidence of {right:,} right and {wrong:,} wrong answers.",
                report.confidence_histogram.model_dump(),
                280,
            ),
            chart(
                "latency",
                "Latency",
                f"Latency of {report.n:,} answers: median {latency.p50} ms, 95 % under {latency.p95} ms.",
                {**report.latency_histogram_ms.model_dump(), **latency.model_dump()},
                280,
            ),
            class_="pair",
        ),
        note(_unseen(report)),
        details("Each class", table(("class", "images", "precision", "recall"), rows, "Traffic by class")),
    )


def failures(
    report: SimulationReport, labels: Mapping[str, str], images: Mapping[int, str], command: str
) -> list[Html]:
    """Return the most confident failures."""
    count, shown = report.failures, len(report.worst)
    summary = f"{count:,} of {report.n:,} answers were wrong"
    if count > shown:
        summary += f"; the {shown} most confident are here"
    if report.feedback:
        summary += f". {report.feedback_new:,} were new; {labels.get(report.feedback, report.feedback)} lists all"
    return parts(
        tag("p", summary, ". ", tag("code", command), " trains on those of the training side."),
        gallery(report.worst, images, "no failure"),
        confused(report.most_confused),
    )


def _unseen(report: SimulationReport) -> str:
    shown = [
        f"{percent(accuracy)} of {n:,} {description}"
        for accuracy, n, description in (
            (report.accuracy_holdout, report.n_holdout, "on the holdout side"),
            (report.accuracy_unseen, report.n_unseen, "that no training of the model saw"),
        )
        if accuracy is not None
    ]
    return f"Of these images: {'; '.join(shown)}." if shown else "Which images the model was trained on is not known."
