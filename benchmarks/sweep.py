"""A sweep against a textbook search: the best validation accuracy over time, on the same images.

    python benchmarks/sweep.py --set "data.source=folder data.name=… data.path=… data.validation_fraction=0.2857"
                                                             (make bench-long BENCH_LONG=sweep, an hour or more)

*Textbook* is Optuna's TPE over the cifar10 profile's space (three ResNet-18s), one trial after the other with the
textbook loop (benchmarks/training.py), no early stopping, validated after each epoch. *ResNets* is `make sweep` with
that space. *With compact* adds `compact` and Muon to it and tries the laptop profile's recipe first. All have the same
number of trials and epochs. The clock of the textbook starts with its first trial, ours with the command, including the
start of Ray and the workers.

Reads   the sections data, recipe and sweep of params.yaml
Writes  benchmarks/results/sweep.json after each search, docs/sweep.png, and its table in docs/training.md
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import harness
import optuna
import torch
from compact import evaluate
from training import textbook_epoch, textbook_loader, textbook_network, textbook_optimizer

from flywheel import cli, files
from flywheel.data import dataset
from flywheel.models import device as devices
from flywheel.models.architectures import architecture
from flywheel.pipeline import plotting
from flywheel.registry import Registry
from flywheel.training.loop import TrainingData

RESULT = harness.RESULTS / "sweep.json"
NAMES = ("textbook", "ResNets", "with compact")


def main() -> None:
    """Run the searches that the result file lacks, draw them and write the table."""
    options = harness.options(
        __doc__,
        set=harness.SET,
        trials=(6, "trials of each search"),
        epochs=(3, "epochs of a trial"),
        seed=(0, "seed of each search"),
    )
    params = harness.params("cifar10", options.set)
    modules = ["flywheel.data.stage", "flywheel.sweep.stage"]
    result: dict[str, Any] = {
        **harness.origin(
            params, ["data", "recipe", "sweep"], modules, f"{devices.pick().type}, {os.cpu_count()} CPUs"
        ),
        "with_compact": with_compact(),
        "trials": options.trials, "epochs": options.epochs, "seed": options.seed,
    }  # fmt: skip
    result = {"images": {}, "searches": {}} | result | harness.resumed(RESULT, result)
    with tempfile.TemporaryDirectory(prefix="fw-sweep-") as folder:
        overrides = (
            f"{options.set} {harness.scratch(folder)} sweep.trials={options.trials} sweep.epochs={options.epochs} "
            f"sweep.seed={options.seed}"
        )
        harness.script("data", "cifar10", overrides)
        for name in NAMES:
            if name not in result["searches"]:
                load = os.getloadavg()[0]
                if name == "textbook":
                    trials, result["images"] = textbook(overrides, options.trials, options.epochs, options.seed)
                else:
                    trials = ours(f"{overrides} {with_compact() if name == 'with compact' else ''}")
                result["searches"][name] = {"load_before": round(load, 1), "trials": trials}
                files.write_json(RESULT, result)
    draw(result, harness.ROOT / "docs" / "sweep.png")
    harness.publish("sweep", "training.md", result, table)


def with_compact() -> str:
    """Return the overrides that add `compact` and Muon to the space and try the laptop profile's recipe first."""
    base, laptop = (harness.params(profile).recipe.model_dump() for profile in ("cifar10", "laptop"))
    first = {key: value for key, value in laptop.items() if value != base[key]}
    return (
        f"sweep.initial_trials=[{json.dumps(first)}] sweep.space.optimizer=[sgd, adam, muon] "
        "sweep.space.architecture=[compact, standard, upsample, modified]"
    )


def textbook(overrides: str, trials: int, epochs: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the trials of the textbook search, and the numbers of its training and validation images."""
    params = harness.params("cifar10", overrides)
    registry = Registry(params.store)
    data = TrainingData.of(dataset.open_directory(registry.open(registry.resolve(params.dataset_name))))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    torch.manual_seed(seed)
    started, found = time.monotonic(), []
    for number in range(trials):
        trial = study.ask()
        recipe: dict[str, Any] = {
            "architecture": trial.suggest_categorical("architecture", ["standard", "upsample", "modified"]),
            "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
            "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
            "learning_rate": trial.suggest_float("learning_rate", 0.003, 0.3, log=True),
        }
        model = textbook_network(recipe["architecture"], len(data.class_names)).to(devices.pick())
        optimizer = textbook_optimizer(recipe["optimizer"], model, recipe["learning_rate"])
        loader = textbook_loader(recipe["architecture"], data, recipe["batch_size"], workers=0)
        curve = []
        for _ in range(epochs):
            textbook_epoch(model, loader, optimizer)
            side = architecture(recipe["architecture"]).input_size
            accuracy = evaluate(model, data, "float32", side, torch.contiguous_format)
            curve.append([round(time.monotonic() - started, 1), accuracy])
        study.tell(trial, curve[-1][1])
        found.append({**recipe, "curve": curve})
        print(f"textbook {number + 1}/{trials}: {found[-1]}", flush=True)
    return found, {"train": len(data.labels), "validation": len(data.validation_labels)}


def ours(overrides: str) -> list[dict[str, Any]]:
    """Run `make sweep` and return the trials in its journal; times are from the start of the command."""
    params = harness.params("cifar10", overrides)
    started = time.time()
    harness.script("sweep", "cifar10", overrides)
    trials: dict[str, dict[str, Any]] = {}
    for event in files.read_json_lines(max((params.store / "journal").glob("*.jsonl"))):
        if event["event"] == "start":
            keys = ("architecture", "optimizer", "batch_size", "learning_rate")
            trials[event["trial"]] = {**{key: event["config"][key] for key in keys}, "curve": []}
        elif event["event"] == "epoch":
            at = datetime.fromisoformat(event["at"]).timestamp() - started
            trials[event["trial"]]["curve"].append([round(at, 1), event["metrics"]["accuracy"]])
    return list(trials.values())


def best_so_far(search: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return (seconds, accuracy) of each improvement of a search."""
    best: list[tuple[float, float]] = []
    for at, accuracy in sorted(point for trial in search["trials"] for point in trial["curve"]):
        if not best or accuracy > best[-1][1]:
            best.append((at, accuracy))
    return best


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the best accuracy over time of the three searches."""
    ends = ended(result)
    with plotting.drawing(path, 7.2, 4.2) as figure:
        axis = figure.subplots()
        colours = (plotting.MUTED, plotting.GOOD, plotting.ACCENT)
        for (name, search), colour in zip(result["searches"].items(), colours, strict=True):
            seconds, accuracies = zip(*best_so_far(search), strict=True)
            axis.step(
                [*seconds, max(ends.values())], [100 * a for a in (*accuracies, accuracies[-1])],
                where="post", color=colour, linewidth=2, label=name,
            )  # fmt: skip
            axis.plot(ends[name], 100 * accuracies[-1], "o", color=colour)
        axis.set_xscale("log")
        axis.set_xlabel("seconds (dot: end of the search)")
        axis.set_ylabel("best validation accuracy, %")
        axis.set_title("Best accuracy over time on two CPU cores")
        axis.legend()


def ended(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds after which each search had its last epoch."""
    return {name: max(p[0] for t in s["trials"] for p in t["curve"]) for name, s in result["searches"].items()}


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    ends = ended(result)
    textbook_s, goal = best_so_far(result["searches"]["textbook"])[-1]
    rows = []
    for name, search in result["searches"].items():
        best = best_so_far(search)
        reached = next((at for at, accuracy in best if accuracy >= goal), None)
        cells = ("not reached", "") if reached is None else (f"{reached:,.0f} s", f"{reached / textbook_s:.0%}")
        rows.append((name, f"{best[-1][1]:.1%}", f"{ends[name]:,.0f} s", *cells))
    heads = ("search", "best validation accuracy", "total time", "time to the textbook's best", "relative to textbook")
    return harness.markdown(heads, rows) + harness.note(
        result,
        f"{result['trials']} trials of {result['epochs']} epochs, {result['images']['train']:,} training and "
        f"{result['images']['validation']:,} validation images, one run each, seed {result['seed']}; the textbook "
        f"found its best after {textbook_s:,.0f} of {ends['textbook']:,.0f} s.",
    )


if __name__ == "__main__":
    cli.main(main)
