"""The section on the sweep: its trials, how they relate to the params, and which params mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.commands.report.importance import confidence
from flywheel.commands.report.markup import Html, chart, details, note, percent, table, tag
from flywheel.sweep.report import SweepReport

STATUSES = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "unfinished": "unfinished"}
MOST_TRIALS = 500  # that are drawn and listed: the best


def sweep(report: SweepReport, searched: Sequence[str], logarithmic: Sequence[str], label: str) -> list[Html]:
    """Return the sweep's parts: its best, the history, parallel coordinates, a table. `searched` are its params."""
    trials, best = report.trials, report.best
    counts = [f"{n} {told}" for kind, told in STATUSES.items() if (n := sum(t.status == kind for t in trials))]
    number = next(trial.number for trial in trials if trial.id == best.trial)
    drawn = sorted(
        sorted(trials, key=lambda t: -1 if t.accuracy is None else t.accuracy, reverse=True)[:MOST_TRIALS],
        key=lambda trial: trial.number,
    )
    told = (
        f"The best of {len(trials)} trials, number {number}, reached {percent(best.accuracy)} on validation and is "
        f"{label}. {report.bayesian_trials} were proposed by the Bayesian search; {', '.join(counts)}; "
        f"{report.wall_s:,.0f} s."
    )
    varied = [name for name in searched if len({trial.param(name) for trial in trials}) > 1]
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
    words = [i + 1 for i, name in enumerate(varied) if any(isinstance(t.param(name), str) for t in trials)]
    return [
        tag("p", told),
        chart("history", "Validation accuracy, trial by trial", f"A dot a trial, and the best so far. {told}",
              {"trials": history}),
        chart("parallel", "Params and accuracy, a line a trial; drag along an axis to choose",
              "Parallel coordinates of the searched params and the accuracy; the table below has the figures.",
              {"axes": axes, "lines": lines}, 340)
        if varied
        else note("All trials had the same params."),
        details("All trials as a table" if len(drawn) == len(trials) else f"The best {MOST_TRIALS} trials as a table",
                table(head, rows, "Trials of the sweep", words=[*words, len(varied) + 1])),
    ]  # fmt: skip


def importances(found: Mapping[str, float] | None, trials: int) -> list[Html]:
    """Return which params mattered, with how far that can be trusted."""
    heading = tag("h3", "Which params mattered")
    if found is None:
        return [heading, note("Not told: it takes four trials that differ in params and accuracy.")]
    rows = [
        (name, tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="bar"), percent(share, 0))
        for name, share in found.items()
    ]
    caption = f"Importance of each searched param, {trials} trials"
    return [
        heading, table(("param", "", "share"), rows, caption, words=(0, 1)),
        note(
            f"{trials} trials: {confidence(trials)}. fANOVA (Optuna) over all trials that had an epoch, each with its "
            "best validation accuracy, those stopped early included. The share is of the variance that it explains."
        ),
    ]  # fmt: skip


def shown(value: object) -> str:
    """Return a param's value for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _axis(name: str, values: Sequence[Any], logarithmic: bool) -> dict[str, Any]:
    """Return an axis of the parallel coordinates: a number, or the choices in their order."""
    title = name.replace("_", " ")
    if all(isinstance(value, float) for value in values):
        return {"name": title, "kind": "log" if logarithmic and min(values) > 0 else "value"}
    options = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return {"name": title, "kind": "choice", "options": [str(option) for option in options]}
