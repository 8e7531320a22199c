"""A gate's decision as a table for people, one screen wide and high."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel.evaluation.comparison import Difference
from flywheel.gate.rules import Decision


def table(decision: Decision) -> list[str]:
    """Return the lines: one a rule with its figures and verdict, then what is only reported."""
    names, rules = decision.labels, decision.rules
    candidate = names.get(decision.candidate, decision.candidate)
    lines = [f"gate: candidate {candidate}, production {names.get(decision.production or '', 'none')}"]
    if decision.overall is not None:
        lines.append(f"  {'':<11}{'images':>7}{'old':>9}{'new':>9}{'points':>9}   {'95 % interval':<18}{'rule':<20}")
    rows = [("test", decision.production, decision.overall, f"low above {0 - 100 * rules.get('margin', 0):+.2f}")]
    if decision.best_ever != decision.production:
        rows.append(("best ever", decision.best_ever, decision.best_ever_difference, rows[0][3]))
    new = decision.accuracy.get(decision.candidate)
    for name, other, difference, rule in rows:
        if difference is not None and new is not None:
            old = f"{decision.accuracy[other or '']:.2%}"
            check = "test" if name == "test" else "best_ever"
            lines.append(_row(name, difference, old, f"{new:.2%}", rule, decision.checks[check]))
    if decision.holdout is not None:
        held = decision.reported["holdout_accuracy"]
        old, recent = f"{held['production']:.2%}", f"{held['candidate']:.2%}"
        lines.append(_row("holdout", decision.holdout, old, recent, "high not below 0", decision.checks["holdout"]))
    if decision.per_class:
        name, worst = min(decision.per_class.items(), key=lambda item: item[1].difference.high)
        rule = f"high not below {0 - 100 * rules['class_margin']:+.2f}"
        old, recent = f"{worst.old:.2%}", f"{worst.new:.2%}"
        lines.append(_row("worst class", worst.difference, old, recent, rule, decision.checks["per_class"]))
        lines.append(f"  worst class: {name} (its interval holds for all {len(decision.per_class)} classes together)")
    lines += [f"  reported: {text}" for text in (_reported_text(decision.reported),) if text]
    return lines


def _row(name: str, difference: Difference, old: str, new: str, rule: str, passed: bool) -> str:
    interval = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    points = f"{100 * difference.difference:+.2f}"
    verdict = "pass" if passed else "FAIL"
    return f"  {name:<11}{difference.n:>7,}{old:>9}{new:>9}{points:>9}   {interval:<18}{rule:<22}{verdict}"


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
