"""The gate's decision, as gate.json holds it. Imports neither numpy nor scipy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator

from flywheel.metrics.report import Difference, WeightedDifference

SUMMARY = frozenset({"candidate", "production", "best_ever", "decision", "reasons", "checks", "dataset", "accuracy"})
JUDGED_FROM = 50  # the effective number of labels of real traffic; with fewer the difference is only reported


@dataclass(frozen=True)
class ClassDifference(Difference):
    """The difference on a class, with an interval that holds for all classes together, and both accuracies."""

    old: float
    new: float


class Reported(BaseModel, frozen=True):
    """What is reported and not judged: by role (candidate, production), and on the test images."""

    ece: dict[str, float | None] = {}
    latency_ms: dict[str, float | None] = {}
    latency_ratio: float | None = None  # the median of the ratios of single images, candidate to production
    holdout_accuracy: dict[str, float | None] = {}
    traffic_accuracy: dict[str, float] = {}  # weighted, without disputed labels
    fixed: int | None = None
    broken: int | None = None
    p_value: float | None = None
    left_out: int = 0


class ChangedClass(BaseModel, frozen=True):
    """On how many captured images the candidate answers another class than production."""

    production: str
    candidate: str
    count: int


class Replay(BaseModel, frozen=True):
    """How the candidate and production answered the newest captured images.

    The candidate `crashed` on some, its probabilities were `not_finite` for others; `failed` is the content hash of one
    of these. `compared` counts the images that both answered, `agreed` those with the same class; `changed` are the
    most frequent differences.
    """

    images: int
    crashed: int = 0
    not_finite: int = 0
    failed: str | None = None
    compared: int = 0
    agreed: int = 0
    changed: tuple[ChangedClass, ...] = ()


class Rules(BaseModel, frozen=True):
    """The params that the decision was made by."""

    margin: float
    class_margin: float
    floor_accuracy: float


class AppliedRule(NamedTuple):
    """A comparison that was judged: its `bound` (low above, high not below) against a `limit`.

    `class_name` is the worst class, of that rule only; `old` and `new` are accuracies, None where not recorded.
    `passed` is None where there are too few labels to judge.
    """

    name: str
    difference: Difference
    bound: str
    limit: float
    passed: bool | None
    old: float | None
    new: float | None
    class_name: str | None = None


class GateReport(BaseModel, frozen=True):
    """What the gate decided: `first` and `promote` move production, `keep` does not. Models are refs, name@digest.

    `production` is what the alias pointed to when this was decided. Differences are candidate minus the other.
    """

    version: Literal[1] = 1
    candidate: str
    production: str | None
    decision: Literal["first", "promote", "keep"]
    reasons: tuple[str, ...]
    checks: dict[str, bool] = {}
    best_ever: str | None = None
    overall: Difference | None = None
    best_ever_difference: Difference | None = None
    per_class: dict[str, ClassDifference] = {}
    holdout: Difference | None = None
    traffic: WeightedDifference | None = None
    replay: Replay | None = None  # None: switched off, or not reached
    reported: Reported = Reported()
    dataset: str | None = None
    accuracy: dict[str, float] = {}  # of each model compared, on test
    labels: dict[str, str] = {}  # ref -> name:vN
    rules: Annotated[Rules | None, BeforeValidator(lambda value: value or None)] = None  # {} in older stores

    def summary(self) -> dict[str, Any]:
        """Return what the audit log keeps: the decision, why, and the accuracies by which the best ever is found."""
        return self.model_dump(mode="json", include=set(SUMMARY))

    def numbers(self) -> dict[str, Any]:
        """Return the figures for a W&B run."""
        differences = {
            "test": self.overall, "best_ever": self.best_ever_difference, "holdout": self.holdout,
            "traffic": self.traffic,
        }  # fmt: skip
        found: dict[str, Any] = {"gate/decision": self.decision, "gate/reasons": "; ".join(self.reasons)}
        found |= {f"gate/check/{name}": passed for name, passed in self.checks.items()}
        for name, difference in differences.items():
            if difference is not None:
                for part in ("difference", "low", "high"):
                    found[f"gate/{name}/{part}"] = getattr(difference, part)
        if self.traffic:
            found["gate/traffic/effective_n"] = self.traffic.effective_n
        if self.replay:
            found |= {
                f"gate/replay/{name}": getattr(self.replay, name)
                for name in ("images", "crashed", "not_finite", "compared", "agreed")
            }
        if self.reported.latency_ratio is not None:
            found["gate/latency_ratio"] = self.reported.latency_ratio
        return found

    def applied_rules(self) -> Iterator[AppliedRule]:
        """Yield the comparisons that were judged, in the order of the table."""
        if self.rules is None:
            return
        checks, new, margin = self.checks, self.accuracy.get(self.candidate), -self.rules.margin
        for name, check, other, difference in (
            ("test", "test", self.production, self.overall),
            ("best ever", "best_ever", self.best_ever, self.best_ever_difference),
        ):
            if difference and (check == "test" or other != self.production):
                old = self.accuracy.get(other or "")
                yield AppliedRule(name, difference, "low above", margin, checks[check], old, new)
        for name, held, accuracy in (
            ("holdout", self.holdout, self.reported.holdout_accuracy),
            ("traffic", self.traffic, self.reported.traffic_accuracy),
        ):
            if held:
                old, new = (accuracy.get(role) for role in ("production", "candidate"))
                yield AppliedRule(name, held, "high not below", 0.0, checks.get(name), old, new)
        if self.per_class:
            name, worst = min(self.per_class.items(), key=lambda item: item[1].high)
            limit, passed = -self.rules.class_margin, checks["per_class"]
            yield AppliedRule("worst class", worst, "high not below", limit, passed, worst.old, worst.new, name)
