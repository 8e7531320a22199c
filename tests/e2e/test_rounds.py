"""Three rounds of the loop by the real commands, with a real server in between: links, lineage, feedback, disk."""

from __future__ import annotations

from pathlib import Path

import made_models
import numpy as np
import pytest
from served import SETTINGS, Server, of_store, serving

from flywheel import files
from flywheel.data import dataset
from flywheel.models import classifier
from flywheel.traffic import feedback

# Each round's production fails other groups of images, and each round sees other images of the traffic.
WRONG = ((3,), (4,), (5,))
SMALL = "data.image_size=8 retrain.epochs=1 retrain.min_failures=1 promotion.auto=false tracking.wandb=disabled"

pytestmark = pytest.mark.long


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A made data set and a made model in production."""
    server = of_store(tmp_path, f"{SETTINGS} {SMALL}")
    made_models.produce(server.registry, server.params, WRONG[0])
    return server


def test_three_rounds_count_nothing_twice_leave_a_lineage_and_the_server_follows(server: Server) -> None:
    params, registry = server.params, server.registry
    data = registry.resolve(params.dataset_name)
    split = dataset.open_directory(registry.open(data)).split("simulation")
    sizes, listed, retrained = [], [], []
    with serving(server):
        for number in range(1, 4):
            before = files.size_of(params.store / "registry")
            serving_model = registry.resolve(f"{params.registered_model}:production")
            server.done("simulate", extra=f"simulate.requests=60 simulate.seed={number}")
            report = files.read_json(params.reports / "simulation.json")
            assert report["models"] == {serving_model.label: 60}

            # The server's answers are the model's.
            sent = np.random.default_rng(number).permutation(len(split.labels))[:60]
            answered = classifier.load(registry.open(serving_model)).predict(split.images[sent]).argmax(axis=1)
            assert int((answered != split.labels[sent]).sum()) == report["failures"] > 0

            newest = feedback.latest(params, registry)
            assert newest is not None
            examples = feedback.read(registry, newest)
            assert len({example.hash for example in examples}) == len(examples)
            assert set(listed[-1] if listed else ()) < {example.hash for example in examples}
            listed.append([example.hash for example in examples])

            server.done("retrain")
            outcome = files.read_json(params.reports / "retrain.json")
            candidate = registry.resolve(outcome["candidate"])
            assert candidate.label == f"retrained-model:v{number - 1}"
            assert {role: refs[0] for role, refs in candidate.inputs.items()} == {
                "dataset": data.ref, "feedback": newest.ref, "parent": serving_model.ref,
            }  # fmt: skip
            retrained.append(candidate)
            assert "nothing to do (every labelled image" in server.done("retrain")
            assert registry.aliases(params.registered_model)["candidate"] == candidate.ref
            sizes.append(files.size_of(params.store / "registry") - before)  # before the test adds a model
            if number < 3:
                made = made_models.publish(
                    registry, params, f"model-{number + 1}", made_models.model(wrong=WRONG[number]),
                    inputs={"dataset": data.ref, "feedback": newest.ref, "parent": candidate.ref},
                )  # fmt: skip
                server.done("promote", made.label, "--force", "--reason", "the next round")
                aliases = registry.aliases(params.registered_model)
                assert (aliases["production"], aliases["previous"]) == (made.ref, serving_model.ref)
                server.wait_until_served(made.label)
        assert "model-2:v0 is in production again" in server.done("rollback")
        server.wait_until_served("model-2:v0")
    most = 2 * retrained[0].size + 1_000_000  # a model, as version and as blobs; feedback, manifests
    assert max(sizes) < most, (sizes, most)
    ancestors = {ancestor.ref for ancestor in registry.lineage(retrained[-1])}
    assert {version.ref for version in (data, *retrained[:-1], registry.resolve("model-1"))} < ancestors
    moves = [move for move in registry.history(params.registered_model) if move["alias"] == "production"]
    assert len(moves) == 4
