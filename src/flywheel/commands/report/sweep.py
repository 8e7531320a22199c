"""The trials of a sweep as the page draws them, and the importance of each param."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.sweep.journal import SweepRecord
from flywheel.sweep.report import SweepReport

STATUSES = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "unfinished": "unfinished"}
MAX_TRIALS = 500  # the best are drawn and listed
MIN_TRIALS = 4  # for importances


def trials(report: SweepReport, searched: Sequence[str], logarithmic: Sequence[str]) -> dict[str, Any]:
    """Return what the page shows of the trials. `searched` are the params of the space.

    counts (by status), varied (the params that differ), drawn (the best trials, in order), words (the columns of the
    table that hold text), judged (trials with an accuracy), chart: the data of both charts, axes and trials.
    """
    every = report.trials
    drawn = sorted(every, key=lambda t: -1 if t.accuracy is None else t.accuracy, reverse=True)[:MAX_TRIALS]
    drawn = sorted(drawn, key=lambda trial: trial.number)
    varied = [name for name in searched if len({trial.param(name) for trial in every}) > 1]
    words = [i for i, name in enumerate(varied, start=1) if any(isinstance(t.param(name), str) for t in every)]
    return {
        "counts": [f"{n} {text}" for kind, text in STATUSES.items() if (n := sum(t.status == kind for t in every))],
        "varied": varied,
        "drawn": drawn,
        "words": [*words, len(varied) + 1],
        "judged": sum(trial.accuracy is not None and trial.status != "failed" for trial in every),
        "chart": {
            "axes": [_axis(name, [trial.param(name) for trial in drawn], name in logarithmic) for name in varied],
            "trials": [
                {
                    **trial.model_dump(include={"number", "status", "accuracy", "bayesian"}),
                    "best": trial.id == report.best.trial,
                    "values": [trial.param(name) for name in varied],
                }
                for trial in drawn
                if trial.accuracy is not None
            ],
        },
    }


def importance(record: SweepRecord) -> dict[str, float] | None:
    """Return param -> its share of the variance of accuracy, largest first. Shares sum to 1. None for too few trials.

    Optuna's fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014) with a fixed seed, over all trials with at least one epoch,
    also those stopped early, each with its best validation accuracy.
    """
    space: Mapping[str, Any] = record.begun.get("identity", {}).get("sweep", {}).get("space", {})
    judged = [trial for trial in record.trials if trial.accuracy is not None and trial.status != "failed"]
    names = [name for name in space if len({trial.point.get(name) for trial in judged}) > 1]
    judged = [trial for trial in judged if trial.point.keys() >= set(names)]
    if len(judged) < MIN_TRIALS or not names or len({trial.accuracy for trial in judged}) == 1:
        return None

    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    distributions = {name: _distribution([trial.point[name] for trial in judged], space[name]) for name in names}
    for trial in judged:
        params = {name: trial.point[name] for name in names}
        study.add_trial(optuna.trial.create_trial(value=trial.accuracy, params=params, distributions=distributions))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in found.items()}


def _axis(name: str, values: Sequence[Any], logarithmic: bool) -> dict[str, Any]:
    """Return an axis of the parallel coordinates: a number, or choices in order."""
    title = name.replace("_", " ")
    if all(isinstance(value, float) for value in values):
        return {"name": title, "kind": "log" if logarithmic and min(values) > 0 else "value"}
    options = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return {"name": title, "kind": "choice", "options": [str(option) for option in options]}


def _distribution(values: list[Any], domain: Mapping[str, Any]) -> Any:
    """Return the distribution of a param for Optuna: its choices, or a position in [0, 1]."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if "choices" in domain:
        return CategoricalDistribution([*domain["choices"], *(v for v in set(values) if v not in domain["choices"])])
    return FloatDistribution(0.0, 1.0)
