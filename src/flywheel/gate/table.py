"""A gate's decision as a table for people, one screen wide and high."""

from __future__ import annotations

from collections.abc import Iterator

from flywheel.gate.report import AppliedRule, GateReport, Reported


def table(report: GateReport) -> Iterator[str]:
    """Yield the lines: one a rule with its figures and verdict, then what is only reported."""
    names = report.labels
    candidate = names.get(report.candidate, report.candidate)
    yield f"gate: candidate {candidate}, production {names.get(report.production or '', 'none')}"
    if report.overall is not None:
        yield f"  {'':<11}{'images':>7}{'old':>9}{'new':>9}{'points':>9}   {'95 % interval':<18}{'rule':<20}"
    for rule in report.applied_rules():
        if rule.old is not None and rule.new is not None:
            yield _row(rule)
        if rule.class_name is not None:
            classes = len(report.per_class)
            yield f"  worst class: {rule.class_name} (its interval holds for all {classes} classes together)"
    if text := reported(report.reported):
        yield f"  reported: {text}"


def _row(rule: AppliedRule) -> str:
    found = rule.difference
    interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
    limit = f"{0 + 100 * rule.limit:+.2f}" if rule.name != "holdout" else "0"
    return (
        f"  {rule.name:<11}{found.n:>7,}{rule.old:>9.2%}{rule.new:>9.2%}{f'{100 * found.difference:+.2f}':>9}   "
        f"{interval:<18}{f'{rule.bound} {limit}':<22}{'pass' if rule.passed else 'FAIL'}"
    )


def reported(found: Reported) -> str:
    """Return what was measured and not judged, in one line."""
    parts = []
    for values, name, form in (
        (found.ece, "calibration error", "{:.3f}"),
        (found.latency_ms, "one image in ms", "{:.1f}"),
    ):
        told = [form.format(value) for value in values.values() if value is not None]
        if told:
            parts.append(f"{name} {told[0]}{f' (production {told[1]})' if len(told) > 1 else ''}")
    if found.fixed is not None:
        parts.append(f"{found.fixed} fixed, {found.broken} broken, p {found.p_value:.3f}")
    if found.left_out:
        parts.append(f"{found.left_out} images left out: a model was trained on them")
    return "; ".join(parts)
