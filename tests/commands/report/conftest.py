"""A round of the loop with made models and images, by the real stages; Ray, HTTP and long trainings are left out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import made_models
import pytest
import scripts
from made_traffic import record, write_records

from flywheel import files
from flywheel.data import dataset
from flywheel.evaluation import stage as evaluation_stage
from flywheel.models import classifier
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.retraining import stage as retraining_stage
from flywheel.retraining import train
from flywheel.simulation import result as results
from flywheel.simulation.client import Prediction
from flywheel.simulation.report import SimulationReport
from flywheel.simulation.result import Result
from flywheel.sweep import stage as sweep_stage
from flywheel.sweep.journal import Journal, Trial
from flywheel.sweep.searcher import to_recipe
from flywheel.traffic import feedback, monitor

OVERRIDES = (
    "data.image_size=8 tracking.wandb=disabled sweep.epochs=4 gate.floor_accuracy=0 gate.margin=1 gate.class_margin=1 "
    "gate.allow_unlearned_classes=true retrain.epochs=2 retrain.min_failures=1 retrain.learning_rate_scale=0.01"
)
# Learning rate (its place in the range), batch size and accuracies of each trial; the second was stopped.
TRIALS = ((0.7, 64, (0.5, 0.6, 0.7, 0.8)), (0.1, 128, (0.2,)), (0.9, 32, (0.4, 0.5, 0.5, 0.6)), (0.4, 64, (0.3,) * 4))


@dataclass(frozen=True)
class Loop:
    """A profile's params and registry after a round of the loop."""

    params: Params
    registry: Registry
    folder: Path

    def command(self, script: str, *arguments: str) -> list[str]:
        return scripts.command(self.folder, script, OVERRIDES, *arguments)


def sweep(params: Params, registry: Registry) -> None:
    """Journal four trials and publish the best, as a sweep does."""
    version = registry.resolve(params.dataset_name)
    journal = Journal(params.store / "journal" / "sweep-1.jsonl")
    journal.append("begin", identity={"sweep": params.sweep.identity()}, code={})
    for number, (position, batch_size, accuracies) in enumerate(TRIALS):
        point = {"learning_rate": position, "batch_size": batch_size, "optimizer": "sgd", "architecture": "compact"}
        recipe = to_recipe(params, point).model_dump()
        trial = Trial(f"trial{number}", number, recipe, bayesian=number > 1, point=point, time_s=number + 1)
        journal.start(trial)
        for epoch, accuracy in enumerate(accuracies, start=1):
            trial.record_epoch(epoch, {"accuracy": accuracy})
            journal.epoch(trial, epoch, {"accuracy": accuracy})
        trial.status = "finished" if len(accuracies) == 4 else "stopped"
        journal.end(trial)
    best = journal.read().trials[0]
    made_models.model(wrong=(3, 4, 5)).save(params.store / "made", best.config)
    made = registry.publish(
        f"model-{best.id}", "model", params.store / "made", inputs={"dataset": version.ref},
        metadata={"recipe": best.config, "metrics": {"accuracy": best.accuracy}},
    )  # fmt: skip
    metrics = {"sweep_id": "sweep-1", "trials": 4, "trial": best.id, "accuracy": best.accuracy, "wall_s": 10.0}
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
        predictions.append(Prediction(i, int(row.argmax()), row, model.label, f"{i}", f"{i}", seconds, 1))
    result = Result(opened, predictions, [], sum(one.latency_s for one in predictions))
    labelled = feedback.examples(opened, result.index, result.classes, result.confidence)
    inputs = {"dataset": [version.ref], "model": [model.ref]}
    published, new = feedback.publish(params, registry, labelled, inputs, {})
    assert published is not None
    report = SimulationReport(
        at="2026-11-23T10:00:00+00:00", dataset=version.ref, feedback=published.ref, feedback_new=new,
        **results.measure(result, {model.label: model}, registry),
    )  # fmt: skip
    files.write_json(params.reports / "simulation.json", report.model_dump(mode="json"))


def watch(params: Params, registry: Registry) -> None:
    """Record that production answered 200 images, half of them less surely, and look at that."""
    model = registry.aliases(params.registered_model)["production"]
    answers = ([0.991] + [0.001] * 9, [0.19] + [0.09] * 9)
    at = datetime(2026, 11, 23, 11, tzinfo=UTC)
    write_records(params.store_paths, (record(model, answers[i % 2], at, f"{i:016x}{i:048x}", i) for i in range(200)))
    report = monitor.run(params, registry)
    assert report is not None
    assert report.alarm.state == "alarm"


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """data, sweep, evaluate, simulate, retrain, monitor. No test changes it."""
    folder = tmp_path_factory.mktemp("round")
    params = scripts.load(folder, OVERRIDES)
    registry = Registry(params.store)
    made_models.publish_dataset(registry, params, made_models.dataset(params, test=450))
    sweep(params, registry)
    evaluation_stage.run(params, registry)
    simulate(params, registry)
    with (
        pytest.MonkeyPatch.context() as patched
    ):  # whatever the training gives, the candidate is better than its parent
        trained = train.train
        patched.setattr(
            train, "train", lambda *given, **more: (trained(*given, **more)[0], made_models.model(wrong=(1,)))
        )
        retraining_stage.run(params, registry)
    assert registry.resolve(f"{params.registered_model}:production").label == "retrained-model:v0"
    watch(params, registry)
    return Loop(params, registry, folder)
