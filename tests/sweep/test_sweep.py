"""The stage with real trials on Ray: what it publishes, reports and removes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import captured

from flywheel import files
from flywheel.data import dataset
from flywheel.data import stage as data_stage
from flywheel.evaluation import stage as evaluate_stage
from flywheel.models import classifier
from flywheel.params import Params, Recipe
from flywheel.params import file as params_file
from flywheel.pipeline import stage
from flywheel.registry import Registry, Version
from flywheel.sweep import SweepError, cluster
from flywheel.sweep import stage as sweep_stage
from flywheel.sweep.journal import Journal
from flywheel.sweep.report import SweepReport
from flywheel.sweep.trial import follow, start
from flywheel.tracking import run_files
from flywheel.training.loop import TrainingData

Make = Callable[..., Params]
SMALL = (
    "data.image_size=16 sweep.trials=3 sweep.epochs=2 sweep.space.architecture=compact "
    "sweep.space.batch_size=[16, 64] gate.floor_accuracy=0 gate.allow_unlearned_classes=true "
)
# The weights grow ninefold a step (1 - learning_rate * weight_decay = -9): infinite within the first epoch's 40.
DIVERGING = "{optimizer: sgd, learning_rate: 10.0, weight_decay: 1.0, momentum: 0.0, batch_size: 16}"

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.numerics]


@dataclass(frozen=True)
class Swept:
    """A store after data and sweep. `said` are the messages."""

    params: Params
    registry: Registry
    said: list[str]

    @property
    def report(self) -> SweepReport:
        return SweepReport.model_validate(files.read_json(self.params.reports / "sweep.json"))

    @property
    def best(self) -> Version:
        return self.registry.resolve("digits-classifier:best")

    @property
    def data(self) -> dataset.Dataset:
        return dataset.open_directory(self.registry.open(self.registry.resolve("digits_dataset")))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Swept:
    """A sweep of three trials, the second of which diverges."""
    root = tmp_path_factory.mktemp("swept")
    paths = f"paths.store={root}/store paths.reports={root}/reports paths.cache={root}/cache"
    space = "sweep.space.learning_rate={log_uniform: [0.002, 10]}"
    params = params_file.load(
        profile="demo", overrides=f"{paths} {SMALL} {space} sweep.initial_trials=[{{}}, {DIVERGING}]"
    )
    registry = Registry(params.store)
    with captured() as said:
        data_stage.run(params, registry)
        sweep_stage.run(params, registry)
    return Swept(params, registry, said)


def test_the_reports_have_a_row_per_trial(swept: Swept) -> None:
    report = swept.report
    with (swept.params.reports / "sweep.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["id"] for row in rows] == [trial.id for trial in report.trials]
    assert len(rows) == 3
    assert {"id", "status", "error", "epochs", "accuracy", "time_s", "bayesian", "learning_rate"} <= set(rows[0])
    assert report.trials[0].param("learning_rate") == swept.params.recipe.learning_rate
    assert report.dataset == swept.registry.resolve("digits_dataset").ref
    assert report.sweep_id.startswith("sweep-")
    assert report.wall_s > 0


def test_the_best_trial_did_not_fail_and_is_published(swept: Swept) -> None:
    report, model = swept.report, swept.best
    judged = [trial for trial in report.trials if trial.status in ("finished", "stopped")]
    assert report.best.accuracy == max(trial.accuracy or 0 for trial in judged)
    assert model.ref == report.best.model
    assert model.name == f"model-{report.best.trial}"
    assert model.inputs == {"dataset": (report.dataset,)}
    assert model.metadata["recipe"] == report.best.config
    # The other trials leave no weights.
    assert [name for name in swept.registry.collections() if name.startswith("model-")] == [model.name]
    assert list(Path(swept.params.checkpoints).iterdir()) == []
    assert not (swept.params.store / "scratch" / "sweep").exists()


def test_a_diverging_trial_fails_with_its_reason_and_the_sweep_continues(swept: Swept) -> None:
    (failed,) = [trial for trial in swept.report.trials if trial.status == "failed"]
    assert failed.number == 1
    assert str(failed.error).startswith("TrainingDiverged: the ")
    assert any("failed TrainingDiverged" in line for line in swept.said)
    errors = {record.key: record.summary.get("error") for record in run_files.records(swept.params.store)}
    assert errors[failed.id] == "TrainingDiverged"  # W&B gets the kind only: the text may name paths and hosts


def test_an_estimate_comes_before_the_trials(swept: Swept) -> None:
    estimate = next(i for i, line in enumerate(swept.said) if ", at most " in line)
    first_trial = next(i for i, line in enumerate(swept.said) if line.startswith("sweep: 1/3"))
    assert estimate < first_trial
    assert "3 trials of 2 epochs, 2 at a time" in swept.said[estimate]


def test_a_trial_can_be_repeated_from_its_record_to_the_byte(swept: Swept, tmp_path: Path) -> None:
    model, data = swept.best, TrainingData.of(swept.data)
    recipe = Recipe.model_validate(model.metadata["recipe"])
    machine = model.metadata["metrics"]["machine"]
    assert set(machine) == {"device", "precision", "threads"}
    training = start(recipe, data, machine["threads"], torch.device(machine["device"]))
    for _, improved in follow(training):
        if improved:
            training.classifier.save(tmp_path, recipe.model_dump())
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / name).read_bytes() == (swept.registry.open(model) / name).read_bytes()


def test_the_model_has_the_reported_accuracy(swept: Swept) -> None:
    validation = swept.data.split("validation")
    predictions = classifier.load(swept.registry.open(swept.best)).predict(validation.images).argmax(axis=1)
    accuracy = np.mean(predictions == validation.labels)
    assert accuracy == pytest.approx(swept.report.best.accuracy, abs=1 / len(validation.labels) + 1e-9)


def test_every_trial_has_a_wandb_run_with_its_epochs(swept: Swept) -> None:
    for trial in swept.report.trials:
        (folder,) = (swept.params.store / "wandb" / "wandb").glob(f"offline-run-*-{trial.id}")
        shown = subprocess.run(
            [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        records = [json.loads(line) for line in shown.splitlines()]
        assert sum("history" in str(record.get("type", record)) for record in records) >= trial.epochs
        assert trial.status in shown


def test_a_finished_sweep_is_up_to_date_and_more_trials_are_work(swept: Swept) -> None:
    params, registry = swept.params, swept.registry
    assert stage.check(sweep_stage.define(params, registry)).up_to_date
    more = params.model_copy(update={"sweep": params.sweep.model_copy(update={"trials": 9})})
    assert stage.check(sweep_stage.define(more, registry)).reason == "9 trials are asked for, 3 were made"


def test_lost_reports_are_written_again_without_a_trial(swept: Swept, said: list[str]) -> None:
    before, reports = swept.report, swept.params.reports
    for name in ("sweep.json", "sweep_history.png"):
        (reports / name).unlink()
    sweep_stage.run(swept.params, swept.registry)
    assert len(said) == 1
    assert swept.report == before
    assert (reports / "sweep_history.png").exists()


def test_a_report_without_a_version_is_read(swept: Swept) -> None:
    """Earlier code wrote none."""
    content = files.read_json(swept.params.reports / "sweep.json")
    assert content.pop("version") == 1
    assert SweepReport.model_validate(content) == swept.report


def test_evaluate_measures_on_test_and_promotes_a_first_model(swept: Swept) -> None:
    params, registry = swept.params, swept.registry
    evaluate_stage.run(params, registry)
    report = files.read_json(params.reports / "evaluation.json")
    test = swept.data.split("test")
    predictions = classifier.load(registry.open(swept.best)).predict(test.images).argmax(axis=1)
    assert report["n"] == 450
    assert report["accuracy"] == pytest.approx(np.mean(predictions == test.labels), abs=1 / 450 + 1e-9)
    assert np.sum(report["confusion_matrix"]) == 450
    assert files.read_json(params.reports / "gate.json")["decision"] == "first"
    assert registry.resolve("digits-classifier:production") == swept.best
    for picture in ("confusion_matrix", "reliability", "worst"):
        assert (params.reports / f"{picture}.png").stat().st_size > 5_000


def test_a_sweep_whose_trials_all_fail_raises_their_error(make_params: Make) -> None:
    space = "sweep.space.learning_rate=10.0 sweep.space.architecture=compact sweep.space.optimizer=sgd"
    diverging = "recipe.weight_decay=1.0 recipe.momentum=0.0 sweep.space.batch_size=16 tracking.wandb=disabled"
    params = make_params(f"data.image_size=16 sweep.trials=1 sweep.epochs=1 {space} {diverging}")
    registry = Registry(params.store)
    data_stage.run(params, registry)
    with pytest.raises(SweepError, match=r"all 1 trials failed: TrainingDiverged: the "):
        sweep_stage.run(params, registry)
    assert not stage.check(sweep_stage.define(params, registry)).up_to_date
    (journal,) = (params.store / "journal").iterdir()
    assert [trial.status for trial in Journal(journal).read().trials] == ["failed"]


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        ("", [{"CPU": 8.0}], (1, 0, 8)),
        ("sweep.cpus_per_trial=3", [{"CPU": 8.0}], (3, 0, 2)),
        ("sweep.cpus_per_trial=3", [{"CPU": 4.0}, {"CPU": 4.0}], (3, 0, 2)),
        ("sweep.cpus_per_trial=0.5", [{"CPU": 2.0}], (0.5, 0, 4)),
        ("sweep.gpus_per_trial=0.25", [{"CPU": 16.0, "GPU": 2.0}], (1, 0.25, 8)),
        ("sweep.gpus_per_trial=0.3", [{"CPU": 16.0, "GPU": 2.0}], (1, 0.3, 6)),
        ("sweep.gpus_per_trial=2", [{"CPU": 16.0, "GPU": 3.0}], (1, 2, 1)),
        ("", [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}], (1, 1, 2)),
        ("sweep.gpus_per_trial=0", [{"CPU": 2.0, "GPU": 2.0}], (1, 0, 2)),
        ("sweep.max_concurrent_trials=3", [{"CPU": 8.0}], (1, 0, 3)),
        ("sweep.trials=2", [{"CPU": 8.0}], (1, 0, 2)),
        ("sweep.trials=24 sweep.searcher=tpe", [{"CPU": 64.0}], (1, 0, 8)),
    ],
)
def test_resources_of_a_trial_and_concurrent_trials(
    make_params: Make,
    monkeypatch: pytest.MonkeyPatch,
    overrides: str,
    nodes: list[dict[str, float]],
    expected: tuple[float, float, int],
) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    given = cluster.allot(make_params(f"sweep.trials=30 sweep.searcher=random {overrides}").sweep)
    assert (given.cpus, given.gpus, given.concurrent) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("sweep.cpus_per_trial=64", "sweep.cpus_per_trial=64 but no node has more than 2 CPUs"),
        ("sweep.gpus_per_trial=1", "sweep.gpus_per_trial=1 but no node has more than 0 GPUs"),
    ],
)
def test_resources_that_no_node_has_are_refused(make_params: Make, overrides: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        cluster.allot(make_params(overrides).sweep)
