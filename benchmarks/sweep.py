"""A whole search against a textbook one: the best validation accuracy over time, on the same images.

    python benchmarks/sweep.py --set "data.source=folder data.name=… data.path=… data.validation_fraction=0.2857"
                                                             (make bench-long BENCH_LONG=sweep, an hour or more)

*Textbook* is Optuna's TPE over the cifar10 profile's space (three ResNet-18s), one trial after the other with the
textbook loop (benchmarks/training.py), no early stopping, validated after each epoch. *ResNets* is `make sweep` with
that space, *with compact* the same with `compact` and Muon in it and the laptop profile's recipe tried first. All have
as many trials and epochs. The clock of the textbook starts with its first trial; ours with the command, so the start of
Ray and the workers is in it.

Reads   the sections data, recipe and sweep of params.yaml
Writes  benchmarks/results/sweep.json after each of the three, the entry `sweep` of reports/bench.json, docs/sweep.png
        and its table in docs/training.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pages
import torch
from compact import prepared
from torch import nn
from training import textbook_epoch, textbook_loader, textbook_network

from flywheel import cli, files
from flywheel.data import dataset
from flywheel.models import device as devices
from flywheel.models.architectures import architecture
from flywheel.params import file as params_file
from flywheel.pipeline import plotting
from flywheel.registry import LocalRegistry
from flywheel.training.loop import TrainingData

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sweep.json"
NAMES = ("textbook", "ResNets", "with compact")


def main() -> None:
    """Run the searches that the file does not have yet, draw and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="", help="overrides of params.yaml, such as data.source")
    parser.add_argument("--trials", type=int, default=6, help="of each search (default: 6)")
    parser.add_argument("--epochs", type=int, default=3, help="of a trial (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    params = params_file.load(ROOT / "params.yaml", "cifar10", arguments.set)
    modules = ["flywheel.data.stage", "flywheel.sweep.stage"]
    machine = f"{devices.pick().type}, {os.cpu_count()} CPUs"
    origin = {
        **pages.origin(params, ["data", "recipe", "sweep"], modules, machine),
        "with_compact": with_compact(),
        "trials": arguments.trials, "epochs": arguments.epochs, "seed": arguments.seed,
    }  # fmt: skip
    earlier = pages.resumed(RESULT, origin)
    searches: dict[str, Any] = earlier.get("searches", {})
    counts: dict[str, int] = earlier.get("images", {})
    with tempfile.TemporaryDirectory(prefix="fw-sweep-") as folder:
        overrides = (
            f"{arguments.set} paths.store={folder}/store paths.reports={folder}/reports tracking.wandb=disabled "
            f"sweep.trials={arguments.trials} sweep.epochs={arguments.epochs} sweep.seed={arguments.seed}"
        )
        run("data", overrides)
        for name in NAMES:
            if name not in searches:
                load = os.getloadavg()[0]
                if name == "textbook":
                    trials, counts = textbook(overrides, arguments.trials, arguments.epochs, arguments.seed)
                else:
                    trials = ours(f"{overrides} {with_compact() if name == 'with compact' else ''}")
                searches[name] = {"load_before": round(load, 1), "trials": trials}
            files.write_json(RESULT, {**origin, "images": counts, "searches": searches})
    result = files.read_json(RESULT)
    picture = ROOT / "docs" / "sweep.png"
    draw(result, picture)
    pages.add_to_report({"sweep": result})
    pages.write(ROOT / "docs" / "training.md", "sweep", table(result))
    print(f"{table(result)}\n\npicture: {picture}")


def with_compact() -> str:
    """Return the overrides that put `compact` and Muon into the cifar10 profile's space, the laptop's recipe first."""
    base, laptop = (params_file.load(ROOT / "params.yaml", name).recipe.model_dump() for name in ("cifar10", "laptop"))
    first = {key: value for key, value in laptop.items() if value != base[key]}
    return (
        f"sweep.first=[{json.dumps(first)}] sweep.space.optimizer=[sgd, adam, muon] "
        "sweep.space.architecture=[compact, standard, upsample, modified]"
    )


def textbook_optimizer(name: str, weights: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Return what the textbook search tries."""
    if name == "adam":
        return torch.optim.Adam(weights, learning_rate)
    return torch.optim.SGD(weights, learning_rate, momentum=0.9, weight_decay=5e-4)


def run(script: str, overrides: str, profile: str = "cifar10", *more: str) -> None:
    """Run a stage's script, which says itself what is wrong. Raises SystemExit then."""
    words = [sys.executable, f"scripts/{script}.py", "--profile", profile, "--set", overrides, *more]
    if subprocess.run(words, cwd=ROOT).returncode:
        raise SystemExit(1)


def textbook(overrides: str, trials: int, epochs: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the trials of the textbook search, and how many images it trained and validated on."""
    params = params_file.load(ROOT / "params.yaml", "cifar10", overrides)
    registry = LocalRegistry(params.store)
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
        optimizer = textbook_optimizer(recipe["optimizer"], model.parameters(), recipe["learning_rate"])
        loader = textbook_loader(recipe["architecture"], data.images, data.labels, recipe["batch_size"], workers=0)
        curve = []
        for _ in range(epochs):
            textbook_epoch(model, loader, optimizer)
            curve.append([round(time.monotonic() - started, 1), validated(model, recipe["architecture"], data)])
        study.tell(trial, curve[-1][1])
        found.append({**recipe, "curve": curve})
        print(f"textbook {number + 1}/{trials}: {found[-1]}", flush=True)
    return found, {"train": len(data.labels), "validation": len(data.validation_labels)}


@torch.inference_mode()
def validated(model: nn.Module, name: str, data: TrainingData) -> float:
    """Return the accuracy on the validation images as a notebook computes it: float32, a batch at a time."""
    model.eval()
    side, device, right = architecture(name).input_size, devices.pick(), 0
    for start in range(0, len(data.validation_labels), 128):
        batch = torch.from_numpy(np.array(data.validation_images[start : start + 128]))
        images = prepared(batch).contiguous().to(device)
        if side is not None:
            images = nn.functional.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        predicted = model(images).argmax(dim=1).cpu().numpy()
        right += int((predicted == data.validation_labels[start : start + 128]).sum())
    return right / len(data.validation_labels)


def ours(overrides: str) -> list[dict[str, Any]]:
    """Return the trials of `make sweep`, as its journal tells them; times are from the start of the command."""
    params = params_file.load(ROOT / "params.yaml", "cifar10", overrides)
    started = time.time()
    run("sweep", overrides)
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
    """Return (seconds, accuracy) wherever a search found something better."""
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
        axis.set_xlabel("seconds (dot: the search has ended)")
        axis.set_ylabel("best validation accuracy, %")
        axis.set_title("A search on two CPU cores")
        axis.legend()


def reached(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the seconds in which each search had the textbook's best, None where it never did."""
    goal = best_so_far(result["searches"]["textbook"])[-1][1]
    return {
        name: next((at for at, accuracy in best_so_far(search) if accuracy >= goal), None)
        for name, search in result["searches"].items()
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    after, ends = reached(result), ended(result)
    textbook_s = best_so_far(result["searches"]["textbook"])[-1][0]
    lines = ["| search | best validation accuracy | whole search | the textbook's best after | of its time |"]
    lines += ["|---|---|---|---|---|"]
    for name, search in result["searches"].items():
        seconds = after[name]
        when = "not reached |" if seconds is None else f"{seconds:,.0f} s | {seconds / textbook_s:.0%}"
        lines.append(f"| {name} | {best_so_far(search)[-1][1]:.1%} | {ends[name]:,.0f} s | {when} |")
    note = (
        f"{result['trials']} trials of {result['epochs']} epochs, {result['images']['train']:,} training and "
        f"{result['images']['validation']:,} validation images, one run each, seed {result['seed']}; the textbook had "
        f"its best after {textbook_s:,.0f} of {ends['textbook']:,.0f} s. `{result['command']}`; "
        f"{result['machine']}, torch {result['versions']['torch']}."
    )
    return "\n".join([*lines, "", note])


def ended(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds after which each search had its last epoch."""
    return {name: max(p[0] for t in s["trials"] for p in t["curve"]) for name, s in result["searches"].items()}


if __name__ == "__main__":
    cli.main(main)
