"""Files of trials: whole or missing, in a directory and at a URI alike."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flywheel.params import Params
from flywheel.sweep import trial
from flywheel.sweep.checkpoints import Checkpoints, Place
from flywheel.training.loop import TrainingData

Make = Callable[..., Params]


@pytest.fixture(params=["directory", "uri"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(str(tmp_path / "trials") if request.param == "directory" else f"file://{tmp_path}/trials")


@pytest.fixture
def files_at(tmp_path: Path) -> Path:
    return tmp_path / "trials"


def test_what_was_written_is_read_and_removed(place: Place) -> None:
    assert place.read("a") is None
    assert place.names() == []
    assert place.size() == 0
    place.below("x").write("a", b"one")
    place.below("x").write("a", b"two")
    place.below("y").write("b", b"three")
    assert place.below("x").read("a") == b"two"
    assert place.names() == ["x", "y"]
    assert place.size() == 2 * 32 + len(b"twothree")
    place.below("x").remove("a")
    place.below("x").remove("a")
    assert place.below("x").read("a") is None
    place.remove("y")
    assert place.below("y").read("b") is None
    place.remove()
    place.remove()
    assert place.names() == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_file_reads_as_missing(place: Place, files_at: Path, damage: str) -> None:
    place.write("state", bytes(1000))
    path = files_at / "state"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[500] ^= 1
    path.write_bytes({"cut": data[:700], "empty": b"", "longer": data + b"x", "flipped": data}[damage])
    assert place.read("state") is None


WRITER = """
import itertools, sys
from flywheel.sweep.checkpoints import Place
for number in itertools.count():
    Place(sys.argv[1]).write("state", bytes([number % 256]) * 3_000_000)
    if number == 1:
        print("ready", flush=True)
"""


def test_a_writer_that_is_killed_leaves_the_old_or_the_new_state(tmp_path: Path, random: np.random.Generator) -> None:
    """Twenty kill -9 at random moments."""
    place = Place(str(tmp_path / "trials"))
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", WRITER, place.uri], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(float(random.random()) * 0.05)
        process.kill()
        process.communicate()
        payload = place.read("state")
        assert payload is not None
        assert len(set(payload)) == 1
        assert len(payload) == 3_000_000


@pytest.fixture
def data(random: np.random.Generator) -> TrainingData:
    images = random.integers(0, 255, (96, 16, 16, 3)).astype(np.uint8)
    labels = (np.arange(96) % 2).astype(np.int64)
    return TrainingData(images, labels, images[:40], labels[:40], ("a", "b"), (0.4,) * 3, (0.3,) * 3)


@pytest.mark.parametrize("harm", ["nothing", "state", "weights", "recipe", "code"])
def test_a_trial_goes_on_from_a_whole_state_and_starts_anew_otherwise(
    make_params: Make, data: TrainingData, place: Place, files_at: Path, harm: str
) -> None:
    recipe = make_params().complete_recipe({"batch_size": 16, "architecture": "compact"}, epochs=4)
    checkpoints = Checkpoints(place, "abc")
    training = trial.start(recipe, data, 1, torch.device("cpu"))
    results = []
    for step in trial.follow(training):
        results.append({"epoch": training.epoch, "accuracy": step.result.accuracy})
        if training.epoch == 2:
            break
    checkpoints.save_weights(2, training.classifier.contents({}))
    state = training.state()
    if harm == "code":  # a layer that the code no longer has
        state["network"] = {f"former.{name}": tensor for name, tensor in state["network"].items()}
    checkpoints.save_state({"recipe": recipe.model_dump(), "training": state, "results": results}, best_epoch=2)
    if harm in ("state", "weights"):
        path = files_at / "abc" / {"state": "state", "weights": "weights-2"}[harm]
        path.write_bytes(path.read_bytes()[:-1])
    wanted = recipe.model_copy(update={"learning_rate": 0.01}) if harm == "recipe" else recipe
    taken_up, known, best_epoch = trial._taken_up(checkpoints, wanted, data, 1, torch.device("cpu"))
    if harm == "nothing":
        assert (taken_up.epoch, known, best_epoch) == (2, results, 2)
        return
    assert (taken_up.epoch, known, best_epoch) == (0, [], 0)
    fresh = trial.start(wanted, data, 1, torch.device("cpu"))
    for one, other in zip(taken_up.classifier.parameters(), fresh.classifier.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_of_epochs_that_are_no_longer_the_best_are_removed(place: Place, tmp_path: Path) -> None:
    checkpoints = Checkpoints(place, "abc")
    for epoch in (1, 2, 3):
        checkpoints.save_weights(epoch, {"model.json": b"%d" % epoch})
    checkpoints.tidy(3, 2)
    assert place.below("abc").names() == ["weights-2", "weights-3"]
    assert checkpoints.unpack_weights(3, tmp_path / "out")
    assert (tmp_path / "out" / "model.json").read_bytes() == b"3"
    assert not checkpoints.unpack_weights(1, tmp_path / "other")
    checkpoints.drop()
    assert place.names() == []
