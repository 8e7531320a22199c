"""How much each searched param mattered, by Optuna's fANOVA over a sweep's trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel.sweep.journal import SweepRecord

FEWEST_TRIALS = 4
HINT, ROUGH = 20, 100  # trials: fewer are a hint, fewer are rough


def importance(record: SweepRecord) -> dict[str, float] | None:
    """Return param -> part of the variance of accuracy that it explains, most first; they sum to 1.

    fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014) as Optuna has it, with a fixed seed, over all trials that had an
    epoch, those stopped early included, each with its best validation accuracy. None: too few trials, or all alike.
    """
    space: Mapping[str, Any] = record.begun.get("identity", {}).get("sweep", {}).get("space", {})
    judged = [trial for trial in record.trials if trial.accuracy is not None and trial.status != "failed"]
    names = [name for name in space if len({trial.point.get(name) for trial in judged}) > 1]
    judged = [trial for trial in judged if trial.point.keys() >= set(names)]
    if len(judged) < FEWEST_TRIALS or not names or len({trial.accuracy for trial in judged}) == 1:
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


def confidence(trials: int) -> str:
    """Return how far importances of so many trials can be trusted."""
    if trials < HINT:
        return "a hint, no more"
    return "rough" if trials < ROUGH else "fair"


def _distribution(values: list[Any], domain: Mapping[str, Any]) -> Any:
    """Return what Optuna is told of a param: the searcher's own choices, or a position in [0, 1]."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if "choices" in domain:
        return CategoricalDistribution([*domain["choices"], *(v for v in set(values) if v not in domain["choices"])])
    return FloatDistribution(0.0, 1.0)
