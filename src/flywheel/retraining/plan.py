"""Decide by the lineage alone whether there are new labels to train on; fast enough for cron every minute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from flywheel.params import RETRAINED_NAME, Params
from flywheel.pipeline import stage
from flywheel.registry import Registry, RegistryError, Version
from flywheel.retraining import RetrainError
from flywheel.traffic import feedback


@dataclass(frozen=True)
class Plan:
    """The inputs of a retraining, and how many of the images to train on no retraining used yet.

    `unjudged`: a candidate of that feedback that a killed run made and did not judge.
    """

    parent: Version
    dataset: Version
    feedback: Version
    new_failures: int
    new_examples: int
    unjudged: Version | None

    @property
    def new(self) -> str:
        """Say what is new."""
        if self.unjudged is not None:
            return f"{self.unjudged.label} was made by a run that ended before the gate"
        return f"{self.new_failures:,} new failures, {self.new_examples:,} new labelled images"


def make(params: Params, registry: Registry, *, force: bool = False) -> Plan | str:
    """Return the plan, or the reason why there is nothing to do.

    An image is new unless production or the newest retrained model, a refused one too, was trained on it. A model that
    a killed run left unjudged is judged now if no label came since, otherwise trained anew. `force` takes the newest
    feedback though it was used. Raises StageError or RetrainError when there is no data set or no model, FeedbackError
    when the newest feedback cannot be read.
    """
    parent, dataset = _parent(params, registry), stage.dataset_of(params, registry)
    newest = feedback.latest(params, registry)
    if newest is None:
        return (
            f"there is no {params.feedback_name} yet; make simulate or label collect PROFILE={params.profile} makes it"
        )
    options = params.retrain
    usable = feedback.trainable(feedback.read(registry, newest), options.examples)
    unjudged = _unjudged(params, registry)
    used = _used(params, registry, () if unjudged else (RETRAINED_NAME,))
    new = [example for example in usable if example.hash not in used]
    if unjudged is not None and (force or unjudged.input("feedback") != newest.ref):
        unjudged = None
    plan = Plan(parent, dataset, newest, sum(not example.right for example in new), len(new), unjudged)
    images = "labelled image" if options.examples == "all" else "failure"
    if not usable:
        return f"{newest.label} has no {images} for training; all are held out"
    if unjudged is None and not force:
        if not new:
            return f"every {images} that {newest.label} has for training was used already"
        enough_examples = options.examples == "all" and len(new) >= options.min_examples
        if plan.new_failures < options.min_failures and not enough_examples:
            return f"{plan.new}; it takes retrain.min_failures={options.min_failures}" + (
                f" or retrain.min_examples={options.min_examples}" if options.examples == "all" else ""
            )
    return plan


def _used(params: Params, registry: Registry, others: Iterable[str]) -> set[str]:
    """Return the hashes that production or one of the other models was trained on; each used all there were."""
    hashes: set[str] = set()
    for reference in (*others, f"{params.registered_model}:production"):
        with contextlib.suppress(RegistryError):
            hashes |= feedback.trained_on(registry, registry.resolve(reference))
    return hashes


def _unjudged(params: Params, registry: Registry) -> Version | None:
    """Return the latest retrained model if no receipt tells of its end."""
    if not registry.count(RETRAINED_NAME):
        return None
    made = registry.resolve(RETRAINED_NAME)
    if registry.missing_file(made) is not None:
        return None  # known from W&B: made and judged on another machine
    receipt = stage.read_receipt(params.store_paths.receipt("retrain")) or {}
    return None if made.ref in receipt.get("outputs", ()) else made


def _parent(params: Params, registry: Registry) -> Version:
    """Return production, or the sweep's best when nothing is in production."""
    aliases = registry.aliases(params.registered_model)
    for alias in ("production", "best"):
        if alias in aliases and registry.has(aliases[alias]):
            return registry.resolve(aliases[alias])
    todo = stage.after_loss(params, registry, f"run make evaluate PROFILE={params.profile}")
    raise RetrainError(f"there is no model to continue from; {todo}")
