"""What a GPU runs, on whatever device there is: `make test-gpu` runs these on a GPU, every other run on the CPU."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from shades import two_shades

from flywheel.data.dataset import ImageRows
from flywheel.models import classifier
from flywheel.models import device as devices
from flywheel.models.classifier import Classifier
from flywheel.params import Params, Recipe
from flywheel.serving import replica
from flywheel.training.batches import AugmentedBatches
from flywheel.training.loop import Training, TrainingData, fit

pytestmark = [pytest.mark.gpu, pytest.mark.numerics]


@pytest.fixture
def data(random: np.random.Generator) -> TrainingData:
    return two_shades(random, 32)


@pytest.fixture
def recipe(params: Params) -> Recipe:
    return params.complete_recipe({"batch_size": 16, "learning_rate": 0.05, "flip": True}, epochs=3)


@pytest.fixture
def device() -> torch.device:
    name = os.environ.get("FLYWHEEL_TEST_DEVICE", "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("make test-gpu needs an NVIDIA GPU, and torch sees none; make doctor tells what it sees", 1)
    return torch.device(name)


def test_images_lie_on_the_device_and_are_augmented_there(data: TrainingData, device: torch.device) -> None:
    batches = AugmentedBatches(data.images, data.labels, 16, flip=True, translate=4, seed=0, device=device)
    images, labels = next(batches.epoch(1))
    assert images.device.type == labels.device.type == device.type
    assert images.dtype == torch.uint8
    assert images.shape == (16, 32, 32, 3)


def test_images_that_do_not_fit_on_the_device_are_read_ahead_and_give_the_same_batches(
    data: TrainingData, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, epochs = ImageRows(data.images), []
    for free_bytes, kind in ((1 << 40, torch.Tensor), (0, ImageRows)):
        monkeypatch.setattr(devices, "free_bytes", lambda _, free_bytes=free_bytes: free_bytes)
        batches = AugmentedBatches(images, data.labels, 16, flip=True, translate=4, seed=0, device=device)
        assert isinstance(batches.images, kind)
        epochs.append([*batches.epoch(1), *batches.epoch(2)])
        left_early = batches.epoch(3)
        assert next(left_early)[0].device.type == device.type
    assert len(epochs[0]) == 12
    for resident, read in zip(*epochs, strict=True):
        assert all(map(torch.equal, resident, read))
    left_early.close()
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
@pytest.mark.parametrize("architecture", ["compact", "standard"])
def test_no_step_makes_the_host_wait(
    data: TrainingData, recipe: Recipe, device: torch.device, architecture: str, optimizer: str
) -> None:
    """An epoch of twelve steps waits as often as one of three: at its end."""
    if device.type != "cuda":
        pytest.skip("torch counts waits on CUDA only")
    waits = []
    for batch_size in (8, 32):
        changes = {"architecture": architecture, "optimizer": optimizer, "batch_size": batch_size, "epochs": 2}
        complete = recipe.model_copy(update=changes)
        epochs = Training(data.classifier(complete), data, complete, device).epochs()
        next(epochs)  # libraries load, optimizers make their state
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            next(epochs)
        torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert waits[0] == waits[1]


@pytest.mark.parametrize(
    "architecture", ["compact", *(pytest.param(name, marks=pytest.mark.long) for name in ("standard", "modified"))]
)
def test_it_learns_in_the_precision_of_the_device(
    data: TrainingData, recipe: Recipe, device: torch.device, architecture: str
) -> None:
    rate = 0.05 if architecture == "compact" else 0.003
    complete = recipe.model_copy(update={"architecture": architecture, "learning_rate": rate, "epochs": 4})
    model = data.classifier(complete)
    results = list(fit(model, data, complete, device))
    assert results[-1].train_loss < 0.3  # in nats; guessing costs 0.69
    assert model.device.type == device.type
    fast = complete.precision == "auto" and devices.has_bfloat16(device)
    assert model.precision == ("bfloat16" if fast else "float32")


def test_a_model_trained_on_the_device_answers_alike_on_the_cpu_and_served(
    data: TrainingData, recipe: Recipe, device: torch.device, tmp_path: Path
) -> None:
    complete = recipe.model_copy(update={"precision": "float32"})
    model = data.classifier(complete)
    for _ in fit(model, data, complete, device):
        pass
    model.save(tmp_path, complete.model_dump())
    there = model.predict(data.validation_images)
    here = classifier.load(tmp_path, torch.device("cpu")).predict(data.validation_images)
    served = replica.fast(classifier.load(tmp_path, device))(data.validation_images)
    np.testing.assert_allclose(there, here, atol=1e-3)
    np.testing.assert_allclose(served, there, atol=1e-3)


def test_a_state_goes_through_the_disk_and_back_to_the_device(
    data: TrainingData, recipe: Recipe, device: torch.device, tmp_path: Path
) -> None:
    first = Training(data.classifier(recipe), data, recipe, device)
    next(first.epochs())
    torch.save(first.state(), tmp_path / "state")
    second = Training(data.classifier(recipe), data, recipe, device)
    second.restore(torch.load(tmp_path / "state", weights_only=True))
    assert second.epoch == 1
    assert [result.epoch for result in second.epochs()] == [2, 3]


@pytest.mark.long
def test_compiled_training_learns_and_saves_what_others_load(
    data: TrainingData, recipe: Recipe, device: torch.device, tmp_path: Path
) -> None:
    complete = recipe.model_copy(update={"compile": True})
    model: Classifier = data.classifier(complete)
    assert model.network._compiled_call_impl is None
    results = list(fit(model, data, complete, device))
    assert results[-1].train_loss < 0.3
    assert model.network._compiled_call_impl is not None
    model.save(tmp_path, complete.model_dump())
    loaded = classifier.load(tmp_path, device).predict(data.validation_images)
    np.testing.assert_allclose(loaded, model.predict(data.validation_images), atol=2e-2)
