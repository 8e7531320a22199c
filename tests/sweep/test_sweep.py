"""The stage on a real Ray with real trials: what is published, reported, removed and survives."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
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
from flywheel.pipeline import stage
from flywheel.registry import LocalRegistry, Registry
from flywheel.sweep import SweepError, cluster
from flywheel.sweep import stage as sweep_stage
from flywheel.sweep.journal import Journal
from flywheel.sweep.trial import follow, start
from flywheel.tracking import run_files
from flywheel.training.loop import TrainingData

Make = Callable[..., Params]
SMALL = (
    "data.image_size=16 sweep.trials=4 sweep.epochs=3 sweep.space.architecture=compact "
    "sweep.space.batch_size=[16, 64] gate.floor_accuracy=0.1 "
)
# The weights grow ninefold a step (1 - learning_rate * weight_decay = -9): infinite within the first epoch's 40.
DIVERGING = "{optimizer: sgd, learning_rate: 10.0, weight_decay: 1.0, momentum: 0.0, batch_size: 16}"

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Params, Registry, list[str]]:
    """Data and a sweep of four trials, one of which diverges."""
    from flywheel.params import file as params_file

    root = tmp_path_factory.mktemp("swept")
    paths = f"paths.store={root}/store paths.reports={root}/reports paths.cache={root}/cache"
    space = "sweep.space.learning_rate={log_uniform: [0.002, 10]}"
    params = params_file.load(
        profile="demo", overrides=f"{paths} {SMALL} {space} sweep.initial_trials=[{{}}, {DIVERGING}]"
    )
    registry = LocalRegistry(params.store)
    with captured() as said:
        data_stage.run(params, registry)
        sweep_stage.run(params, registry)
    return params, registry, said


def test_the_report_has_a_row_a_trial(swept: tuple[Params, Registry, list[str]]) -> None:
    params, registry, _ = swept
    report = files.read_json(params.reports / "sweep.json")
    with (params.reports / "sweep.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(report["trials"]) == len(rows) == 4
    assert [row["id"] for row in rows] == [trial["id"] for trial in report["trials"]]
    assert {"id", "status", "error", "epochs", "accuracy", "time_s", "bayesian", "learning_rate"} <= set(rows[0])
    assert report["dataset"] == registry.resolve("digits_dataset").ref
    assert report["sweep_id"].startswith("sweep-")
    assert report["wall_s"] > 0


def test_the_best_is_the_best_that_did_not_fail(swept: tuple[Params, Registry, list[str]]) -> None:
    params, registry, _ = swept
    report = files.read_json(params.reports / "sweep.json")
    judged = [trial for trial in report["trials"] if trial["status"] in ("finished", "stopped")]
    best = max(judged, key=lambda trial: trial["accuracy"])
    assert report["best"]["accuracy"] == best["accuracy"]
    model = registry.resolve("digits-classifier:best")
    assert model.ref == report["best"]["model"]
    assert model.name == f"model-{report['best']['trial']}"
    assert model.inputs == {"dataset": (report["dataset"],)}
    assert model.metadata["recipe"] == report["best"]["config"]


def test_a_diverging_trial_is_failed_with_its_reason_and_the_sweep_goes_on(
    swept: tuple[Params, Registry, list[str]],
) -> None:
    params, _, said = swept
    trials = files.read_json(params.reports / "sweep.json")["trials"]
    failed = [trial for trial in trials if trial["status"] == "failed"]
    assert [trial["number"] for trial in failed] == [1]
    assert failed[0]["error"].startswith("TrainingDiverged: the ")
    assert any("failed TrainingDiverged" in line for line in said)
    told = {record.key: record.summary.get("error") for record in run_files.records(params.store)}
    assert told[failed[0]["id"]] == "TrainingDiverged"  # W&B gets the kind: the text may name paths and hosts


def test_an_estimate_comes_before_the_trials(swept: tuple[Params, Registry, list[str]]) -> None:
    said = swept[2]
    estimate = next(i for i, line in enumerate(said) if ", at most " in line)
    first_trial = next(i for i, line in enumerate(said) if line.startswith("sweep: 1/4"))
    assert estimate < first_trial
    assert "4 trials of 3 epochs, 2 at a time" in said[estimate]


def test_losers_leave_no_weights(swept: tuple[Params, Registry, list[str]]) -> None:
    params, registry, _ = swept
    assert list(Path(params.checkpoints).iterdir()) == []
    assert not (params.store / "scratch" / "sweep").exists()
    assert [name for name in registry.collections() if name.startswith("model-")] == [
        registry.resolve("digits-classifier:best").name
    ]


def test_a_trial_is_run_again_from_its_record_to_the_byte(
    swept: tuple[Params, Registry, list[str]], tmp_path: Path
) -> None:
    registry = swept[1]
    model = registry.resolve("digits-classifier:best")
    data = TrainingData.of(dataset.open_directory(registry.open(registry.resolve(model.inputs["dataset"][0]))))
    recipe = Recipe.model_validate(model.metadata["recipe"])
    machine = model.metadata["metrics"]["machine"]
    assert set(machine) == {"device", "precision", "threads"}
    for step in follow(start(recipe, data, machine["threads"], torch.device(machine["device"]))):
        if step.improved:
            step.training.classifier.save(tmp_path, recipe.model_dump())
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / name).read_bytes() == (registry.open(model) / name).read_bytes()


def test_the_models_accuracy_is_the_reported_one(swept: tuple[Params, Registry, list[str]]) -> None:
    params, registry, _ = swept
    model = registry.resolve("digits-classifier:best")
    validation = dataset.open_directory(registry.open(registry.resolve(model.inputs["dataset"][0]))).split("validation")
    predictions = classifier.load(registry.open(model)).predict(validation.images).argmax(axis=1)
    reported = files.read_json(params.reports / "sweep.json")["best"]["accuracy"]
    assert np.mean(predictions == validation.labels) == pytest.approx(reported, abs=1 / len(validation.labels) + 1e-9)


def test_every_trial_has_its_wandb_run_with_its_epochs(swept: tuple[Params, Registry, list[str]]) -> None:
    params, _, _ = swept
    for trial in files.read_json(params.reports / "sweep.json")["trials"]:
        (folder,) = (params.store / "wandb" / "wandb").glob(f"offline-run-*-{trial['id']}")
        shown = subprocess.run(
            [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        records = [json.loads(line) for line in shown.splitlines()]
        assert sum("history" in str(record.get("type", record)) for record in records) >= trial["epochs"]
        assert f'"{trial["status"]}"' in shown or trial["status"] in shown


def test_a_finished_sweep_is_up_to_date_and_more_trials_are_work_left(
    swept: tuple[Params, Registry, list[str]],
) -> None:
    params, registry, _ = swept
    verdict = stage.check(sweep_stage.define(params, registry))
    assert verdict.up_to_date
    more = params.model_copy(update={"sweep": params.sweep.model_copy(update={"trials": 9})})
    assert stage.check(sweep_stage.define(more, registry)).reason == "9 trials are asked for, 4 were made"


def test_lost_reports_are_drawn_again_without_a_trial(
    swept: tuple[Params, Registry, list[str]], said: list[str]
) -> None:
    params, registry, _ = swept
    before = files.read_json(params.reports / "sweep.json")
    for name in ("sweep.json", "sweep_history.png"):
        (params.reports / name).unlink()
    sweep_stage.run(params, registry)
    assert len(said) == 1
    assert files.read_json(params.reports / "sweep.json") == before
    assert (params.reports / "sweep_history.png").exists()


def test_evaluate_judges_on_test_and_puts_a_first_model_into_production(
    swept: tuple[Params, Registry, list[str]],
) -> None:
    params, registry, _ = swept
    evaluate_stage.run(params, registry)
    report = files.read_json(params.reports / "evaluation.json")
    model = registry.resolve("digits-classifier:best")
    test = dataset.open_directory(registry.open(registry.resolve("digits_dataset"))).split("test")
    predictions = classifier.load(registry.open(model)).predict(test.images).argmax(axis=1)
    assert report["n"] == 450
    assert report["accuracy"] == pytest.approx(np.mean(predictions == test.labels), abs=1 / 450 + 1e-9)
    assert np.sum(report["confusion_matrix"]) == 450
    assert files.read_json(params.reports / "gate.json")["decision"] == "first"
    assert registry.resolve("digits-classifier:production") == model
    for picture in ("confusion_matrix", "reliability", "worst"):
        assert (params.reports / f"{picture}.png").stat().st_size > 5_000


def test_all_trials_failing_is_an_error_with_the_reason(make_params: Make) -> None:
    space = "sweep.space.learning_rate=10.0 sweep.space.architecture=compact sweep.space.optimizer=sgd"
    diverging = "recipe.weight_decay=1.0 recipe.momentum=0.0 sweep.space.batch_size=16 tracking.wandb=disabled"
    params = make_params(f"data.image_size=16 sweep.trials=2 sweep.epochs=2 {space} {diverging}")
    registry = LocalRegistry(params.store)
    data_stage.run(params, registry)
    with pytest.raises(SweepError, match=r"all 2 trials failed: TrainingDiverged: the "):
        sweep_stage.run(params, registry)
    assert not stage.check(sweep_stage.define(params, registry)).up_to_date
    (journal,) = (params.store / "journal").iterdir()
    assert [trial.status for trial in Journal(journal).trials()] == ["failed", "failed"]


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
def test_what_a_trial_gets(
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
def test_what_does_not_fit_is_said_before_it_starts(make_params: Make, overrides: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        cluster.allot(make_params(overrides).sweep)
