"""The sections on production traffic: what the last simulation measured, and what it got wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel.commands.report.judging import confused, gallery
from flywheel.commands.report.markup import Html, chart, details, interval, note, parts, percent, table, tag, when


def traffic(report: Mapping[str, Any]) -> list[Html]:
    """Return accuracy, latency and confidence of the last simulation."""
    models = ", ".join(f"{name} ({count:,})" for name, count in report["models"].items())
    latency, errors = report["latency_ms"], sum(report["errors"].values())
    shown = [
        ("accuracy", percent(report["accuracy"]), f"95 % interval {interval(report['interval'])}"),
        ("answers", f"{report['n']:,}", f"{errors} without one" if errors else "none went without"),
        ("requests a second", f"{report['requests_per_s']:,.0f}", f"{report['retries']:,} sent again"),
        ("latency, median", f"{latency['p50']:,.1f} ms", f"p95 {latency['p95']:,.1f}, p99 {latency['p99']:,.1f}"),
    ]
    tiles = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", told))) for name, value, told in shown
    ]  # fmt: skip
    right, wrong = (sum(report["confidence_histogram"][kind]) for kind in ("right", "wrong"))
    rows = [
        (name, f"{one['support']:,}", percent(one["precision"]), percent(one["recall"]))
        for name, one in report["per_class"].items()
    ]
    return parts(
        tag("p", "Simulated production requests, ", when(report["at"]), f", answered by {models}."),
        tag("dl", *tiles, class_="tiles"),
        tag(
            "div",
            chart(
                "confidence",
                "How sure it was",
                f"Confidence of {right:,} right and {wrong:,} wrong answers.",
                report["confidence_histogram"],
                280,
            ),
            chart(
                "latency",
                "How long an answer took",
                f"Latency of {report['n']:,} answers: median {latency['p50']} ms, 95 % under {latency['p95']} ms.",
                {**report["latency_histogram_ms"], **latency},
                280,
            ),
            class_="pair",
        ),
        note(_unseen(report)),
        details("Each class", table(("class", "images", "precision", "recall"), rows, "Traffic by class")),
    )


def failures(
    report: Mapping[str, Any], labels: Mapping[str, str], images: Mapping[int, str], command: str
) -> list[Html]:
    """Return what the last simulation got wrong: the most confident failures."""
    count, shown = report["failures"], len(report["worst"])
    told = f"{count:,} of {report['n']:,} answers were wrong"
    if count > shown:
        told += f"; the {shown} most confident are here"
    if report.get("feedback"):
        told += f". {report['feedback_new']:,} were new; {labels.get(report['feedback'], report['feedback'])} lists all"
    return parts(
        tag("p", told, ". ", tag("code", command), " trains on those of the training side."),
        gallery(report["worst"], images, "no failure"),
        confused(report["most_confused"]),
    )


def _unseen(report: Mapping[str, Any]) -> str:
    parts = [
        f"{percent(report[f'accuracy_{name}'])} of {report[f'n_{name}']:,} {told}"
        for name, told in (("holdout", "on the holdout side"), ("unseen", "that no training of the model saw"))
        if report.get(f"accuracy_{name}") is not None
    ]
    return f"Of these images: {'; '.join(parts)}." if parts else "Which images the model was trained on is not known."
