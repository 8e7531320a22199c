"""The gate's rules on made-up predictions whose truth is known, DRAWS seeded draws each.

The draws are those of the power study (benchmarks/gate_power.py), so what the docs tell is what is tested here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gate_power
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.gate import plots, table
from flywheel.gate.report import ChangedClass, GateReport, Replay, Reported
from flywheel.gate.rules import NO_ANSWER, GateLabels, Predictions, decide
from flywheel.metrics.comparison import DISPUTED, paired_difference
from flywheel.params import Gate
from flywheel.params import file as params_file

ROOT = Path(__file__).parents[2]
DRAWS, FEW = 1000, 200  # few where every draw decides alike
RULES = params_file.load(ROOT / "params.yaml", "cifar10").gate


def decisions(disagreement: float, difference: Any, draws: int = DRAWS) -> list[GateReport]:
    """Decide over draws of a candidate with a known true difference to production (a number or one an image)."""
    random, truth = np.random.default_rng(0), gate_power.make_labels(8000, 600)
    mean = float(np.mean(difference))
    found = []
    for _ in range(draws):
        test, held = gate_power.draw_correct(random, 8000), gate_power.draw_correct(random, 600)
        old = gate_power.predictions("old", truth, test, held)
        new_test = gate_power.draw_other_model(random, test, disagreement, difference)
        new_held = gate_power.draw_other_model(random, held, disagreement, mean)
        new = gate_power.predictions("new", truth, new_test, new_held)
        found.append(decide(RULES, truth, new, old, old))
    return found


def rate(found: list[GateReport], decision: str = "promote") -> float:
    return Counter(d.decision for d in found)[decision] / len(found)


def rules(**changes: float) -> Gate:
    return RULES.model_copy(update=changes)


def simple() -> tuple[GateLabels, Predictions]:
    """The truth, and a model that is wrong for every fifth image."""
    names, labels = tuple("abcd"), np.arange(400) % 4
    truth = GateLabels("data@0", names, labels, labels[:200])
    wrong = np.where(np.arange(400) % 5 == 0, (labels + 1) % 4, labels)
    return truth, Predictions("old@0", "old:v0", names, wrong, wrong[:200])


# -- what passes and what does not, in DRAWS draws each -------------------------------------------


def test_equal_models_mostly_pass_and_are_hardly_ever_called_better() -> None:
    found = decisions(0.04, 0.0)
    assert rate(found) > 0.9
    assert sum("better" in d.reasons[0] for d in found) / DRAWS < 0.04  # 2.5 % by construction


def test_a_model_that_is_worse_by_the_margin_passes_at_most_once_in_forty() -> None:
    for disagreement in (0.04, 0.10):
        assert rate(decisions(disagreement, -RULES.margin)) < 0.04  # 2.5 % by construction


def test_a_model_two_points_better_always_passes_and_is_called_better() -> None:
    found = decisions(0.04, 0.02, FEW)
    assert rate(found) > 0.99
    assert np.mean([d.reasons[0].startswith("better than production: ") for d in found]) > 0.99


def test_a_class_ten_points_worse_is_caught_though_all_in_all_nothing_is_lost() -> None:
    per_image = np.where(np.arange(8000) % 10 == 0, -0.10, 0.10 / 9)
    found = decisions(0.10, per_image, FEW)
    assert rate(found) == 0
    assert all("class class0 is harmed: " in "; ".join(d.reasons) for d in found)
    assert np.mean([d.checks["test"] for d in found]) > 0.8


def test_worse_on_the_holdout_alone_is_kept() -> None:
    """As good on test, ten points worse on the images of production."""
    random, truth = np.random.default_rng(0), gate_power.make_labels(8000, 600)
    kept = 0
    for _ in range(FEW):
        test, held = gate_power.draw_correct(random, 8000), gate_power.draw_correct(random, 600)
        worse = gate_power.draw_other_model(random, held, 0.10, -0.10)
        new = gate_power.predictions("new", truth, gate_power.draw_other_model(random, test, 0.04, 0.0), worse)
        decision = decide(RULES, truth, new, gate_power.predictions("old", truth, test, held))
        kept += not decision.checks["holdout"]
        assert decision.checks["holdout"] or decision.decision == "keep"
    assert kept / FEW > 0.99


@pytest.mark.parametrize("profile", ["cifar10", "demo"])
def test_zero_discordant_pairs_pass_and_are_not_called_better(profile: str) -> None:
    rules = params_file.load(ROOT / "params.yaml", profile).gate
    random, (n, m) = np.random.default_rng(0), {"cifar10": (8000, 600), "demo": (450, 164)}[profile]
    truth = gate_power.make_labels(n, m)
    for _ in range(FEW):
        old = gate_power.predictions("old", truth, random.random(n) < random.random(), random.random(m) < 0.5)
        decision = decide(rules, truth, replace(old, model="new@1"), old, old)
        assert decision.decision == "promote"
        assert decision.reasons[0].startswith("no measurable harm: +0.00 points")
        assert (decision.reported.fixed, decision.reported.broken, decision.reported.p_value) == (0, 0, 1.0)


def test_nan_anywhere_is_kept_whatever_the_rest() -> None:
    random, truth = np.random.default_rng(0), gate_power.make_labels(450, 164)
    for draw in range(FEW):
        old = gate_power.predictions("old", truth, random.random(450) < 0.5, random.random(164) < 0.5)
        test, holdout = truth.test.copy(), truth.holdout.copy()  # better everywhere but for one image
        (test if draw % 2 else holdout)[random.integers(0, 164)] = NO_ANSWER
        decision = decide(RULES, truth, Predictions("new@0", "new:v0", truth.class_names, test, holdout), old, old)
        assert decision.decision == "keep"
        assert decision.reasons == ("new:v0 gives probabilities that are not finite for 1 of its images",)


def test_small_losses_do_not_add_up() -> None:
    """Ten candidates, each 0.3 points worse than the last: the best-ever clause ends it near the margin."""
    random, truth = np.random.default_rng(0), gate_power.make_labels(8000, 0, classes=2)  # few classes: fewer intervals
    lost = {clause: np.array([gate_power.chain(random, RULES, truth, clause) for _ in range(count)])
            for clause, count in ((True, DRAWS // 4), (False, DRAWS // 10))}  # fmt: skip
    assert (lost[True] <= RULES.margin).mean() > 0.97
    assert lost[True].max() < 0.02
    assert (lost[False] > 0.02).mean() > 0.2


# -- single cases ---------------------------------------------------------------------------------------


def test_without_production_the_floor_decides() -> None:
    truth, answers = simple()
    assert decide(rules(floor_accuracy=0.8), truth, answers).decision == "first"
    low = decide(rules(floor_accuracy=0.81), truth, answers)
    assert (low.decision, low.checks["floor_accuracy"]) == ("keep", False)
    assert low.reasons == ("too low: 80.00% on test against gate.floor_accuracy 81.00%",)


@pytest.mark.parametrize(
    ("defects", "found", "allowed", "failed"),
    [
        (5, 0, False, {"beats_chance", "learned"}),  # 95 % accuracy by always saying ok
        (5, 0, True, {"beats_chance"}),
        (4, 0, True, {"beats_chance"}),
        (5, 1, False, set()),
        (0, 0, False, {"beats_chance"}),  # no image of the other class: nothing is shown
    ],
)
def test_a_first_model_must_beat_guessing_and_learn_every_class(
    defects: int, found: int, allowed: bool, failed: set[str]
) -> None:
    labels = np.repeat([1, 0], (95, defects))
    truth = GateLabels("data@0", ("defect", "ok"), labels, labels[:0])
    answers = np.concatenate([np.ones(95 + defects - found, np.int64), np.zeros(found, np.int64)])
    rules = RULES.model_copy(update={"allow_unlearned_classes": allowed})
    decision = decide(rules, truth, Predictions("new@0", "new:v0", truth.class_names, answers, labels[:0]))
    assert {name for name, passed in decision.checks.items() if not passed} == failed
    assert (decision.decision == "first") == (not failed)
    reasons = "; ".join(decision.reasons)
    assert ("not shown to be better than guessing: balanced accuracy" in reasons) == ("beats_chance" in failed)
    assert ("of class defect (0 of 5); add training images" in reasons) == ("learned" in failed)


def test_a_class_of_few_test_images_that_is_never_recognised_is_named() -> None:
    labels = np.repeat([0, 1, 2], (40, 40, 4))
    truth = GateLabels("data@0", ("a", "b", "c"), labels, labels[:0])
    decision = decide(RULES, truth, Predictions("n@0", "n:v0", truth.class_names, np.minimum(labels, 1), labels[:0]))
    assert decision.decision == "first"
    assert decision.reasons[1] == "no test image is recognised of class c (0 of 4)"


def test_with_production_the_floor_does_not_count() -> None:
    truth, old = simple()
    strict = rules(floor_accuracy=1.0, margin=0.02)
    assert decide(strict, truth, replace(old, model="new@1"), old).decision == "promote"


def test_where_production_is_gone_the_best_ever_still_binds() -> None:
    truth, best = simple()
    worse = replace(best, model="new@1", test=np.where(np.arange(400) % 3 == 0, NO_ANSWER + 1, best.test))
    low = rules(floor_accuracy=0.1)
    decision = decide(low, truth, worse, None, best, was_production="gone@0")
    assert (decision.decision, decision.production) == ("keep", "gone@0")
    assert "than the best model that was in production" in decision.reasons[0]
    assert decide(low, truth, replace(best, model="new@2"), None, None, was_production="gone@0").decision == "first"


def test_other_classes_are_kept_with_what_to_do() -> None:
    truth, old = simple()
    other = replace(old, model="new@1", label="new:v1", class_names=("x", "y"), test=np.zeros(0), holdout=np.zeros(0))
    assert decide(RULES, truth, other, old).reasons == ("new:v1 knows other classes than the data set; run make sweep",)
    new = replace(old, model="new@1", label="new:v1")
    kept = decide(RULES, truth, new, replace(other, label="old:v0"))
    assert kept.decision == "keep"
    assert "make promote MODEL=new:v1 with FORCE=1" in kept.reasons[0]
    assert not kept.checks["same_classes"]


def test_no_image_left_is_kept() -> None:
    truth, old = simple()
    empty = replace(truth, test=truth.test[:0])
    answers = replace(old, test=old.test[:0])
    assert "no test image is left" in decide(RULES, empty, replace(answers, model="new@1"), answers).reasons[0]


def test_no_holdout_image_is_no_objection() -> None:
    truth, old = simple()
    truth, old = replace(truth, holdout=truth.holdout[:0]), replace(old, holdout=old.holdout[:0])
    decision = decide(rules(margin=0.02), truth, replace(old, model="new@1"), old)
    assert (decision.decision, decision.holdout) == ("promote", None)
    assert not [line for line in table.table(decision) if "holdout" in line]


def test_production_that_answers_nothing_loses() -> None:
    truth, old = simple()
    mute = replace(old, test=np.full(400, NO_ANSWER), holdout=np.full(200, NO_ANSWER))
    assert decide(RULES, truth, replace(old, model="new@1"), mute, mute).decision == "promote"


def test_each_rule_has_its_param() -> None:
    """The same answers pass or not as margin and class_margin say."""
    truth, old = simple()
    test = old.test.copy()
    hurt = np.flatnonzero((truth.test == 0) & (old.test == truth.test))[:25]
    test[hurt] = 1
    new = replace(old, model="new@1", test=test)
    outcomes = {}
    for margin, class_margin in ((0.2, 0.3), (0.2, 0.0), (0.05, 0.3)):
        checks = decide(rules(margin=margin, class_margin=class_margin), truth, new, old, old).checks
        outcomes[margin, class_margin] = (checks["test"], checks["best_ever"], checks["per_class"])
    assert outcomes == {
        (0.2, 0.3): (True, True, True),
        (0.2, 0.0): (True, True, False),
        (0.05, 0.3): (False, False, True),
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(2, 6), st.integers(0, 40))
def test_any_answers_give_a_decision_that_its_checks_explain(seed: int, n: int, classes: int, holdout: int) -> None:
    random = np.random.default_rng(seed)
    names = tuple("abcdefgh"[:classes])
    truth = GateLabels("data@0", names, random.integers(0, classes, n), random.integers(0, classes, holdout))
    asked = [
        Predictions(
            f"m{i}@{i}", f"m{i}:v0", names,
            random.integers(NO_ANSWER if seed % 3 == 0 else 0, classes, n), random.integers(0, classes, holdout),
        )
        for i in range(3)
    ]  # fmt: skip
    decision = decide(RULES, truth, asked[0], asked[1], asked[2])
    assert (decision.decision == "promote") == all(decision.checks.values())
    assert decision.reasons
    assert GateReport.model_validate_json(json.dumps(decision.model_dump(mode="json"), allow_nan=False)) == decision
    assert all(len(line) <= 140 for line in table.table(decision))
    assert ("better" in decision.reasons[0]) <= (decision.overall is not None and decision.overall.low > 0)


# -- labels of real traffic, replay and latency ----------------------------------------------------------------


def with_traffic(weights: Sequence[float], wrong: Sequence[bool]) -> tuple[GateLabels, Predictions, Predictions]:
    """Return truth, production and a candidate that differ on labels of traffic only; `wrong` is the candidate's."""
    truth, old = simple()
    labels = np.zeros(len(weights), np.int64)
    truth = replace(truth, traffic=labels, weights=np.array(weights, float))
    old = replace(old, traffic=labels)
    return truth, old, replace(old, model="new@1", label="new:v1", traffic=np.array(wrong, np.int64))


@pytest.mark.parametrize(("count", "judged"), [(50, True), (49, False)])
def test_labels_of_traffic_are_judged_from_an_effective_number_of_50(count: int, judged: bool) -> None:
    truth, old, new = with_traffic([3.0] * count, [i < count / 2 for i in range(count)])
    decision = decide(rules(margin=0.02), truth, new, old)
    assert decision.traffic is not None
    assert (decision.traffic.effective_n, decision.traffic.high < 0) == (pytest.approx(count), True)
    (row,) = [rule for rule in decision.applied_rules() if rule.name == "traffic"]
    lines = [line for line in table.table(decision) if "traffic" in line]
    assert (row.old, row.new) == (1.0, pytest.approx(1 - np.ceil(count / 2) / count))
    if judged:
        assert (decision.decision, row.passed) == ("keep", False)
        assert decision.reasons[0].startswith("worse on the sampled labels of real traffic: -50.00 points")
        assert lines[0].endswith("FAIL")
    else:
        assert (decision.decision, row.passed, "traffic" in decision.checks) == ("promote", None, False)
        assert lines[0].endswith("not judged")
        assert lines[-1] == "  traffic: the sampled labels are worth 49 of equal weight; judged from 50"
    assert decision.numbers()["gate/traffic/effective_n"] == pytest.approx(count)


@pytest.mark.parametrize(("disputed", "passed"), [(0, False), (30, True)])
def test_disputed_labels_of_traffic_never_refuse_a_candidate(disputed: int, passed: bool) -> None:
    truth, old, new = with_traffic([1.0] * 100, [i < 30 for i in range(100)])
    traffic = np.where(np.arange(100) < disputed, DISPUTED, truth.traffic)
    decision = decide(rules(margin=0.02), replace(truth, traffic=traffic), new, old)
    assert decision.checks["traffic"] is passed
    assert decision.traffic is not None
    assert decision.traffic.disputed == disputed


def test_each_holdout_check_refuses_by_an_interval_of_97_5_percent() -> None:
    """Of 200 images 5 that are broken, and none fixed, would do at 95 %."""
    truth, old = simple()
    for broken, refused in ((5, False), (6, True)):
        holdout = old.holdout.copy()
        right = np.flatnonzero(holdout == truth.holdout)[:broken]
        holdout[right] = (truth.holdout[right] + 1) % 4
        decision = decide(rules(margin=0.02), truth, replace(old, model="new@1", holdout=holdout), old)
        assert decision.holdout == paired_difference(0, broken, 200, 0.975)
        assert decision.checks["holdout"] is not refused
    assert paired_difference(0, 5, 200, 0.95).high < 0


@pytest.mark.parametrize(("ratio", "limit", "kept"), [(2.0, None, False), (1.5, 1.5, False), (1.51, 1.5, True)])
def test_latency_is_judged_only_with_a_limit(ratio: float, limit: float | None, kept: bool) -> None:
    truth, old = simple()
    limits = RULES.model_copy(update={"margin": 0.02, "max_latency_ratio": limit})
    measured = Reported(latency_ms={"candidate": 2.0, "production": 1.0}, latency_ratio=ratio)
    decision = decide(limits, truth, replace(old, model="new@1"), old, measured=measured)
    assert (decision.decision == "keep") == kept == ("too slow" in decision.reasons[0])
    assert ("latency" in decision.checks) == (limit is not None)
    assert f"one image in ms 2.0 (production 1.0), {ratio:.2f} times as long" in [*table.table(decision)][-1]


@pytest.mark.parametrize(
    ("replay", "reason", "line"),
    [
        (Replay(images=0), "", "replay: no captured images"),
        (
            Replay(images=40, crashed=2, not_finite=1, failed="ab12", compared=37, agreed=37),
            "new:v1 crashes on 2 and gives probabilities that are not finite for 1 of 40 captured images, among them "
            "ab12",
            "replay: 40 captured images; the candidate fails on 3; the same class for 100.0%",
        ),
        (
            Replay(images=9, compared=8, agreed=6, changed=(ChangedClass(production="a", candidate="b", count=2),)),
            "",
            "replay: 9 captured images; the same class for 75.0%; 2 changed, most often a -> b (2)",
        ),
    ],
)
def test_what_the_replay_saw_is_one_line_and_a_failure_keeps_production(replay: Replay, reason: str, line: str) -> None:
    truth, old = simple()
    new = replace(old, model="new@1", label="new:v1")
    decision = decide(rules(margin=0.02), truth, new, old, replay=replay)
    assert f"  {line}" in [*table.table(decision)]
    assert decision.checks.get("replay") == (None if not replay.images else not reason)
    assert (decision.decision == "keep") == bool(reason)
    assert not reason or decision.reasons == (reason,)
    other = replace(new, class_names=("x", "y"), test=np.zeros(0), holdout=np.zeros(0))
    assert decide(RULES, truth, other, old, replay=replay).checks.get("replay") == decision.checks.get("replay")


# -- how a decision is shown ---------------------------------------------------------------------


def test_the_table_shows_each_rule_with_its_verdict() -> None:
    truth, old = simple()
    new = replace(old, model="new@1", label="new:v1", ece=0.02)
    decision = decide(RULES, truth, new, old, replace(old, model="best@2", test=truth.test))
    assert decision.reported.ece == {"candidate": 0.02, "production": None}
    assert decision.per_class["a"].old == pytest.approx(0.8)
    lines = [*table.table(decision)]
    assert lines[0] == "gate: candidate new:v1, production old:v0"
    verdicts = {line.split("  ")[1]: line.split()[-1] for line in lines if line.endswith(("pass", "FAIL"))}
    assert verdicts == {"test": "pass", "best ever": "FAIL", "holdout": "pass", "worst class": "pass"}


def test_a_figure_of_production_alone_is_not_shown_as_the_candidates() -> None:
    assert table.reported(Reported(ece={"candidate": None, "production": 0.02})) == ""


def test_each_rule_is_shown_with_the_limit_that_it_was_judged_by() -> None:
    truth, old = simple()
    wrong = np.where(truth.test == 1, 0, truth.test)  # all of the second class
    decision = decide(RULES, truth, replace(old, model="new@1", label="new:v1", test=wrong), old, old)
    rules = {rule.name: rule for rule in decision.applied_rules()}
    assert {name: (rule.bound, rule.limit) for name, rule in rules.items()} == {
        "test": ("low above", -RULES.margin),
        "holdout": ("high not below", 0),
        "worst class": ("high not below", -RULES.class_margin),
    }
    assert rules["worst class"].class_name == truth.class_names[1]
    assert not rules["worst class"].passed
    (line,) = [line for line in table.table(decision) if line.startswith("  test ")]
    assert f"low above {-100 * RULES.margin:+.2f}" in line


def test_the_picture_is_drawn_for_many_classes_too(tmp_path: Path) -> None:
    names = ("$\\nothing$", "$5", *(f"class number {i}" for i in range(118)))
    labels = np.arange(1200) % 120
    old = Predictions("old@0", "old:v0", names, np.where(np.arange(1200) % 7 == 0, 0, labels), labels)
    truth = GateLabels("d@0", names, labels, labels, traffic=labels, weights=np.ones(1200))
    old = replace(old, traffic=labels)
    decision = decide(RULES, truth, replace(old, model="new@1", test=labels), old, old)
    assert decision.checks["traffic"]
    path = plots.draw(decision, tmp_path / "gate.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# -- the docs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "told"), [(60, True), (400, False)])
def test_a_refusal_says_when_the_test_images_cannot_show_so_small_a_margin(images: int, told: bool) -> None:
    truth, old = simple()
    truth, old = replace(truth, test=truth.test[:images]), replace(old, test=old.test[:images])
    wrong = np.where(np.arange(images) < 2 + images // 50, (truth.test + 1) % 4, truth.test)
    (reason,) = decide(
        rules(margin=0.02), truth, replace(old, model="new@1", test=wrong), replace(old, test=truth.test)
    ).reasons
    assert ("60 test images show no less than 6.02, even of an equal model: take more" in reason) == told


def test_the_margins_are_those_that_were_studied() -> None:
    results = json.loads((ROOT / "benchmarks/results/gate_power.json").read_text())
    assert results["draws"] >= 1000
    for profile in ("cifar10", "laptop", "demo"):
        rules = params_file.load(ROOT / "params.yaml", profile).gate
        studied = results["margins"][profile]
        assert (studied["margin"], studied["class_margin"]) == (rules.margin, rules.class_margin)
        assert rules.margin in gate_power.MARGINS
