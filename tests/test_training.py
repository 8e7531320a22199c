"""The training loop: it learns, repeats itself to the byte, and stops with a name when the loss is gone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from shades import two_shades

from flywheel.params import Params, Recipe
from flywheel.training.batches import AugmentedBatches
from flywheel.training.loop import Training, TrainingData, TrainingDiverged, fit, learning_rate_factor
from flywheel.training.optimizers import Muon, make_optimizers

CPU = torch.device("cpu")
Make = Callable[..., Params]


@pytest.fixture
def data(random: np.random.Generator) -> TrainingData:
    return two_shades(random, 16)


@pytest.fixture
def recipe(params: Params) -> Recipe:
    return params.complete_recipe({"batch_size": 16, "learning_rate": 0.05}, epochs=3)


def weights(data: TrainingData, recipe: Recipe) -> dict[str, bytes]:
    model = data.classifier(recipe)
    for _ in fit(model, data, recipe, CPU):
        pass
    return {name: tensor.numpy().tobytes() for name, tensor in model.network.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_it_learns(data: TrainingData, params: Params, optimizer: str) -> None:
    rate = {"sgd": 0.05, "adam": 0.003, "muon": 0.05}[optimizer]
    recipe = params.complete_recipe({"batch_size": 16, "learning_rate": rate, "optimizer": optimizer}, epochs=4)
    results = list(fit(data.classifier(recipe), data, recipe, CPU))
    assert [result.epoch for result in results] == [1, 2, 3, 4]
    assert results[-1].accuracy == 1.0
    assert results[-1].train_loss < results[0].train_loss


def test_the_same_recipe_gives_the_same_weights_to_the_byte(data: TrainingData, recipe: Recipe) -> None:
    assert weights(data, recipe) == weights(data, recipe)


@pytest.mark.parametrize("block", [0, 1])
def test_weights_that_see_no_pixel_get_no_gradient(data: TrainingData, recipe: Recipe, block: int) -> None:
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


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"learning_rate": 0.04},
        {"momentum": 0.8},
        {"weight_decay": 0.01},
        {"label_smoothing": 0.2},
        {"warmup_fraction": 0.5},
        {"flip": True},
        {"translate": 0},
        {"batch_size": 32},
        {"optimizer": "adam"},
        {"precision": "float32"},
        {"architecture": "standard"},
        # not compile: compiling takes minutes; tests/test_devices.py
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_param_of_a_recipe_has_an_effect(data: TrainingData, recipe: Recipe, change: dict[str, object]) -> None:
    one_epoch = {"epochs": 1, "precision": "bfloat16"}
    base = recipe.model_copy(update=one_epoch)
    assert weights(data, base) != weights(data, base.model_copy(update=change))


def test_every_epoch_has_its_number_so_that_images_are_mirrored_in_turn(
    data: TrainingData, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, epoch = [], AugmentedBatches.epoch
    monkeypatch.setattr(AugmentedBatches, "epoch", lambda self, number: (asked.append(number), epoch(self, number))[1])
    training = Training(data.classifier(recipe), data, recipe, CPU)
    next(training.epochs())
    other = Training(data.classifier(recipe), data, recipe, CPU)
    other.restore(training.state())
    assert len(list(other.epochs())) == 2
    assert asked == [1, 2, 3]


def test_a_loss_that_is_not_finite_ends_with_a_named_error(data: TrainingData, params: Params) -> None:
    recipe = params.complete_recipe({"batch_size": 16, "learning_rate": 10.0, "momentum": 0.99}, epochs=60)
    poisoned = data.classifier(recipe)
    with torch.no_grad():
        next(poisoned.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="the loss became nan in epoch 1; try a lower learning rate"):
        list(fit(poisoned, data, recipe, CPU))


def test_the_learning_rate_warms_up_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 0.2) for step in range(100)]
    assert factors[0] == pytest.approx(0.05)
    assert factors[19] == factors[20] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[80] == pytest.approx(0.25)
    assert factors[99] == pytest.approx(1 / 80)
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert learning_rate_factor(0, 1, 0.0) == 1.0


@pytest.mark.parametrize("kind", ["sgd", "adam", "muon"])
@pytest.mark.parametrize("decay", ["auto", 0.01])
def test_weights_decay_and_biases_and_norms_do_not_nor_what_muon_moves(
    data: TrainingData, recipe: Recipe, kind: str, decay: str | float
) -> None:
    recipe = recipe.model_copy(update={"optimizer": kind, "weight_decay": decay, "architecture": "standard"})
    classifier = data.classifier(recipe)
    groups = [
        group
        for optimizer in make_optimizers(classifier, recipe)
        if not isinstance(optimizer, Muon)
        for group in optimizer.param_groups
    ]
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    due = {"sgd": 5e-4, "adam": 5e-4, "muon": 0.1}[kind] if decay == "auto" else decay
    assert {group["weight_decay"] for group in groups} == {due, 0.0}


def test_what_a_network_holds_fixed_is_not_moved(data: TrainingData, recipe: Recipe) -> None:
    for kind in ("sgd", "adam", "muon"):
        one = recipe.model_copy(update={"optimizer": kind, "architecture": "compact"})
        classifier = data.classifier(one)
        inner = next(p for p in classifier.parameters() if p.ndim == 4 and p.shape[1] > 3)
        inner.requires_grad = False
        fixed = {name: p.detach().clone() for name, p in classifier.named_parameters() if not p.requires_grad}
        moved = {name: p.detach().clone() for name, p in classifier.named_parameters() if p.requires_grad}
        assert {p.ndim for p in fixed.values()} == {1, 4}  # the gains of the norms, and that convolution
        list(fit(classifier, data, one, CPU))
        now = dict(classifier.named_parameters())
        assert all(torch.equal(now[name], before) for name, before in fixed.items())
        assert not any(torch.equal(now[name], before) for name, before in moved.items())


def test_every_optimizer_is_the_one_it_is_called(data: TrainingData, recipe: Recipe) -> None:
    made = {}
    for kind in ("sgd", "adam", "muon"):
        optimizers = make_optimizers(data.classifier(recipe), recipe.model_copy(update={"optimizer": kind}))
        made[kind] = [type(optimizer).__name__ for optimizer in optimizers]
    assert made == {"sgd": ["SGD"], "adam": ["Adam"], "muon": ["AdamW", "Muon"]}


def test_muon_holds_the_length_of_its_weights_and_adamw_lets_the_others_decay(
    data: TrainingData, recipe: Recipe
) -> None:
    recipe = recipe.model_copy(update={"optimizer": "muon", "weight_decay": 0.5, "learning_rate": 0.1})
    classifier = data.classifier(recipe)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    for p in classifier.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in make_optimizers(classifier, recipe):
        optimizer.step()
    for name, p in classifier.named_parameters():
        if p.ndim == 4 and p.shape[1] > 3:
            assert p.norm().item() == pytest.approx(len(p) ** 0.5, rel=1e-5)
            share = len(p) ** 0.5 / before[name].norm().item()
        else:
            share = {1: 1, 2: 1 - 0.1 / 90 * 0.5, 4: 1 - 0.1 / 10 * 0.5}[p.ndim]
        torch.testing.assert_close(p.detach(), before[name] * share)


@pytest.mark.parametrize("architecture", ["compact", "standard"])
def test_muon_takes_the_inner_convolutions_and_adamw_the_first_and_the_last_layer(
    data: TrainingData, recipe: Recipe, architecture: str
) -> None:
    recipe = recipe.model_copy(update={"optimizer": "muon", "architecture": architecture, "momentum": 0.8})
    classifier = data.classifier(recipe)
    trained = [p for p in classifier.parameters() if p.requires_grad]
    first, *inner = (p for p in trained if p.ndim == 4)
    adam, muon = make_optimizers(classifier, recipe)
    assert [m.numel() for m in muon.param_groups[0]["params"]] == [p.numel() for p in inner]
    parts = {id(p): group["lr"] / recipe.learning_rate for group in adam.param_groups for p in group["params"]}
    (last,) = (p for p in trained if p.ndim == 2)
    assert [parts.pop(id(p)) for p in (first, last)] == pytest.approx([1 / 10, 1 / 90])
    assert list(parts.values()) == pytest.approx([1 / 10] * len(parts))
    assert [muon.param_groups[0]["momentum"], *(group["betas"][0] for group in adam.param_groups)] == [0.8] * 4
    taken = sum(p.numel() for one in (adam, muon) for group in one.param_groups for p in group["params"])
    assert taken == sum(p.numel() for p in trained)


def test_with_muon_whatever_is_trained_is_moved(data: TrainingData, recipe: Recipe) -> None:
    recipe = recipe.model_copy(update={"optimizer": "muon"})
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Conv1d(5, 6, 1), torch.nn.Linear(6, 2))
    (adam,) = make_optimizers(network, recipe)
    rates = {id(p): group["lr"] for group in adam.param_groups for p in group["params"]}
    expected = {p: recipe.learning_rate / (90 if p is network[2].weight else 10) for p in network.parameters()}
    assert rates == {id(p): pytest.approx(rate) for p, rate in expected.items()}


@pytest.mark.parametrize("cut", [0, 1])
def test_every_step_of_every_optimizer_is_taken_at_the_rate_of_the_schedule(
    data: TrainingData, recipe: Recipe, cut: int
) -> None:
    recipe = recipe.model_copy(update={"optimizer": "muon"})
    training = Training(data.classifier(recipe), data, recipe, CPU)
    before = Training(data.classifier(recipe), data, recipe, CPU)
    for _, _ in zip(range(cut), before.epochs(), strict=False):
        training.restore(before.state())
    rates: dict[str, list[list[float]]] = {}
    for optimizer in training._optimizers:
        seen = rates.setdefault(type(optimizer).__name__, [])
        optimizer.register_step_pre_hook(
            lambda one, *_, seen=seen: seen.append([group["lr"] for group in one.param_groups])
        )
    reported = [result.learning_rate for result in training.epochs()]
    steps = recipe.epochs * (len(data.labels) // recipe.batch_size)
    due = [
        recipe.learning_rate * learning_rate_factor(step, steps, recipe.warmup_fraction)
        for step in range(cut * steps // recipe.epochs, steps)
    ]
    np.testing.assert_allclose(rates["AdamW"], np.outer(due, [1 / 10, 1 / 90, 1 / 10]))
    np.testing.assert_allclose(rates["Muon"], np.outer(due, [1]))
    assert reported == pytest.approx(due[steps // recipe.epochs - 1 :: steps // recipe.epochs])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_muon_moves_a_convolution_along_all_directions_of_its_gradient_alike(
    data: TrainingData, recipe: Recipe, layout: torch.memory_format
) -> None:
    """The gradient's singular values go, its singular vectors stay, in whatever order its numbers lie in memory."""
    recipe = recipe.model_copy(update={"optimizer": "muon", "weight_decay": 0.0, "learning_rate": 0.01})
    classifier = data.classifier(recipe)
    weight = next(p for p in classifier.parameters() if p.ndim == 4 and p.shape[1] > 3)
    before = weight.detach() * len(weight) ** 0.5 / weight.detach().norm()
    torch.manual_seed(0)
    weight.grad = torch.randn(weight.shape).to(memory_format=layout)
    for optimizer in make_optimizers(classifier, recipe):
        optimizer.step()
    left, sizes, right = torch.linalg.svd(weight.grad.flatten(1), full_matrices=False)
    assert sizes.max() > 1.5 * sizes.min()
    moved = left.T @ (before - weight.detach()).flatten(1) @ right.T / 0.01
    assert 0.6 < moved.diagonal().min() < moved.diagonal().max() < 1.4  # what three steps of Newton and Schulz give
    assert (moved - torch.diag(moved.diagonal())).abs().max() < 0.05
    step = (before - weight.detach()).norm() / before.norm()
    assert step.item() == pytest.approx(0.01, rel=0.2)  # the rate: the share of its length that a step moves it


@pytest.mark.parametrize(
    "change", [{}, {"optimizer": "adam"}, {"optimizer": "muon"}, {"flip": True, "precision": "float32"}], ids=str
)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_training_taken_up_from_its_state_ends_with_the_same_bytes(
    data: TrainingData, params: Params, change: dict[str, object], cut: int
) -> None:
    """Through the bytes of torch.save, as in a checkpoint; also the results, and a state taken after the last epoch."""
    recipe = params.complete_recipe({"batch_size": 16, "learning_rate": 0.05, **change}, epochs=3)
    first = Training(data.classifier(recipe), data, recipe, CPU)
    results = [next(epochs) for epochs in [first.epochs()] for _ in range(cut)]
    stored = io.BytesIO()
    torch.save(first.state(), stored)
    stored.seek(0)
    second = Training(data.classifier(recipe), data, recipe, CPU)
    second.restore(torch.load(stored, weights_only=True))
    results += list(second.epochs())
    whole = Training(data.classifier(recipe), data, recipe, CPU)
    expected = list(whole.epochs())
    assert [replace(r, images_per_s=0) for r in results] == [replace(r, images_per_s=0) for r in expected]
    for (name, one), other in zip(
        second.classifier.network.state_dict().items(), whole.classifier.network.state_dict().values(), strict=True
    ):
        assert one.numpy().tobytes() == other.numpy().tobytes(), name


def test_fewer_images_than_a_batch_are_one_batch(data: TrainingData, params: Params) -> None:
    recipe = params.complete_recipe({"batch_size": 4096}, epochs=1)
    assert next(iter(fit(data.classifier(recipe), data, recipe, CPU))).epoch == 1
