"""Which models were in production, and their recorded accuracy: from the audit log and the lineage.

The audit log lists the promotions of this machine. A fresh machine knows from W&B only the models of `production` and
`previous`; the models that these were retrained from were in production too, and the metadata of each retrained model
holds the test accuracy of its parent and its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flywheel.params import Params
from flywheel.registry import Registry, Version


def ever_in_production(params: Params, registry: Registry) -> list[str]:
    """Return the refs of all models that are or were in production, as far as this store knows."""
    logged = [e["to"] for e in registry.history(params.registered_model) if e["alias"] in ("production", "previous")]
    return list(dict.fromkeys([*(parent for _, _, parent in _retrainings(params, registry)), *logged]))


def best_recorded(params: Params, registry: Registry) -> list[str]:
    """Return for each data set the ref of the model with the best recorded accuracy that was in production."""
    return [max(found, key=lambda ref: found[ref]) for found in _recorded(params, registry).values()]


def contenders(params: Params, registry: Registry) -> list[str]:
    """Return the refs that may be the best model ever in production: the best recorded on each data set.

    Models without a record are included. So the gate runs a few models, however many there were.
    """
    known = {ref for found in _recorded(params, registry).values() for ref in found}
    unknown = [r for r in ever_in_production(params, registry) if r not in known and registry.has(r)]
    return list(dict.fromkeys(best_recorded(params, registry) + unknown))


def _recorded(params: Params, registry: Registry) -> dict[str, dict[str, float]]:
    """Return data set -> model -> test accuracy of the models that were in production and are here."""
    found: dict[str, dict[str, float]] = {}
    for version, dataset, parent in _retrainings(params, registry):
        metrics: Any = version.metadata.get("metrics", {})
        for ref, when in ((parent, "before"), (version.ref, "after")):
            accuracy = ((metrics.get(when) or {}).get("test") or {}).get("accuracy")
            if accuracy is not None:
                found.setdefault(dataset, {})[ref] = accuracy
    for entry in registry.history(params.registered_model):
        record = entry["gate"] or {}
        if record.get("dataset"):
            found.setdefault(record["dataset"], {}).update(record.get("accuracy") or {})
    ever = {ref for ref in ever_in_production(params, registry) if registry.has(ref)}
    kept = {name: {ref: value for ref, value in of.items() if ref in ever} for name, of in found.items()}
    return {name: of for name, of in kept.items() if of}


def _retrainings(params: Params, registry: Registry) -> Iterator[tuple[Version, str, str]]:
    """Yield (retrained model, data set, parent) from production and previous back to the first retraining."""
    aliases, seen = registry.aliases(params.registered_model), set()
    for ref in (aliases.get("production"), aliases.get("previous")):
        while ref is not None and ref not in seen and registry.has(ref):
            seen.add(ref)
            version = registry.resolve(ref)
            dataset, parent = version.input("dataset"), version.input("parent")
            if dataset is None or parent is None:
                break
            yield version, dataset, parent
            ref = parent
