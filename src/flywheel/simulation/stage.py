"""The stage `simulate`: send the simulation images as production traffic, publish their labels as feedback.

It always runs. An interrupted run publishes nothing: everything is published after the last answer.
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
from flywheel.simulation.report import DETAILS, SimulationReport
from flywheel.traffic import feedback
from flywheel.traffic.feedback import Example

if TYPE_CHECKING:
    from flywheel.data.dataset import Dataset
    from flywheel.simulation.result import Result

log = logging.getLogger(__name__)

LOGGED = {"url", "dataset", "n", "accuracy", "accuracy_unseen", "failures", "errors", "models", "feedback"}


def run(params: Params, registry: Registry) -> SimulationReport | None:
    """Send the traffic, publish the labels, write the reports. Returns None without labels (simulate.truth=none).

    Raises StageError, DataError, SimulationError, and files.Locked when another process simulates.
    """
    with files.lock(params.store_paths.lock("simulate")):
        registry.refresh()
        return _simulate(params, registry)


def _simulate(params: Params, registry: Registry) -> SimulationReport | None:
    import numpy as np

    from flywheel.data import dataset
    from flywheel.simulation import labels
    from flywheel.simulation import result as results
    from flywheel.tracking.runs import Tracker

    options, data = params.simulate, stage.dataset_of(params, registry)
    opened = dataset.open_directory(registry.open(data))
    url, serving = _server(params, opened.class_names)
    token = labels.token(params) if options.truth == "api" else ""
    order = np.random.default_rng(options.seed).permutation(len(opened.traffic(options.drift)))
    indices = order[: options.requests].tolist()
    log.info(f"simulate: {len(indices):,} images to {url} ({serving}), {options.concurrency} at a time")
    if options.truth == "none":
        answered = len(_send(params, url, indices, opened).predictions)
        log.info(f"simulate: {answered:,} images were answered; with simulate.truth=none no label is used")
        return None
    name = f"simulation-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    address = {"url": url} if params.tracking.machine_info else {}  # it may name a host
    config = {"dataset": data.ref, "model": serving, **options.model_dump(exclude={"url"}), **address}
    with Tracker(params, registry).run("simulate", name, config) as run:
        result = _send(params, url, indices, opened)
        models = results.models(result, registry)
        measured = results.measure(result, models, registry)
        run.log_pictures(results.draw(result, params.reports))
        rows = results.table(result, options.table_rows, options.seed)
        if rows:
            run.log_table("right", results.TABLE_COLUMNS, rows)
            log.info(f"simulate: W&B table of {len(rows):,} of {len(result.right):,} right predictions")
        labelled = feedback.examples(
            opened, result.index, result.classes, result.confidence,
            label_noise=options.label_noise, seed=options.seed,
        )  # fmt: skip
        sent: Mapping[str, int] = {}
        version, added = None, 0
        if options.truth == "api":
            sent = labels.send(params, url, token, result, [example.label for example in labelled], models)
        else:
            version, added = feedback.publish(
                params, registry, labelled,
                {"dataset": [data.ref], "model": sorted(model.ref for model in models.values() if model)},
                {"stage": "simulate", "simulation": name},
            )  # fmt: skip
        report = SimulationReport(
            at=datetime.now(UTC).isoformat(timespec="seconds"), dataset=data.ref, url=url, drift=options.drift,
            feedback=version.ref if version else None, feedback_new=added, labels=dict(sent), **measured,
        )  # fmt: skip
        run.used(data, *(model for model in models.values() if model))
        if version and added:
            run.made(version)
        files.append_json_lines(params.store_paths.feedback_log, *_log_lines(result, labelled, report, name))
        files.write_json(params.reports / "simulation.json", report.model_dump(mode="json"))
        run.summarize(report.model_dump(mode="json", exclude={*DETAILS, "url", "version"}) | address)
    return report


def _server(params: Params, class_names: Sequence[str]) -> tuple[str, str]:
    """Return the URL of the server and the name of its model. Raises StageError, SimulationError."""
    from flywheel.simulation import SimulationError
    from flywheel.simulation.client import Client

    url, remedy = params.simulate.url, "is simulate.url right?"
    if url is None:
        remedy, served = f"run make serve PROFILE={params.profile}", server_record.read(params)
        if served is None:
            raise StageError(f"nothing serves profile {params.profile}; {remedy}")
        url = served.url
    try:
        described = Client(url, params.simulate).model()
    except SimulationError as error:
        raise SimulationError(f"{error}; {remedy}") from None
    if set(described["classes"]) != set(class_names):
        raise SimulationError(
            f"{described['model']} at {url} knows other classes than {params.dataset_name}; serve a model of this data"
        )
    return url, str(described["model"])


def _send(params: Params, url: str, indices: Sequence[int], opened: Dataset) -> Result:
    """Send the images and return the result.

    Raises SimulationError as soon as more than `simulate.max_error_fraction` have no prediction.
    """
    from tqdm import tqdm

    from flywheel.simulation import SimulationError, client
    from flywheel.simulation.result import Result

    index, most = opened.traffic(params.simulate.drift), params.simulate.max_error_fraction
    predictions: list[client.Prediction] = []
    no_answers: list[client.NoAnswer] = []
    started = time.perf_counter()
    sent = client.send(url, params.simulate, indices, lambda i: opened.images[index[i]], opened.class_names)
    with contextlib.closing(sent):  # an exception here ends the traffic
        # disable=None: no progress bar unless stderr is a terminal.
        for found in tqdm(sent, "simulate", len(indices), leave=False, unit=" images", disable=None):
            if isinstance(found, client.Prediction):
                predictions.append(found)
                continue
            no_answers.append(found)
            if len(no_answers) > most * len(indices):
                kinds = Counter(one.kind for one in no_answers)
                raise SimulationError(
                    f"{len(no_answers)} of {len(no_answers) + len(predictions):,} images got no answer "
                    f"({', '.join(f'{kind} {count}' for kind, count in kinds.items())}), more than "
                    f"simulate.max_error_fraction={most:g} of {len(indices):,}; nothing was published; the last "
                    f"reason: {found.reason}"
                )
    wall_s = time.perf_counter() - started
    for kind, count in Counter(one.kind for one in no_answers).items():
        reason = next(one.reason for one in no_answers if one.kind == kind)
        log.info(f"simulate: {count} without an answer: {reason}")
    predictions.sort(key=lambda one: one.index)
    no_answers.sort(key=lambda one: one.index)
    return Result(opened, predictions, no_answers, wall_s, params.simulate.drift)


def _log_lines(
    result: Result, labelled: Sequence[Example], report: SimulationReport, name: str
) -> list[dict[str, Any]]:
    """Return the lines of the feedback log: one for each answer and one for the simulation."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    base = {"at": at, "simulation": name}
    logged = {"id", "hash", "label", "side", "prediction", "confidence"}
    return [
        *(
            {
                **base,
                "event": "answer",
                **example.model_dump(include=logged),
                "right": example.right,
                "model": one.model,
                "request_id": one.request_id,
            }
            for one, example in zip(result.predictions, labelled, strict=True)
        ),
        {**base, "event": "simulation", **report.model_dump(mode="json", include=LOGGED)},
    ]
