"""A gate's decision as a table for people, one screen wide and high. Imports neither numpy nor scipy."""

from __future__ import annotations

from collections.abc import Iterator

from flywheel.gate.report import JUDGED_FROM, AppliedRule, GateReport, Replay, Reported


def table(report: GateReport) -> Iterator[str]:
    """Yield the lines: one a rule with its figures and verdict, then what is only reported."""
    names = report.labels
    candidate = names.get(report.candidate, report.candidate)
    production = names.get(report.production or "", (report.production or "none").partition("@")[0])
    yield f"gate: candidate {candidate}, production {production}"
    if report.overall is not None:
        yield f"  {'':<11}{'images':>7}{'old':>9}{'new':>9}{'points':>9}   {'95 % interval':<18}{'rule':<20}"
    for rule in report.applied_rules():
        if rule.old is not None and rule.new is not None:
            yield _row(rule)
        if rule.class_name is not None:
            classes = len(report.per_class)
            yield f"  worst class: {rule.class_name} (its interval holds for all {classes} classes together)"
    for note in notes(report):
        yield f"  {note}"
    if text := reported(report.reported):
        yield f"  reported: {text}"


def _row(rule: AppliedRule) -> str:
    found = rule.difference
    interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
    limit = f"{100 * rule.limit:+.2f}" if rule.limit else "0"
    verdict = {True: "pass", False: "FAIL", None: "not judged"}[rule.passed]
    return (
        f"  {rule.name:<11}{found.n:>7,}{rule.old:>9.2%}{rule.new:>9.2%}{f'{100 * found.difference:+.2f}':>9}   "
        f"{interval:<18}{f'{rule.bound} {limit}':<22}{verdict}"
    )


def notes(report: GateReport) -> Iterator[str]:
    """Yield what the rows do not tell of the holdout checks, and what the replay saw."""
    if report.holdout or report.traffic:
        yield "holdout and traffic: 97.5 % intervals, so that both hold together with 95 %"
    if found := report.traffic:
        few = "" if "traffic" in report.checks else f"; judged from {JUDGED_FROM}"
        disputed = f"; {found.disputed} are disputed" if found.disputed else ""
        yield f"traffic: the sampled labels are worth {found.effective_n:.0f} of equal weight{few}{disputed}"
    if report.replay:
        yield f"replay: {_replayed(report.replay)}"


def _replayed(found: Replay) -> str:
    if not found.images:
        return "no captured images"
    parts = [f"{found.images:,} captured images"]
    if failed := found.crashed + found.not_finite:
        parts.append(f"the candidate fails on {failed}")
    if found.compared:
        parts.append(f"the same class for {found.agreed / found.compared:.1%}")
    changed = [f"{one.production} -> {one.candidate} ({one.count})" for one in found.changed]
    if changed:
        parts.append(f"{found.compared - found.agreed} changed, most often {', '.join(changed)}")
    return "; ".join(parts)


def reported(found: Reported) -> str:
    """Return what was measured and not judged, in one line."""
    parts = []
    for values, name, form in (
        (found.ece, "calibration error", "{:.3f}"),
        (found.latency_ms, "one image in ms", "{:.1f}"),
    ):
        told = {role: form.format(value) for role, value in values.items() if value is not None}
        if "candidate" in told:
            beside = f" (production {told['production']})" if "production" in told else ""
            parts.append(f"{name} {told['candidate']}{beside}")
    if found.latency_ratio is not None:
        parts[-1] += f", {found.latency_ratio:.2f} times as long"
    if found.fixed is not None:
        parts.append(f"{found.fixed} fixed, {found.broken} broken, p {found.p_value:.3f}")
    if found.left_out:
        parts.append(f"{found.left_out} images left out: a model was trained on them")
    return "; ".join(parts)
