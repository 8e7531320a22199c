"""How often does the gate pass candidates whose true difference to production is known? Power of each margin.

    python benchmarks/gate_power.py        (make bench-long BENCH_LONG=gate_power, 5 minutes on one core)

Simulated models are right on random images. The function under test is the gate's own `decide`.

Reads   the gate's margins of each profile in params.yaml
Writes  benchmarks/results/gate_power.json and its tables in docs/gate.md
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import harness
import numpy as np

from flywheel import cli
from flywheel.gate.report import JUDGED_FROM
from flywheel.gate.rules import HOLDOUT_CONFIDENCE, GateLabels, Predictions, decide
from flywheel.metrics.comparison import weighted_difference

CLASSES = 10
SIZES = ((450, 164, "demo"), (8000, 600, "cifar10"))  # test and holdout images, and the profile that has them
DISAGREEMENTS = (0.04, 0.10, 0.20)  # images that only one of the two models gets right
DIFFERENCES = (-0.03, -0.02, -0.01, -0.005, 0.0, 0.01, 0.02)
MARGINS = (0.005, 0.01, 0.02, 0.03)
HARMS, CLASS_MARGINS = (0.05, 0.10, 0.20), (0.0, 0.02, 0.05)
CHAIN, STEP = 10, 0.003
LABELS, LOSSES = (100, 200, 600), (0.0, -0.02, -0.05, -0.10)


def predictions(name: str, labels: GateLabels, test_correct: Any, holdout_correct: Any) -> Predictions:
    """Return predictions that are correct where given, (n,) and (m,) bool; a wrong one is the next class."""
    test, holdout = (
        np.where(correct, truth, (truth + 1) % len(labels.class_names))
        for correct, truth in ((test_correct, labels.test), (holdout_correct, labels.holdout))
    )
    return Predictions(f"{name}@0", name, labels.class_names, test, holdout)


def make_labels(n: int, holdout: int, classes: int = CLASSES) -> GateLabels:
    """Return labels with the same number of images of each class."""
    names = tuple(f"class{i}" for i in range(classes))
    return GateLabels("data@0", names, np.arange(n) % classes, np.arange(holdout) % classes)


def draw_correct(random: np.random.Generator, n: int, accuracy: float = 0.8) -> Any:
    """Draw which of n images a model gets right."""
    return random.random(n) < accuracy


def draw_other_model(
    random: np.random.Generator, right: Any, disagreement: Any, difference: Any, accuracy: float = 0.8
) -> Any:
    """Draw which images a second model gets right, given those of the first.

    In expectation the two disagree on a share `disagreement` of the images, and the second one's accuracy is higher by
    `difference` (numbers, or one per image).
    """
    fixed, broken = (disagreement + difference) / 2, (disagreement - difference) / 2
    chance = np.where(right, broken / accuracy, fixed / (1 - accuracy))
    return right ^ (random.random(len(right)) < chance)


def overall(
    n: int, m: int, rules: Any, draws: int, seed: int, disagreement: float, difference: float
) -> dict[str, Any]:
    """Return how often candidates of a known true difference pass, by margin, on n test and m holdout images."""
    labels, decisions = make_labels(n, m), []
    random = np.random.default_rng([seed, n, round(1e4 * disagreement), round(1e4 * (1 + difference))])
    for _ in range(draws):
        rights = [draw_correct(random, size) for size in (n, m)]
        new = [draw_other_model(random, right, disagreement, difference) for right in rights]
        old, new_model = predictions("old", labels, *rights), predictions("new", labels, *new)
        decisions.append(decide(rules, labels, new_model, old, old))
    low = np.array([d.overall.low for d in decisions if d.overall])
    checks = {name: np.array([d.checks[name] for d in decisions]) for name in ("per_class", "holdout")}
    others = checks["per_class"] & checks["holdout"]
    return {
        "n": n, "disagreement": disagreement, "difference": difference,
        "test": {str(margin): float((low > -margin).mean()) for margin in MARGINS},
        "gate": {str(margin): float(((low > -margin) & others).mean()) for margin in MARGINS},
        "called_better": float((low > 0).mean()),
        **{name: float(passed.mean()) for name, passed in checks.items()},
    }  # fmt: skip


def one_class(n: int, m: int, rules: Any, draws: int, seed: int, harm: float) -> dict[str, Any]:
    """Return how often the check per class refuses candidates that are worse by `harm` on one class, by margin."""
    random, labels = np.random.default_rng([seed, n, round(1e4 * harm)]), make_labels(n, m)
    high, holdout = [], np.ones(m, bool)
    for _ in range(draws):
        right = draw_correct(random, n)
        new_right = draw_other_model(random, right, max(0.04, harm), np.where(labels.test == 0, -harm, 0.0))
        old, new = predictions("old", labels, right, holdout), predictions("new", labels, new_right, holdout)
        high.append(min(difference.high for difference in decide(rules, labels, new, old, old).per_class.values()))
    return {"n": n, "harm": harm, "caught": {str(x): float((np.array(high) < -x).mean()) for x in CLASS_MARGINS}}


def worsening(n: int, m: int, rules: Any, draws: int, seed: int, best_ever: bool) -> dict[str, Any]:
    """Return what production loses over CHAIN candidates, with and without the comparison to the best ever."""
    random, labels = np.random.default_rng([seed, n]), make_labels(n, m)
    lost = [chain(random, rules, labels, best_ever) for _ in range(draws)]
    return {
        "n": n, "best_ever_clause": best_ever, "mean": float(np.mean(lost)), "most": float(np.max(lost)),
        "p95": float(np.quantile(lost, 0.95)),
    }  # fmt: skip


def traffic(count: int, draws: int, seed: int, disagreement: float) -> dict[str, Any]:
    """Return how often the check on about `count` sampled labels refuses candidates of a known true difference.

    Of ten times as many images 30 % are unsure: three times as likely to be drawn, and to be answered differently.
    """
    random = np.random.default_rng([seed, count, round(1e4 * disagreement)])
    refused = {}
    for difference in LOSSES:
        found = []
        for _ in range(draws):
            factor = np.where(random.random(10 * count) < 0.3, 3.0, 1.0) / 1.6
            factor = factor[random.random(len(factor)) < factor / 10]
            right = draw_correct(random, len(factor))
            new = draw_other_model(random, right, disagreement * factor, difference * factor)
            classes = (~right).astype(np.int64), (~new).astype(np.int64)
            truth = np.zeros(len(factor), np.int64)
            found.append(weighted_difference(*classes, truth, 10 / factor, HOLDOUT_CONFIDENCE))
        refused[str(difference)] = float(np.mean([f.high < 0 and f.effective_n >= JUDGED_FROM for f in found]))
    return {"labels": count, "disagreement": disagreement, "refused": refused}


def chain(
    random: np.random.Generator, rules: Any, labels: GateLabels, best_ever: bool, disagreement: float = 0.04
) -> float:
    """Return the true accuracy that production lost after CHAIN candidates, each STEP worse than the one before."""
    rights = [draw_correct(random, len(truth)) for truth in (labels.test, labels.holdout)]
    accuracy = 0.8
    production = best = predictions("0", labels, *rights)
    lost = 0.0
    for number in range(1, CHAIN + 1):
        rights = [draw_other_model(random, right, disagreement, -STEP, accuracy) for right in rights]
        accuracy -= STEP
        candidate = predictions(str(number), labels, *rights)
        if decide(rules, labels, candidate, production, best if best_ever else None).decision == "promote":
            production, lost = candidate, STEP * number
            best = max(best, candidate, key=lambda model: model.accuracy(labels))
    return lost


def table(result: dict[str, Any]) -> str:
    """Return the tables in Markdown."""

    def marked(margins: tuple[float, ...], used: float) -> list[str]:
        return [f"{100 * margin:g}{' (used)' if margin == used else ''}" for margin in margins]

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    parts = []
    for n, m, profile in SIZES:
        heads = marked(MARGINS, result["margins"][profile]["margin"])
        rows = [
            (
                f"{100 * row['disagreement']:.0f} %",
                f"{100 * row['difference']:+.1f}" if row["difference"] else "0",
                *(percent(row["gate"][str(margin)]) for margin in MARGINS),
                percent(row["called_better"]),
            )
            for row in result["overall"]
            if row["n"] == n
        ]
        parts += [
            f"**{n:,} test and {m} holdout images** ({profile}{', laptop' if profile == 'cifar10' else ''}): share of "
            "candidates that pass all rules of the gate, by margin in points, and share that is called better.",
            harness.markdown(("models disagree on", "true difference", *heads, "called better"), rows),
        ]
    heads = marked(CLASS_MARGINS, result["margins"]["cifar10"]["class_margin"])
    rows = [
        (f"{row['n']:,}", row["n"] // CLASSES, f"{100 * row['harm']:g} points", *map(percent, row["caught"].values()))
        for row in result["class"]
    ]
    sampled = [
        (row["labels"], f"{100 * row['disagreement']:.0f} %", *map(percent, row["refused"].values()))
        for row in result["traffic"]
    ]
    chains = [
        (
            f"{row['n']:,}",
            "yes" if row["best_ever_clause"] else "no",
            *(f"{100 * row[key]:.1f}" for key in ("mean", "p95", "most")),
        )
        for row in result["chain"]
    ]
    parts += [
        "**One class of ten is worse, the others are equal**: how often the check per class refuses the candidate, by "
        "class margin in points.",
        harness.markdown(("test images", "images per class", "class worse by", *heads), rows),
        "**Sampled labels of real traffic**: how often the check `traffic` refuses the candidate, by its true "
        "difference in points. Unsure images are drawn, and answered differently, three times as often as others.",
        harness.markdown(("labels", "models disagree on", *(f"{100 * loss:g}" for loss in LOSSES)), sampled),
        f"**{CHAIN} candidates in a row, each {100 * STEP:g} points worse than the one before**: true accuracy that "
        "production has lost at the end, in points (consecutive models disagree on 4 %).",
        harness.markdown(
            ("test images", "compared with the best ever", "mean", "95 % of chains lose at most", "maximum"), chains
        ),
    ]
    made = f"{result['draws']:,} draws per cell, {CLASSES} classes, {result['at'][:10]}."
    return "\n\n".join(parts) + harness.note(result, made)


def main() -> None:
    """Run the study and write its tables."""
    options = harness.options(__doc__, draws=(1000, "draws per cell"), seed=(0, "seed of all draws"))
    started, draws, seed = time.monotonic(), options.draws, options.seed
    gates = {profile: harness.params(profile).gate for profile in ("cifar10", "laptop", "demo")}
    sizes = [(n, m, gates[profile], draws, seed) for n, m, profile in SIZES]
    result = {
        **harness.stamp("numpy", "scipy"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "draws": draws, "seed": seed,
        "margins": {name: gate.model_dump() for name, gate in gates.items()},
        "overall": [overall(*size, by, true) for size in sizes for by in DISAGREEMENTS for true in DIFFERENCES],
        "class": [one_class(*size, harm) for size in sizes for harm in (0.0, *HARMS)],
        "traffic": [traffic(count, draws, seed, by) for count in LABELS for by in DISAGREEMENTS[1:]],
        "chain": [worsening(*size, best_ever) for size in sizes for best_ever in (False, True)],
        "wall_s": round(time.monotonic() - started, 1),
    }  # fmt: skip
    harness.publish("gate_power", "gate.md", result, table)


if __name__ == "__main__":
    cli.main(main)
