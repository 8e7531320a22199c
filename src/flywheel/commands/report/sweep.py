"""The section on the sweep: its trials, their params and accuracy, and the importance of each param."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.commands.report.markup import Html, chart, details, note, percent, table, tag
from flywheel.sweep.journal import SweepRecord
from flywheel.sweep.report import SweepReport, TrialReport

STATUSES = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "unfinished": "unfinished"}
MAX_TRIALS = 500  # the best are drawn and listed
MIN_TRIALS = 4  # for importances
HINT, ROUGH = 20, 100  # with fewer trials importances are a hint, or rough


def trials(report: SweepReport, searched: Sequence[str], logarithmic: Sequence[str], label: str) -> list[Html]:
    """Return the best trial, the history, parallel coordinates and a table. `searched` are the params of the space."""
    every, best = report.trials, report.best
    counts = [f"{n} {text}" for kind, text in STATUSES.items() if (n := sum(t.status == kind for t in every))]
    number = next((trial.number for trial in every if trial.id == best.trial), "?")
    drawn = sorted(
        sorted(every, key=lambda t: -1 if t.accuracy is None else t.accuracy, reverse=True)[:MAX_TRIALS],
        key=lambda trial: trial.number,
    )
    summary = (
        f"The best of {len(every)} trials, number {number}, reached {percent(best.accuracy)} on validation and is "
        f"{label}. {report.bayesian_trials} were proposed by the Bayesian search; {', '.join(counts)}; "
        f"{report.wall_s:,.0f} s."
    )
    varied = [name for name in searched if len({trial.param(name) for trial in every}) > 1]
    history = [
        {
            **trial.model_dump(include={"number", "status", "accuracy", "bayesian"}),
            "params": {name: shown(trial.param(name)) for name in varied},
        }
        for trial in drawn
        if trial.accuracy is not None
    ]
    axes = [_axis(name, [trial.param(name) for trial in drawn], name in logarithmic) for name in varied]
    lines = [
        {
            "number": trial.number, "accuracy": trial.accuracy, "best": trial.id == best.trial,
            "values": [trial.param(name) for name in varied],
        }
        for trial in drawn
        if trial.accuracy is not None
    ]  # fmt: skip
    head = ("trial", *varied, "status", "epochs", "seconds", "accuracy")
    rows = [
        (
            t.number, *(shown(t.param(name)) for name in varied), STATUSES[t.status], t.epochs, f"{t.time_s:.1f}",
            percent(t.accuracy, 2),
        )
        for t in drawn
    ]  # fmt: skip
    words = [i + 1 for i, name in enumerate(varied) if any(isinstance(t.param(name), str) for t in every)]
    return [
        tag("p", summary),
        chart("history", "Validation accuracy, trial by trial", f"A dot a trial, and the best so far. {summary}",
              {"trials": history}),
        chart("parallel", "Params and accuracy, a line a trial; drag along an axis to select",
              "Parallel coordinates of the searched params and the accuracy; the table below has the figures.",
              {"axes": axes, "lines": lines}, 340)
        if varied
        else note("All trials had the same params."),
        details("All trials as a table" if len(drawn) == len(every) else f"The best {MAX_TRIALS} trials as a table",
                table(head, rows, "Trials of the sweep", words=[*words, len(varied) + 1])),
    ]  # fmt: skip


def importances(found: Mapping[str, float] | None, every: Sequence[TrialReport]) -> list[Html]:
    """Return the importance of each param, and how far to trust it."""
    heading = tag("h3", "Which params mattered")
    if found is None:
        return [heading, note("Not computed: this needs four trials that differ in params and accuracy.")]
    rows = [
        (name, tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="bar"), percent(share, 0))
        for name, share in found.items()
    ]
    trials = sum(trial.accuracy is not None and trial.status != "failed" for trial in every)
    trust = "a hint, no more" if trials < HINT else "rough" if trials < ROUGH else "fair"
    caption = f"Importance of each searched param, {trials} trials"
    return [
        heading, table(("param", "", "share"), rows, caption, words=(0, 1)),
        note(
            f"{trials} trials: {trust}. fANOVA (Optuna) over all trials that had an epoch, each with its "
            "best validation accuracy, those stopped early included. The share is of the variance that it explains."
        ),
    ]  # fmt: skip


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


def shown(value: object) -> str:
    """Return the value of a param as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
