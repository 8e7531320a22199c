"""Real traffic by the real commands: serve, labels by the API and on the page, collect, retrain."""

from __future__ import annotations

from pathlib import Path

import made_models
import numpy as np
import pytest
import requests
from served import SETTINGS, Server, of_store, serving
from waiting import wait_until

from flywheel.traffic import feedback, keys, records, sampling

SMALL = (
    "data.image_size=8 retrain.epochs=1 retrain.min_failures=1 traffic.keep_images=1.0 label.budget=5 "
    "tracking.wandb=offline"
)
pytestmark = pytest.mark.long


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A made data set, and a made model in production that answers images of group 3 wrongly."""
    server = of_store(tmp_path, f"{SETTINGS} {SMALL}")
    made_models.produce(server.registry, server.params, (3,))
    return server


def test_labels_of_real_traffic_reach_the_retrained_model(server: Server) -> None:
    params, registry, paths = server.params, server.registry, server.params.store_paths
    truth = np.arange(60) % 10
    images = made_models.images(truth, np.where(truth < 5, 3, 0), size=8, seed=77)
    with serving(server):
        made = [server.prediction_id(image) for image in images]
        wait_until(lambda: len(list(records.read(paths))) == 60, "the records")
        rows = [{"prediction_id": one, "label": str(label)} for one, label in zip(made[:40], truth, strict=False)]
        bearer = {"Authorization": f"Bearer {keys.token(paths)}"}
        answer = requests.post(f"{server.url}/feedback", json=rows, headers=bearer, timeout=30)
        assert answer.json()["counts"] == {"accepted": 40}

        printed, code = server.label_on_the_page({one: str(label) for one, label in zip(made, truth, strict=True)})
        assert (code, "label: 5 of 5 images have a label" in printed) == (0, True), printed
        (sample,) = sampling.read(paths)
        total = len({*made[:40], *(one.prediction_id for one in sample.images)})
        assert f"collect: {total} labelled" in server.run("collect")
        assert "0 new" in server.run("collect")
        newest = feedback.latest(params, registry)
        assert newest is not None
        listed = feedback.read(registry, newest)
        assert sorted(one.chosen for one in listed) == ["sample"] * 5 + ["volunteered"] * (total - 5)
        assert {one.source for one in listed} == {"traffic"}
        assert "60 images kept" in server.run("status")

        server.done("retrain")
    candidate = registry.resolve("retrained-model")
    assert candidate.input("feedback") == newest.ref
    trained = feedback.trained_on(registry, candidate)
    assert trained == {one.hash for one in listed if one.side == "train"}
    assert candidate.metadata["metrics"]["examples"]["wrong"] > 0
    assert "every labelled image" in server.run("retrain")
    token, kept = paths.token.read_bytes(), [path for path in server.folder.rglob("*") if path.is_file()]
    assert [path for path in kept if path.parent == paths.wandb_runs]  # runs are recorded
    assert [path for path in kept if token in path.read_bytes()] == [paths.token]
