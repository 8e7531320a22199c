"""What do few labels give? An accuracy with its interval, accuracy regained by retraining, and a second look.

    python benchmarks/labelling.py                                        (make bench-long BENCH_LONG=labelling)
    python benchmarks/labelling.py --profile laptop --name photographs --seeds 3 --labels 0 \\
        --set "data.source=folder data.name=jpeg data.path=path/to/jpeg data.drift.noise=5"

For each seed, build the data set and train a parent with the profile's recipe, as benchmarks/loop.py does. Then:

1. Estimate: draw 200 of the simulation images many times, as `make label` does, and compare the accuracy and its
   interval from their labels with the true accuracy, and with the accuracy of as many random images.
2. Training: retrain the parent on as many images as `--labels` says, chosen as `make label` does, at random, or least
   sure first. The labels of images on the side holdout train nothing, so they are labels for nothing here.
3. Second look: retrain on all images with 5 % wrong labels, with label.second_above null, 0.5 and 0.9. The second
   label is wrong with the same probability, independently.

Reads   params.yaml
Writes  benchmarks/results/labelling_<name>.json after every seed, and its tables in docs/monitoring.md
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import loop
import numpy as np
import workers
from numpy.typing import NDArray

from flywheel import cli
from flywheel.metrics import sampled
from flywheel.models import classifier
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example

BUDGET = 200
WAYS = ("as make label", "at random", "least sure first")
NOISE, SECOND_ABOVE = 0.05, (0.5, 0.9)
TRAFFIC = {"none": "without drift", "data": "with drift"}


def main() -> None:
    """Run the seeds and write the tables."""
    options = harness.options(
        __doc__,
        **harness.STUDY,
        seeds=(10, "number of seeds"),
        draws=(1000, "samples that each seed draws for the estimates"),
        labels=([40, 80, 160, 320], "numbers of labels to retrain on; 0: retrain nothing"),
    )
    name = f"labelling_{options.name or options.profile}"
    profile, overrides = harness.study(options)
    params = harness.params(profile, overrides)
    modules = ["flywheel.data.stage", "flywheel.retraining.stage", "flywheel.metrics.sampled"]
    origin = harness.origin(params, ["data", "recipe", "retrain"], modules, workers.machine())
    labels = [count for count in options.labels if count]
    tasks = {(seed,): (labels, options.draws, seed) for seed in range(options.seeds)}
    overrides += " retrain.min_examples=1"  # so that a few labels are enough for a retraining
    path = harness.RESULTS / f"{name}.json"
    result = workers.complete(path, origin, ["seed"], tasks, run_seed, (profile, overrides))
    harness.publish(name, "monitoring.md", result, table)


def run_seed(choice: tuple[str, str], counts: Sequence[int], draws: int, seed: int) -> dict[str, Any]:
    """Measure everything with one parent; `choice` is the profile and the overrides."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fw-labelling-") as folder:
        registry, images, parent, copy = loop.begin(choice, seed, Path(folder))
        model = classifier.load(registry.open(parent))
        scores = {}
        for drift in TRAFFIC:
            index = images.traffic(drift)
            probabilities = model.predict(images.images[index])
            right = probabilities.argmax(axis=1) == images.labels[index]
            scores[drift] = (probabilities.max(axis=1).astype(np.float64), right)
        confidence, right = scores["data"]
        row: dict[str, Any] = {
            "seed": seed,
            "estimate": {drift: estimates(*scores[drift], draws, seed) for drift in TRAFFIC},
        }
        if counts:
            everything = np.arange(len(right))
            row |= {
                "before": float(right[images.holdout].mean()),
                "all": regained(loop.retrain(copy("all"), everything)),
                "training": {
                    str(count): {
                        way: regained(loop.retrain(copy(f"{way}-{count}"), choose(way, confidence, count, seed)))
                        for way in WAYS
                    }
                    for count in counts
                },
            }
            index = images.traffic("data")
            classes = model.predict(images.images[index]).argmax(axis=1)
            truth, second = (
                feedback.examples(images, index, classes, confidence, label_noise=noise, seed=1000 + seed)
                for noise in (0.0, NOISE)
            )
            row["null"] = regained(loop.retrain(copy("null", NOISE), everything))
            row["second"] = {}
            for above in SECOND_ABOVE:
                look = SecondLook(above, truth, second)
                holdout = regained(loop.retrain(copy(f"above-{above}", NOISE), everything, settle=look))
                row["second"][str(above)] = {"holdout": holdout, **look.counts}
        return {**row, "wall_s": round(time.monotonic() - started, 1)}


def estimates(confidence: NDArray[np.float64], right: NDArray[np.bool_], draws: int, seed: int) -> dict[str, float]:
    """Return how far the accuracies from samples of BUDGET images are from the true one, in points."""
    random, n = np.random.default_rng(seed), len(right)
    probability, truth = sampled.probabilities(confidence, BUDGET), float(right.mean())
    found, uniform = [], []
    for _ in range(draws):
        chosen = sampled.draw(probability, random)
        found.append(
            sampled.accuracy(
                right[chosen].astype(float), confidence[chosen], probability[chosen],
                drawn=len(chosen), population=n, mean_confidence=float(confidence.mean()),
            )
        )  # fmt: skip
        uniform.append(right[random.permutation(n)[:BUDGET]].mean())
    errors = 100 * (np.array([one.accuracy for one in found]) - truth)
    return {
        "n": n,
        "accuracy": 100 * truth,
        "confidence": 100 * float(confidence.mean()),
        "bias": float(errors.mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "uniform_rmse": 100 * float(np.sqrt(((np.array(uniform) - truth) ** 2).mean())),
        "covered": float(np.mean([one.low <= truth <= one.high for one in found])),
        "width": 100 * float(np.mean([one.high - one.low for one in found])),
    }


def choose(way: str, confidence: NDArray[np.float64], count: int, seed: int) -> NDArray[np.int64]:
    """Return which images to label."""
    if way == "least sure first":
        return np.argsort(confidence, kind="stable")[:count]
    random, n = np.random.default_rng(seed), len(confidence)
    probability = sampled.probabilities(confidence, count) if way == "as make label" else np.full(n, min(count / n, 1))
    return sampled.draw(probability, random)


class SecondLook:
    """Keep the labels that label.second_above accepts, given the true and the second labels; count the others."""

    def __init__(self, above: float, truth: Sequence[Example], second: Sequence[Example]):
        self._above = above
        self._truth = {example.hash: example.label for example in truth}
        self._second = {example.hash: example.label for example in second}
        self.counts: dict[str, int] = {}

    def __call__(self, listed: list[Example]) -> list[Example]:
        """Return what counts of the labels."""
        asked = {e.hash for e in listed if e.label != e.prediction and (e.confidence or 0) > self._above}
        kept = []
        for example in listed:
            label = self._second[example.hash] if example.hash in asked else example.label
            if label in (example.label, example.prediction):
                kept.append(example.model_copy(update={"label": label}))
        correct = {e.hash for e in listed if e.label == self._truth[e.hash]}
        held = correct - {e.hash for e in kept if e.label == self._truth[e.hash]}
        self.counts = {
            "labels": len(listed), "asked_twice": len(asked), "correct": len(correct), "correct_held_back": len(held),
            "wrong": len(listed) - len(correct), "wrong_kept": sum(e.label != self._truth[e.hash] for e in kept),
        }  # fmt: skip
        return kept


def regained(found: Mapping[str, Any]) -> float:
    """Return the candidate's accuracy on the drifted holdout images."""
    return float(found["arms"]["all"]["holdout"])


def estimate_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for the traffic without and with drift."""
    for drift, title in TRAFFIC.items():
        rows = [row["estimate"][drift] for row in result["rows"]]
        rmse, uniform = (statistics.mean(row[key] ** 2 for row in rows) ** 0.5 for key in ("rmse", "uniform_rmse"))
        yield (
            title, f"{rows[0]['n']:,}",
            *(f"{statistics.mean(row[key] for row in rows):.1f}" for key in ("accuracy", "confidence")),
            f"{max((row['bias'] for row in rows), key=abs):+.2f}", f"{rmse:.2f}", f"{uniform:.2f}",
            harness.spread([row["rmse"] / row["uniform_rmse"] for row in rows], ".2f"),
            harness.spread([100 * row["covered"] for row in rows], ".1f", statistics.mean),
            f"{statistics.mean(row['width'] for row in rows):.1f}",
        )  # fmt: skip


def training_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each number of labels and each way to choose them."""
    rows = result["rows"]
    for count in rows[0]["training"]:
        for way in WAYS:
            found = [row["training"][count][way] for row in rows]
            ahead = [now - row["training"][count]["at random"] for now, row in zip(found, rows, strict=True)]
            shares = [
                (now - row["before"]) / (row["all"] - row["before"]) for now, row in zip(found, rows, strict=True)
            ]
            points = harness.spread(harness.interval([100 * gain for gain in ahead]), "+.1f")
            against = "–" if way == "at random" else points
            holdout = f"{100 * statistics.mean(found):.1f}"
            yield count, way, holdout, f"{statistics.median(shares):.0%}", against


def second_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each value of label.second_above."""
    for above in result["rows"][0]["second"]:
        found = [row["second"][above] for row in result["rows"]]
        gains = [100 * (one["holdout"] - row["null"]) for one, row in zip(found, result["rows"], strict=True)]
        total = {key: sum(one[key] for one in found) for key in found[0]}
        yield (
            above, harness.spread(harness.interval(gains), "+.1f"), f"{total['asked_twice'] / total['labels']:.1%}",
            f"{total['correct_held_back'] / total['correct']:.1%}", f"{total['wrong_kept']:,} of {total['wrong']:,}",
        )  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """Return the tables of a result in Markdown."""
    heads: tuple[str, ...] = (
        "traffic", "images", "accuracy, %", "confidence, %", "largest bias", "RMSE", "RMSE, uniform", "ratio",
        "interval holds, %", "its width",
    )  # fmt: skip
    text = harness.markdown(heads, estimate_rows(result))
    seeds = len(result["rows"])
    note = f"Estimates from {BUDGET} labels, in points; {seeds} seeds; ratio: median (lowest to highest)."
    if "training" in result["rows"][0]:
        heads = ("labels", "chosen", "holdout, %", "of what all labels regain", "against random, points")
        lost = [100 * statistics.mean(row[key] for row in result["rows"]) for key in ("before", "all")]
        text += f"\n\n{harness.markdown(heads, training_rows(result))}"
        heads = ("label.second_above", "gain, points", "asked twice", "correct labels held back", "wrong labels kept")
        text += f"\n\n{harness.markdown(heads, second_rows(result))}"
        note += (
            f" Holdout: {lost[0]:.1f} % before, {lost[1]:.1f} % with all labels; shares: median; in brackets: 95 %. "
        )
        note += f"Gain: of holdout accuracy against null, with {NOISE:.0%} wrong labels."
    return text + harness.note(result, note)


if __name__ == "__main__":
    cli.main(main)
