"""The stage `simulate`: the simulation images as production traffic, and what the server got wrong as feedback.

It always runs. Of an interrupted run nothing stays: everything is published after the last answer.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import server_record, stage
from flywheel.pipeline.stage import StageError
from flywheel.registry import Registry
from flywheel.traffic import feedback

if TYPE_CHECKING:
    from flywheel.data.dataset import Dataset
    from flywheel.simulation.result import Result

log = logging.getLogger(__name__)


def run(params: Params, registry: Registry) -> Mapping[str, Any]:
    """Play the traffic, publish the failures, write the reports. Returns what simulation.json holds.

    Raises StageError, SimulationError, and files.Locked when another process simulates.
    """
    with files.lock(params.store_paths.lock("simulate")):
        registry.refresh()
        return _simulate(params, registry)


def server(params: Params) -> tuple[str, str]:
    """Return the server's URL and what to do when it does not answer. Raises StageError when nothing serves."""
    if params.simulate.url is not None:
        return params.simulate.url, "is simulate.url right?"
    command = f"run make serve PROFILE={params.profile}"
    served = server_record.read(params)
    if served is None:
        raise StageError(f"nothing serves profile {params.profile}; {command}")
    return served.url, command


def _simulate(params: Params, registry: Registry) -> Mapping[str, Any]:
    data = stage.dataset_of(params, registry)
    url, remedy = server(params)

    from flywheel.data import dataset
    from flywheel.simulation import result as results
    from flywheel.tracking.runs import Tracker

    options = params.simulate
    opened = dataset.open_directory(registry.open(data))
    serving = _serving(url, remedy, params, opened.class_names)
    places = _draw(options.requests, len(opened.indices["simulation"]), options.seed)
    log.info(f"simulate: {len(places):,} images to {url} ({serving}), {options.concurrency} at a time")
    name = f"simulation-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    told = {"url": url} if params.tracking.machine_info else {}  # it may name a host
    config = {"dataset": data.ref, "model": serving, **options.model_dump(exclude={"url"}), **told}
    with Tracker(params, registry).run("simulate", name, config) as run:
        result = _play(params, url, places, opened)
        models = results.models(result, registry)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        report = {"at": at, "dataset": data.ref, "url": url, **results.measure(result, models, registry)}
        run.log_pictures(results.draw(result, params.reports))
        rows = results.table(result, options.table_rows, options.seed)
        if rows:
            run.log_table("right", results.TABLE_COLUMNS, rows)
            log.info(f"simulate: W&B table of {len(rows):,} of {len(result.right):,} right predictions")
        failed = {result.answers[i].model for i in result.wrong}
        version, added = feedback.publish(
            params, registry, results.examples(opened, result.index[result.wrong]),
            {"dataset": [data.ref], "model": sorted(model.ref for label in failed if (model := models[label]))},
            {"stage": "simulate", "simulation": name},
        )  # fmt: skip
        report |= {"feedback": version.ref if version else None, "feedback_new": added}
        run.used(data, *(model for model in models.values() if model))
        if version and added:
            run.made(version)
        files.append_json_lines(params.store_paths.feedback_log, *_lines(result, report, name))
        files.write_json(params.reports / "simulation.json", report)
        run.summarize({key: report[key] for key in report if key not in {*results.DETAILS, "url"}} | told)
    return report


def _serving(url: str, remedy: str, params: Params, class_names: Sequence[str]) -> str:
    """Return the name of the model that a server says it serves. Raises SimulationError."""
    from flywheel.simulation import SimulationError
    from flywheel.simulation.client import Client

    try:
        described = Client(url, params.simulate).model()
    except SimulationError as error:
        raise SimulationError(f"{error}; {remedy}") from None
    if set(described["classes"]) != set(class_names):
        raise SimulationError(
            f"{described['model']} at {url} knows other classes than {params.dataset_name}; serve a model of this data"
        )
    return str(described["model"])


def _draw(wanted: int | None, available: int, seed: int) -> list[int]:
    """Return which of the simulation images are sent, in their order: a seeded draw without repetition."""
    import numpy as np

    return [int(place) for place in np.random.default_rng(seed).permutation(available)[:wanted]]


def _play(params: Params, url: str, places: Sequence[int], opened: Dataset) -> Result:
    """Send the images and return what came of it.

    Raises SimulationError as soon as more than `simulate.max_error_fraction` went without an answer.
    """
    from tqdm import tqdm

    from flywheel.simulation import SimulationError, client
    from flywheel.simulation.result import Result

    index, most = opened.indices["simulation"], params.simulate.max_error_fraction
    answers: list[client.Answer] = []
    failures: list[client.Failure] = []
    started = time.perf_counter()
    results = client.play(url, params.simulate, places, lambda place: opened.images[index[place]], opened.class_names)
    # disable=None: no bar where nobody looks.
    with contextlib.closing(results):  # whatever ends this ends the traffic
        for found in tqdm(results, "simulate", len(places), leave=False, unit=" images", disable=None):
            if isinstance(found, client.Answer):
                answers.append(found)
                continue
            failures.append(found)
            if len(failures) > most * len(places):
                kinds = Counter(failure.kind for failure in failures)
                raise SimulationError(
                    f"{len(failures)} of {len(failures) + len(answers):,} images got no answer "
                    f"({', '.join(f'{kind} {count}' for kind, count in kinds.items())}), more than "
                    f"simulate.max_error_fraction={most:g} of {len(places):,}; nothing was published; the last reason: "
                    f"{found.reason}"
                )
    wall_s = time.perf_counter() - started
    for kind, count in Counter(failure.kind for failure in failures).items():
        reason = next(failure.reason for failure in failures if failure.kind == kind)
        log.info(f"simulate: {count} without an answer: {reason}")
    return Result(
        opened, sorted(answers, key=lambda a: a.place), sorted(failures, key=lambda failure: failure.place), wall_s
    )


def _lines(result: Result, report: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return what the log of failures gets: a line for each failure and one for the whole simulation."""
    from flywheel.simulation.result import examples

    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    rows: list[dict[str, Any]] = []
    for i, example in zip(result.wrong, examples(result.dataset, result.index[result.wrong]), strict=True):
        answer = result.answers[i]
        rows.append(
            {
                "at": at,
                "simulation": name,
                "event": "failure",
                "id": example.id,
                "hash": example.hash,
                "label": example.label,
                "side": example.side,
                "prediction": result.dataset.class_names[answer.prediction],
                "confidence": round(answer.confidence, 6),
                "model": answer.model,
                "request_id": answer.request_id,
            }
        )
    kept = ("url", "dataset", "n", "accuracy", "accuracy_unseen", "failures", "errors", "models", "feedback")
    return [*rows, {"at": at, "simulation": name, "event": "simulation", **{key: report[key] for key in kept}}]
