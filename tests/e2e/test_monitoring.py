"""Monitoring by the real commands: drift raises the alarm; labels and a retraining end it."""

from __future__ import annotations

from pathlib import Path

import made_models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from served import SETTINGS, Server, of_store, serving
from waiting import wait_until

from flywheel.data import dataset
from flywheel.data.dataset import Dataset, Images
from flywheel.models import classifier
from flywheel.models.classifier import Classifier
from flywheel.registry import Version
from flywheel.retraining import train
from flywheel.traffic import monitor, records
from flywheel.traffic.monitor_report import MonitorReport
from flywheel.training.loop import TrainingData

SMALL = (
    "data.drift={rotation: 5, noise: 0, blur: 0, brightness: 0, contrast: 0} tracking.wandb=disabled "
    "data.image_size=32 recipe.optimizer=muon recipe.learning_rate=0.04 recipe.batch_size=64 recipe.momentum=0.6 "
    "recipe.translate=2 simulate.truth=none retrain.control=false retrain.epochs=10 gate.margin=0.1 "
    "gate.class_margin=1 label.budget=200 "
    # The retrained model is still less sure of the images with drift than of the test images, and may be.
    "monitor.tolerance=0.08"
)
pytestmark = [pytest.mark.long, pytest.mark.numerics]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Digits with drift in production, and a trained model of them, published twice: model-1 is in production."""
    server = of_store(tmp_path, f"{SETTINGS} {SMALL}")
    server.done("data")
    params, registry = server.params, server.registry
    data = registry.resolve(params.dataset_name)
    images = TrainingData.of(dataset.open_directory(registry.open(data)))
    recipe = params.complete_recipe({"precision": "float32"}, epochs=8)
    model = images.classifier(recipe)
    train.train_arm(model, images, recipe, torch.device("cpu"))
    for seed, name in enumerate(("model-2", "model-1")):
        server.produce(made_models.publish(registry, params, name, model, inputs={"dataset": data.ref}, seed=seed))
    return server


def production(server: Server) -> Version:
    return server.registry.resolve(f"{server.params.registered_model}:production")


def opened(server: Server) -> Dataset:
    return dataset.open_directory(server.registry.open(server.registry.resolve(server.params.dataset_name)))


def accuracy(model: Classifier, images: Images, labels: NDArray[np.int64]) -> float:
    return float((model.predict(images).argmax(axis=1) == labels).mean())


def answered(server: Server) -> dict[str, str]:
    """Return prediction_id -> content hash of what the production model answered."""
    ref = production(server).ref
    return {row["prediction_id"]: row["hash"] for row in records.read(server.params.store_paths) if row["model"] == ref}


def watched(server: Server, expected: int, code: int) -> MonitorReport:
    """Run `monitor --check` once so many predictions of the production model are recorded; return its report."""
    wait_until(lambda: len(answered(server)) == expected, f"{expected} records")
    printed = server.run("monitor", "--check")
    assert printed.endswith(f"[exit {code}]"), printed
    report = monitor.read(server.params)
    assert report is not None
    assert report.model == production(server).ref
    return report


def test_drift_alarms_and_labels_and_a_retraining_end_it(server: Server) -> None:
    data = opened(server)
    total = len(data.indices["simulation"])
    with serving(server):
        # The control: without drift nothing alarms, and nothing is promoted.
        server.wait_until_served("model-1:v0")
        server.done("simulate", extra="simulate.drift=none")
        report = watched(server, total, 0)
        assert (report.alarm.state, report.predictions) == ("quiet", total)
        server.run("retrain")
        assert production(server).label == "model-1:v0"

        server.produce(server.registry.resolve("model-2"))
        server.wait_until_served("model-2:v0")
        server.done("simulate")
        report = watched(server, total, 3)
        assert (report.alarm.state, report.others[0].alarm.state) == ("alarm", "quiet")

        label_of = dict(zip(map(bytes.hex, map(bytes, data.hashes)), data.labels, strict=True))
        truth = {made: data.class_names[label_of[content]] for made, content in answered(server).items()}
        printed, code = server.label_on_the_page(truth)
        assert (code, "200 of 200 images have a label" in printed) == (0, True), printed
        report = watched(server, total, 0)
        assert report.labelled is not None
        drifted = data.split("simulation")
        model = classifier.load(server.registry.open(production(server)))
        assert report.labelled.accuracy == pytest.approx(accuracy(model, drifted.images, drifted.labels), abs=0.1)
        assert "200 labelled" in server.done("collect")
        server.done("retrain")
        assert production(server).label == "retrained-model:v0"

        server.wait_until_served("retrained-model:v0")
        server.done("simulate")
        report = watched(server, total, 0)
        assert report.alarm.state == "quiet"
        assert 150 <= report.predictions == total - report.left_out["trained on"] < total - 100

        # The same images, mirrored: the new model loses far more than 20 points.
        model, sent = classifier.load(server.registry.open(production(server))), drifted.take(slice(0, 200))
        mirrored = np.ascontiguousarray(sent.images[:][:, :, ::-1])
        assert accuracy(model, mirrored, sent.labels) < accuracy(model, sent.images, sent.labels) - 0.2
        for image in mirrored:
            server.prediction_id(image)
        assert watched(server, total + 200, 3).alarm.state == "alarm"
