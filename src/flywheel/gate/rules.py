"""Decide promote or keep from predictions on the same images. Reads no file, loads no model.

The promise is *no measurable harm*. A candidate is promoted if all of these checks pass:

    new             it was not in production before (checked by `promotion.judge`, not for make promote)
    answers         it loads and gives finite probabilities for every image
    same_classes    it, production and the data set have the same classes
    test            the lower 95 % bound of its paired difference to production is above -gate.margin
    best_ever       the same against the best model that was ever in production
    per_class       no class has an interval (95 % for all classes together) entirely below -gate.class_margin
    holdout         it is not shown to be worse on the simulation images that no training uses: no 97.5 % interval
                    entirely below 0
    traffic         the same on sampled labels of real traffic, if they are worth JUDGED_FROM labels of equal weight
    replay          it answers the newest captured images, with finite probabilities
    latency         it takes at most gate.max_latency_ratio times as long as production

If nothing is in production, these replace test, per_class, holdout, traffic and latency:

    floor_accuracy  its accuracy on test is at least gate.floor_accuracy
    beats_chance    the lower 95 % bound of its balanced accuracy on test is above 1 / classes
    learned         it finds images of every class that has UNLEARNED_FROM test images (gate.allow_unlearned_classes)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.gate.report import JUDGED_FROM, ClassDifference, GateReport, Replay, Reported, Rules
from flywheel.metrics.classification import balanced_accuracy
from flywheel.metrics.comparison import DISPUTED, Comparison, compare, weighted_difference
from flywheel.metrics.report import Difference
from flywheel.params import Gate

UNLEARNED_FROM = 5  # test images of a class of which none is answered correctly
NAMED_CLASSES = 5  # in a reason; the others are counted
HOLDOUT_CONFIDENCE = 0.975  # of each holdout check, so 95 % for both together
NO_ANSWER = -1  # the class of an image for which a model gave no finite probabilities: always wrong


@dataclass(frozen=True)
class GateLabels:
    """True classes of the compared images, (n,), (m,) and (k,) int64, indices into the class names.

    `dataset` is a ref. `weights` (k,) are 1 / probability of the labels of real traffic, which may be DISPUTED.
    """

    dataset: str
    class_names: tuple[str, ...]
    test: NDArray[np.int64]
    holdout: NDArray[np.int64]
    left_out: int = 0  # images that a model was trained on
    traffic: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Predictions:
    """What a model predicts: classes (n,), (m,) and (k,) int64, NO_ANSWER where a probability is not finite."""

    model: str
    label: str
    class_names: tuple[str, ...]
    test: NDArray[np.int64]
    holdout: NDArray[np.int64]
    ece: float | None = None
    traffic: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def unanswered(self) -> int:
        """The number of images for which a probability is not finite."""
        return sum(int((part == NO_ANSWER).sum()) for part in (self.test, self.holdout, self.traffic))

    def accuracy(self, labels: GateLabels) -> float:
        """Return the accuracy on test."""
        return float((self.test == labels.test).mean())


def decide(
    rules: Gate,
    labels: GateLabels,
    candidate: Predictions,
    production: Predictions | None = None,
    best_ever: Predictions | None = None,
    *,
    was_production: str | None = None,
    unusable: str = "",
    replay: Replay | None = None,
    measured: Reported | None = None,
) -> GateReport:
    """Decide whether a candidate takes over from production. Without production: whether it may be the first.

    `was_production` is where the alias points, if not to `production`: to a version that is gone, or to one that cannot
    be loaded, and `unusable` says why. A best ever of other classes is not compared. `measured` holds the latencies.
    """
    if best_ever and best_ever.class_names != labels.class_names:
        best_ever = None
    models = [model for model in (candidate, production, best_ever) if model]
    base: dict[str, Any] = {
        "candidate": candidate.model,
        "production": production.model if production else was_production,
        "best_ever": best_ever.model if best_ever else None,
        "dataset": labels.dataset,
        "labels": {model.model: model.label for model in models},
        "rules": Rules(margin=rules.margin, class_margin=rules.class_margin, floor_accuracy=rules.floor_accuracy),
        "replay": replay,
    }
    checks = {
        "answers": not candidate.unanswered,
        "same_classes": all(model.class_names == labels.class_names for model in (candidate, production) if model),
    }
    reasons = []
    if candidate.unanswered:
        reasons.append(
            f"{candidate.label} gives probabilities that are not finite for {candidate.unanswered} of its images"
        )
    if replay and replay.images:
        checks["replay"] = not replay.failed
        if replay.failed:
            ways = ((replay.crashed, "crashes on"), (replay.not_finite, "gives probabilities that are not finite for"))
            failed = " and ".join(f"{text} {count}" for count, text in ways if count)
            reasons.append(f"{candidate.label} {failed} of {replay.images} captured images, among them {replay.failed}")
    if unusable or not (checks["same_classes"] and len(labels.test)):
        why = unusable or _not_comparable(labels, candidate, production)
        return GateReport(decision="keep", reasons=(*reasons, why), checks=checks, **base)
    base["accuracy"] = {model.model: model.accuracy(labels) for model in models}
    measured = measured or Reported()
    reported = measured.model_copy(update=_reported(labels, candidate, production))
    test = _against(production, candidate, labels)
    same = production and best_ever and production.model == best_ever.model
    best = test if same else _against(best_ever, candidate, labels)
    if best is not None:
        base["best_ever_difference"] = best.overall
        checks["best_ever"] = best.overall.low > -rules.margin
    if production is None or test is None:
        return _first(rules, labels, candidate, checks, reasons, best, {**base, "reported": reported})
    holdout = None
    if len(labels.holdout):
        holdout = compare(
            production.holdout, candidate.holdout, labels.holdout, labels.class_names, HOLDOUT_CONFIDENCE
        ).overall
    traffic = None
    if len(labels.traffic):
        traffic = weighted_difference(
            production.traffic, candidate.traffic, labels.traffic, labels.weights, HOLDOUT_CONFIDENCE
        )
    harmed = [name for name, difference in test.per_class.items() if difference.high < -rules.class_margin]
    checks |= {
        "test": test.overall.low > -rules.margin,
        "per_class": not harmed,
        "holdout": holdout is None or holdout.high >= 0,
    }
    if traffic is not None and traffic.effective_n >= JUDGED_FROM:
        checks["traffic"] = traffic.high >= 0
    ratio = measured.latency_ratio
    if rules.max_latency_ratio is not None and ratio is not None:
        checks["latency"] = ratio <= rules.max_latency_ratio
    if not checks["test"]:
        reasons.append(_worse(test.overall, "production", rules.margin))
    if best is not None and best_ever is not None and not same and not checks["best_ever"]:
        reasons.append(_worse(best.overall, f"{best_ever.label}, the best that was in production", rules.margin))
    for name in harmed:
        reasons.append(f"class {name} is harmed: {shown(test.per_class[name])}, wholly below -gate.class_margin")
    if holdout is not None and not checks["holdout"]:
        reasons.append(f"worse on the holdout images of the simulation: {shown(holdout)}")
    if traffic is not None and not checks.get("traffic", True):
        reasons.append(f"worse on the sampled labels of real traffic: {shown(traffic)}")
    if not checks.get("latency", True):
        allowed = f"gate.max_latency_ratio allows {rules.max_latency_ratio:g}"
        reasons.append(f"too slow: one image takes {ratio:.2f} times as long as in production, {allowed}")
    passed = all(checks.values())
    if passed:
        verdict = "better than production" if test.overall.low > 0 else "no measurable harm"
        reasons = [f"{verdict}: {shown(test.overall)} on test"]
    flips = {"fixed": len(test.fixed), "broken": len(test.broken), "p_value": test.p_value}
    return GateReport(
        decision="promote" if passed else "keep", reasons=tuple(reasons), checks=checks, overall=test.overall,
        holdout=holdout, traffic=traffic, per_class=_per_class(test, production, candidate, labels),
        reported=reported.model_copy(update=flips), **base,
    )  # fmt: skip


def shown(difference: Difference) -> str:
    """Return a difference for people: +0.35 points (-0.20 to +0.90)."""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.difference:+.2f} points ({low:+.2f} to {high:+.2f})"


def _first(
    rules: Gate,
    labels: GateLabels,
    candidate: Predictions,
    checks: dict[str, bool],
    reasons: list[str],
    best: Comparison | None,
    base: Mapping[str, Any],
) -> GateReport:
    accuracy, classes = candidate.accuracy(labels), len(labels.class_names)
    total = np.bincount(labels.test, minlength=classes)
    right = np.bincount(labels.test[candidate.test == labels.test], minlength=classes)
    balanced, low = balanced_accuracy(right, total)
    guessed = 1 / int((total > 0).sum())
    missed = np.flatnonzero((total > 0) & (right == 0))
    unlearned = missed[total[missed] >= UNLEARNED_FROM]
    checks["floor_accuracy"] = accuracy >= rules.floor_accuracy
    checks["beats_chance"] = low > guessed
    checks["learned"] = not len(unlearned) or rules.allow_unlearned_classes
    against = f"{accuracy:.2%} on test against gate.floor_accuracy {rules.floor_accuracy:.2%}"
    if not checks["floor_accuracy"]:
        reasons.append(f"too low: {against}")
    if not checks["beats_chance"]:
        reasons.append(
            f"not shown to be better than guessing: balanced accuracy, the mean over the classes, {balanced:.2%} on "
            f"test, its lower 95 % bound {low:.2%}, of which guesses reach {guessed:.2%}"
        )
    if not checks["learned"]:
        found = _never_found(labels, total, unlearned)
        reasons.append(f"{found}; add training images of it, or set gate.allow_unlearned_classes=true")
    if best is not None and not checks["best_ever"]:
        reasons.append(_worse(best.overall, "the best model that was in production", rules.margin))
    if passed := all(checks.values()):
        reasons = [f"no model to compare with: {against}"]
        if len(missed):
            reasons.append(_never_found(labels, total, missed))
    return GateReport(decision="first" if passed else "keep", reasons=tuple(reasons), checks=checks, **base)


def _never_found(labels: GateLabels, total: NDArray[np.int64], missed: NDArray[np.int64]) -> str:
    named = [f"{labels.class_names[index]} (0 of {total[index]})" for index in missed[:NAMED_CLASSES]]
    more = f" and {len(missed) - len(named)} more" if len(missed) > len(named) else ""
    return f"no test image is recognised of {'classes' if len(missed) > 1 else 'class'} {', '.join(named)}{more}"


def _against(old: Predictions | None, new: Predictions, labels: GateLabels) -> Comparison | None:
    return compare(old.test, new.test, labels.test, labels.class_names) if old else None


def _per_class(test: Comparison, old: Predictions, new: Predictions, labels: GateLabels) -> dict[str, ClassDifference]:
    classes = len(labels.class_names)
    total = np.maximum(np.bincount(labels.test, minlength=classes), 1)
    before, after = (
        np.bincount(labels.test[model.test == labels.test], minlength=classes) / total for model in (old, new)
    )
    index = {name: i for i, name in enumerate(labels.class_names)}
    return {
        name: ClassDifference(**asdict(found), old=float(before[index[name]]), new=float(after[index[name]]))
        for name, found in test.per_class.items()
    }


def _reported(labels: GateLabels, candidate: Predictions, production: Predictions | None) -> dict[str, Any]:
    both = {"candidate": candidate, **({"production": production} if production else {})}
    settled = labels.traffic != DISPUTED
    return {
        "ece": {role: model.ece for role, model in both.items()},
        "holdout_accuracy": {
            role: float((model.holdout == labels.holdout).mean()) if len(labels.holdout) else None
            for role, model in both.items()
        },
        "traffic_accuracy": {
            role: float(np.average((model.traffic == labels.traffic)[settled], weights=labels.weights[settled]))
            for role, model in both.items()
            if settled.any()
        },
        "left_out": labels.left_out,
    }


def _not_comparable(labels: GateLabels, candidate: Predictions, production: Predictions | None) -> str:
    if not len(labels.test):
        return "no test image is left that none of the models was trained on; run make data with new images"
    if candidate.class_names != labels.class_names:
        return f"{candidate.label} knows other classes than the data set; run make sweep"
    assert production is not None
    return (
        f"{production.label}, in production, knows other classes than the data set, so the two cannot be compared; "
        f'make promote MODEL={candidate.label} with FORCE=1 REASON="other classes" replaces it'
    )


def _worse(difference: Difference, other: str, margin: float) -> str:
    how = "worse" if difference.high < 0 else "perhaps worse"
    return f"on test {how} than {other}: {shown(difference)}, gate.margin allows {100 * margin:.2f}"
