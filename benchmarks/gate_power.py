"""How often the gate lets candidates through whose true difference to production is known: what each margin means.

    .venv/bin/python benchmarks/gate_power.py                   (about 2 minutes on one core)

Reads   the profiles' margins in params.yaml
Writes  benchmarks/results/gate_power.json, the tables of docs/gate.md
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pages

from flywheel import cli, files
from flywheel.gate.rules import Answers, Exam, decide
from flywheel.params import file as params_file

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/gate_power.json", ROOT / "docs/gate.md"
CLASSES = 10
SIZES = ((450, 164, "demo"), (8000, 600, "cifar10"))  # test and holdout images, and the profile that has them
DISAGREEMENTS = (0.04, 0.10, 0.20)  # images that only one of the two models gets right
DIFFERENCES = (-0.03, -0.02, -0.01, -0.005, 0.0, 0.01, 0.02)
MARGINS = (0.005, 0.01, 0.02, 0.03)
HARMS, CLASS_MARGINS = (0.05, 0.10, 0.20), (0.0, 0.02, 0.05)
CHAIN, STEP = 10, 0.003


def answers(name: str, exam: Exam, test_right: Any, holdout_right: Any) -> Answers:
    """Return answers that are right where told, (n,) and (m,) bool; what is wrong is the next class."""
    test, holdout = (
        np.where(right, labels, (labels + 1) % len(exam.class_names))
        for right, labels in ((test_right, exam.test), (holdout_right, exam.holdout))
    )
    return Answers(f"{name}@0", name, exam.class_names, test, holdout)


def make_exam(n: int, holdout: int, classes: int = CLASSES) -> Exam:
    """Return labels of some classes, as many images of each."""
    names = tuple(f"class{i}" for i in range(classes))
    return Exam("data@0", names, np.arange(n) % classes, np.arange(holdout) % classes)


def first_right(random: np.random.Generator, n: int, accuracy: float = 0.8) -> Any:
    """Draw which of n images a model gets right."""
    return random.random(n) < accuracy


def changed(
    random: np.random.Generator, right: Any, disagreement: float, difference: Any, accuracy: float = 0.8
) -> Any:
    """Draw which images a second model gets right: it differs on so many, and is better by so much, in expectation.

    `difference` is a number or one an image.
    """
    fixed, broken = (disagreement + difference) / 2, (disagreement - difference) / 2
    chance = np.where(right, broken / accuracy, fixed / (1 - accuracy))
    return right ^ (random.random(len(right)) < chance)


def study(draws: int, seed: int) -> dict[str, Any]:
    """Return pass rates by size, disagreement, true difference and margin; of one harmed class; of a chain."""
    found: dict[str, Any] = {"overall": [], "class": [], "chain": []}
    for n, m, profile in SIZES:
        rules, exam = params_file.load(ROOT / "params.yaml", profile).gate, make_exam(n, m)
        for disagreement in DISAGREEMENTS:
            for difference in DIFFERENCES:
                random = np.random.default_rng([seed, n, round(1e4 * disagreement), round(1e4 * (1 + difference))])
                decisions = []
                for _ in range(draws):
                    rights = [first_right(random, size) for size in (n, m)]
                    new = [changed(random, right, disagreement, difference) for right in rights]
                    old_answers, new_answers = answers("old", exam, *rights), answers("new", exam, *new)
                    decisions.append(decide(rules, exam, new_answers, old_answers, old_answers))
                low = np.array([d.overall.low for d in decisions if d.overall])
                others = np.array([d.checks["per_class"] and d.checks["holdout"] for d in decisions])
                found["overall"].append(
                    {
                        "n": n, "disagreement": disagreement, "difference": difference,
                        "test": {str(margin): float((low > -margin).mean()) for margin in MARGINS},
                        "gate": {str(margin): float(((low > -margin) & others).mean()) for margin in MARGINS},
                        "called_better": float(np.mean([d.overall.low > 0 for d in decisions if d.overall])),
                        "per_class": float(np.mean([d.checks["per_class"] for d in decisions])),
                        "holdout": float(np.mean([d.checks["holdout"] for d in decisions])),
                    }
                )  # fmt: skip
        for harm in (0.0, *HARMS):
            random = np.random.default_rng([seed, n, round(1e4 * harm)])
            high = []
            for _ in range(draws):
                right = first_right(random, n)
                new_right = changed(random, right, max(0.04, harm), np.where(exam.test == 0, -harm, 0.0))
                old_answers, none = answers("old", exam, right, np.ones(m, bool)), np.ones(m, bool)
                decision = decide(rules, exam, answers("new", exam, new_right, none), old_answers, old_answers)
                high.append(min(result.difference.high for result in decision.per_class.values()))
            caught = {str(margin): float((np.array(high) < -margin).mean()) for margin in CLASS_MARGINS}
            found["class"].append({"n": n, "harm": harm, "caught": caught})
        for clause in (False, True):
            random = np.random.default_rng([seed, n])
            lost = [chain(random, rules, exam, clause) for _ in range(draws)]
            found["chain"].append(
                {"n": n, "best_ever_clause": clause, "mean": float(np.mean(lost)), "most": float(np.max(lost)),
                 "p95": float(np.quantile(lost, 0.95))}
            )  # fmt: skip
    return found


def chain(
    random: np.random.Generator, rules: Any, exam: Exam, best_ever_clause: bool, disagreement: float = 0.04
) -> float:
    """Return the true accuracy that production lost after CHAIN candidates, each STEP worse than the last candidate."""
    rights = [first_right(random, len(labels)) for labels in (exam.test, exam.holdout)]
    accuracy = 0.8
    production = best = answers("0", exam, *rights)
    lost = 0.0
    for number in range(1, CHAIN + 1):
        rights = [changed(random, right, disagreement, -STEP, accuracy) for right in rights]
        accuracy -= STEP
        candidate = answers(str(number), exam, *rights)
        if decide(rules, exam, candidate, production, best if best_ever_clause else None).decision == "promote":
            production, lost = candidate, STEP * number
            best = max(best, candidate, key=lambda model: model.accuracy(exam))
    return lost


def table(results: dict[str, Any]) -> str:
    """Return the tables of docs/gate.md."""
    made = f"{results['draws']:,} draws a cell, seed {results['seed']}, {CLASSES} classes, {results['at'][:10]}"
    lines = [f"`{results['command']}`: {made}.", ""]
    for n, m, profile in SIZES:
        used = results["margins"][profile]["margin"]
        heads = "".join(f" {100 * x:g}{' (used)' if x == used else ''} |" for x in MARGINS)
        lines += [
            f"**{n:,} test and {m} holdout images** ({profile}{', laptop' if profile == 'cifar10' else ''}): part of "
            "candidates that pass the whole gate, by margin in points, and that are called better.",
            "",
            f"| models disagree on | true difference |{heads} called better |",
            f"|{' ---: |' * (len(MARGINS) + 3)}",
        ]
        for row in results["overall"]:
            if row["n"] == n:
                rates = "".join(f" {100 * row['gate'][str(x)]:.1f} % |" for x in MARGINS)
                shown = f"{100 * row['difference']:+.1f}" if row["difference"] else "0"
                better = f"{100 * row['called_better']:.1f} %"
                lines.append(f"| {100 * row['disagreement']:.0f} % | {shown} |{rates} {better} |")
        lines.append("")
    used = results["margins"]["cifar10"]["class_margin"]
    heads = "".join(f" {100 * x:g}{' (used)' if x == used else ''} |" for x in CLASS_MARGINS)
    lines += [
        "**One class of ten is worse, the others are equal**: how often the class clause catches it, by class margin "
        "in points.",
        "",
        f"| test images | images a class | class worse by |{heads}",
        f"|{' ---: |' * (len(CLASS_MARGINS) + 3)}",
    ]
    for row in results["class"]:
        rates = "".join(f" {100 * row['caught'][str(x)]:.1f} % |" for x in CLASS_MARGINS)
        lines.append(f"| {row['n']:,} | {row['n'] // CLASSES} | {100 * row['harm']:g} points |{rates}")
    lines += [
        "",
        f"**{CHAIN} candidates in a row, each {100 * STEP:g} points worse than the last**: what production has truly "
        "lost at the end, in points (the models disagree on 4 % from one to the next).",
        "",
        "| test images | best-ever clause | mean | 95 % lose at most | most |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for row in results["chain"]:
        clause = "yes" if row["best_ever_clause"] else "no"
        figures = " | ".join(f"{100 * row[key]:.1f}" for key in ("mean", "p95", "most"))
        lines.append(f"| {row['n']:,} | {clause} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="draws a cell")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    arguments = parser.parse_args()
    started = time.monotonic()
    found = study(arguments.draws, arguments.seed)
    profiles = ("cifar10", "laptop", "demo")
    margins = {name: params_file.load(ROOT / "params.yaml", name).gate.model_dump() for name in profiles}
    versions = {name: metadata.version(name) for name in ("numpy", "scipy")}
    results = {
        "command": pages.command(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "draws": arguments.draws, "seed": arguments.seed, "margins": margins,
        "machine": f"{platform.machine()}, {platform.system()}", "python": platform.python_version(),
        "versions": versions, "wall_s": round(time.monotonic() - started, 1), **found,
    }  # fmt: skip
    files.write_json(RESULTS, results)
    pages.write(PAGE, "gate_power", table(results))
    print(table(results))


if __name__ == "__main__":
    cli.main(main)
