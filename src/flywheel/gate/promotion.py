"""Promote models to production: run the gate, move the aliases, write the audit log.

`judge` decides, `apply` carries a decision out; `promote` and `rollback` are the commands. A move fails if production
changed since the decision. Each move is one write to the audit log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel import FlywheelError, files
from flywheel.gate.report import GateReport
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.registry import Registry, RegistryError, Version

if TYPE_CHECKING:  # numpy and torch load where models are judged
    import numpy as np
    from numpy.typing import NDArray

    from flywheel.tracking.runs import Run

log = logging.getLogger(__name__)


class PromotionError(FlywheelError):
    """A model cannot be promoted or rolled back to; the message says why and what to type."""


def judge(
    params: Params,
    registry: Registry,
    candidate: Version,
    *,
    dataset: Version | None = None,
    probabilities: NDArray[np.float32] | None = None,
    by_hand: bool = False,
) -> GateReport:
    """Decide by the gate's rules whether a candidate goes into production. Changes no alias.

    The models are compared on `dataset`, by default the newest. The candidate's `probabilities` of all its test images
    (n, classes), if given, are not computed again. A model that was replaced in production returns `by_hand` only.
    Raises StageError when there is no data set.
    """
    alias = registry.aliases(params.registered_model).get("production")
    here = registry.resolve(alias) if alias is not None and registry.has(alias) else None

    def keep(reason: str, **checks: bool) -> GateReport:
        labels = {version.ref: version.label for version in (candidate, here) if version}
        return GateReport(
            candidate=candidate.ref, production=alias, decision="keep", reasons=(reason,), checks=checks, labels=labels
        )

    if _same(alias, candidate):
        return keep("it is in production already")

    from flywheel.gate import history, predictions, replay, rules
    from flywheel.models import ModelError, classifier
    from flywheel.traffic import feedback

    if here and not by_hand and any(_same(ref, candidate) for ref in history.ever_in_production(params, registry)):
        command = _command(params, candidate)
        return keep(f"it was in production before and was replaced; {command} brings it back", new=False)
    dataset = dataset or stage.dataset_of(params, registry)
    others = [
        registry.resolve(ref) for ref in history.contenders(params, registry) if ref not in (candidate.ref, alias)
    ]
    models = [candidate, *([here] if here else []), *others]
    images = predictions.prepare(registry, dataset, models, feedback.latest(params, registry))
    try:
        new = classifier.load(registry.open(candidate))
        predicted = predictions.predict(candidate, new, images, probabilities)
    except (ModelError, RegistryError) as error:
        return keep(str(error), answers=False)
    old, production, unusable = None, None, ""
    if here:
        try:
            old = classifier.load(registry.open(here))
            production = predictions.predict(here, old, images)
        except (ModelError, RegistryError) as error:
            unusable = (
                f"{here.label}, in production, cannot be compared: {error}; make rollback PROFILE={params.profile}, or "
                f'{_command(params, candidate)} FORCE=1 REASON="why", replaces it'
            )
    known = [production] if production else []
    for other in others:
        try:
            known.append(predictions.predict(other, classifier.load(registry.open(other)), images))
        except (ModelError, RegistryError):
            continue  # it was in production once; a model that cannot be loaded any more is no bound
    captured = replay.captured(params.store_paths, params.gate.replay)
    replayed, measured = replay.run(new, old, captured, images.test)
    labels = images.labels
    comparable = [model for model in known if model.class_names == labels.class_names and len(labels.test)]
    best = max(comparable, key=lambda model: model.accuracy(labels), default=None)
    return rules.decide(
        params.gate, labels, predicted, production, best, was_production=alias, unusable=unusable,
        replay=replayed if params.gate.replay else None, measured=measured,
    )  # fmt: skip


def apply(params: Params, registry: Registry, candidate: Version, decision: GateReport) -> bool:
    """Carry out a decision and return whether production moved. Nothing moves if promotion.auto is off.

    Raises PromotionError when production was moved since the decision.
    """
    if decision.decision == "keep" or not params.promotion.auto:
        return False
    _move(params, registry, candidate, decision, "; ".join(decision.reasons), forced=False)
    return True


def report(params: Params, decision: GateReport, run: Run) -> tuple[Path, ...]:
    """Log a decision as a table, write gate.json and, where models were compared, gate.png; all to W&B too.

    Returns the files written into the reports folder.
    """
    from flywheel.gate import plots, table

    for line in table.table(decision):
        log.info(line)
    written = [params.reports / "gate.json"]
    files.write_json(written[0], decision.model_dump(mode="json"))
    plot = params.reports / "gate.png"
    if decision.per_class:
        written.append(plots.draw(decision, plot))
    else:
        plot.unlink(missing_ok=True)  # of an earlier decision
    run.summarize(decision.numbers())
    run.log_pictures(written[1:])
    return tuple(written)


def outcome(
    params: Params, registry: Registry, candidate: Version, decision: str, reasons: Sequence[str], *, promoted: bool
) -> Iterator[str]:
    """Yield what became of a decision, for people: one line, and a second one where production is not as it says."""
    production = registry.aliases(params.registered_model).get("production")
    done = "promoted to production" if promoted else "production unchanged"
    if decision != "keep" and not promoted:
        done += " (promotion.auto is off)"
    yield f"{decision}, {done}: {'; '.join(reasons)}"
    if promoted and production != candidate.ref:
        yield "since then production was moved; make history shows by whom and why"
    if decision == "keep" and production is None:
        force = f'{_command(params, candidate)} FORCE=1 REASON="why"'
        yield f"nothing is in production; docs/own-images.md#few-images has params to try; or, in any case, {force}"


def promote(params: Params, registry: Registry, reference: str, *, force: bool = False, reason: str = "") -> GateReport:
    """Judge a model and put it into production if it passes or if forced.

    Raises PromotionError when it does not pass. No force overrides a model that cannot be loaded, gives probabilities
    that are not finite, or crashes on a captured image.
    """
    from flywheel.tracking.runs import Tracker

    reason = " ".join(reason.split())
    if not reference:
        raise PromotionError("which model? make promote MODEL=name:version PROFILE=…; make artifacts lists them")
    if force and not reason:
        raise PromotionError('FORCE=1 needs REASON="why", which the audit log keeps')
    registry.refresh()
    candidate = stage.named(params, registry, reference)
    if "model.json" not in candidate.files:
        raise PromotionError(f"{candidate.label} is no model but a {candidate.type}; make artifacts lists the models")
    with files.lock(params.store_paths.lock("promote")):  # make prune removes nothing while it is held
        decision = judge(params, registry, candidate, by_hand=True)
        if _same(decision.production, candidate):
            log.info(f"promote: {candidate.label} is in production already")
            return decision
        config = {"model": candidate.ref, "forced": force, "reason": reason}
        tracker = Tracker(params, registry)
        with tracker.run("promote", f"promote {candidate.label}", config, used=(candidate,)) as run:
            report(params, decision, run)
            why = "; ".join(decision.reasons)
            refused = decision.decision == "keep"
            if refused and not force:
                raise PromotionError(f'{candidate.label} is not promoted: {why}; FORCE=1 REASON="why" overrides')
            if not all(decision.checks.get(name, True) for name in ("answers", "replay")):
                raise PromotionError(f"{candidate.label} is not promoted, nor would it be by force: {why}")
            _move(params, registry, candidate, decision, f"{reason}: {why}" if reason else why, forced=refused)
    forced = " by force" if refused else ""
    log.info(f"promote: {candidate.label} is in production{forced}: {f'{reason}: {why}' if reason else why}")
    return decision


def rollback(params: Params, registry: Registry, *, reason: str = "") -> str:
    """Put the previous model back into production; the current one becomes the previous. Returns a message.

    Raises PromotionError when there is none, or when a file does not match its digest.
    """
    from flywheel.tracking.runs import Tracker

    registry.refresh()
    model = params.registered_model
    aliases = registry.aliases(model)
    production, previous = aliases.get("production"), aliases.get("previous")
    if production is None or previous is None:
        has = "has had one production model only" if production else "has no production model"
        raise PromotionError(f"there is nothing to roll back to: {model} {has}; make history shows what moved")
    try:
        version = registry.resolve(previous)
        registry.open(version)
    except RegistryError as error:
        raise PromotionError(
            f"the previous model cannot be used: {error}; make promote MODEL=name:version moves to another"
        ) from None
    reason = " ".join(reason.split())
    registry.link(
        version, model, ("production",), expected={"production": production, "previous": previous},
        reason=f"rollback from {registry.label(production)}{f': {reason}' if reason else ''}",
    )  # fmt: skip
    facts = {"model": version.ref, "from": production, "reason": reason}
    run = Tracker(params, registry).start("promote", f"rollback {version.label}", facts)
    run.used(version)
    run.finish()
    return f"rollback: {version.label} is in production again; {registry.label(production)} is the previous one now"


def _move(
    params: Params, registry: Registry, candidate: Version, decision: GateReport, reason: str, *, forced: bool
) -> None:
    try:
        registry.link(
            candidate, params.registered_model, ("production",), reason=reason,
            expected={"production": decision.production}, gate=decision.summary(), forced=forced,
        )  # fmt: skip
    except RegistryError:
        now = registry.aliases(params.registered_model).get("production")
        if now == decision.production:
            raise
        raise PromotionError(
            f"production was moved to {registry.label(now) if now else 'nothing'} while {candidate.label} was "
            f"judged, so nothing was changed; {_command(params, candidate)} judges it anew"
        ) from None


def _same(ref: str | None, version: Version) -> bool:
    """Tell whether a ref is of the same content, under whatever name."""
    return ref is not None and ref.partition("@")[2] == version.digest


def _command(params: Params, candidate: Version) -> str:
    return f"make promote MODEL={candidate.label} PROFILE={params.profile}"
