"""The stage `sweep`: the best model of a search becomes the artifact model-<run_id>, linked as `best`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from flywheel import files, stage
from flywheel.params import Params
from flywheel.registry import Registry, RegistryError, Version
from flywheel.stage import Outcome, Stage, StageError


def define(params: Params, registry: Registry) -> Stage:
    """Return the stage as the params describe it. Raises StageError when there is no data set."""
    try:
        dataset = registry.resolve(params.dataset_name)
    except RegistryError:
        raise StageError(f"there is no {params.dataset_name}; run make data PROFILE={params.profile}") from None

    def unfinished(metrics: Mapping[str, Any]) -> str | None:
        made, asked = metrics.get("trials", 0), params.sweep.trials
        return f"{asked} trials are asked for, {made} were made" if made < asked else None

    return Stage(
        "sweep",
        params,
        registry,
        {"sweep": params.sweep.identity(), "recipe": params.recipe.identity()},
        {"dataset": dataset.ref},
        ("flywheel.sweep.trial", "flywheel.sweep.space"),
        seed=params.sweep.seed,
        artifacts="model-",
        unfinished=unfinished,
    )


def run(
    params: Params, registry: Registry, *, force: bool = False, say: Callable[[str], None] = print
) -> Mapping[str, Any]:
    """Search unless an equal search is done. Returns the receipt. Raises SweepError when every trial failed."""
    defined = define(params, registry)
    return stage.run(
        defined,
        lambda: _search(defined, say),
        adopt=lambda version: _adopt(params, registry, version),
        force=force,
        say=say,
    )


def _search(defined: Stage, say: Callable[[str], None]) -> Outcome:
    from flywheel.data import dataset
    from flywheel.sweep import SweepError, cluster, journal, runner
    from flywheel.sweep.estimate import estimate
    from flywheel.tracking import Tracker
    from flywheel.training import TrainingData

    params, registry = defined.params, defined.registry
    opened = dataset.open_directory(registry.open(registry.resolve(defined.inputs["dataset"])))
    sweep_id = f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    record = journal.Journal(params.store / "journal" / f"{sweep_id}.jsonl")
    folder = cluster.results_folder(params.store) / sweep_id
    # Only one sweep of a profile runs at a time, so what lies here was left by one that was killed.
    shutil.rmtree(folder.parent, ignore_errors=True)
    tracker = Tracker(params, stage.turn(registry), say)
    tracked = tracker.start("sweep", sweep_id, {**defined.identity, "dataset": defined.inputs["dataset"]})
    try:
        with cluster.connected():
            resources = cluster.allot(params.sweep)
            cluster.check_nodes(resources, folder)
            expected = estimate(params, resources, opened.description["splits"], len(opened.class_names))
            say(
                f"sweep: {params.sweep.trials} trials of {params.sweep.epochs} epochs, "
                f"{resources.concurrent} at a time ({resources.cpus:g} CPU, {resources.gpus:g} GPU each): "
                f"about {human_time(expected.seconds)}, at most {human_time(expected.most_seconds)} "
                f"and {files.human_size(expected.disk_bytes)} of disk"
            )
            free = shutil.disk_usage(folder.parent).free
            if free < expected.disk_bytes:
                raise SweepError(
                    f"{params.store} has {files.human_size(free)} free and the sweep may need "
                    f"{files.human_size(expected.disk_bytes)}; free space or set paths.store"
                )
            started = time.monotonic()
            recorder = runner.run(params, TrainingData.of(opened), record, folder, resources, tracker, say)
            wall_s = time.monotonic() - started
        trials = record.trials()
        best = journal.best(trials)
        if best is None or recorder.weights is None:
            reasons = sorted({trial.error for trial in trials if trial.error})
            raise SweepError(f"all {len(trials)} trials failed: {'; '.join(reasons)}")
        facts = {
            "sweep_id": sweep_id,
            "trial": best.id,
            "accuracy": best.accuracy,
            "trials": len(trials),
            "wall_s": round(wall_s, 1),
            "peak_disk_bytes": recorder.peak_bytes,
            "machine": best.machine,
        }
        version = registry.publish(
            f"model-{best.id}", "model", recorder.weights,
            metadata={**defined.provenance(), "recipe": best.config, "metrics": facts},
            inputs=(defined.inputs["dataset"],),
        )  # fmt: skip
        outcome = _adopt(params, registry, version)
        tracked.summarize({**outcome.metrics, "artifact": version.ref})
        tracked.log_pictures([path for path in outcome.reports if path.suffix == ".png"])
    except BaseException:
        tracked.finish(failed=True)
        raise
    tracked.finish()
    shutil.rmtree(folder.parent, ignore_errors=True)
    return outcome


def _adopt(params: Params, registry: Registry, version: Version) -> Outcome:
    """Link a sweep's model as `best` and write the reports from the journal, if it is on this machine."""
    from flywheel.sweep import report, space
    from flywheel.sweep.journal import Journal

    facts = version.metadata["metrics"]
    reason = f"best of {facts['trials']} trials of {facts['sweep_id']}: {facts['accuracy']:.2%} on validation"
    registry.link(version, params.registered_model, ("best",), reason=reason)
    trials = Journal(params.store / "journal" / f"{facts['sweep_id']}.jsonl").trials()
    if not trials:
        return Outcome((version,), (), facts)
    rows = [trial.row() for trial in trials]
    config = next(trial.config for trial in trials if trial.id == facts["trial"])
    summary = {
        "sweep_id": facts["sweep_id"],
        "dataset": version.inputs[0],
        "best": {
            "trial": facts["trial"],
            "accuracy": facts["accuracy"],
            "model": version.ref,
            "config": config,
        },
        "bayesian_trials": sum(trial.bayesian for trial in trials),
        "wall_s": facts["wall_s"],
        "peak_disk_bytes": facts["peak_disk_bytes"],
    }
    searched = list(space.dimensions(params))
    written = report.write(params.reports, summary, rows, searched, space.logarithmic(params))
    counts = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", "failed")}
    return Outcome((version,), tuple(written), {**facts, **counts, "bayesian": summary["bayesian_trials"]})


def human_time(seconds: float) -> str:
    """Return a duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
