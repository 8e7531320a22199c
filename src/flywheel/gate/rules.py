"""The gate's rules: what models answer on the same images -> a decision. Pure: no model, file or registry.

The promise is *no measurable harm*. A candidate takes over when all of these hold, each shown in `checks`:
`answers` (it loads and gives finite probabilities for every image), `same_classes`, `test` and `best_ever` (the lower
95 % bound of its paired difference to production, and to the best model that ever was in production, is above
-gate.margin), `per_class` (no simultaneous interval lies wholly below -gate.class_margin), `holdout` (not shown worse
on the simulation images that no training sees). Without a model to compare with, `floor_accuracy` counts instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flywheel.metrics.comparison import Comparison, Difference, compare
from flywheel.params import Gate

NO_ANSWER = -1  # the class of an image for which a model gave no finite probabilities: always wrong


@dataclass(frozen=True)
class Exam:
    """What models are compared on: labels (n,) and (m,) int64, indices into the class names. `dataset` is its ref."""

    dataset: str
    class_names: tuple[str, ...]
    test: NDArray[np.int64]
    holdout: NDArray[np.int64]
    left_out: int = 0  # images that a model was trained on, as part of another data set


@dataclass(frozen=True)
class Answers:
    """What a model answers: classes (n,) and (m,) int64, NO_ANSWER where a probability is not finite."""

    model: str
    label: str
    class_names: tuple[str, ...]
    test: NDArray[np.int64]
    holdout: NDArray[np.int64]
    ece: float | None = None
    latency_ms: float | None = None

    def accuracy(self, exam: Exam) -> float:
        """Return the accuracy on test."""
        return float((self.test == exam.test).mean())


@dataclass(frozen=True)
class ClassResult:
    """Old and new accuracy on a class; the interval of the difference holds for all classes together."""

    old: float
    new: float
    difference: Difference


@dataclass(frozen=True)
class Decision:
    """What the gate decided: `first` and `promote` move production, `keep` does not. Models are refs, name@digest.

    `production` is what the alias pointed to when this was decided. Differences are candidate minus the other.
    """

    candidate: str
    production: str | None
    decision: Literal["first", "promote", "keep"]
    reasons: tuple[str, ...]
    checks: Mapping[str, bool] = field(default_factory=dict)
    best_ever: str | None = None
    overall: Difference | None = None
    best_ever_difference: Difference | None = None
    per_class: Mapping[str, ClassResult] = field(default_factory=dict)
    holdout: Difference | None = None
    reported: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)  # of each model asked, on test
    labels: Mapping[str, str] = field(default_factory=dict)  # ref -> name:vN
    rules: Mapping[str, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Return the decision as gate.json shows it."""
        whole = asdict(self)
        whole["per_class"] = {
            name: {"old": result["old"], "new": result["new"], **result["difference"]}
            for name, result in whole["per_class"].items()
        }
        return whole

    def summary(self) -> dict[str, Any]:
        """Return what the audit log keeps: the decision, why, and the accuracies by which the best ever is found."""
        keys = ("candidate", "production", "best_ever", "decision", "reasons", "checks", "dataset", "accuracy")
        return {key: value for key, value in asdict(self).items() if key in keys}

    def numbers(self) -> dict[str, Any]:
        """Return the figures for a W&B run."""
        differences = {"test": self.overall, "best_ever": self.best_ever_difference, "holdout": self.holdout}
        found: dict[str, Any] = {"gate/decision": self.decision, "gate/reasons": "; ".join(self.reasons)}
        found |= {f"gate/check/{name}": passed for name, passed in self.checks.items()}
        for name, difference in differences.items():
            if difference is not None:
                for part in ("difference", "low", "high"):
                    found[f"gate/{name}/{part}"] = getattr(difference, part)
        return found


def decide(
    rules: Gate,
    exam: Exam,
    candidate: Answers,
    production: Answers | None = None,
    best_ever: Answers | None = None,
    *,
    was_production: str | None = None,
) -> Decision:
    """Decide whether a candidate takes over from production. Without production: whether it may be the first.

    `was_production` is where the alias points, if not to `production` (a version that is gone). A best ever of other
    classes is not compared.
    """
    if best_ever and best_ever.class_names != exam.class_names:
        best_ever = None
    base: dict[str, Any] = {
        "candidate": candidate.model,
        "production": production.model if production else was_production,
        "best_ever": best_ever.model if best_ever else None,
        "dataset": exam.dataset,
        "labels": {a.model: a.label for a in (candidate, production, best_ever) if a},
        "rules": {"margin": rules.margin, "class_margin": rules.class_margin, "floor_accuracy": rules.floor_accuracy},
    }
    checks = {
        "answers": bool((candidate.test != NO_ANSWER).all() and (candidate.holdout != NO_ANSWER).all()),
        "same_classes": all(model.class_names == exam.class_names for model in (candidate, production) if model),
    }
    if not (checks["same_classes"] and len(exam.test)):
        return Decision(decision="keep", reasons=_not_comparable(exam, candidate, production), checks=checks, **base)
    base["accuracy"] = {model.model: model.accuracy(exam) for model in (candidate, production, best_ever) if model}
    base["reported"] = _reported(exam, candidate, production)
    missing = [] if checks["answers"] else [_no_answer(candidate)]
    test = _against(production, candidate, exam)
    same = production and best_ever and production.model == best_ever.model
    best = test if same else _against(best_ever, candidate, exam)
    if best is not None:
        base["best_ever_difference"] = best.overall
        checks["best_ever"] = best.overall.low > -rules.margin
    if production is None or test is None:
        return _first(rules, candidate.accuracy(exam), checks, missing, best, base)
    holdout = _on_holdout(production, candidate, exam)
    harmed = [name for name, difference in test.per_class.items() if difference.high < -rules.class_margin]
    checks |= {
        "test": test.overall.low > -rules.margin,
        "per_class": not harmed,
        "holdout": holdout is None or holdout.high >= 0,
    }
    reasons = missing
    if not checks["test"]:
        reasons.append(_worse(test.overall, "production", rules.margin))
    if best is not None and best_ever is not None and not same and not checks["best_ever"]:
        reasons.append(_worse(best.overall, f"{best_ever.label}, the best that was in production", rules.margin))
    for name in harmed:
        reasons.append(f"class {name} is harmed: {said(test.per_class[name])}, wholly below -gate.class_margin")
    if holdout is not None and not checks["holdout"]:
        reasons.append(f"worse on production's holdout images: {said(holdout)}")
    passed = all(checks.values())
    if passed:
        verdict = "better than production" if test.overall.low > 0 else "no measurable harm"
        reasons = [f"{verdict}: {said(test.overall)} on test"]
    base |= {"overall": test.overall, "holdout": holdout, "per_class": _per_class(test, production, candidate, exam)}
    base["reported"] |= {"fixed": len(test.fixed), "broken": len(test.broken), "p_value": test.p_value}
    return Decision(decision="promote" if passed else "keep", reasons=tuple(reasons), checks=checks, **base)


def said(difference: Difference) -> str:
    """Return a difference for people: +0.35 points (-0.20 to +0.90)."""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.difference:+.2f} points ({low:+.2f} to {high:+.2f})"


def _first(
    rules: Gate,
    accuracy: float,
    checks: dict[str, bool],
    missing: list[str],
    best: Comparison | None,
    base: Mapping[str, Any],
) -> Decision:
    checks["floor_accuracy"] = accuracy >= rules.floor_accuracy
    against = f"{accuracy:.2%} on test against gate.floor_accuracy {rules.floor_accuracy:.2%}"
    reasons = [*missing, *([] if checks["floor_accuracy"] else [f"too low: {against}"])]
    if best is not None and not checks["best_ever"]:
        reasons.append(_worse(best.overall, "the best model that was in production", rules.margin))
    if all(checks.values()):
        return Decision(decision="first", reasons=(f"no model to compare with: {against}",), checks=checks, **base)
    return Decision(decision="keep", reasons=tuple(reasons), checks=checks, **base)


def _against(old: Answers | None, new: Answers, exam: Exam) -> Comparison | None:
    return compare(old.test, new.test, exam.test, exam.class_names) if old else None


def _on_holdout(old: Answers, new: Answers, exam: Exam) -> Difference | None:
    if not len(exam.holdout):
        return None
    return compare(old.holdout, new.holdout, exam.holdout, exam.class_names).overall


def _per_class(test: Comparison, old: Answers, new: Answers, exam: Exam) -> dict[str, ClassResult]:
    classes = len(exam.class_names)
    total = np.maximum(np.bincount(exam.test, minlength=classes), 1)
    right = [np.bincount(exam.test[a.test == exam.test], minlength=classes) / total for a in (old, new)]
    index = {name: i for i, name in enumerate(exam.class_names)}
    return {
        name: ClassResult(float(right[0][index[name]]), float(right[1][index[name]]), difference)
        for name, difference in test.per_class.items()
    }


def _reported(exam: Exam, candidate: Answers, production: Answers | None) -> dict[str, Any]:
    both = {"candidate": candidate, **({"production": production} if production else {})}
    return {
        "ece": {role: answers.ece for role, answers in both.items()},
        "latency_ms": {role: answers.latency_ms for role, answers in both.items()},
        "holdout_accuracy": {
            role: float((answers.holdout == exam.holdout).mean()) if len(exam.holdout) else None
            for role, answers in both.items()
        },
        "fixed": None,
        "broken": None,
        "left_out": exam.left_out,
    }


def _not_comparable(exam: Exam, candidate: Answers, production: Answers | None) -> tuple[str, ...]:
    if not len(exam.test):
        return ("no test image is left that none of the models was trained on; run make data with new images",)
    if candidate.class_names != exam.class_names:
        return (f"{candidate.label} knows other classes than the data set; run make sweep",)
    assert production is not None
    return (
        f"{production.label}, in production, knows other classes than the data set, so the two cannot be compared; "
        f'make promote MODEL={candidate.label} with FORCE=1 REASON="other classes" replaces it',
    )


def _no_answer(candidate: Answers) -> str:
    count = int((candidate.test == NO_ANSWER).sum() + (candidate.holdout == NO_ANSWER).sum())
    return f"{candidate.label} gives probabilities that are not finite for {count} of its images"


def _worse(difference: Difference, other: str, margin: float) -> str:
    how = "worse" if difference.high < 0 else "perhaps worse"
    return f"on test {how} than {other}: {said(difference)}, gate.margin allows {100 * margin:.2f}"
