"""Does the alarm without labels work? False alarms, delays, and presumed against true accuracy, with real models.

    python benchmarks/monitor.py                             (make bench-long BENCH_LONG=monitor, a few minutes)
    python benchmarks/monitor.py --profile laptop --name photographs --seeds 2 \\
        --set "data.source=folder data.name=jpeg data.path=path/to/jpeg"

Each seed splits the data, trains a model and takes its test images as the reference, as production does. Streams draw
with replacement from the model's answers to the simulation images: without drift, or with a corruption of `data.drift`
at a severity of 1 to 5. The *true loss* is the accuracy without drift minus that with it, on the same images. A stream
with a loss of exactly 10 or 20 points mixes clean images into the mildest severity that loses at least as much.

Reads   params.yaml
Writes  benchmarks/results/monitor_<name>.json after every seed, and its tables in docs/monitoring.md
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import harness
import numpy as np
import samples
import workers
from numpy.typing import NDArray

from flywheel import cli
from flywheel.data import drift
from flywheel.data.dataset import Dataset
from flywheel.metrics import alarm
from flywheel.models import device as devices
from flywheel.models.classifier import Classifier
from flywheel.params import Drift, Params
from flywheel.training.loop import TrainingData, fit

CORRUPTIONS = ("rotation", "noise", "blur", "brightness", "contrast", "rotation and noise")
SEVERITIES = range(1, 6)
LOSSES, HARMLESS = (0.1, 0.2), 0.01
QUIET_STREAMS, QUIET_LENGTH = 100, 100_000
STREAMS, LENGTH = 20, 20_000  # with drift, for each corruption, severity and seed


def main() -> None:
    """Run the seeds and write the tables."""
    options = harness.options(__doc__, **harness.STUDY, seeds=(5, "number of seeds"), epochs=(8, "epochs of a model"))
    name = f"monitor_{options.name or options.profile}"
    profile, overrides = harness.study(options)
    params = harness.params(profile, overrides)
    modules = ["flywheel.metrics.alarm", "flywheel.data.drift", "flywheel.data.build", "flywheel.training.loop"]
    origin = harness.origin(params, ["data", "recipe", "monitor"], modules, workers.machine())
    tasks = {(seed,): (seed, options.epochs) for seed in range(options.seeds)}
    path = harness.RESULTS / f"{name}.json"
    result = workers.complete(path, origin, ["seed"], tasks, run_seed, (profile, overrides))
    harness.publish(name, "monitoring.md", result, table)


def run_seed(choice: tuple[str, str], seed: int, epochs: int) -> dict[str, Any]:
    """Train a model and return how the alarm watches it."""
    params = harness.params(choice[0], f"{choice[1]} data.seed={seed}")
    images = samples.load(params)
    data, recipe = TrainingData.of(images), params.complete_recipe({"seed": seed}, epochs)
    model = data.classifier(recipe)
    list(fit(model, data, recipe, devices.pick()))
    return {"seed": seed, "epochs": epochs, **watch(model, images, params, seed)}


def watch(model: Classifier, images: Dataset, params: Params, seed: int) -> dict[str, Any]:
    """Corrupt the simulation images in every way, and return alarms and delays of streams of a model's answers."""
    test, index = images.split("test"), images.traffic("none")
    reference = alarm.reference(model.predict(test.images), test.labels, params.monitor.tolerance)
    level, random = alarm.alarm_level(params.monitor.false_alarm_every), np.random.default_rng(seed)

    def answers(corruption: str = "", severity: int = 0) -> tuple[float, NDArray[np.bool_]]:
        """Return the true accuracy on the simulation images, and which answers are presumed mistakes."""
        severities = {kind: severity if kind in corruption.split(" and ") else 0 for kind in Drift.model_fields}
        corrupted = drift.apply(images.images[index], images.ids[index], Drift(**severities), seed)
        probabilities = model.predict(corrupted)
        accuracy = float((probabilities.argmax(axis=1) == images.labels[index]).mean())
        return accuracy, reference.mistakes(probabilities)

    def delays(fraction: float, drifted: NDArray[np.bool_], streams: int = STREAMS, length: int = LENGTH) -> list[int]:
        """Return after how many predictions each stream alarms (length + 1: never); a fraction of it is drifted."""
        found = []
        for _ in range(streams):
            drawn = random.integers(len(index), size=length)
            mistakes = np.where(random.random(length) < fraction, drifted[drawn], clean[drawn])
            alarmed = alarm.levels(mistakes, reference.bound)[0] >= level
            found.append(int(alarmed.argmax()) + 1 if alarmed.any() else length + 1)
        return found

    accuracy, clean = answers()
    drifted = {name: [answers(name, severity) for severity in SEVERITIES] for name in CORRUPTIONS}
    return {
        "n": {"test": reference.n, "simulation": len(index)},
        "reference_accuracy": 1 - reference.errors / reference.n,
        "clean": {"accuracy": accuracy, "presumed": 1 - float(clean.mean()), "lowest": 1 - reference.bound},
        "false_alarms": sum(one <= QUIET_LENGTH for one in delays(0, clean, QUIET_STREAMS, QUIET_LENGTH)),
        "drifted": {
            name: [{"accuracy": was, "presumed": 1 - float(mistakes.mean())} for was, mistakes in found]
            for name, found in drifted.items()
        },
        "harmless": {
            f"{name} {severity}": sum(one <= LENGTH for one in delays(1, mistakes))
            for name, found in drifted.items()
            for severity, (was, mistakes) in zip(SEVERITIES, found, strict=True)
            if accuracy - was < HARMLESS
        },
        "delays": {
            str(loss): {
                name: statistics.median(delays(loss / (accuracy - was), mistakes))
                for name, found in drifted.items()
                for was, mistakes in [one for one in found if accuracy - one[0] >= loss][:1]
            }
            for loss in LOSSES
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the tables of a result in Markdown."""
    rows = sorted(result["rows"], key=lambda row: row["seed"])
    n, reference = rows[0]["n"], [100 * row["reference_accuracy"] for row in rows]
    harmless = [(name, alarmed) for row in rows for name, alarmed in row["harmless"].items()]
    alarming = ", ".join(sorted({name for name, alarmed in harmless if alarmed}))
    errors = {
        (name, severity, row["seed"]): 100 * (found["presumed"] - found["accuracy"])
        for row in rows
        for name in CORRUPTIONS
        for severity, found in zip(SEVERITIES, row["drifted"][name], strict=True)
    }
    worst = max(errors, key=lambda key: abs(errors[key]))

    def error(*names: str) -> str:
        return f"{statistics.mean(abs(points) for key, points in errors.items() if key[0] in names):.1f}"

    def delay(loss: float, *names: str) -> str:
        found = [median for row in rows for name, median in row["delays"][str(loss)].items() if name in names]
        return harness.spread(found, ",.0f") if found else "never loses it"

    def accuracies(name: str, severity: int) -> str:
        found = [row["drifted"][name][severity - 1] for row in rows]
        return " / ".join(f"{100 * statistics.mean(one[key] for one in found):.0f}" for key in ("accuracy", "presumed"))

    questions = {
        f"no drift: streams of {QUIET_LENGTH:,} that alarm": (
            f"at most 10 of {QUIET_STREAMS}",
            f"{', '.join(str(row['false_alarms']) for row in rows)} of {QUIET_STREAMS} (by seed)",
        ),
        f"drift that loses under {100 * HARMLESS:g} point: streams of {LENGTH:,} that alarm": (
            "none",
            f"{sum(alarmed for _, alarmed in harmless):,} of {STREAMS * len(harmless):,}"
            + (f" ({alarming})" if alarming else ""),
        ),
        "a loss of 20 points: predictions until the alarm": ("median at most 300", delay(0.2, *CORRUPTIONS)),
        "a loss of 10 points: predictions until the alarm": (
            "median at most 600" if min(reference) >= 90 else "none below 90 % reference accuracy",
            delay(0.1, *CORRUPTIONS),
        ),
        "presumed against true accuracy: mean absolute error in points": (
            "3.9 is published", f"{error(*CORRUPTIONS)}; worst {errors[worst]:+.1f} ({worst[0]} {worst[1]})"
        ),
    }  # fmt: skip
    text = harness.markdown(("question", "aim", "measured"), [(key, *found) for key, found in questions.items()])
    heads = ("corruption", *map(str, SEVERITIES), "mean error", "10 points lost", "20 points lost")
    by_corruption = [
        (name, *(accuracies(name, severity) for severity in SEVERITIES), error(name), *(delay(x, name) for x in LOSSES))
        for name in CORRUPTIONS
    ]
    return f"{text}\n\n{harness.markdown(heads, by_corruption)}" + harness.note(
        result,
        f"By severity: true / presumed accuracy in %; then predictions until the alarm. {len(rows)} models of "
        f"{rows[0]['epochs']} epochs (seeds 0 to {rows[-1]['seed']}), right on {harness.spread(reference, '.1f')} % of "
        f"{n['test']:,} reference images; streams from {n['simulation']:,} others. Delays: median (lowest to highest) "
        f"of medians of {STREAMS} streams, one for each corruption and seed.",
    )


if __name__ == "__main__":
    cli.main(main)
