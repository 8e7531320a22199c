"""How many trials run at a time on which nodes, and what a sweep publishes whose trials have ended."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import made_models
import pytest

from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.registry import Registry, Version
from flywheel.sweep import SweepError, cluster
from flywheel.sweep import stage as sweep_stage
from flywheel.sweep.checkpoints import Checkpoints, CheckpointStore
from flywheel.sweep.journal import Journal
from flywheel.sweep.state import SweepState

Make = Callable[..., Params]


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        ("", [{"CPU": 8.0}], (1, 0, 8)),
        ("sweep.cpus_per_trial=3", [{"CPU": 8.0}], (3, 0, 2)),
        ("sweep.cpus_per_trial=3", [{"CPU": 4.0}, {"CPU": 4.0}], (3, 0, 2)),
        ("sweep.cpus_per_trial=0.5", [{"CPU": 2.0}], (0.5, 0, 4)),
        ("sweep.gpus_per_trial=0.25", [{"CPU": 16.0, "GPU": 2.0}], (1, 0.25, 8)),
        ("sweep.gpus_per_trial=0.3", [{"CPU": 16.0, "GPU": 2.0}], (1, 0.3, 6)),
        ("sweep.gpus_per_trial=2", [{"CPU": 16.0, "GPU": 3.0}], (1, 2, 1)),
        ("", [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}], (1, 1, 2)),
        ("sweep.gpus_per_trial=0", [{"CPU": 2.0, "GPU": 2.0}], (1, 0, 2)),
        ("sweep.max_concurrent_trials=3", [{"CPU": 8.0}], (1, 0, 3)),
        ("sweep.trials=2", [{"CPU": 8.0}], (1, 0, 2)),
        ("sweep.trials=24 sweep.searcher=tpe", [{"CPU": 64.0}], (1, 0, 8)),
        ("sweep.cpus_per_trial=3", [{"CPU": 2.0}] * 3, "sweep.cpus_per_trial=3 but no node has more than 2 CPUs"),
        ("sweep.gpus_per_trial=1", [{"CPU": 2.0}], "sweep.gpus_per_trial=1 but no node has more than 0 GPUs"),
        ("sweep.gpus_per_trial=1", [{"CPU": 2.0}, {"GPU": 2.0}], "no node has both 1 CPUs and 1 GPUs for a trial"),
    ],
)
def test_resources_of_a_trial_and_concurrent_trials(
    make_params: Make, monkeypatch: pytest.MonkeyPatch, overrides: str, nodes: list[dict[str, float]], expected: object
) -> None:
    import ray

    described = [{"NodeID": str(n), "Alive": True, "Resources": node} for n, node in enumerate(nodes)]
    monkeypatch.setattr(ray, "nodes", lambda: described)
    sweep = make_params(f"sweep.trials=30 sweep.searcher=random {overrides}").sweep
    if isinstance(expected, str):
        with pytest.raises(SweepError, match=expected):
            cluster.allot(sweep)
    else:
        given = cluster.allot(sweep)
        assert (given.cpus, given.gpus, given.concurrent) == expected


def test_the_module_that_is_imported_while_ray_starts_exists() -> None:
    """An import that fails in its thread fails no sweep."""
    assert importlib.util.find_spec(sweep_stage.PRELOAD) is not None


def begun(params: Params, registry: Registry) -> SweepState:
    """Return the state of a sweep of a data set that is published for it."""
    made_models.publish_dataset(registry, params, made_models.dataset(params))
    defined = sweep_stage.define(params, registry)
    journal = Journal(params.store_paths.journals / "sweep-1.jsonl")
    journal.append("begin", identity={**defined.identity, "inputs": dict(defined.reads)}, code=defined.code)
    return SweepState(params, journal)


def test_a_sweep_without_a_model_raises_the_error_of_its_trials(make_params: Make, registry: Registry) -> None:
    """One failed, one was stopped before its first epoch; if all had failed, the sweep would begin anew."""
    params = make_params("data.image_size=8 sweep.trials=2 tracking.wandb=disabled")
    state = begun(params, registry)
    for error in ("TrainingDiverged: the loss", None):
        trial = state.next_trial(1)
        assert trial is not None
        state.on_trial_end(trial, error)
    with pytest.raises(SweepError, match="all 2 trials failed: TrainingDiverged: the loss"):
        sweep_stage.run(params, registry)
    assert not stage.check(sweep_stage.define(params, registry)).up_to_date


def test_a_sweep_that_ends_while_it_publishes_publishes_all_of_its_best_models_later(
    make_params: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(
        "data.image_size=8 sweep.trials=2 sweep.epochs=1 sweep.keep_checkpoints=2 tracking.wandb=disabled"
    )
    state, store = begun(params, registry), CheckpointStore(params.checkpoints).subfolder("sweep-1")
    for accuracy in (0.5, 0.6):
        trial = state.next_trial(1)
        assert trial is not None
        contents = made_models.model(logit=accuracy).contents(trial.config)
        Checkpoints(store, trial.id).save_weights(1, contents)
        state.on_trial_result(trial, 1, {"accuracy": accuracy})
        state.on_trial_end(trial)
    publish, published = registry.publish, list[str]()

    def publish_one(name: str, *arguments: Any, **options: Any) -> Version:
        if published:
            raise OSError("killed")
        published.append(name)
        return publish(name, *arguments, **options)

    monkeypatch.setattr(registry, "publish", publish_one)
    with pytest.raises(OSError, match="killed"):
        sweep_stage.run(params, registry)
    monkeypatch.undo()
    outputs = sweep_stage.run(params, registry)["outputs"]
    assert [ref.partition(":")[0].partition("@")[0] for ref in outputs] == [
        f"model-{trial.id}" for trial in reversed(state.trials.values())
    ]
    assert store.names() == []
