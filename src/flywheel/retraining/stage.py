"""The stage `retrain`: continue training the production model on the originals and what production labelled.

The gate judges the result. The lineage, not a fingerprint, tells whether there is anything to do. A run publishes the
candidate as one version; the next run repeats one that was killed before that, and judges the candidate of one that
was killed after it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel import files
from flywheel.params import RETRAINED_NAME, Params, Recipe
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage
from flywheel.registry import Registry, Version
from flywheel.retraining import RetrainError, plan
from flywheel.retraining.plan import Plan
from flywheel.retraining.report import ARM_TITLES, RetrainReport, Trained
from flywheel.traffic import feedback
from flywheel.traffic.feedback import FeedbackError

if TYPE_CHECKING:
    from flywheel.data.dataset import Dataset
    from flywheel.models.classifier import Classifier
    from flywheel.retraining.examples import Arm, Labelled
    from flywheel.tracking.runs import Run
    from flywheel.training.loop import EpochResult

log = logging.getLogger(__name__)

ROOTS = ("flywheel.retraining.train",)
REPORT, PLOT = "retrain.json", "retrain.png"


def run(params: Params, registry: Registry, *, force: bool = False, arms: Sequence[Arm] = ()) -> RetrainReport | None:
    """Retrain if there are enough new labels. Returns None when there is nothing to do.

    `arms` are trained for comparison: those given, or `random` if `retrain.control` says so.
    Raises StageError, RetrainError, FeedbackError, and files.Locked when another process retrains.
    """
    with files.lock(params.store_paths.lock("retrain")):
        registry.refresh()
        planned = plan.make(params, registry, force=force)
        if isinstance(planned, str):
            log.info(f"retrain: nothing to do ({planned})")
            return None
        if planned.unjudged is not None:
            candidate = planned.unjudged
            log.info(f"retrain: {planned.new}; judging it now")
            defined = _define(params, registry, {role: refs[0] for role, refs in candidate.inputs.items()})
            stage.execute(defined, lambda: _judge_published(defined, candidate))
        elif not _retrain(params, registry, planned, arms or (("random",) if params.retrain.control else ())):
            return None
        return RetrainReport.model_validate(files.read_json(params.reports / REPORT))


def recipe_of(params: Params, parent: Version, written: Mapping[str, Any]) -> tuple[Recipe, float]:
    """Return the recipe of a retraining and the learning rate that it scales.

    `written` is the recipe in the parent's model.json. The rate that a retrained parent was itself scaled from
    counts, or the scale would compound from round to round.
    """
    base = float(parent.metadata.get("base_learning_rate", written["learning_rate"]))
    options = params.retrain
    changes = {"learning_rate": base * options.learning_rate_scale, "epochs": options.epochs, "seed": options.seed}
    return Recipe.model_validate({**written, **changes}), base


def _define(params: Params, registry: Registry, reads: Mapping[str, str]) -> Stage:
    identity = {"retrain": params.retrain.identity()}
    return Stage("retrain", params, registry, identity, reads, ROOTS, params.retrain.seed)


def _retrain(params: Params, registry: Registry, planned: Plan, arms: Sequence[Arm]) -> bool:
    """Train, publish and judge. Returns False when no example may be trained on."""
    from flywheel.data import dataset
    from flywheel.retraining import examples

    opened = dataset.open_directory(registry.open(planned.dataset))
    labelled = examples.find(registry, planned.feedback, opened)
    for reason, ids in labelled.dropped.items():
        shown = ", ".join(map(str, ids[:10])) + (", …" if len(ids) > 10 else "")
        log.info(f"retrain: {len(ids)} of {planned.feedback.label} left out, {reason}: image {shown}")
    if labelled.disputed:
        log.info(f"retrain: {labelled.disputed} of {planned.feedback.label} left out, their labels are disputed")
    count = len(labelled.arm(params.retrain.examples, params.retrain.seed))
    if not count:
        log.info(f"retrain: nothing to do ({planned.feedback.label} has no image that may be trained on)")
        return False
    written = files.read_json(registry.open(planned.parent) / "model.json")
    if written["class_names"] != list(opened.class_names) or written["image_size"] != opened.image_size:
        raise RetrainError(
            f"{planned.parent.label} was made for other classes or image sizes than {planned.dataset.label}; "
            f"run make evaluate PROFILE={params.profile}"
        )
    recipe, base = recipe_of(params, planned.parent, written["recipe"])
    log.info(
        f"retrain: {planned.parent.label} with {count:,} "
        f"{'labelled images' if params.retrain.examples == 'all' else 'failures'} of {planned.feedback.label} "
        f"({planned.new}), {files.count(recipe.epochs, 'epoch')}"
    )
    reads = {"dataset": planned.dataset.ref, "feedback": planned.feedback.ref, "parent": planned.parent.ref}
    defined = _define(params, registry, reads)
    stage.execute(defined, lambda: _train(defined, planned, opened, labelled, recipe, base, arms))
    return True


def _train(
    defined: Stage, planned: Plan, opened: Dataset, labelled: Labelled, recipe: Recipe, base: float, arms: Sequence[Arm]
) -> Outcome:
    from flywheel.models import device as devices
    from flywheel.retraining import train

    params, registry = defined.params, defined.registry
    with _track(defined, recipe.model_dump(), planned.dataset, planned.feedback, planned.parent) as run:

        def on_epoch(arm: str, result: EpochResult) -> None:
            log.info(f"retrain: {arm}, epoch {result.epoch} of {recipe.epochs}: {result.accuracy:.2%} on validation")
            shown = {"epoch": result.epoch, "accuracy": result.accuracy, "train_loss": result.train_loss}
            run.log({f"{arm}/{key}": value for key, value in shown.items()})  # W&B's steps cannot go back

        started = time.monotonic()
        directory, seen = registry.open(planned.parent), _seen(registry, planned.parent)
        trained, model = train.train(
            opened, directory, labelled, seen, recipe, params.retrain, arms, devices.pick(), on_epoch
        )
        trained = trained.model_copy(update={"wall_s": round(time.monotonic() - started, 1)})
        candidate = _publish(defined, model, recipe, base, trained)
        run.made(candidate)
        return _judge(defined, candidate, trained, run)


def _judge_published(defined: Stage, candidate: Version) -> Outcome:
    """Judge the candidate of a run that ended before the gate."""
    with _track(defined, candidate.metadata["recipe"], candidate) as run:
        return _judge(defined, candidate, Trained.model_validate(candidate.metadata["metrics"]), run)


def _track(defined: Stage, recipe: Mapping[str, Any], *used: Version) -> AbstractContextManager[Run]:
    from flywheel.tracking.runs import Tracker

    name = f"retrain-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    config = {**defined.reads, "recipe": dict(recipe), **defined.params.retrain.model_dump()}
    return Tracker(defined.params, defined.registry).run("retrain", name, config, used=used)


def _seen(registry: Registry, parent: Version) -> frozenset[str] | None:
    try:
        return feedback.seen(registry, parent)
    except FeedbackError as error:
        log.info(f"retrain: accuracy on unseen images cannot be told: {error}")
        return None


def _publish(defined: Stage, model: Classifier, recipe: Recipe, base: float, trained: Trained) -> Version:
    import torch

    # Only one retraining of a profile runs at a time, so files here are of one that was killed.
    folder = defined.params.store_paths.scratch("retrain")
    shutil.rmtree(folder, ignore_errors=True)
    model.save(folder, recipe.model_dump())
    device = model.device.type
    machine = {"device": device, "precision": model.precision, "threads": torch.get_num_threads()}
    version = defined.registry.publish(
        RETRAINED_NAME, "model", folder,
        metadata={
            **defined.provenance(),
            "recipe": recipe.model_dump(),
            "base_learning_rate": base,
            "metrics": {**trained.model_dump(mode="json"), "machine": machine},
        },
        inputs=defined.reads,
    )  # fmt: skip
    shutil.rmtree(folder)
    return version


def _judge(defined: Stage, candidate: Version, trained: Trained, run: Run) -> Outcome:
    """Link a published candidate, let the gate judge it and write the reports.

    A candidate that a killed run promoted is not judged again: production may have been moved by hand since.
    """
    from flywheel.gate import promotion
    from flywheel.retraining import plots

    params, registry = defined.params, defined.registry
    parent = defined.reads["parent"].partition("@")[0]
    reason = f"{ARM_TITLES[trained.arm]}, {trained.hard_examples} failures, on {parent}"
    registry.link(candidate, params.registered_model, ("candidate",), reason=reason)
    moves = registry.history(params.registered_model)
    promoted = [move for move in moves if move["alias"] == "production" and move["to"] == candidate.ref]
    written: tuple[Path, ...] = ()
    if promoted:
        verdict, moved = promoted[-1]["gate"] or {"decision": "promote", "reasons": [promoted[-1]["reason"]]}, True
    else:
        decision = promotion.judge(params, registry, candidate)
        written = promotion.report(params, decision, run)
        moved = promotion.apply(params, registry, candidate, decision)
        verdict = decision.summary()
    decided = {"candidate": candidate.ref, "decision": verdict["decision"], "reasons": verdict["reasons"]}
    report = RetrainReport.model_validate({**dict(trained), **defined.reads, **decided, "promoted": moved})
    plots.draw(trained, params.reports / PLOT)
    files.write_json(params.reports / REPORT, report.model_dump(mode="json"))
    metrics = report.model_dump(include={"decision", "promoted", "hard_examples", "kept_epoch"})
    shown = {"candidate", "examples", "before", "after", "control"}
    run.summarize({**report.model_dump(mode="json", include=shown), **metrics})
    run.log_pictures([params.reports / PLOT])
    return Outcome((candidate,), (params.reports / REPORT, params.reports / PLOT, *written), metrics)
