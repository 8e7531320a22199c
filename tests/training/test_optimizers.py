"""The optimizers: which one updates which weights, at which rate and decay, and how Muon moves a matrix."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from flywheel.models.classifier import Classifier
from flywheel.params import Params, Recipe
from flywheel.params.sections import WEIGHT_DECAY
from flywheel.training.loop import Training, TrainingData
from flywheel.training.optimizers import Muon, make_optimizers

CPU = torch.device("cpu")
KINDS = {"sgd": ["SGD"], "adam": ["Adam"], "muon": ["AdamW", "Muon"]}


@pytest.fixture
def muon(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"optimizer": "muon"})


def is_inner(weight: torch.Tensor) -> bool:
    """Return whether a parameter is a convolution after the first."""
    return weight.ndim == 4 and weight.shape[1] > 3


def step_with(classifier: Classifier, recipe: Recipe, gradient: Any) -> dict[str, torch.Tensor]:
    """Take one step with made gradients; return the weights before it."""
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    for p in classifier.parameters():
        p.grad = gradient(p)
    for optimizer in make_optimizers(classifier, recipe):
        optimizer.step()
    return before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", ["auto", 0.01])
def test_weights_decay_and_biases_and_norms_do_not(
    data: TrainingData, params: Params, kind: str, decay: str | float
) -> None:
    """With Muon: the weights that AdamW updates."""
    values = {"optimizer": kind, "weight_decay": decay, "architecture": "standard"}
    recipe = params.complete_recipe(values, epochs=1)
    optimizers = make_optimizers(data.classifier(recipe), recipe)
    assert [type(optimizer).__name__ for optimizer in optimizers] == KINDS[kind]
    groups = [group for one in optimizers if not isinstance(one, Muon) for group in one.param_groups]
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    assert {group["weight_decay"] for group in groups} == {WEIGHT_DECAY[kind] if decay == "auto" else decay, 0.0}


@pytest.mark.numerics
@pytest.mark.parametrize("kind", KINDS)
def test_training_updates_all_weights_but_the_frozen_ones(few: TrainingData, recipe: Recipe, kind: str) -> None:
    recipe = recipe.model_copy(update={"optimizer": kind, "architecture": "compact", "epochs": 1})
    classifier = few.classifier(recipe)
    next(p for p in classifier.parameters() if is_inner(p)).requires_grad = False
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    list(Training(classifier, few, recipe, CPU).epochs())
    frozen = {name: p.ndim for name, p in classifier.named_parameters() if not p.requires_grad}
    assert set(frozen.values()) == {1, 4}  # the scales of the norms, and that convolution
    unchanged = {name for name, p in classifier.named_parameters() if torch.equal(p, before[name])}
    assert unchanged == set(frozen)


def test_muon_keeps_the_norm_of_its_weights_and_adamw_decays_the_others(data: TrainingData, muon: Recipe) -> None:
    recipe = muon.model_copy(update={"weight_decay": 0.5, "learning_rate": 0.1})
    classifier = data.classifier(recipe)
    before = step_with(classifier, recipe, torch.zeros_like)
    for name, p in classifier.named_parameters():
        if is_inner(p):
            assert p.norm().item() == pytest.approx(len(p) ** 0.5, rel=1e-5)
            factor = len(p) ** 0.5 / before[name].norm().item()
        else:
            factor = {1: 1, 2: 1 - 0.1 / 90 * 0.5, 4: 1 - 0.1 / 10 * 0.5}[p.ndim]
        torch.testing.assert_close(p.detach(), before[name] * factor)


@pytest.mark.parametrize("architecture", ["compact", "standard"])
def test_muon_updates_the_inner_convolutions_and_adamw_the_first_and_last_layer(
    data: TrainingData, muon: Recipe, architecture: str
) -> None:
    recipe = muon.model_copy(update={"architecture": architecture, "momentum": 0.8})
    classifier = data.classifier(recipe)
    trained = [p for p in classifier.parameters() if p.requires_grad]
    first, *inner = (p for p in trained if p.ndim == 4)
    (last,) = (p for p in trained if p.ndim == 2)
    adam, muons = make_optimizers(classifier, recipe)
    assert [m.numel() for m in muons.param_groups[0]["params"]] == [p.numel() for p in inner]
    factors = {p.data_ptr(): group["lr"] / recipe.learning_rate for group in adam.param_groups for p in group["params"]}
    assert [factors.pop(p.data_ptr()) for p in (first, last)] == pytest.approx([1 / 10, 1 / 90])
    assert list(factors.values()) == pytest.approx([1 / 10] * len(factors))
    assert [muons.param_groups[0]["momentum"], *(group["betas"][0] for group in adam.param_groups)] == [0.8] * 4
    updated = sum(p.numel() for one in (adam, muons) for group in one.param_groups for p in group["params"])
    assert updated == sum(p.numel() for p in trained)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_weights_of_any_memory_layout_are_updated_as_by_an_optimizer_that_is_not_fused(
    recipe: Recipe, kind: str, layout: torch.memory_format
) -> None:
    network = torch.nn.Conv2d(3, 8, 3).to(memory_format=layout)
    network.weight.register_hook(lambda gradient: gradient.contiguous())  # as some operators return it
    other = copy.deepcopy(network)
    (ours,) = make_optimizers(network, recipe.model_copy(update={"optimizer": kind}))
    groups = zip(ours.param_groups, other.parameters(), strict=True)
    plain = [{**group, "fused": False, "params": [parameter]} for group, parameter in groups]
    theirs = type(ours)(plain)  # type: ignore[call-arg]
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8)
        for one, optimizer in ((network, ours), (other, theirs)):
            one.zero_grad(set_to_none=True)
            one(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(network.state_dict(), other.state_dict())


def test_adamw_updates_every_layer_of_a_network_without_inner_convolutions(muon: Recipe) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Conv1d(5, 6, 1), torch.nn.Linear(6, 2))
    (adam,) = make_optimizers(network, muon)
    rates = {id(p): group["lr"] for group in adam.param_groups for p in group["params"]}
    expected = {p: muon.learning_rate / (90 if p is network[2].weight else 10) for p in network.parameters()}
    assert rates == {id(p): pytest.approx(rate) for p, rate in expected.items()}


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_muon_steps_equally_along_all_singular_directions_of_the_gradient(
    data: TrainingData, muon: Recipe, layout: torch.memory_format
) -> None:
    """The step replaces the singular values of the gradient and keeps its singular vectors, in any memory layout."""
    recipe = muon.model_copy(update={"weight_decay": 0.0, "learning_rate": 0.01})
    classifier = data.classifier(recipe)
    name, weight = next((name, p) for name, p in classifier.named_parameters() if is_inner(p))
    torch.manual_seed(0)
    gradient = torch.randn(weight.shape).to(memory_format=layout)
    before = step_with(classifier, recipe, lambda p: gradient if p is weight else None)[name]
    before = before * len(weight) ** 0.5 / before.norm()
    left, sizes, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    assert sizes.max() > 1.5 * sizes.min()
    moved = left.T @ (before - weight.detach()).flatten(1) @ right.T / 0.01
    assert 0.6 < moved.diagonal().min() < moved.diagonal().max() < 1.4  # after three Newton-Schulz steps
    assert (moved - torch.diag(moved.diagonal())).abs().max() < 0.05
    step = (before - weight.detach()).norm() / before.norm()
    assert step.item() == pytest.approx(0.01, rel=0.2)  # the rate is the relative step
