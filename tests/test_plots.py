"""The plots of all packages: any class name can be drawn, and what they show."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from flywheel.data import plots as data_plots
from flywheel.data import stage as data_stage
from flywheel.evaluation import plots as evaluation_plots
from flywheel.params import Params
from flywheel.pipeline import plotting
from flywheel.registry import Registry
from flywheel.simulation import plots as simulation_plots
from flywheel.sweep import plots as sweep_plots

NAMES = (
    "$5",
    "$\\nothing$",
    "a_b^c",
    "%s{0}",
    "кошка",
    "قط",
    "猫",
    "🐈",
    "_hidden",
    "a very long name of a class " * 3,
)


def answers(probabilities: Any) -> tuple[Any, Any]:
    """Return predictions and confidence."""
    return probabilities.argmax(axis=1), probabilities.max(axis=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_any_class_name_can_be_drawn_without_a_warning(path: Path, random: np.random.Generator) -> None:
    labels = np.repeat(np.arange(len(NAMES)), 3)
    images = random.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    probabilities = random.dirichlet(np.ones(len(NAMES)), len(labels)).astype(np.float32)
    matrix = random.integers(0, 9, (len(NAMES), len(NAMES))).tolist()
    paths = [path.with_stem(str(number)) for number in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data_plots.sample_grid(images, labels, NAMES, "a title", paths[0])
        evaluation_plots.confusion_matrix(matrix, NAMES, "a title", paths[1])
        plotting.worst_mistakes(images, labels, *answers(probabilities), NAMES, "a title", paths[2])
        simulation_plots.failures(images, labels, *answers(probabilities), NAMES, 99, paths[3])
    for made in paths:
        assert drawn(made).std() > 0


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the test draws."""
    made: list[Figure] = []

    class Kept(Figure):
        def savefig(self, *arguments: Any, **options: Any) -> None:
            made.append(self)
            super().savefig(*arguments, **options)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    return made


@pytest.mark.parametrize("mistakes", [0, 1, 2, 5, 6, 7, 24, 30])
def test_mistakes_fill_the_picture_however_few(
    mistakes: int, path: Path, random: np.random.Generator, figures: list[Figure]
) -> None:
    labels = np.arange(40) % 2
    probabilities = np.eye(2, dtype=np.float32)[np.where(np.arange(40) < mistakes, 1 - labels, labels)]
    images = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    title = "model-1a2b3c4d:v0: most confident mistakes (true class above, prediction below)"
    plotting.worst_mistakes(
        images, labels, probabilities.argmax(axis=1), probabilities.max(axis=1), ("$5", "b"), title, path
    )
    (figure,) = figures
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == min(mistakes, 24)
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert -0.05 <= box.x0 <= box.x1 <= width + 0.05  # the title included
    assert -0.05 <= box.y0 <= box.y1 <= height + 0.05
    if mistakes:
        assert max(axis.get_position().x1 for axis in shown) > 0.7


def test_bins_of_few_images_are_drawn_apart_and_no_label_is_a_formula(path: Path, figures: list[Figure]) -> None:
    calibration = {"confidence": [0.4, 0.9, 0.98], "accuracy": [0.0, 0.9, 0.99], "count": [1, 10, 400]}
    evaluation_plots.reliability(calibration, "calibration", path)
    shown = texts(figures[0])
    assert "under 10 images" in shown
    assert "model" in shown
    assert drawn(path).std() > 0
    evaluation_plots.reliability({key: values[1:] for key, values in calibration.items()}, "calibration", path)
    assert "under 10 images" not in texts(figures[1])


def trial(number: int, **values: Any) -> dict[str, Any]:
    base = {"number": number, "accuracy": 0.9 + number / 100, "status": "finished", "bayesian": number > 2}
    return {**base, "architecture": "compact", "learning_rate": 0.1, "batch_size": 64, **values}


def test_a_param_with_one_value_gets_no_panel(path: Path, figures: list[Figure]) -> None:
    trials = [trial(n, learning_rate=0.1 / (n + 1)) for n in range(5)]
    names = ("learning_rate", "batch_size", "architecture")
    sweep_plots.params_against_accuracy(trials, names, ("learning_rate",), "sweep", path)
    assert [axis.get_xlabel() for axis in figures[0].axes if axis.get_xlabel()] == ["learning rate"]
    sweep_plots.params_against_accuracy(trials[:1], names, ("learning_rate",), "sweep", path)  # nothing varies
    assert [axis.get_xlabel() for axis in figures[1].axes if axis.get_xlabel()] == ["learning rate"]


def test_the_legend_of_the_history_lies_over_no_trial(path: Path, figures: list[Figure]) -> None:
    sweep_plots.search_history([trial(n) for n in range(8)], "sweep", path)
    (figure,) = figures
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"finished", "best so far", "Bayesian"}
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_the_drift_stands_in_the_title_of_the_simulation(
    make_params: Callable[..., Params], registry: Registry, figures: list[Figure]
) -> None:
    params = make_params("tracking.wandb=disabled data.image_size=8 data.drift.blur=0.5")
    data_stage.run(params, registry)
    titles = [figure.axes[0].get_title(loc="left") for figure in figures]
    assert titles == [
        "digits: train, 640 images", "digits: validation, 160 images", "digits: test, 450 images",
        "digits: simulation, 547 images (rotation 5, noise 5, blur 0.5)",
    ]  # fmt: skip
