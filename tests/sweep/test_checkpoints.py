"""Checkpoints: complete or missing, in a directory and at a URI."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from shades import two_shades

from flywheel.params import Params
from flywheel.sweep import trial
from flywheel.sweep.checkpoints import Checkpoints, CheckpointStore
from flywheel.training.loop import TrainingData

Make = Callable[..., Params]


@pytest.fixture(params=["directory", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "trials") if request.param == "directory" else f"file://{tmp_path}/trials")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "trials"


def test_files_are_written_read_and_removed(store: CheckpointStore) -> None:
    assert store.read("a") is None
    assert store.names() == []
    assert store.size_bytes() == 0
    store.subfolder("x").write("a", b"one")
    store.subfolder("x").write("a", b"two")
    store.subfolder("y").write("b", b"three")
    assert store.subfolder("x").read("a") == b"two"
    assert store.names() == ["x", "y"]
    assert store.size_bytes() == 2 * 32 + len(b"twothree")
    store.subfolder("x").remove("a")
    store.subfolder("x").remove("a")
    assert store.subfolder("x").read("a") is None
    store.remove("y")
    assert store.subfolder("y").read("b") is None
    store.remove()
    store.remove()
    assert store.names() == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_file_reads_as_missing(store: CheckpointStore, folder: Path, damage: str) -> None:
    store.write("state", bytes(1000))
    path = folder / "state"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[500] ^= 1
    path.write_bytes({"cut": data[:700], "empty": b"", "longer": data + b"x", "flipped": data}[damage])
    assert store.read("state") is None


WRITER = """
import itertools, sys
from flywheel.sweep.checkpoints import CheckpointStore
for number in itertools.count():
    CheckpointStore(sys.argv[1]).write("state", bytes([number % 256]) * 3_000_000)
    if number == 1:
        print("ready", flush=True)
"""


def test_a_killed_writer_leaves_the_old_or_the_new_state(tmp_path: Path, random: np.random.Generator) -> None:
    """Ten kill -9 at random moments."""
    store = CheckpointStore(str(tmp_path / "trials"))
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", WRITER, store.uri], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(float(random.random()) * 0.05)
        process.kill()
        process.communicate()
        payload = store.read("state")
        assert payload is not None
        assert len(set(payload)) == 1
        assert len(payload) == 3_000_000


@pytest.fixture
def data(random: np.random.Generator) -> TrainingData:
    return two_shades(random, 16)


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("store", "harm"),
    [("uri", "nothing"), *(("directory", harm) for harm in ("nothing", "state", "weights", "recipe", "code"))],
    indirect=["store"],
)
def test_a_trial_continues_from_an_intact_state_and_starts_anew_otherwise(
    make_params: Make, data: TrainingData, store: CheckpointStore, folder: Path, harm: str
) -> None:
    recipe = make_params().complete_recipe({"batch_size": 16, "architecture": "compact"}, epochs=4)
    checkpoints = Checkpoints(store, "abc")
    training = trial.start(recipe, data, 1, torch.device("cpu"))
    results = []
    for result, _ in trial.follow(training):
        results.append({"epoch": training.epoch, "accuracy": result.accuracy})
        if training.epoch == 2:
            break
    checkpoints.save_weights(2, training.classifier.contents({}))
    state = training.state()
    if harm == "code":  # the layers have other names now
        state["network"] = {f"former.{name}": tensor for name, tensor in state["network"].items()}
    checkpoints.save_state({"recipe": recipe.model_dump(), "training": state, "results": results}, best_epoch=2)
    if harm in ("state", "weights"):
        path = folder / "abc" / {"state": "state", "weights": "weights-2"}[harm]
        path.write_bytes(path.read_bytes()[:-1])
    wanted = recipe.model_copy(update={"learning_rate": 0.01}) if harm == "recipe" else recipe
    restored, known, best_epoch = trial.restore(checkpoints, wanted, data, 1, torch.device("cpu"))
    if harm == "nothing":
        assert (restored.epoch, known, best_epoch) == (2, results, 2)
        return
    assert (restored.epoch, known, best_epoch) == (0, [], 0)
    fresh = trial.start(wanted, data, 1, torch.device("cpu"))
    for one, other in zip(restored.classifier.parameters(), fresh.classifier.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_the_weights_of_the_best_epochs_are_kept(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store, "abc")
    for epoch in (1, 2, 3):
        checkpoints.save_weights(epoch, {"model.json": b"%d" % epoch})
    checkpoints.keep_weights(3, 2)
    assert store.subfolder("abc").names() == ["weights-2", "weights-3"]
    assert checkpoints.unpack_weights(3, tmp_path / "out")
    assert (tmp_path / "out" / "model.json").read_bytes() == b"3"
    assert not checkpoints.unpack_weights(1, tmp_path / "other")
