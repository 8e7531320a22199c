"""The training loop: it learns, is byte-identical when repeated or resumed, and names a loss that is not finite."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flywheel.data.dataset import ImageRows
from flywheel.params import Params, Recipe
from flywheel.training.loop import EpochResult, Training, TrainingData, TrainingDiverged, fit, learning_rate_factor

CPU = torch.device("cpu")


def start(data: TrainingData, recipe: Recipe) -> Training:
    return Training(data.classifier(recipe), data, recipe, CPU)


def weights(training: Training) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in training.classifier.network.state_dict().items()}


def timeless(results: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, images_per_s=0) for result in results]


@pytest.mark.numerics
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 0.003), ("muon", 0.05)])
def test_it_learns(data: TrainingData, params: Params, optimizer: str, rate: float) -> None:
    recipe = params.complete_recipe({"batch_size": 16, "learning_rate": rate, "optimizer": optimizer}, epochs=4)
    results = list(start(data, recipe).epochs())
    assert [result.epoch for result in results] == [1, 2, 3, 4]
    assert results[-1].accuracy == 1.0  # the classes differ by twice the noise
    assert results[-1].train_loss < results[0].train_loss


@pytest.mark.numerics
@pytest.mark.parametrize(
    "change", [{}, {"optimizer": "adam"}, {"optimizer": "muon"}, {"flip": True, "precision": "float32"}], ids=str
)
def test_a_repeated_or_resumed_training_is_byte_identical(
    few: TrainingData, recipe: Recipe, change: dict[str, object]
) -> None:
    """Resumed from the bytes of torch.save, as in a checkpoint, also from the state after the last epoch."""
    recipe = recipe.model_copy(update={"epochs": 2, **change})
    expected = start(few, recipe)
    results, states = [], []
    for result in expected.epochs():
        results.append(result)
        states.append(io.BytesIO())
        torch.save(expected.state(), states[-1])
    for epoch in range(len(states) + 1):
        training = start(few, recipe)
        if epoch:
            states[epoch - 1].seek(0)
            training.restore(torch.load(states[epoch - 1], weights_only=True))
        assert timeless(list(training.epochs())) == timeless(results[epoch:])
        assert weights(training) == weights(expected)


@pytest.mark.numerics
def test_images_of_a_file_give_the_same_weights_as_images_in_memory(
    few: TrainingData, recipe: Recipe, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", few.images)
    images = ImageRows(np.load(tmp_path / "images.npy", mmap_mode="r"))
    of_a_file = replace(few, images=images, validation_images=ImageRows(np.asarray(few.validation_images)))
    trainings = [start(data, recipe.model_copy(update={"flip": True})) for data in (few, of_a_file)]
    results = [timeless(list(training.epochs())) for training in trainings]
    assert results[0] == results[1]
    assert weights(trainings[0]) == weights(trainings[1])


@pytest.mark.numerics
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"learning_rate": 0.04}, {"momentum": 0.8}, {"weight_decay": 0.01}, {"label_smoothing": 0.2},
        {"warmup_fraction": 0.5}, {"flip": True}, {"translate": 0}, {"batch_size": 32}, {"optimizer": "adam"},
        {"precision": "bfloat16"}, {"architecture": "standard"},  # compile takes minutes: tests/test_devices.py
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_param_of_a_recipe_has_an_effect(few: TrainingData, recipe: Recipe, change: dict[str, object]) -> None:
    base = recipe.model_copy(update={"epochs": 1, "precision": "float32"})
    one, other = (start(few, made) for made in (base, base.model_copy(update=change)))
    if "architecture" not in change:
        for training in (one, other):
            next(training.epochs())
    assert weights(one) != weights(other)


def test_every_training_is_deterministic_on_cuda(
    few: TrainingData, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    start(few, recipe)
    assert torch.backends.cudnn.deterministic


@pytest.mark.numerics
@pytest.mark.parametrize("block", [0, 1])
def test_weights_outside_a_single_pixel_get_no_gradient(data: TrainingData, recipe: Recipe, block: int) -> None:
    recipe = recipe.model_copy(update={"architecture": "standard", "precision": "bfloat16"})
    classifier = data.classifier(recipe).move_to(CPU).train()
    convolution = classifier.network.layer4[block].conv1  # type: ignore[index,union-attr]
    outside = torch.ones(3, 3, dtype=torch.bool)
    outside[1, 1] = False
    for _ in range(3):
        freed = [torch.full((convolution.weight.numel() * size,), 7.0) for size in (1, 2)]  # as freed memory may be
        del freed
        classifier.zero_grad()
        classifier(torch.from_numpy(data.images[:16])).sum().backward()
        assert convolution.weight.grad[:, :, 1, 1].any()
        assert not convolution.weight.grad[:, :, outside].any()


def test_a_loss_that_is_not_finite_ends_with_a_named_error(data: TrainingData, recipe: Recipe) -> None:
    poisoned = data.classifier(recipe)
    with torch.no_grad():
        next(poisoned.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="the loss became nan in epoch 1; try a lower learning rate"):
        list(fit(poisoned, data, recipe, CPU))


def test_the_learning_rate_warms_up_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 0.2) for step in range(100)]
    expected = {0: 0.05, 19: 1.0, 20: 1.0, 60: 0.5, 80: 0.25, 99: 1 / 80}
    assert {step: factors[step] for step in expected} == pytest.approx(expected)
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert learning_rate_factor(0, 1, 0.0) == 1.0


@pytest.mark.numerics
@pytest.mark.parametrize("resumed", [0, 1])
def test_every_optimizer_step_uses_the_scheduled_rate(few: TrainingData, recipe: Recipe, resumed: int) -> None:
    recipe = recipe.model_copy(update={"optimizer": "muon"})
    training, before = start(few, recipe), start(few, recipe)
    for _, _ in zip(range(resumed), before.epochs(), strict=False):
        training.restore(before.state())
    rates: dict[str, list[list[float]]] = {}

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rates.setdefault(type(optimizer).__name__, []).append([group["lr"] for group in optimizer.param_groups])

    for optimizer in training._optimizers:
        optimizer.register_step_pre_hook(record)
    reported = [result.learning_rate for result in training.epochs()]
    per_epoch = len(few.labels) // recipe.batch_size
    steps = recipe.epochs * per_epoch
    expected = [
        recipe.learning_rate * learning_rate_factor(step, steps, recipe.warmup_fraction)
        for step in range(resumed * per_epoch, steps)
    ]
    np.testing.assert_allclose(rates["AdamW"], np.outer(expected, [1 / 10, 1 / 90, 1 / 10]))
    np.testing.assert_allclose(rates["Muon"], np.outer(expected, [1]))
    assert reported == pytest.approx(expected[per_epoch - 1 :: per_epoch])
