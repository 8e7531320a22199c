"""Three turns of the wheel by the real commands, with a real server in between: links, lineage, feedback, disk."""

from __future__ import annotations

from pathlib import Path

import parents
import pytest
import requests
from served import ROOT, SETTINGS, Server, free_port, serving

from flywheel import files
from flywheel.data import dataset
from flywheel.models import classifier
from flywheel.params import file as params_file
from flywheel.registry import LocalRegistry
from flywheel.traffic import feedback

SMALL = (
    "data.image_size=16 retrain.epochs=2 retrain.min_failures=1 retrain.learning_rate_scale=1 gate.margin=0.2 "
    "gate.class_margin=0.5 tracking.wandb=disabled sweep.epochs=6"
)


@pytest.fixture
def wheel(tmp_path: Path) -> Server:
    """A data set of digits and a parent, trained for six epochs, in production."""
    paths = f"paths.store={tmp_path / 'store'} paths.reports={tmp_path / 'reports'} paths.cache={tmp_path / 'cache'}"
    overrides = f"{paths} serve.port={free_port()} {SETTINGS} {SMALL}"
    params = params_file.load(ROOT / "params.yaml", "demo", overrides)
    registry = LocalRegistry(params.store)
    server = Server(params, registry, tmp_path, overrides)
    assert server.run("data").endswith("[exit 0]")
    parents.produce(params, registry, tmp_path / "parent", params.sweep.epochs)
    return server


@pytest.mark.long
def test_three_turns_count_nothing_twice_and_leave_a_lineage(wheel: Server) -> None:
    params, registry = wheel.params, wheel.registry
    images = dataset.open_directory(registry.open(registry.resolve(params.dataset_name)))
    sizes, listed, retrained = [], [], []
    with serving(wheel):
        for turn in range(1, 4):
            before = files.size_of(params.store / "registry")
            serving_model = registry.resolve(f"{params.registered_model}:production")
            printed = wheel.run("simulate")
            assert printed.endswith("[exit 0]"), printed
            report = files.read_json(params.reports / "simulation.json")
            assert report["models"] == {serving_model.label: 547}

            # What the server answered is what the model says.
            loaded = classifier.load(registry.open(serving_model))
            index = images.indices["simulation"]
            wrong = loaded.predict(images.images[index]).argmax(axis=1) != images.labels[index]
            assert abs(int(wrong.sum()) - report["failures"]) <= 1

            newest = feedback.latest(params, registry)
            assert newest is not None
            examples = feedback.read(registry, newest)
            assert len({example.hash for example in examples}) == len(examples)
            assert set(listed[-1] if listed else ()) <= {example.hash for example in examples}
            listed.append([example.hash for example in examples])

            printed = wheel.run("retrain")
            assert printed.endswith("[exit 0]"), printed
            if "nothing to do" in printed:
                break
            outcome = files.read_json(params.reports / "retrain.json")
            assert outcome["parent"] == serving_model.ref
            assert outcome["feedback"] == newest.ref
            candidate = registry.resolve(outcome["candidate"])
            assert candidate.label == f"retrained-model:v{turn - 1}"
            assert [candidate.input(role) for role in ("dataset", "feedback", "parent")] == [
                images_ref(wheel),
                newest.ref,
                serving_model.ref,
            ]
            retrained.append(candidate)
            again = wheel.run("retrain")
            assert "nothing to do (every failure" in again
            assert again.endswith("[exit 0]")
            aliases = registry.aliases(params.registered_model)
            assert aliases["candidate"] == candidate.ref
            if outcome["promoted"]:
                assert (aliases["production"], aliases["previous"]) == (candidate.ref, serving_model.ref)
                wait_until_served(wheel, candidate.label)
            sizes.append(files.size_of(params.store / "registry") - before)
    assert len(retrained) >= 2
    most = 2 * retrained[0].size + 1_000_000  # a model, the feedback list, manifests
    assert max(sizes) < most, (sizes, most)
    ancestors = {version.name for _, _, version in registry.lineage(retrained[-1]) if version is not None}
    assert {"digits_dataset", "digits-feedback", "retrained-model", "model-1"} <= ancestors
    history = [move for move in registry.history(params.registered_model) if move["alias"] == "production"]
    assert len(history) == 1 + sum(move["to"].startswith("retrained-model@") for move in history)


@pytest.mark.long
def test_a_running_server_follows_a_rollback_without_a_failed_request(wheel: Server) -> None:
    with serving(wheel):
        wheel.run("simulate")
        wheel.run("retrain", "--force")
        promoted = wheel.registry.resolve(f"{wheel.params.registered_model}:production")
        assert promoted.label == "retrained-model:v0"
        wait_until_served(wheel, promoted.label)
        assert "model-1:v0 is in production again" in wheel.run("rollback")
        wait_until_served(wheel, "model-1:v0")
        assert "retrained-model:v0" in wheel.run("history")


def images_ref(wheel: Server) -> str:
    return wheel.registry.resolve(wheel.params.dataset_name).ref


def wait_until_served(wheel: Server, label: str) -> None:
    """Wait for the server to answer with a model; every request on the way must be answered."""
    for _ in range(600):
        answer = requests.get(f"{wheel.url}/model", timeout=60)
        assert answer.status_code == 200
        if answer.json()["model"] == label:
            return
    raise AssertionError(f"{label} is not served")
