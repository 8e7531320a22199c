"""The result of `make monitor` as text: for people, and for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from flywheel.params import Params
from flywheel.traffic.monitor_report import Labelled, MonitorReport

UNSURE = 0.3  # mean confidence below accuracy: by so much a model of two epochs was below, which failed unnoticed


def lines(params: Params, report: MonitorReport | None) -> Iterator[str]:
    """Yield the report for people."""
    profile, retired = f"PROFILE={params.profile}", "it is not in production"
    if report is None:
        yield f"no prediction is recorded yet; make serve {profile} records what it answers"
        return
    if report.model is None:
        yield f"there is no production model; make evaluate {profile} promotes one"
    for watched in (report, *report.others):
        if watched.model is None:
            continue
        name = watched.label + (" (production)" if watched is report else "")
        found = watched.alarm
        if found.presumed_accuracy is None or found.reference_accuracy is None or found.lowest_accuracy is None:
            if watched.model not in report.unwatched:
                yield f"{name}: no prediction yet"
            continue
        yield (
            f"{name}: presumed accuracy {found.presumed_accuracy:.1%} of the newest {found.newest:,} predictions; "
            f"{found.reference_accuracy:.1%} of {found.reference_n:,} test images"
        )
        sure = found.reference_confidence
        if sure is not None and found.reference_accuracy - sure > UNSURE:
            yield (
                f"{name}: on average only {sure:.0%} sure of the test images: it may fail without an alarm; train it "
                f"longer, or make label {profile} asks people"
            )
        if found.state == "quiet":
            yield f"{name}: no alarm (the evidence is {found.evidence:.1f} of {found.limit:.1f})"
        else:
            what = f"make label {profile} asks people for the truth" if watched is report else retired
            yield f"{name}: ALARM since {clock(found.since)}: it is presumably wrong more often than on test; {what}"
        if watched.labelled is not None:
            what = f"make collect retrain {profile} trains on them" if watched is report else retired
            yield f"{name}: {_by_labels(watched.labelled, found.lowest_accuracy, what)}"
        elif watched is report:
            yield f"{name}: no accuracy by labels yet; make label {profile} asks people"
    for ref, problem in report.unwatched.items():
        yield f"{ref.partition('@')[0]} is not watched: {problem}"


def clock(at: str | None) -> str:
    """Return a time in ISO 8601, UTC, for people."""
    return f"{(at or '')[:16].replace('T', ' ')} UTC"


def _by_labels(labelled: Labelled, lowest: float, what_to_do: str) -> str:
    """Return the accuracy by labels for people, with what to do if it is harm."""
    low, high = labelled.interval
    sure = f"95 % interval {low:.1%} to {high:.1%}" if low < high else "it has every image that could be drawn"
    text = f"accuracy {labelled.accuracy:.1%} by {labelled.n:,} labels of the sample of {clock(labelled.made)} ({sure})"
    if labelled.waiting:
        text += f"; {labelled.waiting:,} images wait for a label"
    return text + (f"; that is harm: {what_to_do}" if high < lowest else "")


def gauges(report: MonitorReport) -> str:
    """Return the report in Prometheus's text format."""
    families: dict[str, tuple[str, list[tuple[str, float]]]] = {}

    def add(name: str, text: str, value: float | None, model: str = "") -> None:
        if value is not None:
            families.setdefault(name, (text, []))[1].append((f'{{model="{model}"}}' if model else "", value))

    add(
        "run_seconds",
        "Time of the last make monitor, seconds since 1970.",
        datetime.fromisoformat(report.at).timestamp(),
    )
    for one in (report, *report.others):
        if one.model is not None:
            found, labelled = one.alarm, one.labelled
            add("alarm", "1 while the alarm is up.", float(found.state == "alarm"), one.label)
            add("predictions", "Predictions that count.", one.predictions, one.label)
            add("evidence", "Evidence of harm.", found.evidence, one.label)
            add("evidence_limit", "Evidence that raises the alarm.", found.limit, one.label)
            add("presumed_accuracy", "Of the newest predictions, without labels.", found.presumed_accuracy, one.label)
            add("reference_accuracy", "Accuracy of test images.", found.reference_accuracy, one.label)
            if labelled is not None:
                low, high = labelled.interval
                add("labelled_accuracy", "Accuracy by the newest labelled sample.", labelled.accuracy, one.label)
                add("labelled_accuracy_low", "Lower end of its 95 % interval.", low, one.label)
                add("labelled_accuracy_high", "Upper end of its 95 % interval.", high, one.label)
                add("labels", "Labels of that sample.", labelled.n, one.label)
    return "".join(
        f"# HELP flywheel_monitor_{name} {text}\n# TYPE flywheel_monitor_{name} gauge\n"
        + "".join(f"flywheel_monitor_{name}{labels} {value:.10g}\n" for labels, value in values)
        for name, (text, values) in families.items()
    )
