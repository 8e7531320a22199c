"""A gate's decision as a table for people, one screen wide and high; and which rules it shows, for other pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flywheel.gate.rules import Decision


@dataclass(frozen=True)
class AppliedRule:
    """A comparison that was judged: `figures` n, difference, low, high; `bound` (low above, high not below) a `limit`.

    `class_name` is the worst class, of that rule only; `old` and `new` are accuracies, None where they are not told.
    """

    name: str
    figures: Mapping[str, Any]
    bound: str
    limit: float
    passed: bool
    old: float | None
    new: float | None
    class_name: str | None = None


def applied_rules(report: Mapping[str, Any]) -> list[AppliedRule]:
    """Return the comparisons of a decision as gate.json shows it, in the order of the table."""
    checks, rules, accuracy = report["checks"], report["rules"], report.get("accuracy") or {}
    new, found = accuracy.get(report["candidate"]), []
    for name, other, figures, check in (
        ("test", report["production"], report["overall"], "test"),
        ("best ever", report["best_ever"], report["best_ever_difference"], "best_ever"),
    ):
        if figures and (check == "test" or other != report["production"]):
            old = accuracy.get(other)
            found.append(AppliedRule(name, figures, "low above", -rules["margin"], checks[check], old, new))
    if report["holdout"]:
        held = (report["reported"] or {}).get("holdout_accuracy") or {}
        old, recent = held.get("production"), held.get("candidate")
        found.append(AppliedRule("holdout", report["holdout"], "high not below", 0.0, checks["holdout"], old, recent))
    if report["per_class"]:
        name, worst = min(report["per_class"].items(), key=lambda item: item[1]["high"])
        limit, passed = -rules["class_margin"], checks["per_class"]
        found.append(
            AppliedRule("worst class", worst, "high not below", limit, passed, worst["old"], worst["new"], name)
        )
    return found


def table(decision: Decision) -> list[str]:
    """Return the lines: one a rule with its figures and verdict, then what is only reported."""
    names = decision.labels
    candidate = names.get(decision.candidate, decision.candidate)
    lines = [f"gate: candidate {candidate}, production {names.get(decision.production or '', 'none')}"]
    if decision.overall is not None:
        lines.append(f"  {'':<11}{'images':>7}{'old':>9}{'new':>9}{'points':>9}   {'95 % interval':<18}{'rule':<20}")
    for rule in applied_rules(decision.report()):
        if rule.old is not None and rule.new is not None:
            lines.append(_row(rule))
        if rule.class_name is not None:
            whole = f"its interval holds for all {len(decision.per_class)} classes together"
            lines.append(f"  worst class: {rule.class_name} ({whole})")
    lines += [f"  reported: {text}" for text in (_reported_text(decision.reported),) if text]
    return lines


def _row(rule: AppliedRule) -> str:
    figures = rule.figures
    interval = f"{100 * figures['low']:+.2f} to {100 * figures['high']:+.2f}"
    points = f"{100 * figures['difference']:+.2f}"
    limit = f"{0 + 100 * rule.limit:+.2f}" if rule.name != "holdout" else "0"
    verdict = "pass" if rule.passed else "FAIL"
    return (
        f"  {rule.name:<11}{figures['n']:>7,}{rule.old:>9.2%}{rule.new:>9.2%}{points:>9}   {interval:<18}"
        f"{f'{rule.bound} {limit}':<22}{verdict}"
    )


def _reported_text(reported: Mapping[str, Any]) -> str:
    parts = []
    for key, name, form in (("ece", "calibration error", "{:.3f}"), ("latency_ms", "one image in ms", "{:.1f}")):
        values = [form.format(value) for value in reported.get(key, {}).values() if value is not None]
        if values:
            parts.append(f"{name} {values[0]}{f' (production {values[1]})' if len(values) > 1 else ''}")
    if reported.get("fixed") is not None:
        parts.append(f"{reported['fixed']} fixed, {reported['broken']} broken, p {reported['p_value']:.3f}")
    if reported.get("left_out"):
        parts.append(f"{reported['left_out']} images left out: a model was trained on them")
    return "; ".join(parts)
