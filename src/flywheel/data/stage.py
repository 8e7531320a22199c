"""The stage `data`: publish a source's images as the artifact <data.name>_dataset, and draw samples of each split."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage
from flywheel.registry import Registry, Version


def define(params: Params, registry: Registry) -> Stage:
    """Return the stage for the params. The content of a source folder is an input."""
    inputs = {}
    if params.data.path is not None:
        from flywheel.data import source_files

        inputs["source"] = source_files.content_digest(
            Path(params.data.path).expanduser(), params.store_paths.source_digest
        )
    return Stage(
        "data",
        params,
        registry,
        {"data": params.data.identity()},
        inputs,
        ("flywheel.data.build", "flywheel.data.sources"),
        seed=params.data.seed,
        artifacts=params.dataset_name,
    )


def run(params: Params, registry: Registry, *, force: bool = False) -> Mapping[str, Any]:
    """Build the data set unless it is up to date. Returns the receipt."""
    defined = define(params, registry)

    def work() -> Outcome:
        from flywheel.data import build, dataset, sources
        from flywheel.tracking.runs import Tracker

        with Tracker(params, registry).run("data", "data", params.data.identity()) as run:
            scratch = params.store_paths.scratch("data")
            shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
            scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=scratch) as name:
                directory = Path(name)
                built = build.build(sources.load(params.data, params.cache, directory), params.data, directory)
                dataset.save(built, directory)
                version = registry.publish(
                    params.dataset_name, "dataset", directory, metadata={**defined.provenance(), **built.description}
                )
            outcome = _finish(params, registry, version)
            run.made(version)
            run.summarize({"artifact": version.ref, **outcome.metrics})
            run.log_pictures(outcome.reports)
        return outcome

    def adopt(version: Version) -> Outcome:
        registry.set_latest(version)
        return _finish(params, registry, version)

    return stage.run(defined, work, adopt=adopt, force=force)


def _finish(params: Params, registry: Registry, version: Version) -> Outcome:
    from flywheel.data import dataset, plots
    from flywheel.data.splits import SPLITS

    # The stage is locked, so files here are from a run that was killed.
    shutil.rmtree(params.store_paths.scratch("data"), ignore_errors=True)
    opened = dataset.open_directory(registry.open(version))
    description = opened.description
    drifts = ", ".join(f"{kind} {severity:g}" for kind, severity in description["drift"].items() if severity)
    drawn = []
    for name in SPLITS:
        split = opened.split(name)
        drifted = f" ({drifts})" if drifts and name == "simulation" else ""
        title = f"{description['name']}: {name}, {len(split.labels):,} images{drifted}"
        path = params.reports / f"samples_{name}.png"
        drawn.append(plots.sample_grid(split.images, split.labels, opened.class_names, title, path))
    metrics = {
        key: description[key]
        for key in ("splits", "holdout", "duplicates", "skipped", "files", "mean", "std")
        if key in description
    }
    return Outcome((version,), tuple(drawn), metrics)
