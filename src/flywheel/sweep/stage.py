"""The stage `sweep`: publish the best model of a search as the artifact model-<run_id>, linked as `best`.

A sweep that was interrupted, or gets more trials, is resumed from its journal.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel import files
from flywheel.machine import ray_address
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage
from flywheel.registry import Registry, Version
from flywheel.sweep import SweepError
from flywheel.sweep.journal import Journal, SweepRecord, Trial, ranking
from flywheel.sweep.resume import resume
from flywheel.sweep.signals import interruptible

if TYPE_CHECKING:
    from flywheel.sweep.checkpoints import CheckpointStore
    from flywheel.sweep.progress import Recorder
    from flywheel.sweep.state import SweepState

log = logging.getLogger(__name__)

PRELOAD = "flywheel.sweep.tune_runner"


def define(params: Params, registry: Registry) -> Stage:
    """Return the stage as the params describe it. Raises StageError when there is no data set."""

    def unfinished(metrics: Mapping[str, Any]) -> str | None:
        ended, trials = metrics.get("trials", 0), params.sweep.trials
        if ended >= trials:
            return None
        used_s, budget_s = metrics.get("time_budget_s"), params.sweep.time_budget_s
        if used_s is not None and budget_s is not None and budget_s <= used_s:
            return None  # the sweep ended at this time budget or a larger one
        return f"{trials} trials are asked for, {ended} were made"

    return Stage(
        "sweep",
        params,
        registry,
        {"sweep": params.sweep.identity(), "recipe": params.recipe.identity()},
        {"dataset": stage.dataset_of(params, registry).ref},
        ("flywheel.sweep.trial", "flywheel.sweep.searcher"),
        seed=params.sweep.seed,
        artifacts="model-",
        unfinished=unfinished,
    )


def run(params: Params, registry: Registry, *, force: bool = False) -> Mapping[str, Any]:
    """Search unless the same search is done. Returns the receipt. Raises SweepError when every trial failed."""
    defined = define(params, registry)
    return stage.run(
        defined,
        lambda: _search(defined, force),
        adopt=lambda version: adopt(params, registry, (version,), version.metadata["metrics"]),
        force=force,
    )


def interrupted(defined: Stage) -> str | None:
    """Return a line on the sweep that the next run would resume, or None if it would begin a new one."""
    (journal, record, _), trials = _resume(defined, force=False), defined.params.sweep.trials
    if record is None or record.ended >= trials:
        return None
    return f"{journal.sweep_id} goes on, {record.ended} of {trials} trials ended"


def _resume(defined: Stage, force: bool) -> tuple[Journal, SweepRecord | None, bool]:
    return resume(defined.params.store_paths.journals, _identity(defined), defined.code, force=force)


def _identity(defined: Stage) -> dict[str, Any]:
    return {**defined.identity, "inputs": dict(defined.reads)}


@interruptible()
def _search(defined: Stage, force: bool) -> Outcome:
    from flywheel.sweep import cluster
    from flywheel.sweep.checkpoints import CheckpointStore
    from flywheel.sweep.progress import Recorder
    from flywheel.sweep.state import SweepState
    from flywheel.tracking.runs import Tracker

    params, registry, began = defined.params, defined.registry, time.monotonic()
    version = registry.resolve(defined.reads["dataset"])
    dataset = registry.open(version)
    journal, record, retry_failed = _resume(defined, force)
    if record:
        began -= record.elapsed_s
    journal.append("begin", identity=_identity(defined), code=defined.code)
    state = SweepState(params, journal, retry_failed)
    if state.trials and not state.is_complete:
        log.info(
            f"sweep: {journal.sweep_id} goes on: {state.ended} of {params.sweep.trials} trials ended, "
            f"{len(state.queued)} go on from their last checkpoints"
        )
    store = CheckpointStore(params.checkpoints).subfolder(journal.sweep_id)
    config = {**defined.identity, "dataset": version.ref}
    tracker = Tracker(params, registry)
    with tracker.run("sweep", journal.sweep_id, config, used=(version,)) as run:
        recorder = Recorder(state, store, tracker)
        try:
            if not state.is_complete:
                threading.Thread(target=importlib.import_module, args=(PRELOAD,)).start()  # while Ray starts
                with cluster.connected():
                    _run_trials(state, dataset, recorder, began)
        except KeyboardInterrupt:
            log.info(
                f"sweep: interrupted after {state.ended} of {params.sweep.trials} trials; "
                "the same command goes on from there"
            )
            raise
        finally:
            recorder.close()
        best = _best(state, registry, store, dataset)
        if not best:
            raise SweepError(_nothing_to_publish(state))
        metrics = {
            "sweep_id": journal.sweep_id,
            "trials": state.ended,
            "wall_s": round(time.monotonic() - began, 1),
            "peak_disk_bytes": recorder.peak_bytes,
            "time_budget_s": None if state.is_complete else params.sweep.time_budget_s,
        }
        versions = _publish(defined, best, metrics)
        run.made(*versions)
        journal.append("done", model=versions[0].ref, trials=state.ended)
        if state.is_complete:
            store.remove()
        outcome = adopt(params, registry, versions, {**metrics, **_metrics_of(best[0][0])})
        run.summarize({**outcome.metrics, "artifact": versions[0].ref})
        run.log_pictures([path for path in outcome.reports if path.suffix == ".png"])
    shutil.rmtree(params.store_paths.scratch("sweep"), ignore_errors=True)
    return outcome


def _nothing_to_publish(state: SweepState) -> str:
    if state.is_complete:
        reasons = sorted({trial.error for trial in state.trials.values() if trial.error})
        return f"all {state.ended} trials failed: {'; '.join(reasons)}"
    return (
        f"sweep.time_budget_s={state.params.sweep.time_budget_s:g} was over before a trial had an epoch; "
        "raise it, and the same command goes on"
    )


def _run_trials(state: SweepState, directory: Path, recorder: Recorder, began: float) -> None:
    """Check the nodes of the connected Ray, and run the remaining trials."""
    from flywheel.data import dataset
    from flywheel.sweep import cluster, nodes, preflight
    from flywheel.sweep.estimate import few_steps, human_time

    opened = dataset.open_directory(directory)
    params, store, budget_s = state.params, recorder.store, state.params.sweep.time_budget_s
    slots = cluster.Slots(params.sweep)
    resources = slots.resources
    joining = None
    if ray_address.wanted() is not None:
        joining = preflight.Joining(store, resources.gpus, opened.images.nbytes)
        preflight.check_nodes(store, resources.gpus, opened.images.nbytes)
    else:
        preflight.check_store(store)
    if line := preflight.idle_share(resources.gpus):
        log.info(f"sweep: {line}")
    log.info(
        f"sweep: {files.count(params.sweep.trials - state.ended, 'trial')} of "
        f"{files.count(params.sweep.epochs, 'epoch')}, {resources.concurrent} at a time ({resources.cpus:g} CPU, "
        f"{resources.gpus:g} GPU each)"
    )
    if line := few_steps(params, opened.description["splits"]["train"]):
        log.info(f"sweep: {line}")
    from flywheel.sweep import tune_runner

    until = None if budget_s is None else began + budget_s
    with nodes.NodeData.shared(directory, state.journal.sweep_id) as data:
        try:
            complete = tune_runner.run(state, data, recorder, slots, until=until, joining=joining)
        finally:
            if joining is not None:
                joining.wait()
    if not complete:
        log.info(
            f"sweep: the time budget of {human_time(budget_s or 0)} is over after {state.ended} of "
            f"{params.sweep.trials} trials; raise sweep.time_budget_s to go on"
        )


def _best(
    state: SweepState, registry: Registry, store: CheckpointStore, dataset: Path
) -> list[tuple[Trial, Path | Version]]:
    """Return the best trials, the best first, each with the folder of its weights or the version published before.

    If the weights of the best trial are lost, it is trained again from its record; other trials are left out then.
    """
    from flywheel.sweep import cluster, nodes
    from flywheel.sweep.checkpoints import Checkpoints

    params, found = state.params, list[tuple[Trial, Path | Version]]()
    ranked = ranking(state.trials.values(), include_running=not state.is_complete)
    for one in ranked[: params.sweep.keep_checkpoints]:
        folder, epoch = params.store_paths.scratch("sweep") / one.id, one.best_epoch or 0
        checkpoints = Checkpoints(store, one.id)
        shutil.rmtree(folder, ignore_errors=True)
        intact = [version for version in registry.versions(f"model-{one.id}") if registry.missing_file(version) is None]
        published = next((v for v in reversed(intact) if v.metadata["metrics"].get("epoch") == epoch), None)
        if checkpoints.unpack_weights(epoch, folder):
            found.append((one, folder))
        elif published is not None:
            found.append((one, published))
        elif not found:
            from flywheel.sweep import trial

            log.info(f"sweep: the weights of trial {one.number} are gone; it is trained again from its record")
            with cluster.connected(), nodes.NodeData.shared(dataset, state.journal.sweep_id) as data:
                accuracy = cluster.run_as_trial(params.sweep, trial.retrain, one.config, epoch, data, checkpoints)
            if accuracy != one.accuracy:
                log.info(f"sweep: it has {accuracy:.2%} this time, {one.accuracy:.2%} the first")
            checkpoints.unpack_weights(epoch, folder)
            found.append((one, folder))
    return found


def _publish(
    defined: Stage, best: list[tuple[Trial, Path | Version]], metrics: Mapping[str, Any]
) -> tuple[Version, ...]:
    """Return the versions of the best trials; only the first has the fingerprint of the stage.

    It is published last: once there is a version with this fingerprint, the stage counts as done.
    """
    versions = []
    for rank, (one, weights) in reversed(list(enumerate(best, start=1))):
        if isinstance(weights, Version):
            versions.append(weights)
            continue
        provenance = defined.provenance()
        if rank > 1:
            provenance.pop("fingerprint")
        metadata = {**provenance, "recipe": one.config, "metrics": {**metrics, **_metrics_of(one), "rank": rank}}
        versions.append(
            defined.registry.publish(f"model-{one.id}", "model", weights, metadata=metadata, inputs=defined.reads)
        )
    return tuple(reversed(versions))


def _metrics_of(one: Trial) -> dict[str, Any]:
    return {"trial": one.id, "accuracy": one.accuracy, "epoch": one.best_epoch, "machine": one.machine}


def adopt(params: Params, registry: Registry, versions: tuple[Version, ...], metrics: Mapping[str, Any]) -> Outcome:
    """Link the first of the published versions as `best`, and write the reports if the journal is on this machine."""
    from flywheel.sweep import report

    best = versions[0]
    trials_of = f"{files.count(metrics['trials'], 'trial')} of {metrics['sweep_id']}"
    reason = f"best of {trials_of}: {metrics['accuracy']:.2%} on validation"
    registry.link(best, params.registered_model, ("best",), reason=reason)
    trials = Journal(params.store_paths.journal(metrics["sweep_id"])).read().trials
    if not trials:
        return Outcome(versions, (), metrics)
    written = report.write(
        params,
        report.SweepReport(
            sweep_id=metrics["sweep_id"],
            dataset=best.input("dataset") or "",
            best=report.BestTrial(
                trial=metrics["trial"],
                accuracy=metrics["accuracy"],
                model=best.ref,
                config=next(trial.config for trial in trials if trial.id == metrics["trial"]),
            ),
            bayesian_trials=sum(trial.bayesian for trial in trials),
            wall_s=metrics["wall_s"],
            peak_disk_bytes=metrics["peak_disk_bytes"],
            trials=tuple(map(report.TrialReport.of, trials)),
        ),
    )
    counts = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", "failed")}
    bayesian = sum(trial.bayesian for trial in trials)
    return Outcome(versions, tuple(written), {**metrics, **counts, "bayesian": bayesian})
