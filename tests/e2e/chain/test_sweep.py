"""A sweep with real trials on Ray, the second of which diverges: what it publishes, reports and removes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import Built

from flywheel import files
from flywheel.models import classifier
from flywheel.params import Recipe
from flywheel.pipeline import stage
from flywheel.sweep import stage as sweep_stage
from flywheel.sweep.report import SweepReport
from flywheel.sweep.trial import follow, start
from flywheel.tracking import run_files
from flywheel.training.loop import TrainingData

pytestmark = pytest.mark.numerics


def test_the_reports_have_a_row_per_trial(built: Built) -> None:
    report = built.sweep
    with (built.params.reports / "sweep.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["id"] for row in rows] == [trial.id for trial in report.trials]
    assert len(rows) == 3
    assert {"id", "status", "error", "epochs", "accuracy", "time_s", "bayesian", "learning_rate"} <= set(rows[0])
    assert report.trials[0].param("learning_rate") == built.params.recipe.learning_rate
    assert report.dataset == built.registry.resolve("digits_dataset").ref
    assert report.sweep_id.startswith("sweep-")
    assert report.wall_s > 0


def test_the_best_trial_did_not_fail_and_is_published(built: Built) -> None:
    report, model = built.sweep, built.best
    judged = [trial for trial in report.trials if trial.status in ("finished", "stopped")]
    assert report.best.accuracy == max(trial.accuracy or 0 for trial in judged)
    assert model.ref == report.best.model
    assert model.name == f"model-{report.best.trial}"
    assert model.inputs == {"dataset": (report.dataset,)}
    assert model.metadata["recipe"] == report.best.config
    # The other trials leave no weights.
    assert [name for name in built.registry.collections() if name.startswith("model-")] == [model.name]
    assert list(Path(built.params.checkpoints).iterdir()) == []
    assert not (built.params.store / "scratch" / "sweep").exists()


def test_a_diverging_trial_fails_with_its_reason_and_the_sweep_continues(built: Built) -> None:
    (failed,) = [trial for trial in built.sweep.trials if trial.status == "failed"]
    assert failed.number == 1
    assert str(failed.error).startswith("TrainingDiverged: the ")
    assert "failed TrainingDiverged" in built.result.stdout
    errors = {record.key: record.summary.get("error") for record in run_files.records(built.params.store)}
    assert errors[failed.id] == "TrainingDiverged"  # W&B gets the kind only: the text may name paths and hosts


def test_an_estimate_comes_before_the_trials(built: Built) -> None:
    said = built.result.stdout
    assert "sweep: 3 trials of 2 epochs, 2 at a time" in said
    assert 0 < said.index("sweep: about ") < said.index("sweep: 1/3")
    assert said.count("sweep: about ") == 1


def test_a_trial_can_be_repeated_from_its_record_to_the_byte(built: Built, tmp_path: Path) -> None:
    model, data = built.best, TrainingData.of(built.data)
    recipe = Recipe.model_validate(model.metadata["recipe"])
    machine = model.metadata["metrics"]["machine"]
    assert set(machine) == {"device", "precision", "threads"}
    training = start(recipe, data, machine["threads"], torch.device(machine["device"]))
    for _, improved in follow(training):
        if improved:
            training.classifier.save(tmp_path, recipe.model_dump())
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / name).read_bytes() == (built.registry.open(model) / name).read_bytes()


def test_the_model_has_the_reported_accuracies(built: Built) -> None:
    """On validation that of the sweep, on test that of evaluate, which promotes a first model."""
    evaluation, gate = (files.read_json(built.params.reports / f"{name}.json") for name in ("evaluation", "gate"))
    model = classifier.load(built.registry.open(built.best))
    for name, reported in (("validation", built.sweep.best.accuracy), ("test", evaluation["accuracy"])):
        split = built.data.split(name)
        accuracy = np.mean(model.predict(split.images).argmax(axis=1) == split.labels)
        assert reported == pytest.approx(accuracy, abs=1 / len(split.labels) + 1e-9)
    assert evaluation["n"] == np.sum(evaluation["confusion_matrix"]) == 450
    assert gate["decision"] == "first"
    assert built.registry.resolve("digits-classifier:production") == built.best
    for picture in ("confusion_matrix", "reliability", "worst"):
        assert (built.params.reports / f"{picture}.png").stat().st_size > 5_000


def test_every_trial_has_a_wandb_run_with_its_epochs(built: Built) -> None:
    recorded = {record.key: record for record in run_files.records(built.params.store)}
    for trial in built.sweep.trials:
        record = recorded[trial.id]
        assert [row["epoch"] for row in record.rows] == list(range(1, trial.epochs + 1))
        assert (record.summary["status"], record.summary["best_accuracy"]) == (trial.status, trial.accuracy)


def test_a_finished_sweep_is_up_to_date_and_more_trials_are_work(built: Built) -> None:
    params, registry = built.params, built.registry
    assert stage.check(sweep_stage.define(params, registry)).up_to_date
    more = params.model_copy(update={"sweep": params.sweep.model_copy(update={"trials": 9})})
    assert stage.check(sweep_stage.define(more, registry)).reason == "9 trials are asked for, 3 were made"


def test_lost_reports_are_written_again_without_a_trial(built: Built, said: list[str]) -> None:
    before, reports = built.sweep, built.params.reports
    for name in ("sweep.json", "sweep_history.png"):
        (reports / name).unlink()
    sweep_stage.run(built.params, built.registry)
    assert len(said) == 1
    assert built.sweep == before
    assert (reports / "sweep_history.png").exists()


def test_a_report_without_a_version_is_read(built: Built) -> None:
    """Earlier code wrote none."""
    content = files.read_json(built.params.reports / "sweep.json")
    assert content.pop("version") == 1
    assert SweepReport.model_validate(content) == built.sweep
