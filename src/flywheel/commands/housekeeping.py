"""Remove versions that nothing needs, and files that a command can make again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from flywheel import files
from flywheel.gate import history
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.registry import Registry, RegistryError, Version
from flywheel.sweep.checkpoints import CheckpointStore


def unneeded(params: Params, registry: Registry) -> list[Version]:
    """Return the versions that no alias, receipt or kept version needs, oldest first.

    Kept are also the latest data set and feedback, and for each data set the best model that ever was in production,
    because the gate compares with them. Raises RegistryError if a manifest is damaged: nobody knows what that version
    needs.
    """
    if reasons := registry.damaged():
        raise RegistryError(reasons[0])
    versions = [version for name in registry.collections() for version in registry.versions(name)]
    kept = {ref for model in registry.registered_models() for ref in registry.aliases(model).values()}
    for path in sorted(params.store_paths.receipts.glob("*.json")):
        if receipt := stage.read_receipt(path):
            kept |= {*receipt["outputs"], *(ref for refs in receipt["inputs"].values() for ref in refs)}
    kept |= {v.ref for v in versions if v.type != "model" and v == registry.resolve(v.name)}
    kept |= set(history.best_recorded(params, registry))
    for version in versions:
        if version.ref in kept:
            kept |= {ancestor.ref for ancestor in registry.lineage(version)}
    return sorted((v for v in versions if v.ref not in kept), key=lambda version: version.created)


def prune(params: Params, registry: Registry) -> tuple[list[Version], int]:
    """Remove the versions that `unneeded` names. Returns them and the bytes freed.

    Raises files.Locked while a stage runs, because its result may need a version that nothing else needs. A server
    needs only the production model.
    """
    with contextlib.ExitStack() as held:
        for path in sorted({*params.store_paths.locks.glob("*.lock")} - {params.store_paths.lock("serve")}):
            held.enter_context(files.lock(path))
        versions = unneeded(params, registry)
        return versions, registry.remove(versions)


def clean(params: Params) -> list[Path]:
    """Remove the profile's reports and the leftovers of killed runs in its store. Return the removed paths.

    Temporary files stay while a stage runs, checkpoints while a sweep runs. An interrupted sweep then resumes without
    checkpoints.
    """
    paths = params.store_paths
    found = [params.reports, paths.source_digest]
    running = {path.stem for path in paths.locks.glob("*.lock") if files.holder(path) is not None}
    if not running - {"serve"}:  # a server has none
        found.append(paths.all_scratch)
    if "sweep" not in running:
        found.append(Path(params.checkpoints))
        if "://" in params.checkpoints:
            with contextlib.suppress(ImportError, ValueError):  # checkpoints that cannot be written do not exist
                CheckpointStore(params.checkpoints).remove()
    removed = [path for path in found if path.exists()]
    for path in removed:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return removed
