"""A round of the loop on digits, by the real stages; only Ray and HTTP are left out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from flywheel import files
from flywheel.data import dataset
from flywheel.data import stage as data_stage
from flywheel.evaluation import stage as evaluation_stage
from flywheel.models import classifier
from flywheel.params import Params
from flywheel.params import file as params_file
from flywheel.registry import Registry
from flywheel.retraining import stage as retraining_stage
from flywheel.simulation import result as results
from flywheel.simulation.client import Prediction
from flywheel.simulation.report import SimulationReport
from flywheel.simulation.result import Result
from flywheel.sweep import stage as sweep_stage
from flywheel.sweep.journal import Journal, Trial
from flywheel.sweep.searcher import to_recipe
from flywheel.traffic import feedback
from flywheel.training.loop import TrainingData, fit

ROOT = Path(__file__).parents[3]
OVERRIDES = (
    "data.image_size=16 tracking.wandb=disabled sweep.epochs=4 gate.floor_accuracy=0 "
    "gate.allow_unlearned_classes=true gate.margin=1 gate.class_margin=1 "
    "retrain.epochs=2 retrain.min_failures=1"
)


@dataclass(frozen=True)
class Loop:
    """A profile's params and registry after a round of the loop."""

    params: Params
    registry: Registry

    @property
    def arguments(self) -> list[str]:
        """What a script is told to work on it."""
        paths = self.params.paths
        places = f"paths.store={paths.store} paths.reports={paths.reports} paths.cache={paths.cache} {OVERRIDES}"
        return ["--profile", "demo", "--set", places]


def load(place: Path) -> Params:
    paths = f"paths.store={place}/store paths.reports={place}/reports paths.cache={place}/cache"
    return params_file.load(ROOT / "params.yaml", "demo", f"{paths} {OVERRIDES}")


def sweep(params: Params, registry: Registry) -> None:
    """Train four trials, journal them and publish the best, as a sweep does."""
    version = registry.resolve(params.dataset_name)
    images = TrainingData.of(dataset.open_directory(registry.open(version)))
    journal = Journal(params.store / "journal" / "sweep-1.jsonl")
    journal.append("begin", identity={"sweep": params.sweep.identity()}, code={})
    for number, (position, batch_size) in enumerate(((0.7, 64), (0.1, 128), (0.9, 32), (0.4, 64))):
        point = {"learning_rate": position, "batch_size": batch_size, "optimizer": "sgd", "architecture": "compact"}
        recipe = to_recipe(params, point)
        trial = Trial(f"trial{number}", number, recipe.model_dump(), bayesian=number > 1, point=point)
        journal.start(trial)
        model, started = images.classifier(recipe), time.monotonic()
        for epoch in fit(model, images, recipe, model.device):
            trial.time_s = time.monotonic() - started
            trial.record_epoch(epoch.epoch, {"accuracy": epoch.accuracy})
            journal.epoch(trial, epoch.epoch, {"accuracy": epoch.accuracy})
            if number == 1:
                break
        trial.status = "stopped" if number == 1 else "finished"
        journal.end(trial)
        model.save(params.store / "made" / trial.id, recipe.model_dump())
    trials = journal.read().trials
    best = max(trials, key=lambda trial: trial.accuracy or 0)
    made = registry.publish(
        f"model-{best.id}", "model", params.store / "made" / best.id, inputs={"dataset": version.ref},
        metadata={"recipe": best.config, "metrics": {"accuracy": best.accuracy}},
    )  # fmt: skip
    wall_s = sum(trial.time_s for trial in trials)
    metrics = {"sweep_id": "sweep-1", "trials": 4, "trial": best.id, "accuracy": best.accuracy, "wall_s": wall_s}
    sweep_stage.adopt(params, registry, (made,), {**metrics, "peak_disk_bytes": 0})


def simulate(params: Params, registry: Registry) -> None:
    """Ask production about every simulation image and publish their labels, as the stage does over HTTP."""
    version, model = registry.resolve(params.dataset_name), registry.resolve(f"{params.registered_model}:production")
    opened = dataset.open_directory(registry.open(version))
    loaded = classifier.load(registry.open(model))
    predictions = []
    for i, index in enumerate(opened.indices["simulation"]):
        started = time.perf_counter()
        (row,) = loaded.predict(opened.images[index][None])
        seconds = time.perf_counter() - started
        predictions.append(Prediction(i, int(row.argmax()), row, model.label, f"{i}", seconds, 1))
    result = Result(opened, predictions, [], sum(one.latency_s for one in predictions))
    published, new = feedback.publish(
        params,
        registry,
        feedback.examples(opened, result.index, result.classes, result.confidence),
        {"dataset": [version.ref], "model": [model.ref]},
        {},
    )
    assert published is not None
    report = SimulationReport(
        at="2026-11-23T10:00:00+00:00", dataset=version.ref, feedback=published.ref, feedback_new=new,
        **results.measure(result, {model.label: model}, registry),
    )  # fmt: skip
    files.write_json(params.reports / "simulation.json", report.model_dump(mode="json"))


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """data, sweep, evaluate, simulate, retrain. No test changes it."""
    params = load(tmp_path_factory.mktemp("turned"))
    registry = Registry(params.store)
    data_stage.run(params, registry)
    sweep(params, registry)
    evaluation_stage.run(params, registry)
    simulate(params, registry)
    retraining_stage.run(params, registry)
    assert registry.resolve(f"{params.registered_model}:production").label == "retrained-model:v0"
    return Loop(params, registry)
