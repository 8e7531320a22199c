"""A retraining: when there is something to do, what it trains on, and what is recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import made_models
import numpy as np
import parents
import pytest

from flywheel import files
from flywheel.commands import housekeeping
from flywheel.data import dataset
from flywheel.data import stage as data_stage
from flywheel.data.dataset import Dataset
from flywheel.files import Locked
from flywheel.models import classifier
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.retraining import RetrainError, plan
from flywheel.retraining import stage as retraining_stage
from flywheel.retraining.report import RetrainReport, Score
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example

Make = Callable[[str], Params]
Collect = Callable[..., Version]
ROOT = Path(__file__).parents[2]
KEYS = {"parent", "candidate", "feedback", "hard_examples", "epochs", "before", "after", "control", "decision"}


@pytest.fixture
def run(registry: Registry, said: list[str]) -> Callable[..., Any]:
    return lambda params, **options: retraining_stage.run(params, registry, **options)


def models(registry: Registry) -> list[str]:
    return [version.label for version in registry.versions("retrained-model")]


# -- when ----------------------------------------------------------------------------------------------


def test_without_feedback_nothing_is_done(params: Params, registry: Registry, run: Any, said: list[str]) -> None:
    assert run(params) is None
    assert run(params, force=True) is None
    assert said[0] == (
        "retrain: nothing to do (there is no digits-feedback yet; make simulate or label collect PROFILE=demo makes it)"
    )
    assert models(registry) == []


def test_an_empty_store_is_no_reason_to_do_nothing_for_ever(make: Make, tmp_path: Path) -> None:
    """A fresh CI runner without W&B, or cron in the wrong directory: exit 0 would hide it."""
    empty = make(f"paths.store={tmp_path / 'empty'}")
    with pytest.raises(RetrainError, match=r"^there is no model to continue from; run make evaluate PROFILE=demo$"):
        retraining_stage.run(empty, Registry(empty.store))


def test_failures_are_used_once_even_by_a_refused_candidate(
    params: Params, registry: Registry, collect: Collect, failed: list[int], run: Any, said: list[str]
) -> None:
    collect(failed)
    first = run(params)
    assert first.candidate == registry.aliases(params.registered_model)["candidate"]
    said.clear()
    assert run(params) is None
    assert said == [
        "retrain: nothing to do (every labelled image that digits-feedback:v0 has for training was used already)"
    ]
    assert models(registry) == ["retrained-model:v0"]


def test_labels_of_a_candidate_that_no_gate_judged_count_as_new(
    params: Params, registry: Registry, collect: Collect, opened: Dataset, failed: list[int], run: Any
) -> None:
    """A run ended at the gate, and one label came since: too few for a retraining of their own."""
    train = [i for i in failed if not opened.holdout[i]]
    collect(train[1:])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("flywheel.gate.promotion.judge", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(params)
    assert models(registry) == ["retrained-model:v0"]
    collect(train[:1])
    assert run(params).hard_examples == len(train)
    assert run(params) is None


def test_few_new_failures_wait_for_more(
    make: Make, registry: Registry, collect: Collect, opened: Dataset, failed: list[int], run: Any, said: list[str]
) -> None:
    params = make("retrain.min_failures=12")
    train = [i for i in failed if not opened.holdout[i]]
    collect(train[:11])
    assert run(params) is None
    needed = "it takes retrain.min_failures=12 or retrain.min_examples=200"
    assert said == [f"retrain: nothing to do (11 new failures, 11 new labelled images; {needed})"]
    collect(train[11:12])
    assert run(params).hard_examples == 12
    collect(train[12:17])  # of 17 that are listed, 5 are new
    said.clear()
    assert run(params) is None
    assert said == [f"retrain: nothing to do (5 new failures, 5 new labelled images; {needed})"]


@pytest.mark.parametrize(("mode", "right", "trained"), [("all", 30, 30), ("all", 29, None), ("failures", 30, None)])
def test_enough_new_labels_are_a_reason_even_without_failures(
    make: Make, collect: Collect, opened: Dataset, failed: list[int], run: Any, mode: str, right: int, trained: Any
) -> None:
    params = make(f"retrain.min_examples=30 retrain.min_failures=2 retrain.examples={mode}")
    known = [i for i in np.flatnonzero(~opened.holdout) if i not in failed]
    collect(failed[:0], known[:right])
    report = run(params)
    assert (report and report.labels, report and report.hard_examples) == (trained, trained and 0)


def test_what_was_used_depends_on_what_was_trained_on(
    make: Make, registry: Registry, collect: Collect, opened: Dataset, failed: list[int], run: Any
) -> None:
    """After a retraining on the failures, the right answers are still new."""
    known = [i for i in np.flatnonzero(~opened.holdout) if i not in failed]
    collect(failed, known)
    few = run(make("retrain.examples=failures promotion.auto=false"))
    every = make("retrain.min_examples=10 promotion.auto=false")
    planned = plan.make(every, registry)
    train = sum(not opened.holdout[i] for i in failed)
    assert (planned.new_failures, planned.new_examples) == (0, len(known))
    both = run(every)
    assert (few.arm, few.labels, few.hard_examples) == ("failures", train + len(known), train)
    assert (both.arm, both.labels, both.hard_examples) == ("all", train + len(known), train)
    assert feedback.seen(registry, registry.resolve(few.candidate)) < feedback.seen(
        registry, registry.resolve(both.candidate)
    )
    assert isinstance(plan.make(every, registry), str)


def test_new_failures_that_are_held_out_are_no_reason(
    make: Make, collect: Collect, opened: Dataset, failed: list[int], run: Any, said: list[str]
) -> None:
    params = make("retrain.min_failures=1")
    held = [i for i in failed if opened.holdout[i]]
    train = [i for i in failed if not opened.holdout[i]]
    collect(held[:3])
    assert run(params) is None
    assert "was used already" in said[-1] or "no labelled image for training" in said[-1]
    collect(train)
    assert run(params).hard_examples == len(train)
    collect(held)  # another version, whose side `train` is the same
    assert run(params) is None
    assert "was used already" in said[-1]


def test_it_continues_from_production_else_from_the_best(
    make: Make, params: Params, registry: Registry, collect: Collect, failed: list[int], run: Any, said: list[str]
) -> None:
    collect(failed)
    log = params.store / "audit.jsonl"
    kept = [line for line in log.read_text().splitlines() if json.loads(line)["alias"] == "best"]
    log.write_text("".join(json.dumps({**json.loads(line), "moves": 1}) + "\n" for line in kept))
    report = run(make("gate.floor_accuracy=0 gate.allow_unlearned_classes=true retrain.learning_rate_scale=0.001"))
    assert report.parent == registry.resolve("model-1").ref
    assert (report.decision, report.promoted) == ("first", True)
    assert registry.aliases(params.registered_model)["production"] == report.candidate


def test_a_parent_of_other_images_is_refused(make: Make, registry: Registry, failed: list[int], run: Any) -> None:
    other = make("data.image_size=10")
    opened = made_models.dataset(other)
    made_models.publish_dataset(registry, other, opened)
    feedback.publish(other, registry, feedback.examples(opened, opened.indices["simulation"][failed]), {}, {})
    with pytest.raises(
        RetrainError, match=r"^model-1:v0 was made for other classes or image sizes than digits_d.*:v1;"
    ):
        run(other)


# -- what ----------------------------------------------------------------------------------------------


def test_a_second_retraining_at_once_is_refused(params: Params, collect: Collect, failed: list[int], run: Any) -> None:
    collect(failed)
    with files.lock(params.store_paths.lock("retrain")), pytest.raises(Locked, match="another run holds retrain"):
        run(params)


@pytest.mark.numerics
def test_a_retraining_on_drifted_digits_helps_where_production_failed(make: Make, tmp_path: Path) -> None:
    """With a parent that was trained for real, on real digits."""
    params = make(f"paths.store={tmp_path / 'digits'} data.image_size=16 retrain.epochs=5 promotion.auto=false")
    registry = Registry(params.store)
    data_stage.run(params, registry)
    parent = parents.produce(params, registry, tmp_path / "parent", epochs=8)
    opened = dataset.open_directory(registry.open(registry.resolve("digits_dataset")))
    split = opened.split("simulation")
    wrong = classifier.load(registry.open(parent)).predict(split.images).argmax(axis=1) != split.labels
    listed = feedback.examples(opened, opened.indices["simulation"][wrong])
    inputs = {"dataset": [registry.resolve("digits_dataset").ref], "model": [parent.ref]}
    feedback.publish(params, registry, listed, inputs, {})
    report = retraining_stage.run(params, registry)
    assert report is not None
    assert report.after.holdout.difference_interval is not None
    assert report.after.holdout.difference_interval[0] > 0  # better, by more than chance
    assert report.after.test.accuracy is not None
    assert report.after.test.accuracy > 0.9


def test_the_report_scores_both_arms_and_the_candidate_records_its_inputs(
    make: Make, registry: Registry, collect: Collect, opened: Dataset, failed: list[int], run: Any
) -> None:
    params = make("retrain.epochs=2 retrain.control=true promotion.auto=false")
    train = np.flatnonzero(~opened.holdout)
    known = [i for i in train if i not in failed][:20]
    version = collect(failed, known)
    report = run(params)
    written = files.read_json(params.reports / "retrain.json")
    assert set(written) >= KEYS
    assert RetrainReport.model_validate(written) == report
    held = int(opened.holdout.sum())
    before, after, control = report.before, report.after, report.control
    assert before.holdout.n == after.holdout.n == held
    assert before.holdout.accuracy == pytest.approx(1 - sum(opened.holdout[i] for i in failed) / held)
    assert after.test.n == len(opened.indices["test"])
    wrong = sum(not opened.holdout[i] for i in failed)
    assert control.examples == control.labels == report.hard_examples == wrong
    assert report.examples.model_dump() == {"right": 20, "wrong": wrong, "disputed": 0}
    assert [(name, labels) for name, labels, _ in report.rows()] == [
        ("before", None), ("all labelled", wrong + 20), ("as many random", wrong),
    ]  # fmt: skip
    assert len(report.epochs) == len(control.epochs) == 2
    assert [epoch.epoch for epoch in report.epochs if epoch.kept] == [report.kept_epoch]
    # Neither arm's images nor anything else that was trained on is among the unseen.
    unseen = len(opened.indices["simulation"]) - report.labels
    assert before.unseen.n == after.unseen.n == control.unseen.n == unseen
    for part in ("test", "holdout", "unseen"):
        scored = getattr(after, part)
        assert (
            scored.accuracy - getattr(before, part).accuracy
            == pytest.approx((scored.fixed - scored.broken) / scored.n)
            == pytest.approx(scored.difference)
        )
    assert (params.reports / "retrain.png").stat().st_size > 10_000

    candidate = registry.resolve("retrained-model")
    read = {"dataset": registry.resolve("digits_dataset"), "feedback": version, "parent": registry.resolve("model-1")}
    assert candidate.inputs == {role: (found.ref,) for role, found in read.items()}
    rate = registry.resolve("model-1").metadata["recipe"]["learning_rate"]
    assert candidate.metadata["recipe"]["learning_rate"] == pytest.approx(rate * params.retrain.learning_rate_scale)
    split = opened.split("test")
    right = classifier.load(registry.open(candidate)).predict(split.images).argmax(axis=1) == split.labels
    assert right.mean() == after.test.accuracy
    receipt = files.read_json(params.store / "receipts" / "retrain.json")
    assert receipt["outputs"] == [candidate.ref]
    assert receipt["inputs"]["feedback"] == [version.ref]
    assert candidate not in housekeeping.unneeded(params, registry)


def test_a_second_turn_trains_on_the_failures_of_both(
    make: Make, registry: Registry, collect: Collect, opened: Dataset, failed: list[int], run: Any
) -> None:
    params = make("promotion.auto=false retrain.min_failures=1")
    train = [i for i in failed if not opened.holdout[i]]
    collect(train[:20])
    first = run(params)
    registry.link(registry.resolve(first.candidate), params.registered_model, ("production",), reason="passed by hand")
    collect(train[20:])
    second = run(params)
    assert second.parent == first.candidate
    assert second.hard_examples == len(train)
    assert second.candidate != first.candidate
    # What the parent was trained on is seen, and so is no longer counted.
    assert second.before.unseen.n == len(opened.indices["simulation"]) - len(train)


def test_planted_copies_of_test_images_are_dropped_and_said(
    params: Params, registry: Registry, opened: Dataset, collect: Collect, failed: list[int], run: Any, said: list[str]
) -> None:
    collect(failed)
    row = opened.indices["test"][5]
    hash_ = opened.hashes[row].tobytes().hex()
    planted = Example(id=int(opened.ids[row]), hash=hash_, label="0", side="train")
    version, added = feedback.publish(params, registry, [planted], {}, {})
    assert version is not None
    assert added == 1
    report = run(params)
    assert report.dropped == {"a copy of a test image": [planted.id]}
    assert report.hard_examples == sum(not opened.holdout[i] for i in failed)
    assert f"retrain: 1 of {version.label} left out, a copy of a test image: image {planted.id}" in said


def test_a_control_arm_can_be_asked_for_afterwards(
    make: Make, registry: Registry, collect: Collect, failed: list[int], run: Any
) -> None:
    collect(failed)
    first = run(make("promotion.auto=false"))
    second = run(make("retrain.control=true promotion.auto=false"), force=True)
    assert (first.control, second.candidate) == (None, first.candidate)
    assert second.control.examples == second.hard_examples
    assert second.after.test == first.after.test
    assert models(registry) == ["retrained-model:v0"]  # the same images and params give the same weights


def test_an_ancestor_whose_failures_are_gone_is_said_and_leaves_unseen_empty(
    make: Make, params: Params, registry: Registry, collect: Collect, failed: list[int], run: Any, said: list[str]
) -> None:
    parent = registry.resolve("model-1")
    version = registry.publish(
        "model-2", "model", registry.open(parent), inputs={**parent.inputs, "feedback": "digits-feedback@" + "0" * 32}
    )
    registry.link(version, params.registered_model, ("production",), reason="test")
    collect(failed)
    report = run(make("promotion.auto=false"))
    assert report.after.unseen == Score(n=0, accuracy=None, interval=None)
    assert any("unseen images cannot be told: model-2:v0 was trained on digits-feedback@000" in line for line in said)


@pytest.mark.parametrize(
    "change",
    [
        "weight=4",
        "epochs=2",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("learning_rate_scale=0.5", "seed=1")),
    ],
)
def test_every_param_that_counts_as_identity_changes_the_candidate(
    make: Make, registry: Registry, collect: Collect, failed: list[int], run: Any, change: str
) -> None:
    collect(failed)
    base = "promotion.auto=false retrain.weight=2 retrain.learning_rate_scale=0.3"
    assert run(make(base)).candidate != run(make(f"{base} retrain.{change}"), force=True).candidate


def test_nothing_to_do_is_light(root: Path, collect: Collect, failed: list[int]) -> None:
    """Cron may ask every minute: neither torch nor numpy nor wandb is imported for a no."""
    collect(failed[:4])
    probe = (
        "import sys, runpy\n"
        f"sys.argv = ['scripts/retrain.py', '--profile', 'demo', '--set', 'paths.store={root}/store "
        "data.image_size=8']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "heavy = {'torch', 'ray', 'wandb', 'numpy', 'matplotlib', 'sklearn', 'optuna', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    shown = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "nothing to do" in shown
