"""The stage `sweep`: the best model of a search becomes the artifact model-<run_id>, linked as `best`.

A sweep that was interrupted, or is to have more trials, goes on where it stood: its journal is the truth.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage
from flywheel.registry import Registry, Version

if TYPE_CHECKING:
    from flywheel.sweep.checkpoints import Place
    from flywheel.sweep.journal import Trial
    from flywheel.sweep.state import Campaign
    from flywheel.training.loop import TrainingData

log = logging.getLogger(__name__)


def define(params: Params, registry: Registry) -> Stage:
    """Return the stage as the params describe it. Raises StageError when there is no data set."""
    dataset = stage.dataset_of(params, registry)

    def unfinished(metrics: Mapping[str, Any]) -> str | None:
        made, asked = metrics.get("trials", 0), params.sweep.trials
        if made >= asked:
            return None
        ended_at, budget = metrics.get("time_budget_s"), params.sweep.time_budget_s
        if ended_at is not None and budget is not None and budget <= ended_at:
            return None  # its time was up: so much was wanted
        return f"{asked} trials are asked for, {made} were made"

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


def run(params: Params, registry: Registry, *, force: bool = False) -> Mapping[str, Any]:
    """Search unless an equal search is done. Returns the receipt. Raises SweepError when every trial failed."""
    defined = define(params, registry)
    return stage.run(
        defined,
        lambda: _search(defined, force),
        adopt=lambda version: _report(params, registry, version, version.metadata["metrics"]),
        force=force,
    )


def interrupted(defined: Stage) -> str | None:
    """Return a line on the sweep that the next run would go on with, or None if it would begin a new one."""
    from flywheel.sweep import resume

    chosen = resume.choose(_journals(defined), _identity(defined), defined.code, force=False)
    if chosen.record is None or chosen.record.ended >= defined.params.sweep.trials:
        return None
    return f"{chosen.journal.sweep_id} goes on, {chosen.record.ended} of {defined.params.sweep.trials} trials ended"


def _journals(defined: Stage) -> Path:
    return defined.params.store_paths.journals


def _identity(defined: Stage) -> dict[str, Any]:
    return {**defined.identity, "inputs": dict(defined.reads)}


def _search(defined: Stage, force: bool) -> Outcome:
    from flywheel.sweep.signals import interruptible
    from flywheel.tracking.runs import Tracker

    with interruptible():
        tracker = Tracker(defined.params, defined.registry)
        return _sweep(defined, tracker, force)


def _sweep(defined: Stage, tracker: Any, force: bool) -> Outcome:
    from flywheel.data import dataset
    from flywheel.sweep import SweepError, cluster, resume
    from flywheel.sweep.checkpoints import Place
    from flywheel.sweep.reporting import Recorder
    from flywheel.sweep.state import Campaign
    from flywheel.training.loop import TrainingData

    began = time.monotonic()
    params, registry = defined.params, defined.registry
    dataset_version = registry.resolve(defined.reads["dataset"])
    opened = dataset.open_directory(registry.open(dataset_version))
    identity = _identity(defined)
    chosen = resume.choose(_journals(defined), identity, defined.code, force=force)
    journal, spent_s = chosen.journal, chosen.record.spent_s if chosen.record else 0.0
    journal.begin(identity=identity, code=defined.code)
    campaign = Campaign(params, journal, chosen.again)
    if campaign.trials and not campaign.over:
        log.info(
            f"sweep: {journal.sweep_id} goes on: {campaign.ended} of {params.sweep.trials} trials ended, "
            f"{len(campaign.waiting)} go on from their last checkpoints"
        )
    place = Place(params.checkpoints).below(journal.sweep_id)
    data, images = TrainingData.of(opened), opened.description["splits"]
    config = {**defined.identity, "dataset": dataset_version.ref}
    with tracker.run("sweep", journal.sweep_id, config, used=(dataset_version,)) as run:
        recorder = Recorder(params, campaign, place, tracker)
        try:
            if not campaign.over:
                with cluster.connected():
                    _run_trials(params, data, images, campaign, recorder, began - spent_s)
        except KeyboardInterrupt:
            log.info(
                f"sweep: interrupted after {campaign.ended} of {params.sweep.trials} trials; "
                "the same command goes on from there"
            )
            raise
        finally:
            recorder.close()
        kept = _keep(params, registry, campaign, place, data)
        if not kept:
            raise SweepError(_nothing_to_publish(params, campaign))
        facts = {
            "sweep_id": journal.sweep_id,
            "trials": campaign.ended,
            "wall_s": round(spent_s + time.monotonic() - began, 1),
            "peak_disk_bytes": recorder.peak_bytes,
            "time_budget_s": None if campaign.over else params.sweep.time_budget_s,
        }
        best, others = _publish(defined, kept, facts)
        run.made(best, *others)
        journal.done(model=best.ref, trials=campaign.ended)
        if campaign.over:
            place.remove()
        outcome = _report(params, registry, best, {**facts, **_of(kept[0][0])}, others)
        run.summarize({**outcome.metrics, "artifact": best.ref})
        run.log_pictures([path for path in outcome.reports if path.suffix == ".png"])
    shutil.rmtree(_scratch(params), ignore_errors=True)
    return outcome


def _nothing_to_publish(params: Params, campaign: Campaign) -> str:
    if campaign.over:
        reasons = sorted({trial.error for trial in campaign.trials.values() if trial.error})
        return f"all {campaign.ended} trials failed: {'; '.join(reasons)}"
    return (
        f"sweep.time_budget_s={params.sweep.time_budget_s:g} was over before a trial had an epoch; "
        "raise it, and the same command goes on"
    )


def _run_trials(
    params: Params, data: TrainingData, images: dict[str, int], campaign: Campaign, recorder: Any, since: float
) -> None:
    """Run the trials that are left on the connected Ray, after a check of its nodes and an estimate."""
    from flywheel import ray_address
    from flywheel.sweep import SweepError, cluster, preflight, tune_runner
    from flywheel.sweep.estimate import estimate, human_time

    place, budget_s = recorder.place, params.sweep.time_budget_s
    slots = cluster.Slots(params.sweep)
    resources = slots.resources
    if ray_address.wanted() is not None:
        preflight.check_nodes(place, resources.gpus)
    else:
        preflight.check_place(place)
    if line := preflight.idle_share(resources.gpus):
        log.info(f"sweep: {line}")
    left = params.sweep.trials - campaign.ended
    expected = estimate(params, resources, images, len(data.class_names), left)
    log.info(
        f"sweep: {left} trials of {params.sweep.epochs} epochs, "
        f"{resources.concurrent} at a time ({resources.cpus:g} CPU, {resources.gpus:g} GPU each): "
        f"about {human_time(expected.seconds)}, at most {human_time(expected.most_seconds)} "
        f"and {files.human_size(expected.disk_bytes)} of disk"
    )
    if "://" not in place.uri:
        Path(place.uri).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.uri).free
        if free < expected.disk_bytes:
            raise SweepError(
                f"{place.uri} has {files.human_size(free)} free and the sweep may need "
                f"{files.human_size(expected.disk_bytes)}; free space or set paths.checkpoints"
            )
    until = None if budget_s is None else since + budget_s
    if not tune_runner.run(params, data, campaign, place, slots, recorder, until=until):
        log.info(
            f"sweep: the time budget of {human_time(budget_s or 0)} is over after {campaign.ended} of "
            f"{params.sweep.trials} trials; raise sweep.time_budget_s to go on"
        )


def _keep(
    params: Params, registry: Registry, campaign: Campaign, place: Place, data: TrainingData
) -> list[tuple[Trial, Path | Version]]:
    """Return the best trials with their weights, best first: those of a checkpoint, or published before.

    The weights of the best that are lost are made again from its record; other trials are left out then.
    """
    from flywheel.sweep import cluster, trial
    from flywheel.sweep.checkpoints import Checkpoints
    from flywheel.sweep.journal import ranking

    kept: list[tuple[Trial, Path | Version]] = []
    for one in ranking(campaign.trials.values(), cut_short=not campaign.over)[: params.sweep.keep_checkpoints]:
        folder, epoch = _scratch(params) / one.id, one.best_epoch or 0
        shutil.rmtree(folder, ignore_errors=True)
        whole = [v for v in registry.versions(f"model-{one.id}") if registry.missing_file(v) is None]
        published = next((v for v in reversed(whole) if v.metadata["metrics"].get("epoch") == epoch), None)
        if Checkpoints(place, one.id).unpack_weights(epoch, folder):
            kept.append((one, folder))
        elif published is not None:
            kept.append((one, published))
        elif not kept:
            log.info(f"sweep: the weights of trial {one.number} are gone; it is trained again from its record")
            with cluster.connected():
                accuracy = cluster.repeat(params.sweep, data, one.config, trial.repeat, place, one.id, epoch)
            if accuracy != one.accuracy:
                log.info(f"sweep: it has {accuracy:.2%} this time, {one.accuracy:.2%} the first")
            Checkpoints(place, one.id).unpack_weights(epoch, folder)
            kept.append((one, folder))
    return kept


def _publish(
    defined: Stage, kept: list[tuple[Trial, Path | Version]], facts: Mapping[str, Any]
) -> tuple[Version, tuple[Version, ...]]:
    """Return the versions of the best trial and of the others; only the best's stands for the stage."""
    versions = []
    for rank, (one, weights) in enumerate(kept, start=1):
        if isinstance(weights, Version):
            versions.append(weights)
            continue
        provenance = defined.provenance()
        if rank > 1:
            provenance.pop("fingerprint")
        metadata = {**provenance, "recipe": one.config, "metrics": {**facts, **_of(one), "rank": rank}}
        versions.append(
            defined.registry.publish(f"model-{one.id}", "model", weights, metadata=metadata, inputs=defined.reads)
        )
    return versions[0], tuple(versions[1:])


def _of(one: Trial) -> dict[str, Any]:
    return {"trial": one.id, "accuracy": one.accuracy, "epoch": one.best_epoch, "machine": one.machine}


def _report(
    params: Params, registry: Registry, version: Version, facts: Mapping[str, Any], others: tuple[Version, ...] = ()
) -> Outcome:
    """Link a sweep's model as `best` and write the reports from the journal, if it is on this machine."""
    from flywheel.sweep import results, space
    from flywheel.sweep.journal import Journal

    reason = f"best of {facts['trials']} trials of {facts['sweep_id']}: {facts['accuracy']:.2%} on validation"
    registry.link(version, params.registered_model, ("best",), reason=reason)
    trials = Journal(params.store_paths.journal(facts["sweep_id"])).trials()
    if not trials:
        return Outcome((version, *others), (), facts)
    rows = [trial.row() for trial in trials]
    config = next(trial.config for trial in trials if trial.id == facts["trial"])
    summary = {
        "sweep_id": facts["sweep_id"],
        "dataset": version.input("dataset"),
        "best": {"trial": facts["trial"], "accuracy": facts["accuracy"], "model": version.ref, "config": config},
        "bayesian_trials": sum(trial.bayesian for trial in trials),
        "wall_s": facts["wall_s"],
        "peak_disk_bytes": facts["peak_disk_bytes"],
    }
    searched = list(space.dimensions(params))
    written = results.write(params.reports, summary, rows, searched, space.logarithmic(params))
    counts = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", "failed")}
    return Outcome((version, *others), tuple(written), {**facts, **counts, "bayesian": summary["bayesian_trials"]})


def _scratch(params: Params) -> Path:
    return params.store_paths.scratch("sweep")
