"""Labels, records and images become feedback: the same labels always give the same version."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import made_models
import numpy as np
import pytest
from made_traffic import content, record_all
from numpy.typing import NDArray

from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.retraining import examples
from flywheel.traffic import TrafficError, collect, feedback, forget, records, sampling
from flywheel.traffic.capture import Answered
from flywheel.traffic.feedback import Example
from flywheel.traffic.labels import LabelLog
from flywheel.traffic.sampling import Drawn, Sample

# A group of each side.
GROUPS = {collect.side_of([f"{number:02x}" * 32]): f"{number:02x}" * 32 for number in range(256)}


@pytest.fixture
def data(params: Params, registry: Registry) -> Dataset:
    """A published data set."""
    made = made_models.dataset(params)
    made_models.publish_dataset(registry, params, made)
    return made


@pytest.fixture
def model(params: Params, registry: Registry, data: Dataset) -> Version:
    """A model that may be in production."""
    return made_models.publish(registry, params, "model-a", made_models.model(size=data.image_size))


def new_images(count: int, params: Params, seed: int = 99) -> NDArray[np.uint8]:
    """Return images that no data set holds."""
    return made_models.images([i % 10 for i in range(count)], size=params.data.image_size, seed=seed)


def answer(
    params: Params, model: Version, pixels: NDArray[np.uint8], *, prediction: str = "0", group: str | None = None
) -> list[str]:
    """Record that a model answered images; return the ids."""
    ids = [records.new_id() for _ in pixels]
    probabilities = [0.05] * 10
    probabilities[int(prediction)] = 0.55
    answers = (
        Answered(made, image, group, model.ref, prediction, probabilities, 0.001)
        for made, image in zip(ids, pixels, strict=True)
    )
    record_all(params.store_paths, answers)
    return ids


def label(params: Params, *rows: tuple[str, str | None, str], writer: str = "w") -> None:
    taker = LabelLog(params.store_paths, writer, lambda: made_models.DIGITS, 30.0)
    answers = taker.add([{"prediction_id": made, "label": name, "labeller": who} for made, name, who in rows])
    assert all(answer.status in ("accepted", "replaced", "conflict", "duplicate") for answer in answers)


def sample(
    params: Params, ids: list[str], pixels: NDArray[np.uint8], probability: float, labeller: str | None = None
) -> None:
    """Record a sample."""
    drawn = tuple(
        Drawn(prediction_id=made, hash=content(image), probability=probability, prediction="0", confidence=0.5)
        for made, image in zip(ids, pixels, strict=False)
    )
    made = Sample(
        number=sampling.next_number(params.store_paths), made="now", model="m", mean_confidence=0.5, images=drawn,
        population=len(ids) if probability == 1 else 8, labeller=labeller,
    )  # fmt: skip
    sampling.write(params.store_paths, made)


def listed(registry: Registry, collected: collect.Collected) -> dict[str, Example]:
    assert collected.feedback is not None
    return {example.hash: example for example in feedback.read(registry, collected.feedback)}


def test_a_labelled_image_is_listed_with_its_first_answer_and_its_pixels(
    params: Params, registry: Registry, data: Dataset, model: Version
) -> None:
    images = new_images(3, params)
    first = answer(params, model, images[:1], prediction="3")
    again = answer(params, model, images, prediction="0")
    label(params, (first[0], "0", "ann"), (again[0], "0", "bob"), (again[1], "1", "ann"))
    collected = collect.run(params, registry)
    found = listed(registry, collected)
    assert (collected.new, dict(collected.counts)) == (2, {"labelled": 2, "without a record": 0})
    one = found[content(images[0])]
    assert (one.label, one.prediction, one.confidence, one.right) == ("0", "3", 0.55, False)
    assert (one.source, one.chosen, one.id) == ("traffic", "volunteered", None)
    assert collected.feedback is not None
    pixels = feedback.pixels(registry, collected.feedback, found.values())
    assert np.array_equal(pixels[one.hash], images[0])
    assert collected.feedback.inputs["model"] == (model.ref,)


def test_the_same_labels_in_any_order_and_number_give_the_same_version(
    params: Params, registry: Registry, data: Dataset, model: Version, tmp_path: Path
) -> None:
    ids = answer(params, model, new_images(12, params))
    rows = [(made, str(i % 10), who) for i, made in enumerate(ids) for who in ("ann", "bob")]
    digests = set()
    for seed in range(3):
        for path in params.store_paths.traffic_labels.glob("*"):
            path.unlink()
        for version in registry.versions(params.feedback_name):
            registry.remove([version])
        shuffled = rows * (seed + 1)
        random.Random(seed).shuffle(shuffled)
        for row in shuffled:
            label(params, row, writer=f"w{seed}")
        collected = collect.run(params, registry)
        assert collected.feedback is not None
        digests.add(collected.feedback.digest)
        assert collect.run(params, registry).feedback == collected.feedback
    assert len(digests) == 1
    assert len(registry.versions(params.feedback_name)) == 1


def test_a_simulation_image_gives_the_example_that_simulate_publishes(
    params: Params, registry: Registry, data: Dataset, model: Version
) -> None:
    index = data.indices["simulation"]
    ids = answer(params, model, data.images[index], prediction="4")
    label(params, *((made, data.class_names[data.labels[i]], "app") for made, i in zip(ids, index, strict=True)))
    sample(params, ids, data.images[index], 1.0, labeller="app")
    found = listed(registry, collect.run(params, registry))
    known = feedback.examples(data, index, [4] * len(index), [0.55] * len(index))
    assert sorted(found.values(), key=lambda one: one.hash) == sorted(
        (one.model_copy(update={"source": "traffic"}) for one in known), key=lambda one: one.hash
    )


def test_a_label_of_a_sample_carries_its_probability(
    params: Params, registry: Registry, data: Dataset, model: Version
) -> None:
    images = new_images(2, params)
    ids = answer(params, model, images)
    label(params, *((made, "5", "app") for made in ids))
    sample(params, ids[:1], images, 0.25)
    assert {one.chosen for one in listed(registry, collect.run(params, registry)).values()} == {"volunteered"}
    label(params, (ids[0], "5", "ann"), writer="page1-a")
    sample(params, ids[:1], images, 0.75)  # the first draw counts
    found = listed(registry, collect.run(params, registry))
    assert [(found[content(image)].chosen, found[content(image)].probability) for image in images] == [
        ("sample", 0.25),
        ("volunteered", None),
    ]


def test_disputed_withdrawn_and_unusable_labels_train_nothing_and_are_counted(
    params: Params, registry: Registry, data: Dataset, model: Version, said: list[str]
) -> None:
    images = new_images(4, params)
    ids = answer(params, model, images)
    label(params, (ids[0], "1", "ann"), (ids[0], "2", "bob"), *((made, "3", "ann") for made in ids[1:]))
    records.image_path(params.store_paths, content(images[2])).unlink()
    collected = collect.run(params, registry)
    assert dict(collected.counts) == {"disputed": 1, "labelled": 2, "without a kept image": 1, "without a record": 0}
    assert f"collect: disputed: {ids[0]}: ann says 1, bob says 2" in said
    found = listed(registry, collected)
    assert found[content(images[0])].disputed
    assert content(images[2]) not in found
    assert collected.feedback is not None
    usable = examples.find(registry, collected.feedback, data)
    assert usable.disputed == (found[content(images[0])].side == "train")
    label(params, (ids[3], None, "ann"), (ids[0], "1", "bob"))
    after = collect.run(params, registry)
    assert set(listed(registry, after)) == {content(images[0]), content(images[1])}
    assert not listed(registry, after)[content(images[0])].disputed
    assert after.counts["without a label that counts"] == 1


def test_an_image_in_groups_on_both_sides_is_left_out(
    params: Params, registry: Registry, data: Dataset, model: Version
) -> None:
    image = new_images(1, params)
    for group in GROUPS.values():
        label(params, *((made, "1", "ann") for made in answer(params, model, image, group=group)))
    collected = collect.run(params, registry)
    assert collected.counts["in groups on both sides"] == 1
    assert [one.side for one in listed(registry, collected).values()] == ["both"]


@pytest.mark.parametrize("again", [True, False], ids=["labelled again", "not labelled again"])
@pytest.mark.parametrize("side", ["train", "holdout"])
def test_an_image_that_was_published_before_its_group_was_known_never_stands_beside_the_others_on_another_side(
    params: Params, registry: Registry, data: Dataset, model: Version, side: str, again: bool
) -> None:
    first, *others = new_images(6, params)
    label(params, (answer(params, model, first[None])[0], "1", "ann"))
    before = listed(registry, collect.run(params, registry))[content(first)].side
    answered = answer(params, model, np.stack([first, *others]), group=GROUPS[side])
    label(params, *((made, "1", "ann") for made in answered[0 if again else 1 :]))
    for _ in range(2):  # it stays there when it is collected again
        found = listed(registry, collect.run(params, registry))
        assert {found[content(image)].side for image in others} == {side}
        assert found[content(first)].side == (side if side == before else "both")
    version = feedback.latest(params, registry)
    assert version is not None
    trained = set(examples.find(registry, version, data).hashes)
    assert trained == (
        {content(image) for image in (first, *others)}
        if side == before == "train"
        else {content(image) for image in others}
        if side == "train"
        else set()
    )


def test_labels_are_read_from_a_csv_file(
    params: Params, registry: Registry, data: Dataset, model: Version, tmp_path: Path, said: list[str]
) -> None:
    ids = answer(params, model, new_images(2, params))
    path = tmp_path / "labels.csv"
    path.write_text(f"prediction_id,label,labeller\n{ids[0]},1,\n{ids[1]},7,bob\nabc,1,\n")
    assert collect.run(params, registry, path).new == 2
    assert collect.run(params, registry, path).new == 0
    assert any("2 accepted, 1 invalid" in line for line in said)
    assert any("2 duplicate, 1 invalid" in line for line in said)
    path.write_text("id,label\n")
    with pytest.raises(TrafficError, match="no column prediction_id"):
        collect.run(params, registry, path)
    with pytest.raises(TrafficError, match=r"none\.csv cannot be read: No such file or directory$"):
        collect.run(params, registry, tmp_path / "none.csv")
    path.write_text(f"prediction_id,label\n{ids[0]},2\n")
    params.store_paths.traffic_labels.rename(tmp_path / "moved")
    params.store_paths.traffic_labels.write_text("in the way")
    with pytest.raises(FileExistsError):  # and not that labels.csv cannot be read
        collect.run(params, registry, path)


def test_without_labels_nothing_is_published(params: Params, registry: Registry, data: Dataset) -> None:
    assert collect.run(params, registry).feedback is None


def test_a_forgotten_image_leaves_traffic_and_feedback_for_good(
    params: Params, registry: Registry, data: Dataset, model: Version
) -> None:
    images = new_images(3, params)
    ids = answer(params, model, images)
    label(params, *((made, "1", "ann") for made in ids))
    before = collect.run(params, registry).feedback
    assert before is not None
    gone = content(images[0])
    forgotten = forget.run(params, registry, [ids[0]])
    assert (forgotten.hashes, forgotten.records) == ((gone,), 1)
    assert [version.ref for versions in forgotten.holders.values() for version in versions] == [before.ref]
    assert [row["prediction_id"] for row in records.read(params.store_paths)] == ids[1:]
    assert not records.image_path(params.store_paths, gone).exists()
    for again in (records.new_id(), gone[:10]):
        with pytest.raises(TrafficError):
            forget.run(params, registry, [again])
    label(params, *((made, "2", "ann") for made in answer(params, model, images[1:2])))
    after = collect.run(params, registry).feedback
    assert after is not None
    found = {example.hash: example for example in feedback.read(registry, after)}
    assert set(found) == {content(images[1]), content(images[2])}
    known = Example(hash=gone, label="1", side="train")
    assert feedback.publish(params, registry, [known], {}, {}) == (after, 0)  # whoever publishes it
    (stored,) = after.inputs["pixels"]
    shards = sorted(registry.open(registry.resolve(stored)).glob("pixels-*.npy"))
    assert sum((np.load(shard) == images[0]).all(axis=(1, 2, 3)).sum() for shard in shards) == 0
    assert np.array_equal(feedback.pixels(registry, after, found.values())[content(images[2])], images[2])
    assert registry.has(before.ref)
    forget.run(params, registry, [ids[0]], everywhere=True)  # as the first run says
    assert not registry.has(before.ref)
    assert not registry.has(before.inputs["pixels"][0])
    assert registry.has(after.ref)
    assert registry.has(stored)


long = pytest.mark.long


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("flywheel.traffic.labels.LabelLog.add", marks=long),
        pytest.param("flywheel.traffic.labels.join", marks=long),
        pytest.param("flywheel.traffic.feedback._store", marks=long),
        "flywheel.files.write_json",
        pytest.param("flywheel.tracking.runs.Tracker.run", marks=long),
    ],
)
def test_killed_at_any_moment_nothing_is_lost_or_listed_twice(
    params: Params, registry: Registry, data: Dataset, model: Version, tmp_path: Path, moment: str
) -> None:
    ids = answer(params, model, new_images(12, params))
    label(params, *((made, "3", "ann") for made in ids[:6]))
    path = tmp_path / "labels.csv"
    path.write_text("prediction_id,label\n" + "".join(f"{made},4\n" for made in ids[6:]))
    owner, name = moment.rsplit(".", 1)
    module = owner if owner.rpartition(".")[2][0].islower() else owner.rpartition(".")[0]
    overrides = f"paths.store={params.paths.store} paths.reports={params.paths.reports} tracking.wandb=disabled"
    command = ["scripts/collect.py", "--profile", "demo", "--labels", str(path), "--set", overrides]
    probe = (
        f"import os, runpy, signal, sys, {module}\nassert hasattr({owner}, {name!r})\n"
        f"{owner}.{name} = lambda *a, **k: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        f"sys.argv = {command!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    root, environment = Path(__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", probe], cwd=root, env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    again = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    (version,) = registry.versions(params.feedback_name)
    assert sorted(example.label for example in feedback.read(registry, version)) == ["3"] * 6 + ["4"] * 6
    assert re.search(r"collect: 12 labelled", again.stdout)
