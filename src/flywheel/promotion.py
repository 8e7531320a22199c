"""The gate and the move into production.

So far the gate has one rule, for a first model: its test accuracy must reach `gate.floor_accuracy`. A later
model is not compared here yet: production stays, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flywheel.params import Params
from flywheel.registry import Registry, Version


@dataclass(frozen=True)
class Decision:
    """What the gate decided: `first` and `promote` move production, `keep` does not. Refs are name@digest."""

    candidate: str
    production: str | None
    decision: Literal["first", "promote", "keep"]
    reasons: tuple[str, ...]
    checks: Mapping[str, bool]

    def report(self) -> dict[str, Any]:
        """Return the decision as gate.json shows it."""
        return asdict(self)


def judge(params: Params, registry: Registry, candidate: Version, accuracy: float) -> Decision:
    """Decide whether a candidate with this test accuracy goes into production."""
    production = registry.aliases(params.registered_model).get("production")
    if production is not None and not registry.has(production):
        production = None  # its version was removed by hand: as good as none, and the alias may move on
    floor = params.gate.floor_accuracy
    checks = {"floor_accuracy": accuracy >= floor}
    against = f"{accuracy:.2%} on test against gate.floor_accuracy {floor:.2%}"
    if production == candidate.ref:
        return Decision(candidate.ref, production, "keep", ("it is in production already",), checks)
    if not checks["floor_accuracy"]:
        return Decision(candidate.ref, production, "keep", (f"too low: {against}",), checks)
    if production is None:
        return Decision(candidate.ref, None, "first", (f"the first model: {against}",), checks)
    reason = f"{production.partition('@')[0]} is in production, and only a first model is promoted without a comparison"
    return Decision(candidate.ref, production, "keep", (reason,), checks)


def apply(params: Params, registry: Registry, candidate: Version, decision: Decision) -> bool:
    """Carry out a decision; returns whether production moved. With promotion.auto off nothing moves."""
    if decision.decision == "keep" or not params.promotion.auto:
        return False
    registry.link(
        candidate,
        params.registered_model,
        ("production",),
        reason="; ".join(decision.reasons),
        expected={"production": registry.aliases(params.registered_model).get("production")},
        gate=decision.report(),
    )
    return True
