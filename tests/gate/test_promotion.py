"""The gate over models whose answers are made, and every way into production: a real registry, real files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import pytest
import torch

from flywheel import files
from flywheel.commands import housekeeping, status
from flywheel.data.dataset import Dataset
from flywheel.data.images import from_array
from flywheel.evaluation import stage as evaluate_stage
from flywheel.gate import history, predictions, promotion
from flywheel.gate.promotion import PromotionError
from flywheel.models import classifier
from flywheel.params import RETRAINED_NAME, Params
from flywheel.params import file as params_file
from flywheel.registry import Registry, Version

ROOT = Path(__file__).parents[2]
MODEL = "digits-classifier"
SMALL = "data.image_size=8 gate.floor_accuracy=0.5 tracking.wandb=disabled"
# Of 200 test images the groups have 114, 4, 6, 24, 28 and 24; a model is wrong on nine in ten images of its groups.
WRONG = {"good": (1, 2), "better": (1,), "worse": (3, 4), "chance": range(6), "nan": (), "cut": ()}


def save(kind: str, folder: Path, params: Params, seed: int = 0) -> Path:
    """Save a model whose answers are made; `nan` has weights that are not finite, `cut` a truncated file."""
    model = made_models.model(wrong=WRONG[kind])
    if kind == "nan":
        with torch.no_grad():
            next(model.network.parameters()).fill_(float("nan"))
    model.save(folder, params.complete_recipe({"architecture": "compact", "seed": seed}, 1).model_dump())
    if kind == "cut":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


@dataclass
class Store:
    """A store with a data set; `publish` adds a model."""

    params: Params
    registry: Registry
    made: Dataset
    data: Version

    def publish(self, kind: str, name: str | None = None, data: Version | None = None, seed: int = 0) -> Version:
        with tempfile.TemporaryDirectory() as folder:
            save(kind, Path(folder), self.params, seed)
            inputs = {"dataset": (data or self.data).ref}
            return self.registry.publish(name or f"model-{kind}", "model", Path(folder), inputs=inputs)

    def settle(self, kind: str) -> Version:
        """Judge a model and carry the decision out, as evaluate and retrain do."""
        version = self.publish(kind)
        promotion.apply(self.params, self.registry, version, promotion.judge(self.params, self.registry, version))
        return version

    def production(self) -> str | None:
        return self.registry.aliases(MODEL).get("production")

    def replace_data(self, changed: Dataset) -> Version:
        self.data = made_models.publish_dataset(self.registry, self.params, changed)
        return self.data

    def with_params(self, make_params: Callable[..., Params], overrides: str) -> Store:
        return replace(self, params=make_params(f"{SMALL} {overrides}"))


@pytest.fixture(scope="module")
def made() -> Dataset:
    return made_models.dataset(params_file.load(profile="demo", overrides=SMALL))


@pytest.fixture
def store(make_params: Callable[..., Params], made: Dataset) -> Store:
    params = make_params(SMALL)
    registry = Registry(params.store)
    return Store(params, registry, made, made_models.publish_dataset(registry, params, made))


# -- judge and apply ------------------------------------------------------------------------------------


def test_a_first_model_above_the_floor_goes_into_production(store: Store) -> None:
    store.settle("chance")
    assert store.registry.aliases(MODEL) == {}
    first = store.settle("good")
    assert store.production() == first.ref
    entry = store.registry.history(MODEL)[0]
    assert entry["gate"]["decision"] == "first"
    assert entry["gate"]["accuracy"][first.ref] > 0.9
    assert not entry["forced"]


def test_what_became_of_a_decision_is_said_with_what_to_do(store: Store) -> None:
    """Where nothing is in production, and where production was moved since."""

    def told(version: Version, decision: str, promoted: bool) -> list[str]:
        return list(promotion.outcome(store.params, store.registry, version, decision, ["why"], promoted=promoted))

    bad = store.settle("chance")
    (shown,) = (line for line in status.status(store.params, store.registry) if line.startswith("production"))
    assert shown.endswith("make evaluate promotes the best model or says why not")
    refused, hint = told(bad, "keep", False)
    assert refused == "keep, production unchanged: why"
    assert hint.endswith('make promote MODEL=model-chance:v0 PROFILE=demo FORCE=1 REASON="why"')
    first = store.settle("good")
    assert told(bad, "keep", False) == [refused]
    assert told(first, "first", True) == ["first, promoted to production: why"]
    assert told(first, "first", False) == ["first, production unchanged (promotion.auto is off): why"]
    store.settle("better")
    assert told(first, "first", True)[1:] == ["since then production was moved; make history shows by whom and why"]


def test_as_good_a_model_takes_over_and_a_bad_one_does_not(store: Store) -> None:
    first, second = store.settle("good"), store.settle("better")
    assert store.registry.aliases(MODEL) == {"production": second.ref, "previous": first.ref}
    bad = store.publish("chance")
    decision = promotion.judge(store.params, store.registry, bad)
    assert decision.decision == "keep"
    assert decision.reasons[0].startswith("on test worse than production: -")
    assert not promotion.apply(store.params, store.registry, bad, decision)
    assert store.production() == second.ref


def test_the_figures_are_those_of_the_models(store: Store) -> None:
    """Against accuracies computed here, image by image."""
    old, new = store.settle("good"), store.publish("worse")
    decision = promotion.judge(store.params, store.registry, new)
    test, simulation = store.made.split("test"), store.made.split("simulation")
    right = {}
    for version in (old, new):
        model = classifier.load(store.registry.open(version))
        right[version.ref] = model.predict(test.images).argmax(axis=1) == test.labels
        held = model.predict(simulation.images[store.made.holdout]).argmax(axis=1)
        role = "candidate" if version == new else "production"
        accuracy = (held == simulation.labels[store.made.holdout]).mean()
        assert decision.reported.holdout_accuracy[role] == pytest.approx(accuracy)
        assert decision.accuracy[version.ref] == pytest.approx(right[version.ref].mean())
    assert decision.reported.fixed == int((right[new.ref] & ~right[old.ref]).sum())
    assert decision.reported.broken == int((right[old.ref] & ~right[new.ref]).sum())
    assert decision.overall is not None
    assert decision.overall.n == 200
    assert decision.holdout is not None
    assert decision.holdout.n == store.made.holdout.sum()
    assert decision.reported.latency_ms["candidate"] > 0
    assert 0 < decision.reported.ece["production"] < 0.5


def test_probabilities_that_the_caller_has_are_not_computed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.settle("good")
    candidate = store.publish("worse")
    known = classifier.load(store.registry.open(candidate)).predict(store.made.split("test").images)
    without = promotion.judge(store.params, store.registry, candidate)
    predicted: list[int] = []
    original = classifier.Classifier.predict

    def count(self: classifier.Classifier, images: Any) -> Any:
        predicted.append(len(images))
        return original(self, images)

    monkeypatch.setattr(classifier.Classifier, "predict", count)
    spared = promotion.judge(store.params, store.registry, candidate, probabilities=known)
    assert (spared.overall, spared.holdout, spared.reasons) == (without.overall, without.holdout, without.reasons)
    assert predicted.count(200) == 1  # production; it is also the best ever and is asked once


def test_with_auto_off_only_a_promotion_by_hand_moves(store: Store, make_params: Callable[..., Params]) -> None:
    off = store.with_params(make_params, "promotion.auto=false")
    version = off.settle("good")
    assert store.production() is None
    promotion.promote(off.params, off.registry, version.label)
    assert store.production() == version.ref


def test_what_is_in_production_is_no_candidate_under_any_name(store: Store, said: list[str]) -> None:
    store.settle("good")
    before = store.registry.history(MODEL)
    promotion.promote(store.params, store.registry, f"{MODEL}:production")
    assert said[-1] == "promote: model-good:v0 is in production already"
    assert store.registry.history(MODEL) == before
    for candidate in (store.publish("good"), store.publish("good", "retrained-model")):
        decision = promotion.judge(store.params, store.registry, candidate)
        assert (decision.decision, decision.reasons) == ("keep", ("it is in production already",))


@pytest.mark.parametrize(
    ("kind", "reason"), [("nan", "not finite for 244 of its images"), ("cut", "is not a model that this code")]
)
def test_what_cannot_answer_is_kept_out_and_no_force_helps(store: Store, kind: str, reason: str) -> None:
    first = store.settle("good")
    candidate = store.publish(kind)
    decision = promotion.judge(store.params, store.registry, candidate)
    assert (decision.decision, decision.checks["answers"]) == ("keep", False)
    assert reason in decision.reasons[0]
    with pytest.raises(PromotionError, match="nor would it be by force"):
        promotion.promote(store.params, store.registry, candidate.label, force=True, reason="why not")
    assert store.production() == first.ref


def test_a_production_model_that_is_gone_is_said_and_makes_way(store: Store) -> None:
    first = store.settle("good")
    shutil.rmtree(store.params.store / "registry" / "versions" / first.name)
    assert any(f"missing: {first.ref}" in line for line in status.status(store.params, store.registry))
    second = store.settle("better")
    assert store.production() == second.ref
    assert store.registry.history(MODEL)[-1]["gate"]["decision"] == "first"


def test_a_production_model_that_cannot_be_loaded_stays_until_somebody_decides(store: Store) -> None:
    broken, candidate = store.publish("cut"), store.publish("better")
    store.registry.link(broken, MODEL, ("production",), reason="by hand")
    decision = promotion.judge(store.params, store.registry, candidate)
    assert decision.decision == "keep"
    assert "cannot be compared" in decision.reasons[0]
    assert f'make promote MODEL={candidate.label} PROFILE=demo FORCE=1 REASON="why"' in decision.reasons[0]
    with pytest.raises(
        PromotionError, match=r"nor would it be by force: .*not finite for 244 of its images; .*cannot be"
    ):
        promotion.promote(store.params, store.registry, store.publish("nan").label, force=True, reason="it is broken")
    promotion.promote(store.params, store.registry, candidate.label, force=True, reason="it is broken")
    assert store.production() == candidate.ref


def test_a_move_meanwhile_is_one_sentence_and_changes_nothing(store: Store) -> None:
    first = store.settle("good")
    candidate = store.publish("better")
    decision = promotion.judge(store.params, store.registry, candidate)
    other = store.publish("worse")
    store.registry.link(other, MODEL, ("production",), reason="somebody else")
    before = store.registry.history(MODEL)
    with pytest.raises(
        PromotionError, match=f"production was moved to {other.label} while {candidate.label} was judged"
    ):
        promotion.apply(store.params, store.registry, candidate, decision)
    assert store.registry.history(MODEL) == before
    assert decision.production == first.ref


# -- other data sets ---------------------------------------------------------------------------------------


def test_other_classes_keep_production_and_force_is_the_way_on(store: Store, tmp_path: Path) -> None:
    store.settle("good")
    names = [f"number {i}" for i in range(10)]
    description = {**store.made.description, "class_names": names}
    store.replace_data(replace(store.made, description=description))
    save("better", tmp_path / "model", store.params)
    shown = files.read_json(tmp_path / "model/model.json")
    files.write_json(tmp_path / "model/model.json", {**shown, "class_names": names})
    new = store.registry.publish("model-new", "model", tmp_path / "model", inputs={"dataset": store.data.ref})
    decision = promotion.judge(store.params, store.registry, new)
    assert (decision.decision, decision.checks["same_classes"]) == ("keep", False)
    assert "knows other classes than the data set" in decision.reasons[0]
    old = promotion.judge(store.params, store.registry, store.publish("worse"))
    assert old.reasons == ("model-worse:v0 knows other classes than the data set; run make sweep",)
    promotion.promote(store.params, store.registry, new.label, force=True, reason="other classes")
    assert store.production() == new.ref
    assert store.registry.history(MODEL)[-2]["forced"]


def test_images_that_a_model_was_trained_on_as_part_of_another_data_set_are_left_out(store: Store) -> None:
    """50 training images of the old data set are in the new one's test: they are left out, for both models."""
    store.settle("good")
    indices = dict(store.made.indices)
    moved, rest = indices["train"][:50], indices["train"][50:]
    indices |= {"train": rest, "test": np.concatenate([indices["test"], moved])}
    old_data = store.data
    store.replace_data(replace(store.made, indices=indices))
    candidate = store.publish("better", data=old_data)
    decision = promotion.judge(store.params, store.registry, candidate)
    assert decision.overall is not None
    assert (decision.overall.n, decision.reported.left_out) == (200, 50)
    assert decision.dataset == store.data.ref
    fresh = store.publish("better", "model-fresh")
    images = predictions.prepare(store.registry, store.data, [fresh])
    assert (len(images.labels.test), images.labels.left_out) == (250, 0)


def test_images_of_another_size_are_scaled_as_the_server_does(store: Store) -> None:
    first = store.settle("good")
    larger = params_file.load(profile="demo", overrides=f"{SMALL} data.image_size=24")
    store.replace_data(made_models.dataset(larger))
    images = predictions.prepare(store.registry, store.data, [first])
    model = classifier.load(store.registry.open(first))
    predicted = predictions.predict(first, model, images)
    assert images.test.shape[1] == 24
    scaled = np.stack([from_array(image, 8) for image in images.test])
    assert predicted.test.tolist() == model.predict(scaled).argmax(axis=1).tolist()


# -- what was in production before -------------------------------------------------------------------------


def test_what_was_replaced_does_not_come_back_by_itself(store: Store) -> None:
    first, second = store.settle("good"), store.settle("better")
    assert store.production() == second.ref
    decision = promotion.judge(store.params, store.registry, first)
    assert decision.decision == "keep"
    assert decision.reasons[0].startswith(
        "it was in production before and was replaced; make promote MODEL=model-good:v0"
    )
    assert promotion.judge(store.params, store.registry, first, by_hand=True).overall is not None


def test_the_best_that_ever_was_in_production_binds(store: Store, make_params: Callable[..., Params]) -> None:
    """A worse model comes into production by force; the next is compared to the better one before it too."""
    best = store.settle("good")
    worse = store.publish("worse")
    promotion.promote(store.params, store.registry, worse.label, force=True, reason="to test")
    again = store.publish("worse", "model-again", seed=9)
    decision = promotion.judge(store.params, store.registry, again)
    assert decision.overall is not None
    assert decision.overall.difference == 0
    assert decision.checks["test"]
    assert (decision.best_ever, decision.decision) == (best.ref, "keep")
    assert "than model-good:v0, the best that was in production" in decision.reasons[0]
    shutil.rmtree(store.params.store / "registry" / "versions" / best.name)
    without = promotion.judge(store.params, store.registry, again)
    assert (without.best_ever, without.decision) == (worse.ref, "promote")


def test_prune_keeps_the_best_that_ever_was_in_production_on_each_data_set(store: Store) -> None:
    """The gate compares with it, also where the newest data set judged nothing yet."""
    best = store.settle("good")
    for seed in (1, 2):  # neither production nor previous are the best
        worse = store.publish("worse", f"model-{seed}", seed=seed)
        promotion.promote(store.params, store.registry, worse.label, force=True, reason="to test")
    store.replace_data(replace(store.made, indices={**store.made.indices, "test": store.made.indices["test"][:150]}))
    assert best not in housekeeping.unneeded(store.params, store.registry)
    assert promotion.judge(store.params, store.registry, store.publish("chance")).best_ever == best.ref


def test_however_many_were_in_production_few_are_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {}
    for number in range(6):
        version = store.publish("good", f"model-{number}", seed=number + 1)
        records[version.ref] = 0.9 + (0.05 if number == 2 else 0.001 * number)
        gate = {"dataset": store.data.ref, "accuracy": {version.ref: records[version.ref]}}
        store.registry.link(version, MODEL, ("production",), reason="x", gate=gate)
    asked: list[str] = []
    original = predictions.predict

    def note(version: Version, *arguments: Any) -> Any:
        asked.append(version.label)
        return original(version, *arguments)

    monkeypatch.setattr(predictions, "predict", note)
    promotion.judge(store.params, store.registry, store.publish("better"))
    assert asked == ["model-better:v0", "model-5:v0", "model-2:v0"]
    assert history.best_recorded(store.params, store.registry) == [max(records, key=records.__getitem__)]
    kept = housekeeping.unneeded(store.params, store.registry)
    assert "model-2" not in [version.name for version in kept]
    assert "model-1" in [version.name for version in kept]


def test_a_fresh_machine_knows_former_production_models_and_accuracies_from_the_lineage(
    store: Store, tmp_path: Path
) -> None:
    """It has from W&B what `production` and `previous` name, the manifests of their ancestors, and no history."""

    def retrained(kind: str, parent: Version, before: float, after: float) -> Version:
        facts = {"before": {"test": {"accuracy": before}}, "after": {"test": {"accuracy": after}}}
        inputs = {"dataset": store.data.ref, "feedback": "digits-feedback@x", "parent": parent.ref}
        folder = save(kind, tmp_path / kind, store.params)
        return store.registry.publish(RETRAINED_NAME, "model", folder, metadata={"metrics": facts}, inputs=inputs)

    swept = store.publish("good")
    first = retrained("better", swept, 0.90, 0.97)
    second = retrained("worse", first, 0.97, 0.96)
    store.registry.link(first, MODEL, ("previous",), reason="as on W&B")
    store.registry.link(second, MODEL, ("production",), reason="as on W&B", expected={"production": None})
    assert set(history.ever_in_production(store.params, store.registry)) == {swept.ref, first.ref, second.ref}
    assert history.contenders(store.params, store.registry) == [first.ref]
    back = promotion.judge(store.params, store.registry, swept)
    assert (back.decision, back.checks) == ("keep", {"new": False})
    new = promotion.judge(store.params, store.registry, store.publish("chance"))
    assert new.best_ever == first.ref
    assert not new.checks["best_ever"]
    # Another sweep's model took over: the rounds before it are known from `previous` alone.
    other = store.publish("chance", "model-other")
    moved = {"production": second.ref}
    store.registry.link(second, MODEL, ("previous",), reason="as on W&B")
    store.registry.link(other, MODEL, ("production",), reason="as on W&B", expected=moved)
    assert {swept.ref, first.ref, second.ref} < set(history.ever_in_production(store.params, store.registry))
    assert history.best_recorded(store.params, store.registry) == [first.ref]


# -- evaluate -----------------------------------------------------------------------------------------------


def test_evaluate_judges_promotes_and_never_undoes_a_rollback(
    store: Store, make_params: Callable[..., Params], said: list[str]
) -> None:
    for kind in ("good", "better"):
        store.registry.link(store.publish(kind), MODEL, ("best",), reason="x")
        receipt = evaluate_stage.run(store.params, store.registry)
        assert receipt["metrics"]["promoted"]
    assert receipt["metrics"]["decision"] == "promote"
    assert {"gate.json", "gate.png"} <= set(receipt["reports"])
    assert any(line.startswith("  test") and line.endswith("pass") for line in said)
    assert files.read_json(store.params.reports / "gate.json")["overall"]["n"] == 200
    promotion.rollback(store.params, store.registry)
    rolled_back = store.production()
    evaluate_stage.run(store.params, store.registry)
    assert said[-1].startswith("evaluate: up to date")
    for params in (store.params, store.with_params(make_params, "gate.margin=0.5").params):
        receipt = evaluate_stage.run(params, store.registry, force=True)
        assert receipt["metrics"]["decision"] == "keep"
        assert "it was in production before" in receipt["metrics"]["reasons"][0]
    assert store.production() == rolled_back
    assert not (store.params.reports / "gate.png").exists()  # it showed another decision


def test_evaluate_judges_on_the_data_set_that_it_read(store: Store) -> None:
    """`make data` may publish another one meanwhile, with as many test images in another order."""
    store.settle("good")
    store.registry.link(store.publish("better"), MODEL, ("best",), reason="x")
    defined = evaluate_stage.define(store.params, store.registry)
    read, test = store.data, store.made.indices["test"]
    store.replace_data(replace(store.made, indices={**store.made.indices, "test": test[::-1].copy()}))
    outcome = evaluate_stage._evaluate(defined)
    assert outcome.metrics["decision"] == "promote"
    assert files.read_json(store.params.reports / "gate.json")["dataset"] == read.ref


# -- by hand ------------------------------------------------------------------------------------------------


def test_promote_says_in_one_sentence_what_is_wrong(store: Store) -> None:
    store.settle("good")
    bad = store.publish("chance")
    for reference, options, message in (
        ("", {}, r"which model\? make promote MODEL=name:version"),
        ("nothing:v0", {}, "no artifact nothing in .*; make artifacts PROFILE=demo lists what there is"),
        ("digits_dataset", {}, "digits_dataset:v0 is no model but a dataset"),
        (bad.label, {"force": True}, 'FORCE=1 needs REASON="why"'),
        (bad.label, {"force": True, "reason": "  \n"}, 'FORCE=1 needs REASON="why"'),
        (bad.label, {}, 'model-chance:v0 is not promoted: .*FORCE=1 REASON="why" overrides'),
    ):
        before = store.registry.history(MODEL)
        with pytest.raises(Exception, match=message) as caught:
            promotion.promote(store.params, store.registry, reference, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert store.registry.history(MODEL) == before


def test_a_forced_promotion_is_recorded_as_forced_with_its_reason(store: Store, said: list[str]) -> None:
    first, bad = store.settle("good"), store.publish("chance")
    promotion.promote(store.params, store.registry, bad.label, force=True, reason='the "test" set\nis wrong')
    assert store.registry.aliases(MODEL) == {"production": bad.ref, "previous": first.ref}
    entry = store.registry.history(MODEL)[-1]
    assert entry["forced"]
    assert entry["reason"].startswith('the "test" set is wrong: on test worse than production')
    assert entry["gate"]["decision"] == "keep"
    assert "by force" in said[-1]
    promotion.promote(store.params, store.registry, store.publish("better").label, force=True, reason="safe")
    assert not store.registry.history(MODEL)[-1]["forced"]  # it passes the gate
    shown = list(status.history(store.params, store.registry))
    assert len(shown) == 3
    assert "nothing -> model-good:v0  no model to compare with" in shown[0]
    assert "model-good:v0 -> model-chance:v0  FORCED the" in shown[1]


def test_a_rollback_goes_back_and_a_second_one_forward(store: Store) -> None:
    first, second = store.settle("good"), store.settle("better")
    said = promotion.rollback(store.params, store.registry, reason="too slow")
    assert said == "rollback: model-good:v0 is in production again; model-better:v0 is the previous one now"
    assert store.registry.aliases(MODEL) == {"production": first.ref, "previous": second.ref}
    assert store.registry.history(MODEL)[-1]["reason"] == "rollback from model-better:v0: too slow"
    promotion.rollback(store.params, store.registry)
    assert store.registry.aliases(MODEL) == {"production": second.ref, "previous": first.ref}


def test_a_rollback_that_cannot_be_says_so(store: Store) -> None:
    assert list(status.history(store.params, store.registry)) == ["digits-classifier: nothing was promoted yet"]
    with pytest.raises(PromotionError, match="nothing to roll back to: digits-classifier has no production model"):
        promotion.rollback(store.params, store.registry)
    first = store.settle("good")
    with pytest.raises(PromotionError, match="has had one production model only"):
        promotion.rollback(store.params, store.registry)
    second = store.settle("better")
    weights = store.params.store / "registry/versions" / first.name / "v0/files/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    with pytest.raises(PromotionError, match=r"cannot be used: .*model.safetensors is damaged"):
        promotion.rollback(store.params, store.registry)
    shutil.rmtree(store.params.store / "registry/versions" / first.name)
    with pytest.raises(PromotionError, match="cannot be used: no artifact model-good@"):
        promotion.rollback(store.params, store.registry)
    assert store.production() == second.ref


def test_a_model_that_is_gone_still_has_a_history(store: Store) -> None:
    first = store.settle("good")
    store.settle("better")
    shutil.rmtree(store.params.store / "registry/versions" / first.name)
    (_, move) = status.history(store.params, store.registry)
    assert f"model-good@{first.digest[:12]} (gone) -> model-better:v0" in move
    everything = list(status.history(store.params, store.registry, everything=True))
    assert sum(" previous: " in line for line in everything) == 1


def test_importing_promotion_and_the_reports_is_light() -> None:
    """Scripts and commands import them at the top."""
    names = ("gate.promotion", "gate.report", "evaluation.report", "simulation.report", "retraining.report")
    imports = "; ".join(f"import flywheel.{name}" for name in names)
    probe = f"import sys; {imports}; print({{'numpy', 'torch', 'scipy', 'matplotlib'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.strip() == "set()"
