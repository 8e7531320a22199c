"""The stage `retrain`: production's weights, trained on with its failures, become a candidate that the gate judges.

Whether there is anything to do is asked of the lineage, not of a fingerprint. Everything a run makes appears at
once, as a version; a run that is killed before that is repeated, one that is killed after it is taken up at the gate.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel import files
from flywheel.params import RETRAINED_NAME, Params, Recipe
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Stage
from flywheel.registry import Registry, Version
from flywheel.retraining import RetrainError, plan
from flywheel.retraining.plan import Plan
from flywheel.traffic import feedback
from flywheel.traffic.feedback import FeedbackError

if TYPE_CHECKING:
    from flywheel.retraining.arms import Arm
    from flywheel.tracking.runs import Run
    from flywheel.training.loop import EpochResult

log = logging.getLogger(__name__)

ROOTS = ("flywheel.retraining.train",)


def run(params: Params, registry: Registry, *, force: bool = False) -> Mapping[str, Any] | None:
    """Retrain if there are enough new failures. Returns what retrain.json holds, or None when nothing was to be done.

    Raises RetrainError, FeedbackError, and files.Locked when another process retrains.
    """
    with files.lock(params.store_paths.lock("retrain")):
        registry.refresh()
        planned = plan.make(params, registry, force=force)
        if isinstance(planned, str):
            log.info(f"retrain: nothing to do ({planned})")
            return None
        if planned.unjudged is not None:
            log.info(f"retrain: {planned.unjudged.label} was made by a run that ended before the gate; judging it now")
            return _finish(params, registry, planned.unjudged, planned.unjudged.metadata["metrics"], None)
        return _retrain(params, registry, planned)


def recipe_of(params: Params, parent: Version, written: Mapping[str, Any]) -> tuple[Recipe, float]:
    """Return the recipe of a retraining and the learning rate it is a part of.

    `written` is the recipe in the parent's model.json. The rate that a retrained parent was itself scaled from
    counts, or the scale would compound from turn to turn.
    """
    base = float(parent.metadata.get("base_learning_rate", written["learning_rate"]))
    options = params.retrain
    changes = {
        "learning_rate": base * options.learning_rate_scale,
        "epochs": options.epochs,
        "seed": options.seed,
    }
    return Recipe.model_validate({**written, **changes}), base


def _retrain(params: Params, registry: Registry, planned: Plan) -> Mapping[str, Any] | None:
    from flywheel.data import dataset
    from flywheel.models import device as devices
    from flywheel.retraining import examples, train
    from flywheel.tracking.runs import Tracker

    opened = dataset.open_directory(registry.open(planned.dataset))
    hard = examples.find(registry, planned.feedback, opened)
    for reason, ids in hard.dropped.items():
        shown = ", ".join(map(str, ids[:10])) + (", …" if len(ids) > 10 else "")
        log.info(f"retrain: {len(ids)} of {planned.feedback.label} left out, {reason}: image {shown}")
    if not len(hard):
        log.info(f"retrain: nothing to do ({planned.feedback.label} has no image that may be trained on)")
        return None
    written = files.read_json(registry.open(planned.parent) / "model.json")
    if written["class_names"] != list(opened.class_names) or written["image_size"] != opened.image_size:
        raise RetrainError(
            f"{planned.parent.label} was made for other classes or image sizes than {planned.dataset.label}; "
            f"run make evaluate PROFILE={params.profile}"
        )
    recipe, base = recipe_of(params, planned.parent, written["recipe"])
    name = f"retrain-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    log.info(
        f"retrain: {planned.parent.label} with {len(hard):,} failures of {planned.feedback.label} "
        f"({planned.new_failures:,} new), {recipe.epochs} epochs"
    )
    inputs = {"dataset": planned.dataset.ref, "feedback": planned.feedback.ref, "parent": planned.parent.ref}
    config = {**inputs, "recipe": recipe.model_dump(), **params.retrain.model_dump()}
    tracked = Tracker(params, registry, stage.turn(registry)).start("retrain", name, config)
    tracked.used(planned.dataset, planned.feedback, planned.parent)

    def on_epoch(arm: str, result: EpochResult) -> None:
        log.info(f"retrain: {arm}, epoch {result.epoch} of {recipe.epochs}: {result.accuracy:.2%} on validation")
        shown = {"epoch": result.epoch, "accuracy": result.accuracy, "train_loss": result.train_loss}
        tracked.log({f"{arm}/{key}": value for key, value in shown.items()})  # W&B's steps cannot go back

    try:
        started = time.monotonic()
        directory, seen = registry.open(planned.parent), _seen(registry, planned.parent)
        facts, arm = train.train(opened, directory, hard, seen, recipe, params.retrain, devices.pick(), on_epoch)
        facts |= {"wall_s": round(time.monotonic() - started, 1)}
        candidate = _publish(params, registry, inputs, arm, recipe, base, facts)
        tracked.made(candidate)
        report = _finish(params, registry, candidate, facts, tracked)
        tracked.log_pictures([params.reports / "retrain.png"])
        kept = ("candidate", "hard_examples", "kept_epoch", "before", "after", "control", "decision", "promoted")
        tracked.summarize({key: report[key] for key in kept})
    except BaseException:
        tracked.finish(failed=True)
        raise
    tracked.finish()
    return report


def _seen(registry: Registry, parent: Version) -> frozenset[str] | None:
    try:
        return feedback.seen(registry, parent)
    except FeedbackError as error:
        log.info(f"retrain: accuracy on unseen images cannot be told: {error}")
        return None


def _publish(
    params: Params,
    registry: Registry,
    inputs: Mapping[str, str],
    arm: Arm,
    recipe: Recipe,
    base: float,
    facts: Mapping[str, Any],
) -> Version:
    import torch

    # Only one retraining of a profile runs at a time, so what lies here was left by one that was killed.
    folder = params.store_paths.scratch("retrain")
    shutil.rmtree(folder, ignore_errors=True)
    arm.classifier.save(folder, recipe.model_dump())
    device = arm.classifier.device.type
    machine = {"device": device, "precision": arm.classifier.precision, "threads": torch.get_num_threads()}
    version = registry.publish(
        RETRAINED_NAME, "model", folder,
        metadata={
            **_stage(params, registry, inputs).provenance(),
            "recipe": recipe.model_dump(),
            "base_learning_rate": base,
            "metrics": {**facts, "machine": machine},
        },
        inputs=tuple(inputs.values()),  # _finish tells them by their order
    )  # fmt: skip
    shutil.rmtree(folder)
    return version


def _finish(
    params: Params,
    registry: Registry,
    candidate: Version,
    facts: Mapping[str, Any],
    tracked: Run | None,
) -> Mapping[str, Any]:
    """Link a published candidate, let the gate judge it, write the reports and, last, the receipt.

    What a killed run promoted is not judged again: production may have been moved by hand since.
    """
    from flywheel.gate import promotion
    from flywheel.retraining import scores

    inputs = dict(zip(("dataset", "feedback", "parent"), candidate.inputs, strict=True))
    reason = f"{facts['hard_examples']} failures on {inputs['parent'].partition('@')[0]}"
    registry.link(candidate, params.registered_model, ("candidate",), reason=reason)
    moves = registry.history(params.registered_model)
    promoted = [move for move in moves if move["alias"] == "production" and move["to"] == candidate.ref]
    written: tuple[Path, ...] = ()
    if promoted:
        verdict, moved = promoted[-1]["gate"] or {"decision": "promote", "reasons": [promoted[-1]["reason"]]}, True
    else:
        decision = promotion.judge(params, registry, candidate)
        written = promotion.report(params, decision, tracked)
        moved = promotion.apply(params, registry, candidate, decision)
        verdict = decision.report()
    report = {
        **{role: inputs[role] for role in ("parent", "dataset", "feedback")},
        "candidate": candidate.ref,
        **facts,
        "decision": verdict["decision"],
        "reasons": list(verdict["reasons"]),
        "promoted": moved,
    }
    scores.picture(report, params.reports / "retrain.png")
    files.write_json(params.reports / "retrain.json", report)
    defined = _stage(params, registry, inputs)
    files.write_json(
        defined.receipt_path,
        {
            **defined.provenance(),
            "inputs": inputs,
            "outputs": [candidate.ref],
            "reports": ["retrain.json", "retrain.png", *(path.name for path in written)],
            "code": defined.code,
            "seed": defined.seed,
            "started": candidate.created,
            "wall_s": facts["wall_s"],
            "metrics": {key: report[key] for key in ("decision", "promoted", "hard_examples", "kept_epoch")},
        },
    )
    return report


def _stage(params: Params, registry: Registry, inputs: Mapping[str, str]) -> Stage:
    """Return the stage for the sake of its provenance: what was read, by which params and code."""
    identity = {"retrain": params.retrain.identity()}
    return Stage("retrain", params, registry, identity, inputs, ROOTS, params.retrain.seed)
