"""Decide whether a stage is up to date, run it, and write its receipt.

The result of a stage is a function of its identity params, the exact versions it reads, and its code. The digest of
the three is its fingerprint. A stage is up to date if its receipt has the same fingerprint and its outputs exist; time
stamps never decide. The receipt is written last and atomically, so an interrupted stage never counts as done. Receipts
are a cache: without one, a version in the registry that records the fingerprint is accepted instead.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from flywheel import FlywheelError, files
from flywheel.params import Params
from flywheel.pipeline import fingerprint
from flywheel.registry import Registry, RegistryError, Version, inputs_by_role

log = logging.getLogger(__name__)

RECORDED_PACKAGES = ("torch", "torchvision", "ray", "optuna", "numpy", "pillow", "wandb", "flywheel")


class StageError(FlywheelError):
    """A stage cannot run or failed; the message says why and what to do."""


@dataclass(frozen=True)
class Outcome:
    """The result of a stage: artifact versions, files in the reports folder, metrics for the receipt."""

    outputs: tuple[Version, ...]
    reports: tuple[Path, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a stage is up to date, and why. `adopted` is a version that replaces a missing receipt."""

    up_to_date: bool
    reason: str
    receipt: Mapping[str, Any] | None = None
    adopted: Version | None = None


@dataclass(frozen=True)
class Stage:
    """A stage before it runs: `reads` are its inputs (role -> ref), `roots` the modules that compute its result.

    A version whose collection starts with `artifacts` may replace a missing receipt. `unfinished` gets the metrics of
    the receipt or of a version and returns what the params ask for beyond them, or None.
    """

    name: str
    params: Params
    registry: Registry
    identity: Mapping[str, Any]
    reads: Mapping[str, str]
    roots: tuple[str, ...]
    seed: int | None = None
    artifacts: str = ""
    unfinished: Callable[[Mapping[str, Any]], str | None] | None = None

    @property
    def inputs(self) -> dict[str, list[str]]:
        """Its inputs as versions and receipts record them: role -> refs."""
        return {role: [ref] for role, ref in self.reads.items()}

    @cached_property
    def code(self) -> dict[str, str]:
        """Module -> digest, for the modules that determine the result."""
        return fingerprint.digests(*self.roots)

    @cached_property
    def fingerprint(self) -> str:
        """The digest of identity params, inputs and code."""
        return files.digest_json({"params": self.identity, "inputs": self.inputs, "code": self.code})

    def provenance(self) -> dict[str, Any]:
        """Return how its versions are made, the fingerprint included, for their metadata."""
        return {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "params": dict(self.identity),
            "git": _git(),
            "versions": _versions(),
        }


def check(stage: Stage) -> Verdict:
    """Return whether a stage is up to date, and why. Reads receipts, manifests and code; never W&B."""
    receipt = read_receipt(stage.params.store_paths.receipt(stage.name))
    if receipt is None:
        adopted = _version_with(stage)
        if adopted is not None:
            return Verdict(True, f"made before as {adopted.label}", None, adopted)
        return Verdict(False, "; ".join(filter(None, ("never run", after_loss(stage.params, stage.registry)))))
    if receipt["fingerprint"] != stage.fingerprint:
        adopted = _version_with(stage)
        reason = f"made before as {adopted.label}" if adopted else _difference(stage, receipt)
        return Verdict(adopted is not None, reason, receipt, adopted)
    for ref in receipt["outputs"]:
        try:
            damaged = stage.registry.missing_file(stage.registry.resolve(ref))
        except RegistryError as error:
            return Verdict(False, f"an output is missing: {error}", receipt)
        if damaged is not None:
            return Verdict(False, f"an output is damaged: {damaged}", receipt)
    if stage.unfinished and (more := stage.unfinished(receipt["metrics"])):
        return Verdict(False, more, receipt)
    for path in receipt["reports"]:
        if not (stage.params.reports / path).exists():
            # A report can be drawn again from the version in the registry.
            adopted = _version_with(stage)
            again = f" and is made again from {adopted.label}" if adopted else ""
            return Verdict(adopted is not None, f"{stage.params.reports / path} is missing{again}", receipt, adopted)
    return Verdict(True, f"nothing changed since {receipt['started']}", receipt)


def read_receipt(path: Path) -> dict[str, Any] | None:
    """Return a receipt, or None if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        receipt = files.read_json(path)
        inputs = inputs_by_role(receipt["inputs"], path.stem)
        return {**receipt, "inputs": {role: list(refs) for role, refs in inputs.items()}}
    return None


def dataset_of(params: Params, registry: Registry) -> Version:
    """Return the newest data set. Raises StageError when there is none."""
    try:
        return registry.resolve(params.dataset_name)
    except RegistryError:
        todo = f"run make data PROFILE={params.profile}"
        raise StageError(f"there is no {params.dataset_name}; {after_loss(params, registry, todo)}") from None


def after_loss(params: Params, registry: Registry, todo: str = "") -> str:
    """Return what to do where a version is missing: `todo`, or restore the store if records tell of lost versions."""
    paths = params.store_paths
    records = [paths.audit_log, *paths.receipts.glob("*.json"), *params.reports.glob("*.json")]
    told = next((path for path in records if path.exists()), None)
    if told is None or registry.collections():
        return todo
    restore = f"{told} tells of artifacts that are lost: restore {params.store} (docs/operate.md#back-up)"
    return f"{restore}, or {todo}" if todo else restore


def named(params: Params, registry: Registry, reference: str) -> Version:
    """Return the version that a person named. Raises RegistryError that says how to list what there is."""
    try:
        return registry.resolve(reference)
    except RegistryError as error:
        raise RegistryError(f"{error}; make artifacts PROFILE={params.profile} lists what there is") from None


def run(
    stage: Stage, work: Callable[[], Outcome], *, adopt: Callable[[Version], Outcome] | None = None, force: bool = False
) -> Mapping[str, Any]:
    """Run `work` unless the stage is up to date, and return the receipt.

    `adopt` takes an existing version into use (aliases, reports) instead of `work`. Raises files.Locked when another
    process runs the same stage.
    """
    with files.lock(stage.params.store_paths.lock(stage.name)):
        verdict = check(stage)
        if force or not verdict.up_to_date:
            stage.registry.refresh()  # another machine may have made it, or moved an alias
            verdict = check(stage)
        if force or not verdict.up_to_date:
            log.info(f"{stage.name}: running ({'forced' if force else verdict.reason})")
            return execute(stage, work)
        log.info(f"{stage.name}: up to date ({verdict.reason})")
        if (adopted := verdict.adopted) is not None:
            return execute(stage, lambda: adopt(adopted) if adopt else Outcome((adopted,)))
        assert verdict.receipt is not None
        return verdict.receipt


def execute(stage: Stage, work: Callable[[], Outcome]) -> Mapping[str, Any]:
    """Run `work` and write the receipt, last and atomically. Returns the receipt. The caller holds the stage's lock."""
    started, clock = datetime.now(UTC), time.monotonic()
    outcome = work()
    receipt = {
        **stage.provenance(),
        "inputs": stage.inputs,
        "outputs": [version.ref for version in outcome.outputs],
        "reports": [path.relative_to(stage.params.reports).as_posix() for path in outcome.reports],
        "code": stage.code,
        "seed": stage.seed,
        "started": started.isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - clock, 3),
        "metrics": dict(outcome.metrics),
    }
    files.write_json(stage.params.store_paths.receipt(stage.name), receipt)
    return receipt


def _version_with(stage: Stage) -> Version | None:
    """Return the newest version in the registry that records the stage's fingerprint."""
    if not stage.artifacts:
        return None
    matching = stage.registry.with_fingerprint(stage.artifacts, stage.fingerprint)
    if stage.unfinished:
        matching = [v for v in matching if not stage.unfinished(v.metadata.get("metrics", {}))]
    return max(matching, key=lambda version: version.created, default=None)


def first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first difference of two nested mappings as `section.key changed: before -> now`."""
    before, now = flatten(before), flatten(now)
    return next((f"{key} changed: {before.get(key)} -> {now.get(key)}" for key in changes(before, now)), None)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ, sorted."""
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def flatten(value: Mapping[str, Any], levels: int = 99) -> dict[str, Any]:
    """Return a nested mapping as one of section.key -> value, flattened to `levels` levels."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and levels > 1:
            flat |= {f"{key}.{name}": inner for name, inner in flatten(item, levels - 1).items()}
        else:
            flat[key] = item
    return flat


def _difference(stage: Stage, receipt: Mapping[str, Any]) -> str:
    """Return the first difference between a receipt and the stage."""
    if change := first_change(receipt["params"], stage.identity):
        return change
    for role, refs in stage.inputs.items():
        if receipt["inputs"].get(role) != refs:
            return f"its input changed: {role}"
    changed = changes(receipt["code"], stage.code)
    return f"code changed: {', '.join(changed)}" if changed else "its inputs changed"


def _git() -> dict[str, Any]:
    """Return the commit of the code and whether files differ from it; None outside a checkout."""

    def ask(*arguments: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(
                ["git", "-C", str(fingerprint.PACKAGE), *arguments],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            )
            return answer.stdout.strip()
        return None

    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": ask("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
