"""Mixing, choosing an epoch, finding pixels, and what must not be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import made_models
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flywheel.data import splits
from flywheel.data.dataset import Dataset
from flywheel.models import classifier
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.retraining import RetrainError
from flywheel.retraining.examples import Arm, choose, find, mix, repeats
from flywheel.retraining.stage import recipe_of
from flywheel.retraining.train import kept_epoch, train_arm
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example
from flywheel.training.loop import TrainingData

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
Collect = Callable[..., Version]


# -- feedback ------------------------------------------------------------------------------------------

listed = st.lists(
    st.builds(
        Example, id=st.integers(0, 20) | st.none(), hash=st.integers(0, 7).map(lambda i: f"{i:02x}" * 32),
        label=st.sampled_from("ab"), side=st.just("train"),
    ),
    max_size=12,
)  # fmt: skip


@given(listed, listed, listed)
def test_merging_keeps_each_content_once_and_forgets_none(a: list[Example], b: list[Example], c: list[Example]) -> None:
    merged = feedback.merge(feedback.merge(a, b), c)
    assert [e.hash for e in merged] == sorted({e.hash for e in merged})
    assert {e.hash for e in merged} == {e.hash for e in (*a, *b, *c)}
    assert feedback.merge(merged, ()) == merged == feedback.merge(merged, merged)


# -- the mix -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "possible"), [(1, {1}), (2, {2}), (5, {5}), (2.5, {2, 3}), (0.5, {0, 1})])
def test_weights_are_kept_on_average_and_fractions_are_seeded(weight: float, possible: set[int]) -> None:
    times = repeats(2000, weight, seed=0)
    assert set(times.tolist()) == possible
    assert times.mean() == pytest.approx(weight, abs=0.05)
    assert (times == repeats(2000, weight, seed=0)).all()
    if weight % 1:
        assert (times != repeats(2000, weight, seed=1)).any()


def test_the_mix_has_every_original_once_and_each_example_weight_times(opened: Dataset, failed: list[int]) -> None:
    data = TrainingData.of(opened)
    index = opened.indices["simulation"][failed[:20]]
    mixed = mix(data, opened.images[index], opened.labels[index], weight=3, seed=0)
    n = len(data.labels)
    assert (mixed.images[:n] == data.images).all()
    assert len(mixed.labels) == n + 60
    for k, i in enumerate(index):
        part = slice(n + 3 * k, n + 3 * k + 3)
        assert (mixed.images[part] == opened.images[i]).all()
        assert (mixed.labels[part] == opened.labels[i]).all()
    assert mixed.validation_images is data.validation_images


# -- the kept epoch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "n", "kept"),
    [
        ([0.90, 0.95, 0.949], 5000, 3),  # standard error 0.3 points
        ([0.90, 0.95, 0.94], 5000, 2),
        ([0.90, 0.95, 0.94], 160, 3),  # 1.8 points
        ([0.98, 1.0, 0.99375], 160, 3),  # one image of 160
        ([0.97, 1.0, 0.98], 160, 2),
        ([0.99, 0.5, 0.4], 160, 1),
        ([0.3], 10, 1),
    ],
)
def test_the_last_epoch_within_one_standard_error_of_the_best_is_kept(
    accuracies: list[float], n: int, kept: int
) -> None:
    assert kept_epoch(accuracies, n) == kept


def test_the_kept_epochs_weights_are_put_back(
    registry: Registry, opened: Dataset, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData.of(opened)
    recipe = params.complete_recipe({"learning_rate": 0.01}, epochs=3)
    directory = registry.open(registry.resolve("model-1"))
    seen: dict[int, np.ndarray] = {}
    for kept in (1, 3):
        model = classifier.load(directory, CPU)
        # Validation that falls far from epoch to epoch keeps the first, one that rises keeps the last.
        values = iter([(1.0, 0.9 - 0.3 * k if kept == 1 else 0.3 + 0.3 * k) for k in range(3)])
        monkeypatch.setattr("flywheel.training.loop.validate", lambda *_, values=values: next(values))
        epochs = train_arm(
            model, data, recipe, CPU, lambda r, m=model: seen.__setitem__(r.epoch, m.predict(data.images[:50]))
        )
        assert [epoch.epoch for epoch in epochs if epoch.kept] == [kept]
        assert (model.predict(data.images[:50]) == seen[kept]).all()
    assert (seen[1] != seen[3]).any()


def test_a_loss_that_is_not_finite_names_the_param(registry: Registry, opened: Dataset, params: Params) -> None:
    model = classifier.load(registry.open(registry.resolve("model-1")), CPU)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(RetrainError, match=r"the loss became nan .*retrain\.learning_rate_scale"):
        train_arm(model, TrainingData.of(opened), params.complete_recipe({}, epochs=1), CPU)


def test_the_scale_does_not_compound_over_turns(
    params: Params, registry: Registry, make: Callable[[str], Params]
) -> None:
    scaled = make("retrain.learning_rate_scale=0.1 retrain.epochs=7 retrain.seed=3")
    parent = registry.resolve("model-1")
    recipe, base = recipe_of(scaled, parent, parent.metadata["recipe"])
    rate = parent.metadata["recipe"]["learning_rate"]
    assert (recipe.learning_rate, base) == (pytest.approx(0.1 * rate), rate)
    assert (recipe.epochs, recipe.seed) == (7, 3)
    second = replace(parent, metadata={"recipe": recipe.model_dump(), "base_learning_rate": base})
    assert recipe_of(scaled, second, recipe.model_dump()) == (recipe, base)


# -- what must not be trained on -----------------------------------------------------------------------


def entry(opened: Dataset, split: str, position: int, side: str = "train") -> Example:
    (example,) = feedback.examples(opened, opened.indices[split][[position]])
    return example.model_copy(update={"side": side})


def test_exact_copies_of_test_and_validation_images_are_dropped(opened: Dataset, failed: list[int]) -> None:
    good = [e for e in feedback.examples(opened, opened.indices["simulation"][failed]) if e.side == "train"][:5]
    planted = [entry(opened, "test", 3), entry(opened, "validation", 4)]
    found = choose([*good, *planted], opened)
    assert found.dropped == {"a copy of a test image": [planted[0].id], "a copy of a validation image": [planted[1].id]}
    assert found.hashes == tuple(e.hash for e in good)


def test_held_out_and_unknown_images_are_dropped_whatever_is_listed(opened: Dataset) -> None:
    held = int(np.flatnonzero(opened.holdout)[0])
    unknown = Example(id=77, hash="ee" * 32, label="1", side="train")
    original = entry(opened, "train", 0)
    found = choose([entry(opened, "simulation", held), unknown, original], opened)
    assert len(found) == 0
    held_out = [id_ for reason, ids in found.dropped.items() if reason == "held out by its hash" for id_ in ids]
    assert entry(opened, "simulation", held).id in held_out
    assert sum(len(ids) for ids in found.dropped.values()) == 3


def test_pixels_are_those_of_the_data_set_and_labels_those_that_were_given(opened: Dataset, failed: list[int]) -> None:
    good = [e for e in feedback.examples(opened, opened.indices["simulation"][failed]) if e.side == "train"]
    given = [example.model_copy(update={"label": "7", "prediction": "7"}) for example in good[1:]]
    found = choose([*given, good[0].model_copy(update={"label": "ten"})], opened)
    rows = {opened.hashes[i].tobytes().hex(): i for i in opened.indices["simulation"]}
    assert found.hashes == tuple(example.hash for example in given)
    assert (found.images == opened.images[[rows[key] for key in found.hashes]]).all()
    assert (found.labels == 7).all()
    assert found.right.all()
    assert found.dropped == {"of a class that digits does not have": [good[0].id]}


def test_disputed_labels_are_left_out_and_counted(opened: Dataset, failed: list[int]) -> None:
    good = [e for e in feedback.examples(opened, opened.indices["simulation"][failed]) if e.side == "train"]
    found = choose([*good[2:], *(e.model_copy(update={"disputed": True}) for e in good[:2])], opened)
    assert (len(found), found.disputed) == (len(good) - 2, 2)
    assert found.dropped == {}


def test_traffic_that_no_data_set_holds_has_its_own_pixels_and_side(opened: Dataset) -> None:
    """A group, such as a camera, may put it on the other side than its hash, but not a copy of a holdout image."""
    foreign = made_models.images([4] * 30, seed=9)
    own = {row.tobytes().hex(): image for row, image in zip(splits.content_hashes(foreign), foreign, strict=True)}
    held = entry(opened, "simulation", int(np.flatnonzero(opened.holdout)[0])).hash
    listed = [Example(hash=key, label="4", side="train", source="traffic") for key in (*own, held)]
    found = choose(listed, opened, own={**own, "cc" * 32: foreign[0]})
    assert found.hashes == tuple(own)
    assert (found.images == foreign).all()
    assert found.dropped == {"held out by its hash": [held]}


def test_each_arm_has_its_images(opened: Dataset) -> None:
    """`random` draws as many as there are failures, from all."""
    simulation = opened.indices["simulation"]
    chosen = simulation[~opened.holdout][:60]
    answers = np.where(np.arange(60) < 12, (opened.labels[chosen] + 1) % 10, opened.labels[chosen])
    found = choose(feedback.examples(opened, chosen, answers, [0.5] * 60), opened)
    assert [len(found.arm(name, 0)) for name in get_args(Arm)] == [60, 12, 12, 0]
    assert found.arm("failures", 0).tolist() == np.flatnonzero(~found.right).tolist() == list(range(12))
    drawn = found.arm("random", 0)
    assert drawn.tolist() == sorted(set(drawn.tolist())) != list(range(12))
    assert (drawn == found.arm("random", 0)).all()
    assert (drawn != found.arm("random", 1)).any()


@pytest.mark.parametrize("length", [250, 1000])
def test_a_mix_of_a_given_length_has_every_image_about_as_often(opened: Dataset, length: int) -> None:
    """So an arm with fewer images takes as many steps."""
    data = TrainingData.of(opened)
    index = opened.indices["simulation"][:20]
    mixed = mix(data, opened.images[index], opened.labels[index], weight=2, seed=0, length=length)
    assert len(mixed.images) == len(mixed.labels) == length
    counts = Counter(image.tobytes() for image in mixed.images)
    assert len(counts) == len(data.labels) + 20
    once = length / (len(data.labels) + 40)
    assert set(counts.values()) <= {int(once), int(once) + 1, int(2 * once), int(2 * once) + 1, int(2 * once) + 2}


def test_failures_of_an_older_data_set_are_found_through_the_lineage(
    params: Params, registry: Registry, collect: Collect, opened: Dataset, failed: list[int]
) -> None:
    """The images change with the next data set, and the former failures are still of use."""
    version = collect(failed)
    newer = made_models.dataset(params, seed=1)
    made_models.publish_dataset(registry, params, newer)
    assert not {row.tobytes() for row in newer.hashes} >= {row.tobytes() for row in opened.hashes}
    found = find(registry, version, newer)
    assert len(found) == sum(e.side == "train" for e in feedback.read(registry, version)) > 5
    assert found.dropped == {}
