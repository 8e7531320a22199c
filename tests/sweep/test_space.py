"""Points of the search space to recipes and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.params import WEIGHT_DECAY, Choices, Params, Range
from flywheel.params import file as params_file
from flywheel.sweep.searcher import position_of, to_point, to_recipe, value_at

Make = Callable[..., Params]
DEMO = params_file.load(profile="demo")
PER_ARCHITECTURE = (
    "sweep.space.learning_rate={per_architecture: {compact: {log_uniform: [0.01, 0.1]}, others: {uniform: [1, 2]}}} "
    "sweep.space.batch_size={per_architecture: {compact: [8, 16], others: 64}} "
)


def test_only_what_varies_is_searched(make_params: Make) -> None:
    made = make_params("sweep.space.optimizer=adam sweep.space.weight_decay=[0.1]")
    assert made.sweep.searched == ["learning_rate", "batch_size", "architecture"]
    recipe = to_recipe(made, {"learning_rate": 0.0, "batch_size": 32, "architecture": "standard"})
    assert (recipe.optimizer, recipe.weight_decay) == ("adam", 0.1)
    assert (recipe.learning_rate, recipe.batch_size, recipe.architecture) == (0.005, 32, "standard")


def test_ranges_depend_on_the_architecture(make_params: Make) -> None:
    made = make_params(PER_ARCHITECTURE)
    point = {"learning_rate": 1.0, "batch_size": 0.9, "optimizer": "sgd", "architecture": "compact"}
    compact = to_recipe(made, point)
    standard = to_recipe(made, {**point, "architecture": "standard"})
    assert (compact.learning_rate, compact.batch_size) == (0.1, 16)
    assert (standard.learning_rate, standard.batch_size) == (2.0, 64)


def test_ranges_of_whole_numbers_give_whole_numbers(make_params: Make) -> None:
    made = make_params("sweep.space.batch_size={log_uniform: [16, 256]} sweep.space.seed={uniform: [0, 9]}")
    point = {**to_point(made, {}), "batch_size": 0.5, "seed": 0.33}
    recipe = to_recipe(made, point)
    assert (recipe.batch_size, recipe.seed) == (64, 3)


@given(st.floats(0.005, 0.2), st.sampled_from([32, 64]), st.sampled_from(["compact", "standard"]))
def test_an_initial_trial_has_exactly_its_values(rate: float, batch: int, architecture: str) -> None:
    initial = {"learning_rate": rate, "batch_size": batch, "architecture": architecture}
    recipe = to_recipe(DEMO, to_point(DEMO, initial))
    assert recipe.learning_rate == pytest.approx(rate, rel=1e-11)
    assert (recipe.batch_size, recipe.architecture) == (batch, architecture)


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", 0.0005), ("adam", 0.0005), ("muon", 0.1)])
@pytest.mark.parametrize("domain", ["{uniform: [0, 1]}", "{per_architecture: {others: {log_uniform: [0.0001, 1]}}}"])
def test_an_automatic_weight_decay_has_a_position_in_a_range(
    make_params: Make, domain: str, optimizer: str, expected: float
) -> None:
    made = make_params(f"sweep.space.weight_decay={domain}")
    assert made.recipe.weight_decay == "auto"
    recipe = to_recipe(made, to_point(made, {"optimizer": optimizer}))
    assert recipe.weight_decay == pytest.approx(expected, rel=1e-9)


def test_an_automatic_weight_decay_can_be_a_choice(make_params: Make) -> None:
    for domain in ("[0.01, auto]", "{per_architecture: {others: [0.01, auto]}}"):
        made = make_params(f"sweep.space.weight_decay={domain}")
        point = to_point(made, {})
        assert to_recipe(made, point).weight_decay == WEIGHT_DECAY[made.recipe.optimizer]


def test_an_initial_trial_resolves_auto_with_its_own_optimizer(make_params: Make) -> None:
    made = make_params("recipe.optimizer=sgd sweep.space.optimizer=sgd sweep.space.weight_decay=auto")
    initial = {"optimizer": "muon"}
    assert to_recipe(made, to_point(made, initial), initial).weight_decay == WEIGHT_DECAY["muon"]


def test_defaults_outside_the_space_move_to_its_nearest_end(make_params: Make) -> None:
    made = make_params("sweep.space.learning_rate={log_uniform: [0.1, 0.2]} sweep.space.batch_size=[8, 16]")
    recipe = to_recipe(made, to_point(made, {}))
    assert (recipe.learning_rate, recipe.batch_size) == (0.1, 8)


def test_a_fixed_architecture_decides_the_ranges_of_the_initial_trial(make_params: Make) -> None:
    made = make_params(f"{PER_ARCHITECTURE} recipe.architecture=modified recipe.learning_rate=0.05")
    recipe = to_recipe(made, to_point(made, {}))
    assert (recipe.architecture, recipe.learning_rate) == ("compact", 0.05)


def test_logarithmic_ranges_per_architecture_are_found(make_params: Make) -> None:
    assert make_params(PER_ARCHITECTURE).sweep.logarithmic == ["learning_rate"]


def test_ranges_map_the_unit_interval_and_back() -> None:
    log = Range(0.001, 1.0, log=True)
    assert (value_at(log, 0.0), value_at(log, 1.0)) == (0.001, 1.0)
    assert value_at(log, 0.5) == pytest.approx(0.0316227766)
    assert value_at(log, position_of(log, 0.05)) == 0.05
    assert position_of(log, 99) == 1.0
    assert value_at(Range(0.0, 2.0, log=False), 0.25) == 0.5


def test_choices_share_the_unit_interval() -> None:
    choices = Choices((8, 16, 32))
    assert [value_at(choices, unit) for unit in (0.0, 0.34, 0.999, 1.0)] == [8, 16, 32, 32]
    assert [value_at(choices, position_of(choices, value)) for value in choices.choices] == [8, 16, 32]
