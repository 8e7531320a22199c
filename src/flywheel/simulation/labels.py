"""Send the truth to POST /feedback, as an application would that learns it later (simulate.truth=api)."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from flywheel import files
from flywheel.params import Params
from flywheel.registry import Version
from flywheel.simulation import SimulationError
from flywheel.simulation.client import Client, NoAnswer
from flywheel.simulation.result import Result
from flywheel.traffic import sampling
from flywheel.traffic.labels import STORED
from flywheel.traffic.sampling import Drawn, Sample

log = logging.getLogger(__name__)

ROWS = 1_000  # the most that the server takes in a request
LABELLER = "simulate"


def token(params: Params) -> str:
    """Return the token that the server asks for. Raises SimulationError that says where to get it."""
    path = params.store_paths.token
    found = os.environ.get("FLYWHEEL_TOKEN", "").strip()
    if not found and path.exists():
        found = path.read_text().strip()
    if not found:
        raise SimulationError("simulate.truth=api needs the server's token; set FLYWHEEL_TOKEN")
    return found


def send(
    params: Params, url: str, secret: str, result: Result, labels: Sequence[str], models: Mapping[str, Version | None]
) -> Counter[str]:
    """Send the labels of a part of the predictions; return how many have each status.

    The part, `simulate.label_fraction`, is drawn at random and recorded as a sample first, for each model. Each label
    waits until `simulate.label_delay_s` after the last answer. Raises SimulationError when the server takes none.
    """
    options = params.simulate
    count = round(options.label_fraction * len(result.predictions))
    chosen = np.random.default_rng(options.seed).permutation(len(result.predictions))[:count]
    for model in sorted({result.predictions[i].model for i in chosen}):
        answered = [i for i, one in enumerate(result.predictions) if one.model == model]
        drawn = [i for i in chosen if result.predictions[i].model == model]
        version = models[model]
        images = tuple(
            Drawn(
                prediction_id=result.predictions[i].prediction_id,
                hash=result.dataset.hashes[result.index[i]].tobytes().hex(),
                probability=len(drawn) / len(answered),
                prediction=result.dataset.class_names[result.classes[i]],
                confidence=float(result.confidence[i]),
            )
            for i in drawn
        )
        sample = Sample(
            number=sampling.next_number(params.store_paths), made=files.timestamp(),
            model=version.ref if version else model, population=len(answered),
            mean_confidence=float(result.confidence[answered].mean()), images=images, labeller=LABELLER,
        )  # fmt: skip
        sampling.write(params.store_paths, sample)
    time.sleep(options.label_delay_s)
    client, counts = Client(url, options), Counter[str]()
    for start in range(0, count, ROWS):
        rows = [
            {"prediction_id": result.predictions[i].prediction_id, "label": labels[i], "labeller": LABELLER}
            for i in chosen[start : start + ROWS]
        ]
        answer = client.give_labels(rows, secret)
        if isinstance(answer, NoAnswer):
            raise SimulationError(f"{url}/feedback does not take labels: {answer.reason}; see docs/traffic.md")
        counts.update(answer)
    refused = sum(number for status, number in counts.items() if status not in (*STORED, "duplicate"))
    if refused:
        log.warning(f"simulate: {refused:,} labels were refused")
    return counts
