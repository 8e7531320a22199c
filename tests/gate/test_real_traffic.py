"""The gate on real traffic: labels that people gave, and captured images that nobody labelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import made_models
import numpy as np
import pytest
import torch
from made_traffic import OPTIONS, id_of_age
from numpy.typing import NDArray

from flywheel import files
from flywheel.data import splits
from flywheel.data.dataset import Dataset
from flywheel.gate import promotion, replay
from flywheel.gate.promotion import PromotionError
from flywheel.gate.report import ChangedClass
from flywheel.models.classifier import Classifier
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.traffic import collect, feedback, records
from flywheel.traffic.capture import Answered, Recorder
from flywheel.traffic.feedback import Example
from flywheel.traffic.labels import LabelLog

Make = Callable[..., Params]

LENIENT = "data.image_size=8 tracking.wandb=disabled gate.margin=1 gate.class_margin=1"
WRONG = (3, 4)  # the groups that the candidate gets wrong, and production right


@pytest.fixture
def params(make_params: Make) -> Params:
    """A gate that hardly judges the test images."""
    return make_params(LENIENT)


@pytest.fixture
def data(params: Params, registry: Registry) -> Dataset:
    """A published data set."""
    made = made_models.dataset(params)
    made_models.publish_dataset(registry, params, made)
    return made


@pytest.fixture
def production(params: Params, registry: Registry, data: Dataset) -> Version:
    """A model in production that is always right."""
    version = made_models.publish(registry, params, "model-old", made_models.model())
    registry.link(version, params.registered_model, ("production",), reason="to test")
    return version


@pytest.fixture
def candidate(params: Params, registry: Registry, production: Version) -> Version:
    """A model that is wrong on WRONG."""
    return made_models.publish(registry, params, "model-new", made_models.model(wrong=WRONG))


def content(pixels: NDArray[np.uint8]) -> list[str]:
    return [row.tobytes().hex() for row in splits.content_hashes(pixels)]


def label(
    params: Params,
    registry: Registry,
    pixels: NDArray[np.uint8],
    labels: Iterable[int],
    *,
    probabilities: Iterable[float] | None = None,
    stored: bool = True,
    **fields: Any,
) -> Version:
    """Publish holdout labels of real traffic, drawn with these probabilities (none: all were labelled)."""
    drawn = [None] * len(pixels) if probabilities is None else probabilities
    listed = [
        Example.model_validate({
            "hash": key, "label": str(name), "side": "holdout", "source": "traffic", "prediction": "0",
            "chosen": "sample" if probability else "all", "probability": probability, **fields,
        })
        for key, name, probability in zip(content(pixels), labels, drawn, strict=True)
    ]  # fmt: skip
    images = dict(zip(content(pixels), pixels, strict=True)) if stored else {}
    version, _ = feedback.publish(params, registry, listed, {}, {}, images)
    assert version is not None
    return version


def capture(params: Params, model: Version, pixels: NDArray[np.uint8], age: int = 100) -> list[str]:
    """Have a server keep images, which it answered with "0", each a second before the one before; return their ids."""
    recorder = Recorder(params.store_paths, OPTIONS, "r")
    ids = [id_of_age(age + number) for number in range(len(pixels))]
    for made, image in zip(ids, pixels, strict=True):
        recorder.add(Answered(made, image, None, model.ref, "0", [0.1] * 10, 0.001))
    recorder.close(60)
    return ids


def shown(count: int, groups: Sequence[int], seed: int = 50) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return new images and labels 1 to 9; the groups take turns."""
    labels = 1 + np.arange(count) % 9
    return made_models.images(labels, np.resize(groups, count), seed=seed), labels


# -- labels of real traffic -----------------------------------------------------------------------------------


def test_sampled_labels_are_compared_by_weight_and_apart_from_the_simulation(
    params: Params, registry: Registry, data: Dataset, candidate: Version
) -> None:
    pixels, labels = shown(120, (0, 3, 0, 0))
    drawn = np.where(np.arange(120) < 60, 0.5, 0.1)
    label(params, registry, pixels, labels, probabilities=drawn)
    held = data.indices["simulation"][data.holdout]  # real traffic that the data set holds
    label(params, registry, data.images[held], data.labels[held], stored=False)
    others = shown(40, WRONG, seed=51)
    label(params, registry, *others, chosen="volunteered")
    label(params, registry, *shown(40, WRONG, seed=52), source="simulation")
    label(params, registry, *shown(40, WRONG, seed=53), side="train")
    label(params, registry, shown(40, WRONG, seed=54)[0], ["no class of ours"] * 40)
    decision = promotion.judge(params, registry, candidate)
    groups = np.concatenate([np.resize((0, 3, 0, 0), 120), made_models.groups(data.images[held])])
    wrong = np.isin(groups, WRONG) & (np.concatenate([labels, data.labels[held]]) != 0)
    weights = np.concatenate([1 / drawn, np.ones(len(held))])
    assert decision.traffic is not None
    assert (decision.traffic.n, decision.traffic.broken) == (120 + len(held), wrong.sum())
    assert decision.traffic.difference == pytest.approx(-np.average(wrong, weights=weights))
    assert decision.reported.traffic_accuracy == {
        "candidate": pytest.approx(1 - np.average(wrong, weights=weights)), "production": 1,
    }  # fmt: skip
    assert (decision.decision, decision.checks["traffic"]) == ("keep", False)
    assert decision.holdout is not None
    assert decision.holdout.n == len(held)


def test_volunteered_labels_of_failures_change_no_number(
    params: Params, registry: Registry, candidate: Version, production: Version
) -> None:
    label(params, registry, *shown(60, (0, 3)))
    before = promotion.judge(params, registry, candidate)
    pixels, labels = shown(60, (0,), seed=51)
    ids = capture(params, production, pixels)  # always wrong
    taker = LabelLog(params.store_paths, "w", lambda: made_models.DIGITS, 30.0)
    answers = taker.add([{"prediction_id": i, "label": str(name)} for i, name in zip(ids, labels, strict=True)])
    assert {answer.status for answer in answers} == {"accepted"}
    assert collect.run(params, registry).new == 60
    after = promotion.judge(params, registry, candidate)
    assert after.replay is not None
    apart = {"replay", "reported"}
    assert after.model_dump(exclude=apart) | {"checks": before.checks} == before.model_dump(exclude=apart)
    assert after.reported.traffic_accuracy == before.reported.traffic_accuracy


def test_images_that_a_compared_model_was_trained_on_are_left_out(
    params: Params, registry: Registry, make_params: Make, data: Dataset, production: Version, said: list[str]
) -> None:
    pixels, labels = shown(60, (0, 3))
    other = make_params(f"{LENIENT} data.name=other")
    used = label(other, registry, pixels[:10], labels[:10], side="train")
    trained = made_models.model(wrong=WRONG)
    parent = made_models.publish(registry, params, "model-parent", trained, inputs={"feedback": [used.ref]})
    inputs = {"parent": [parent.ref]}
    candidate = made_models.publish(registry, params, "model-new", trained, inputs=inputs, seed=1)
    train = data.indices["train"][:5]
    label(params, registry, pixels, labels)
    label(params, registry, data.images[train], data.labels[train])
    decision = promotion.judge(params, registry, candidate)
    assert decision.traffic is not None
    assert decision.traffic.n == 50
    registry.remove([used])
    unknown = promotion.judge(params, registry, candidate)
    assert (unknown.traffic, "traffic" in unknown.checks) == (None, False)
    assert f"no label of real traffic is compared: model-new:v0 was trained on {used.ref}, which is not in" in said[-1]


# -- replay -----------------------------------------------------------------------------------------------------


def images_of(pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[np.uint8]]:
    return dict(zip(content(pixels), pixels, strict=True))


def test_the_replay_counts_what_changed_and_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = shown(45, (0, 3, 0))  # labels 1 to 9 in turn: those of group 3 are 2, 5 and 8
    old, new = made_models.model(), made_models.model(wrong=(3,))
    found, measured = replay.run(new, old, images_of(pixels), pixels)
    expected = [ChangedClass(production=name, candidate="0", count=5) for name in "258"]
    assert (found.images, found.compared, found.agreed, found.failed) == (45, 45, 30, None)
    assert sorted(found.changed, key=lambda one: one.production) == expected
    assert measured.latency_ratio is not None
    assert measured.latency_ms.keys() == {"candidate", "production"}

    def crash(model: Classifier, on: NDArray[np.uint8]) -> None:
        original = model.predict

        def predict(images: Any) -> Any:
            if any(np.array_equal(image, on) for image in images):
                raise RuntimeError("CUDA error")
            return original(images)

        monkeypatch.setattr(model, "predict", predict)

    crash(new, pixels[20])
    crash(old, pixels[3])
    found, _ = replay.run(new, old, images_of(pixels), pixels)
    assert (found.crashed, found.not_finite, found.failed) == (1, 0, content(pixels)[20])
    assert (found.compared, found.agreed) == (43, 28)
    alone, measured = replay.run(new, None, images_of(pixels), pixels)
    assert (alone.crashed, alone.compared, measured.latency_ratio) == (1, 0, None)


def test_the_newest_images_that_are_kept_and_not_forgotten_are_replayed(params: Params, production: Version) -> None:
    paths = params.store_paths
    assert replay.captured(paths, 5) == {}
    pixels, _ = shown(8, (0,))
    capture(params, production, np.concatenate([pixels, pixels[6:]]))
    larger = made_models.images([1], size=12)
    capture(params, production, larger, age=90)
    keys = content(pixels)
    newest = replay.captured(paths, 4)
    assert list(newest) == [*content(larger), *keys[:3]]
    assert all(np.array_equal(newest[key], image) for key, image in zip(keys[:3], pixels, strict=False))
    assert replay.run(made_models.model(), None, newest, pixels)[0].crashed == 0
    image = records.image_path(paths, keys[0])
    image.write_bytes(image.read_bytes()[:-30])
    records.image_path(paths, keys[1]).unlink()
    files.append_json_lines(paths.forgotten, {"hash": keys[2], "at": files.timestamp()})
    assert list(replay.captured(paths, 3))[1:] == keys[3:5]
    assert len(replay.captured(paths, 100)) == 6
    assert replay.captured(paths, 0) == {}


def test_a_candidate_without_finite_answers_for_some_captured_images_is_refused_even_by_force(
    params: Params, registry: Registry, production: Version, make_params: Make, said: list[str]
) -> None:
    """Its logits overflow for white images only; the data set has none."""
    broken = made_models.model()
    with torch.no_grad():
        broken.network[-1].weight[0, made_models.FIRST_GROUP + 5] = 4.4e37
    version = made_models.publish(registry, params, "model-new", broken)
    pixels, _ = shown(20, (0, 5))
    white = np.full((2, 8, 8, 3), 255, np.uint8)
    white[1, -1, -1] = 200
    capture(params, production, np.concatenate([pixels, white]))
    with pytest.raises(PromotionError, match=r"nor would it be by force: model-new:v0 gives .* for 2 of 22 captured"):
        promotion.promote(params, registry, version.label, force=True, reason="to test")
    assert any(line.startswith("  replay: 22 captured images; the candidate fails on 2; the same") for line in said)
    report = files.read_json(params.reports / "gate.json")
    assert (report["checks"]["answers"], report["checks"]["replay"]) == (True, False)
    assert report["replay"]["failed"] in content(white)
    for count, checked in ((3, True), (0, None)):  # of the newest three none is white
        some = make_params(f"{LENIENT} gate.replay={count}")
        assert promotion.judge(some, registry, version).checks.get("replay") is checked


def test_a_slow_candidate_is_reported_and_refused_only_with_a_limit(
    params: Params, registry: Registry, production: Version, make_params: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = made_models.publish(registry, params, "model-new", made_models.model(logit=2.0))
    original = Classifier.predict

    def slow(self: Classifier, images: Any) -> Any:
        if float(self.network[-1].weight.detach().max()) > 1 and len(images) == 1:
            time.sleep(0.1)
        return original(self, images)

    monkeypatch.setattr(Classifier, "predict", slow)
    monkeypatch.setattr(replay, "TIMED", 7)
    decision = promotion.judge(params, registry, version)
    assert (decision.decision, decision.replay is not None and decision.replay.images) == ("promote", 0)
    assert decision.reported.latency_ratio is not None
    assert decision.reported.latency_ratio > 1.5
    limited = promotion.judge(make_params(f"{LENIENT} gate.max_latency_ratio=1.5"), registry, version)
    assert (limited.decision, limited.checks["latency"]) == ("keep", False)
    assert limited.reasons[0].startswith("too slow: one image takes ")
