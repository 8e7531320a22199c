"""The gate over real models and data, and every way into production: real training, a real registry, real files."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flywheel import files
from flywheel.commands import housekeeping, status
from flywheel.data import build, dataset, sources
from flywheel.data.dataset import Dataset
from flywheel.evaluation import stage as evaluate_stage
from flywheel.gate import history, predictions, promotion
from flywheel.gate.promotion import PromotionError
from flywheel.models import classifier
from flywheel.params import RETRAINED_NAME, Params
from flywheel.params import file as params_file
from flywheel.pipeline.stage import StageError
from flywheel.registry import LocalRegistry, Registry, Version, inputs_by_role
from flywheel.training.loop import TrainingData, fit

ROOT = Path(__file__).parents[1]
MODEL = "digits-classifier"
SMALL = "data.image_size=16 gate.floor_accuracy=0.5 tracking.wandb=disabled"


@dataclass(frozen=True)
class Made:
    """A small data set and, by name, the files of models of it."""

    data: Dataset
    models: dict[str, Path]


@dataclass
class Wheel:
    """A store with the data set; `publish` adds a model."""

    params: Params
    registry: Registry
    made: Made
    data: Version

    def publish(self, kind: str, name: str | None = None, *inputs: Version) -> Version:
        refs = inputs_by_role([version.ref for version in inputs or (self.data,)], "model")
        return self.registry.publish(name or f"model-{kind}", "model", self.made.models[kind], inputs=refs)

    def settle(self, kind: str, **options: Any) -> Version:
        """Judge a model and carry the decision out, as evaluate and retrain do."""
        version = self.publish(kind)
        promotion.apply(
            self.params, self.registry, version, promotion.judge(self.params, self.registry, version, **options)
        )
        return version

    def production(self) -> str | None:
        return self.registry.aliases(MODEL).get("production")

    def replace_data(self, changed: Dataset, folder: Path) -> Version:
        dataset.save(changed, folder)
        self.data = self.registry.publish("digits_dataset", "dataset", folder)
        return self.data

    def with_params(self, make_params: Callable[..., Params], overrides: str) -> Wheel:
        return replace(self, params=make_params(f"{SMALL} {overrides}"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A good model (a), the same trained on (b), one of a single epoch, one untrained, one of NaN, one cut short."""
    params = params_file.load(profile="demo", overrides=SMALL)
    data = build.build(sources.load(params.data, tmp_path_factory.mktemp("cache")), params.data)
    training, folder, models = TrainingData.of(data), tmp_path_factory.mktemp("models"), {}
    for name, seed, epochs in (("untrained", 3, 0), ("short", 2, 1), ("a", 0, 8)):
        recipe = params.complete_recipe({"architecture": "compact", "seed": seed}, max(epochs, 1))
        model = training.classifier(recipe)
        for _ in fit(model, training, recipe, torch.device("cpu")) if epochs else ():
            pass
        models[name] = folder / name
        model.save(models[name], recipe.model_dump())
    gentle = recipe.model_copy(update={"learning_rate": 0.002, "seed": 1, "epochs": 2})
    for _ in fit(model, training, gentle, torch.device("cpu")):
        pass
    models["b"] = folder / "b"
    model.save(models["b"], gentle.model_dump())
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    models["nan"], models["cut"] = folder / "nan", folder / "cut"
    model.save(models["nan"], recipe.model_dump())
    shutil.copytree(models["a"], models["cut"])
    weights = models["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return Made(data, models)


@pytest.fixture
def wheel(make_params: Callable[..., Params], made: Made, tmp_path: Path) -> Wheel:
    params = make_params(SMALL)
    registry = LocalRegistry(params.store)
    dataset.save(made.data, tmp_path / "data")
    return Wheel(params, registry, made, registry.publish("digits_dataset", "dataset", tmp_path / "data"))


# -- judge and apply ------------------------------------------------------------------------------------


def test_a_first_model_above_the_floor_goes_into_production(wheel: Wheel) -> None:
    first = wheel.settle("a")
    assert wheel.production() == first.ref
    entry = wheel.registry.history(MODEL)[0]
    assert entry["gate"]["decision"] == "first"
    assert entry["gate"]["accuracy"][first.ref] > 0.9
    assert not entry["forced"]


def test_below_the_floor_nothing_moves(wheel: Wheel) -> None:
    candidate = wheel.publish("untrained")
    decision = promotion.judge(wheel.params, wheel.registry, candidate)
    assert (decision.decision, decision.checks["floor_accuracy"]) == ("keep", False)
    assert not promotion.apply(wheel.params, wheel.registry, candidate, decision)
    assert wheel.registry.aliases(MODEL) == {}


def test_as_good_a_model_takes_over_and_a_bad_one_does_not(wheel: Wheel) -> None:
    first, second = wheel.settle("a"), wheel.settle("b")
    assert wheel.registry.aliases(MODEL) == {"production": second.ref, "previous": first.ref}
    bad = wheel.publish("untrained")
    decision = promotion.judge(wheel.params, wheel.registry, bad)
    assert decision.decision == "keep"
    assert decision.reasons[0].startswith("on test worse than production: -")
    assert not promotion.apply(wheel.params, wheel.registry, bad, decision)
    assert wheel.production() == second.ref


def test_the_figures_are_those_of_the_models(wheel: Wheel) -> None:
    """Against accuracies computed here, image by image."""
    old, new = wheel.settle("a"), wheel.publish("short")
    decision = promotion.judge(wheel.params, wheel.registry, new)
    test, simulation = wheel.made.data.split("test"), wheel.made.data.split("simulation")
    right = {}
    for version in (old, new):
        model = classifier.load(wheel.registry.open(version))
        right[version.ref] = model.predict(test.images).argmax(axis=1) == test.labels
        held = model.predict(simulation.images[wheel.made.data.holdout]).argmax(axis=1)
        role = "candidate" if version == new else "production"
        accuracy = (held == simulation.labels[wheel.made.data.holdout]).mean()
        assert decision.reported.holdout_accuracy[role] == pytest.approx(accuracy)
        assert decision.accuracy[version.ref] == pytest.approx(right[version.ref].mean())
    assert decision.reported.fixed == int((right[new.ref] & ~right[old.ref]).sum())
    assert decision.reported.broken == int((right[old.ref] & ~right[new.ref]).sum())
    assert decision.overall is not None
    assert decision.overall.n == 450
    assert decision.holdout is not None
    assert decision.holdout.n == wheel.made.data.holdout.sum()
    assert decision.reported.latency_ms["candidate"] > 0
    assert 0 < decision.reported.ece["production"] < 0.5


def test_probabilities_that_the_caller_has_are_not_computed_again(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.settle("a")
    candidate = wheel.publish("short")
    known = classifier.load(wheel.registry.open(candidate)).predict(wheel.made.data.split("test").images)
    without = promotion.judge(wheel.params, wheel.registry, candidate)
    predicted: list[int] = []
    original = classifier.Classifier.predict

    def count(self: classifier.Classifier, images: Any) -> Any:
        predicted.append(len(images))
        return original(self, images)

    monkeypatch.setattr(classifier.Classifier, "predict", count)
    spared = promotion.judge(wheel.params, wheel.registry, candidate, probabilities=known)
    assert (spared.overall, spared.holdout, spared.reasons) == (without.overall, without.holdout, without.reasons)
    assert predicted.count(450) == 1  # production; it is also the best ever and is asked once


def test_with_auto_off_nothing_moves(wheel: Wheel, make_params: Callable[..., Params]) -> None:
    wheel.with_params(make_params, "promotion.auto=false").settle("a")
    assert wheel.production() is None


def test_what_is_in_production_is_no_candidate_under_any_name(wheel: Wheel) -> None:
    wheel.settle("a")
    for candidate in (wheel.publish("a"), wheel.publish("a", "retrained-model")):
        decision = promotion.judge(wheel.params, wheel.registry, candidate)
        assert (decision.decision, decision.reasons) == ("keep", ("it is in production already",))


@pytest.mark.parametrize(
    ("kind", "reason"), [("nan", "not finite for 619 of its images"), ("cut", "is not a model that this code")]
)
def test_what_cannot_answer_is_kept_out_and_no_force_helps(wheel: Wheel, kind: str, reason: str) -> None:
    first = wheel.settle("a")
    candidate = wheel.publish(kind)
    decision = promotion.judge(wheel.params, wheel.registry, candidate)
    assert (decision.decision, decision.checks["answers"]) == ("keep", False)
    assert reason in decision.reasons[0]
    with pytest.raises(PromotionError, match="nor would it be by force"):
        promotion.promote(wheel.params, wheel.registry, candidate.label, force=True, reason="why not")
    assert wheel.production() == first.ref


def test_a_production_model_that_is_gone_is_said_and_makes_way(wheel: Wheel) -> None:
    first = wheel.settle("a")
    shutil.rmtree(wheel.params.store / "registry" / "versions" / first.name)
    assert any(f"missing: {first.ref}" in line for line in status.status(wheel.params, wheel.registry))
    second = wheel.settle("b")
    assert wheel.production() == second.ref
    assert wheel.registry.history(MODEL)[-1]["gate"]["decision"] == "first"


def test_a_production_model_that_cannot_be_loaded_stays_until_somebody_decides(wheel: Wheel) -> None:
    broken, candidate = wheel.publish("cut"), wheel.publish("b")
    wheel.registry.link(broken, MODEL, ("production",), reason="by hand")
    decision = promotion.judge(wheel.params, wheel.registry, candidate)
    assert decision.decision == "keep"
    assert "cannot be compared" in decision.reasons[0]
    assert f'make promote MODEL={candidate.label} PROFILE=demo FORCE=1 REASON="why"' in decision.reasons[0]
    promotion.promote(wheel.params, wheel.registry, candidate.label, force=True, reason="it is broken")
    assert wheel.production() == candidate.ref


def test_a_move_meanwhile_is_one_sentence_and_changes_nothing(wheel: Wheel) -> None:
    first = wheel.settle("a")
    candidate = wheel.publish("b")
    decision = promotion.judge(wheel.params, wheel.registry, candidate)
    other = wheel.publish("short")
    wheel.registry.link(other, MODEL, ("production",), reason="somebody else")
    before = wheel.registry.history(MODEL)
    with pytest.raises(
        PromotionError, match=f"production was moved to {other.label} while {candidate.label} was judged"
    ):
        promotion.apply(wheel.params, wheel.registry, candidate, decision)
    assert wheel.registry.history(MODEL) == before
    assert decision.production == first.ref


def test_without_a_data_set_it_says_what_to_make(
    make_params: Callable[..., Params], made: Made, tmp_path: Path
) -> None:
    params = make_params(SMALL)
    registry = LocalRegistry(params.store)
    candidate = registry.publish("model-a", "model", made.models["a"])
    with pytest.raises(StageError, match="there is no digits_dataset; run make data PROFILE=demo"):
        promotion.judge(params, registry, candidate)


# -- other data sets ---------------------------------------------------------------------------------------


def test_other_classes_keep_production_and_force_is_the_way_on(wheel: Wheel, tmp_path: Path) -> None:
    wheel.settle("a")
    names = [f"number {i}" for i in range(10)]
    description = {**wheel.made.data.description, "class_names": names}
    wheel.replace_data(replace(wheel.made.data, description=description), tmp_path / "renamed")
    shutil.copytree(wheel.made.models["b"], tmp_path / "model")
    shown = files.read_json(tmp_path / "model/model.json")
    files.write_json(tmp_path / "model/model.json", {**shown, "class_names": names})
    new = wheel.registry.publish("model-new", "model", tmp_path / "model", inputs={"dataset": wheel.data.ref})
    decision = promotion.judge(wheel.params, wheel.registry, new)
    assert (decision.decision, decision.checks["same_classes"]) == ("keep", False)
    assert "knows other classes than the data set" in decision.reasons[0]
    old = promotion.judge(wheel.params, wheel.registry, wheel.publish("short"))
    assert old.reasons == ("model-short:v0 knows other classes than the data set; run make sweep",)
    promotion.promote(wheel.params, wheel.registry, new.label, force=True, reason="other classes")
    assert wheel.production() == new.ref
    assert wheel.registry.history(MODEL)[-2]["forced"]


def test_on_another_data_set_nobody_is_judged_on_what_he_was_trained_on(wheel: Wheel, tmp_path: Path) -> None:
    """100 training images of the old data set are in the new one's test: they are left out, for both models."""
    wheel.settle("a")
    indices = dict(wheel.made.data.indices)
    moved, rest = indices["train"][:100], indices["train"][100:]
    indices |= {"train": rest, "test": np.concatenate([indices["test"], moved])}
    old_data = wheel.data
    wheel.replace_data(replace(wheel.made.data, indices=indices), tmp_path / "moved")
    candidate = wheel.publish("b", None, old_data)
    decision = promotion.judge(wheel.params, wheel.registry, candidate)
    assert decision.overall is not None
    assert (decision.overall.n, decision.reported.left_out) == (450, 100)
    assert decision.dataset == wheel.data.ref
    fresh = wheel.registry.publish("model-fresh", "model", wheel.made.models["b"], inputs={"dataset": wheel.data.ref})
    images = predictions.prepare(wheel.registry, wheel.data, [fresh])
    assert (len(images.labels.test), images.labels.left_out) == (550, 0)


def test_where_every_test_image_was_trained_on_nothing_is_judged(wheel: Wheel, tmp_path: Path) -> None:
    wheel.settle("a")
    indices = dict(wheel.made.data.indices)
    indices |= {"train": indices["train"][300:], "test": indices["train"][:300]}
    old_data = wheel.data
    wheel.replace_data(replace(wheel.made.data, indices=indices), tmp_path / "moved")
    decision = promotion.judge(wheel.params, wheel.registry, wheel.publish("b", None, old_data))
    assert decision.decision == "keep"
    assert "no test image is left" in decision.reasons[0]
    promotion.report(wheel.params, decision)
    assert files.read_json(wheel.params.reports / "gate.json")["decision"] == "keep"


def test_a_model_of_another_image_size_is_asked_as_the_server_would(wheel: Wheel, tmp_path: Path) -> None:
    first = wheel.settle("a")
    larger = params_file.load(profile="demo", overrides=f"{SMALL} data.image_size=24")
    wheel.replace_data(build.build(sources.load(larger.data, tmp_path), larger.data), tmp_path / "larger")
    images = predictions.prepare(wheel.registry, wheel.data, [first])
    predicted = predictions.predict(wheel.registry, first, images)
    assert images.test.shape[1] == 24
    assert predicted.accuracy(images.labels) > 0.9  # 16 pixels upscaled to 24 and back


# -- what was in production before -------------------------------------------------------------------------


def test_what_was_replaced_does_not_come_back_by_itself(wheel: Wheel) -> None:
    first, second = wheel.settle("a"), wheel.settle("b")
    assert wheel.production() == second.ref
    decision = promotion.judge(wheel.params, wheel.registry, first)
    assert decision.decision == "keep"
    assert decision.reasons[0].startswith("it was in production before and was replaced; make promote MODEL=model-a:v0")
    assert promotion.judge(wheel.params, wheel.registry, first, by_hand=True).overall is not None


def test_the_best_that_ever_was_in_production_binds(wheel: Wheel, make_params: Callable[..., Params]) -> None:
    """A short-trained model comes into production by force; the next is compared to the better one before it too."""
    best = wheel.settle("a")
    worse = wheel.publish("short")
    promotion.promote(wheel.params, wheel.registry, worse.label, force=True, reason="to test")
    copy = wheel.made.models["short"].with_name("short-again")
    if not copy.exists():
        shutil.copytree(wheel.made.models["short"], copy)
        shown = files.read_json(copy / "model.json")
        files.write_json(copy / "model.json", {**shown, "recipe": {**shown["recipe"], "seed": 9}})
    again = wheel.registry.publish("model-again", "model", copy, inputs={"dataset": wheel.data.ref})
    decision = promotion.judge(wheel.params, wheel.registry, again)
    assert decision.overall is not None
    assert decision.overall.difference == 0
    assert decision.checks["test"]
    assert (decision.best_ever, decision.decision) == (best.ref, "keep")
    assert "than model-a:v0, the best that was in production" in decision.reasons[0]
    shutil.rmtree(wheel.params.store / "registry" / "versions" / best.name)
    without = promotion.judge(wheel.params, wheel.registry, again)
    assert (without.best_ever, without.decision) == (worse.ref, "promote")


def test_however_many_were_in_production_few_are_asked(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {}
    for number in range(6):
        folder = wheel.params.store / "made" / str(number)
        shutil.copytree(wheel.made.models["a"], folder)
        shown = files.read_json(folder / "model.json")
        files.write_json(folder / "model.json", {**shown, "recipe": {**shown["recipe"], "seed": number}})
        version = wheel.registry.publish(f"model-{number}", "model", folder, inputs={"dataset": wheel.data.ref})
        records[version.ref] = 0.9 + (0.05 if number == 2 else 0.001 * number)
        gate = {"dataset": wheel.data.ref, "accuracy": {version.ref: records[version.ref]}}
        wheel.registry.link(version, MODEL, ("production",), reason="x", gate=gate)
    asked: list[str] = []
    original = predictions.predict

    def note(registry: Registry, version: Version, *arguments: Any, **options: Any) -> Any:
        asked.append(version.label)
        return original(registry, version, *arguments, **options)

    monkeypatch.setattr(predictions, "predict", note)
    promotion.judge(wheel.params, wheel.registry, wheel.publish("b"))
    assert asked == ["model-b:v0", "model-5:v0", "model-2:v0"]
    assert history.best_recorded(wheel.params, wheel.registry, wheel.data.ref) == max(records, key=records.__getitem__)
    kept = housekeeping.unneeded(wheel.params, wheel.registry)
    assert "model-2" not in [version.name for version in kept]
    assert "model-1" in [version.name for version in kept]


def test_a_fresh_machine_knows_from_the_lineage_what_was_in_production_and_how_good_it_was(wheel: Wheel) -> None:
    """It has from W&B what `production` and `previous` name, the manifests of their ancestors, and no history."""

    def retrained(kind: str, parent: Version, before: float, after: float) -> Version:
        facts = {"before": {"test": {"accuracy": before}}, "after": {"test": {"accuracy": after}}}
        return wheel.registry.publish(
            RETRAINED_NAME, "model", wheel.made.models[kind], metadata={"metrics": facts},
            inputs={"dataset": wheel.data.ref, "feedback": "digits-feedback@x", "parent": parent.ref},
        )  # fmt: skip

    swept = wheel.publish("a")
    first = retrained("b", swept, 0.90, 0.97)
    second = retrained("short", first, 0.97, 0.96)
    wheel.registry.link(first, MODEL, ("previous",), reason="as on W&B")
    wheel.registry.link(second, MODEL, ("production",), reason="as on W&B", expected={"production": None})
    assert set(history.ever_in_production(wheel.params, wheel.registry)) == {swept.ref, first.ref, second.ref}
    assert history.best_recorded(wheel.params, wheel.registry, wheel.data.ref) == first.ref
    assert history.contenders(wheel.params, wheel.registry) == [first.ref]
    back = promotion.judge(wheel.params, wheel.registry, swept)
    assert (back.decision, back.checks) == ("keep", {"new": False})
    new = promotion.judge(wheel.params, wheel.registry, wheel.publish("untrained"))
    assert new.best_ever == first.ref
    assert not new.checks["best_ever"]
    # Another sweep's model took over: the turns before it are known from `previous` alone.
    other = wheel.publish("untrained", "model-other")
    moved = {"production": second.ref}
    wheel.registry.link(second, MODEL, ("previous",), reason="as on W&B")
    wheel.registry.link(other, MODEL, ("production",), reason="as on W&B", expected=moved)
    assert {swept.ref, first.ref, second.ref} < set(history.ever_in_production(wheel.params, wheel.registry))
    assert history.best_recorded(wheel.params, wheel.registry, wheel.data.ref) == first.ref


# -- evaluate -----------------------------------------------------------------------------------------------


def test_evaluate_judges_promotes_and_never_undoes_a_rollback(
    wheel: Wheel, make_params: Callable[..., Params], said: list[str]
) -> None:
    for kind in ("a", "b"):
        wheel.registry.link(wheel.publish(kind), MODEL, ("best",), reason="x")
        receipt = evaluate_stage.run(wheel.params, wheel.registry)
        assert receipt["metrics"]["promoted"]
    assert receipt["metrics"]["decision"] == "promote"
    assert {"gate.json", "gate.png"} <= set(receipt["reports"])
    assert any(line.startswith("  test") and line.endswith("pass") for line in said)
    assert files.read_json(wheel.params.reports / "gate.json")["overall"]["n"] == 450
    promotion.rollback(wheel.params, wheel.registry)
    rolled_back = wheel.production()
    evaluate_stage.run(wheel.params, wheel.registry)
    assert said[-1].startswith("evaluate: up to date")
    for params in (wheel.params, wheel.with_params(make_params, "gate.margin=0.5").params):
        receipt = evaluate_stage.run(params, wheel.registry, force=True)
        assert receipt["metrics"]["decision"] == "keep"
        assert "it was in production before" in receipt["metrics"]["reasons"][0]
    assert wheel.production() == rolled_back
    assert not (wheel.params.reports / "gate.png").exists()  # it showed another decision


# -- by hand ------------------------------------------------------------------------------------------------


def test_promote_says_in_one_sentence_what_is_wrong(wheel: Wheel) -> None:
    wheel.settle("a")
    bad = wheel.publish("untrained")
    for reference, options, message in (
        ("", {}, r"which model\? make promote MODEL=name:version"),
        ("nothing:v0", {}, "no artifact nothing in .*; make artifacts PROFILE=demo lists what there is"),
        ("digits_dataset", {}, "digits_dataset:v0 is no model but a dataset"),
        (bad.label, {"force": True}, 'FORCE=1 needs REASON="why"'),
        (bad.label, {"force": True, "reason": "  \n"}, 'FORCE=1 needs REASON="why"'),
        (bad.label, {}, 'model-untrained:v0 is not promoted: .*FORCE=1 REASON="why" overrides'),
    ):
        before = wheel.registry.history(MODEL)
        with pytest.raises(Exception, match=message) as caught:
            promotion.promote(wheel.params, wheel.registry, reference, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert wheel.registry.history(MODEL) == before


def test_a_forced_promotion_is_recorded_as_forced_with_its_reason(wheel: Wheel, said: list[str]) -> None:
    first, bad = wheel.settle("a"), wheel.publish("untrained")
    promotion.promote(wheel.params, wheel.registry, bad.label, force=True, reason='the "test" set\nis wrong')
    assert wheel.registry.aliases(MODEL) == {"production": bad.ref, "previous": first.ref}
    entry = wheel.registry.history(MODEL)[-1]
    assert entry["forced"]
    assert entry["reason"].startswith('the "test" set is wrong: on test worse than production')
    assert entry["gate"]["decision"] == "keep"
    assert "by force" in said[-1]
    shown = list(status.history(wheel.params, wheel.registry))
    assert len(shown) == 2
    assert "nothing -> model-a:v0  no model to compare with" in shown[0]
    assert "model-a:v0 -> model-untrained:v0  FORCED the" in shown[1]


def test_force_where_none_is_needed_is_no_forced_move(wheel: Wheel) -> None:
    wheel.settle("a")
    promotion.promote(wheel.params, wheel.registry, wheel.publish("b").label, force=True, reason="safe")
    assert not wheel.registry.history(MODEL)[-1]["forced"]


def test_promote_moves_even_with_auto_off(wheel: Wheel, make_params: Callable[..., Params]) -> None:
    off = wheel.with_params(make_params, "promotion.auto=false")
    version = off.publish("a")
    promotion.promote(off.params, off.registry, version.label)
    assert wheel.production() == version.ref


def test_promoting_what_is_there_is_no_move(wheel: Wheel, said: list[str]) -> None:
    wheel.settle("a")
    before = wheel.registry.history(MODEL)
    promotion.promote(wheel.params, wheel.registry, f"{MODEL}:production")
    assert said == ["promote: model-a:v0 is in production already"]
    assert wheel.registry.history(MODEL) == before


def test_a_rollback_goes_back_and_a_second_one_forward(wheel: Wheel) -> None:
    first, second = wheel.settle("a"), wheel.settle("b")
    said = promotion.rollback(wheel.params, wheel.registry, reason="too slow")
    assert said == "rollback: model-a:v0 is in production again; model-b:v0 is the previous one now"
    assert wheel.registry.aliases(MODEL) == {"production": first.ref, "previous": second.ref}
    assert wheel.registry.history(MODEL)[-1]["reason"] == "rollback from model-b:v0: too slow"
    promotion.rollback(wheel.params, wheel.registry)
    assert wheel.registry.aliases(MODEL) == {"production": second.ref, "previous": first.ref}


def test_a_rollback_that_cannot_be_says_so(wheel: Wheel) -> None:
    with pytest.raises(PromotionError, match="nothing to roll back to: digits-classifier has no production model"):
        promotion.rollback(wheel.params, wheel.registry)
    first = wheel.settle("a")
    with pytest.raises(PromotionError, match="has had one production model only"):
        promotion.rollback(wheel.params, wheel.registry)
    second = wheel.settle("b")
    weights = wheel.params.store / "registry/versions" / first.name / "v0/files/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    with pytest.raises(PromotionError, match=r"cannot be used: .*model.safetensors is damaged"):
        promotion.rollback(wheel.params, wheel.registry)
    shutil.rmtree(wheel.params.store / "registry/versions" / first.name)
    with pytest.raises(PromotionError, match="cannot be used: no artifact model-a@"):
        promotion.rollback(wheel.params, wheel.registry)
    assert wheel.production() == second.ref


def test_a_model_that_is_gone_still_has_a_history(wheel: Wheel) -> None:
    first = wheel.settle("a")
    wheel.settle("b")
    shutil.rmtree(wheel.params.store / "registry/versions" / first.name)
    (_, move) = status.history(wheel.params, wheel.registry)
    assert f"model-a@{first.digest[:12]} (gone) -> model-b:v0" in move
    everything = list(status.history(wheel.params, wheel.registry, everything=True))
    assert sum(" previous: " in line for line in everything) == 1


def test_without_any_move_the_history_says_so(params: Params, registry: Registry) -> None:
    assert list(status.history(params, registry)) == ["digits-classifier: nothing was promoted yet"]


# -- kill -9 --------------------------------------------------------------------------------------------------

MOVE = """
import sys
from pathlib import Path
from flywheel.params import file as params_file
from flywheel.gate import promotion
from flywheel.registry import LocalRegistry, Registry
if sys.argv[3] == "promote":
    from flywheel.gate import exam, picture  # before it begins: seconds that a rollback does not need
params = params_file.load(sys.argv[1], "demo", sys.argv[2])
registry = LocalRegistry(params.store)
print("begun", flush=True)
while True:
    if sys.argv[3] == "rollback":
        promotion.rollback(params, registry)
    else:
        promotion.promote(params, registry, "digits-classifier:previous")
    print(registry.history("digits-classifier")[-1]["write"], flush=True)
"""


@pytest.mark.parametrize(
    ("action", "kills", "longest_s"), [("rollback", 30, 0.1), pytest.param("promote", 12, 4.0, marks=pytest.mark.long)]
)
def test_killed_at_any_moment_it_leaves_the_old_or_the_new(
    wheel: Wheel, random: np.random.Generator, action: str, kills: int, longest_s: float
) -> None:
    """A process that moves production to and fro is killed; what it reported as done is done, and nothing is mixed."""
    pair = {wheel.settle("a").ref, wheel.settle("b").ref}
    overrides = f"{SMALL} gate.margin=0.5 gate.class_margin=1 paths.store={wheel.params.store.parent}"
    overrides += f" paths.reports={wheel.params.reports.parent}"
    moves = 0
    for number in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", MOVE, str(ROOT / "params.yaml"), overrides, action],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            # Every other time it has moved once before, however slow the machine.
            reported = [process.stdout.readline().strip()] if number % 2 else []
            time.sleep(random.uniform(0, longest_s))
            process.send_signal(signal.SIGKILL)
            reported += process.stdout.read().split()
        assert process.returncode == -signal.SIGKILL
        entries = wheel.registry.history(MODEL)
        aliases = wheel.registry.aliases(MODEL)
        assert {aliases["production"], aliases["previous"]} == pair
        assert set(reported) <= {entry["write"] for entry in entries}
        moves += len(reported)
        lines = (wheel.params.store / "audit.jsonl").read_text().splitlines()
        assert len(lines) == len(entries)  # no line is torn
        before = wheel.production()
        promotion.rollback(wheel.params, wheel.registry)  # and the next move works
        assert wheel.production() != before
    assert moves >= kills // 2


def test_importing_promotion_is_light() -> None:
    """Scripts import it at the top."""
    probe = "import sys, flywheel.gate.promotion; print({'numpy', 'torch', 'scipy', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.strip() == "set()"
