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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flywheel.gate.report import JUDGED_FROM, ClassDifference, GateReport, Replay, Reported, Rules
from flywheel.metrics.classification import balanced_accuracy
from flywheel.metrics.comparison import DISPUTED, Comparison, compare, paired_difference, weighted_difference
from flywheel.metrics.report import Difference, WeightedDifference
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
    be loaded, and `unusable` says why. `best_ever` has the classes of the data set. `measured` holds the latencies.
    """
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
    checks = _Checks()
    unanswered = f"probabilities that are not finite for {candidate.unanswered} of its images"
    checks.add("answers", not candidate.unanswered, f"{candidate.label} gives {unanswered}")
    if replay and replay.images:
        ways = ((replay.crashed, "crashes on"), (replay.not_finite, "gives probabilities that are not finite for"))
        failed = " and ".join(f"{text} {count}" for count, text in ways if count)
        among = f"of {replay.images} captured images, among them {replay.failed}"
        checks.add("replay", replay.failed is None, f"{candidate.label} {failed} {among}")
    same = all(model.class_names == labels.class_names for model in (candidate, production) if model)
    checks.add("same_classes", same)
    if unusable or not (same and len(labels.test)):
        checks.reasons.append(unusable or _not_comparable(labels, candidate, production))
        return checks.report("keep", **base)
    measured = (measured or Reported()).model_copy(update=_reported(labels, candidate, production))
    base |= {"accuracy": {model.model: model.accuracy(labels) for model in models}, "reported": measured}
    test, best = (
        compare(model.test, candidate.test, labels.test, labels.class_names) if model else None
        for model in (production, best_ever)
    )
    if best is not None:
        base["best_ever_difference"] = best.overall
    if production is None or test is None:
        return _first(rules, labels, candidate, checks, best, base)
    checks.add("test", test.overall.low > -rules.margin, _worse(test.overall, "production", rules.margin))
    if best is not None and best_ever is not None:
        reason = _worse(best.overall, f"{best_ever.label}, the best that was in production", rules.margin)
        checks.add("best_ever", best.overall.low > -rules.margin, reason if best_ever.model != production.model else "")
    harmed = [name for name, difference in test.per_class.items() if difference.high < -rules.class_margin]
    checks.add("per_class", not harmed)
    for name in harmed:
        checks.reasons.append(f"class {name} is harmed: {shown(test.per_class[name])}, wholly below -gate.class_margin")
    holdout, traffic = _held_out(labels, production, candidate)
    if holdout is None:
        checks.add("holdout", True)
    else:
        checks.add("holdout", holdout.high >= 0, f"worse on the holdout images of the simulation: {shown(holdout)}")
    if traffic is not None and traffic.effective_n >= JUDGED_FROM:
        checks.add("traffic", traffic.high >= 0, f"worse on the sampled labels of real traffic: {shown(traffic)}")
    ratio, allowed = measured.latency_ratio, rules.max_latency_ratio
    if ratio is not None and allowed is not None:
        slow = f"too slow: one image takes {ratio:.2f} times as long as in production"
        checks.add("latency", ratio <= allowed, f"{slow}, gate.max_latency_ratio allows {allowed:g}")
    if checks.passed:
        verdict = "better than production" if test.overall.low > 0 else "no measurable harm"
        checks.reasons.append(f"{verdict}: {shown(test.overall)} on test")
    flips = {"fixed": len(test.fixed), "broken": len(test.broken), "p_value": test.p_value}
    return checks.report(
        "promote", overall=test.overall, holdout=holdout, traffic=traffic,
        per_class=_per_class(test, production, candidate, labels),
        **{**base, "reported": measured.model_copy(update=flips)},
    )  # fmt: skip


@dataclass
class _Checks:
    """The checks so far, and why those that did not pass did not."""

    results: dict[str, bool] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(self.results.values())

    def add(self, name: str, passed: bool, reason: str = "") -> None:
        self.results[name] = passed
        if reason and not passed:
            self.reasons.append(reason)

    def report(self, decision: Literal["first", "promote", "keep"], **found: Any) -> GateReport:
        decision = decision if self.passed else "keep"
        return GateReport(decision=decision, reasons=tuple(self.reasons), checks=self.results, **found)


def shown(difference: Difference) -> str:
    """Return a difference for people: +0.35 points (-0.20 to +0.90)."""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.difference:+.2f} points ({low:+.2f} to {high:+.2f})"


def _first(
    rules: Gate,
    labels: GateLabels,
    candidate: Predictions,
    checks: _Checks,
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
    against = f"{accuracy:.2%} on test against gate.floor_accuracy {rules.floor_accuracy:.2%}"
    checks.add("floor_accuracy", accuracy >= rules.floor_accuracy, f"too low: {against}")
    checks.add(
        "beats_chance", low > guessed,
        f"not shown to be better than guessing: balanced accuracy, the mean over the classes, {balanced:.2%} on "
        f"test, its lower 95 % bound {low:.2%}, of which guesses reach {guessed:.2%}",
    )  # fmt: skip
    advice = "add training images of it, or set gate.allow_unlearned_classes=true"
    learned = not len(unlearned) or rules.allow_unlearned_classes
    checks.add("learned", learned, f"{_never_found(labels, total, unlearned)}; {advice}")
    if best is not None:
        reason = _worse(best.overall, "the best model that was in production", rules.margin)
        checks.add("best_ever", best.overall.low > -rules.margin, reason)
    if checks.passed:
        checks.reasons.append(f"no model to compare with: {against}")
        if len(missed):
            checks.reasons.append(_never_found(labels, total, missed))
    return checks.report("first", **base)


def _never_found(labels: GateLabels, total: NDArray[np.int64], missed: NDArray[np.int64]) -> str:
    named = [f"{labels.class_names[index]} (0 of {total[index]})" for index in missed[:NAMED_CLASSES]]
    more = f" and {len(missed) - len(named)} more" if len(missed) > len(named) else ""
    return f"no test image is recognised of {'classes' if len(missed) > 1 else 'class'} {', '.join(named)}{more}"


def _held_out(
    labels: GateLabels, old: Predictions, new: Predictions
) -> tuple[Difference | None, WeightedDifference | None]:
    """Return the differences on the holdout images of the simulation and on the labels of real traffic."""
    holdout, traffic, names = None, None, labels.class_names
    if len(labels.holdout):
        holdout = compare(old.holdout, new.holdout, labels.holdout, names, HOLDOUT_CONFIDENCE).overall
    if len(labels.traffic):
        traffic = weighted_difference(old.traffic, new.traffic, labels.traffic, labels.weights, HOLDOUT_CONFIDENCE)
    return holdout, traffic


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
    reason = f"on test {how} than {other}: {shown(difference)}, gate.margin allows {100 * margin:.2f}"
    least = -paired_difference(0, 0, difference.n).low
    if difference.high < 0 or least < margin:
        return reason
    return (
        f"{reason}; {difference.n:,} test images show no less than {100 * least:.2f}, even of an equal model: take "
        "more of them, or a larger gate.margin"
    )
