"""The served model gives the probabilities of the evaluated one, and a swap frees the old model."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from served import publish

from flywheel.models import classifier
from flywheel.models.classifier import Classifier
from flywheel.params import ARCHITECTURES, Params
from flywheel.registry import Registry
from flywheel.serving import replica

CLASSES = [str(number) for number in range(10)]


def untrained(architecture: str, precision: str, seed: int = 0) -> Classifier:
    model = Classifier(architecture, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 32, precision, seed)
    return model.move_to(torch.device("cpu")).eval()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=pytest.mark.long) if name == "modified" else name
        for name in ARCHITECTURES
        if name != "upsample"
    ],
)
def test_serving_and_evaluation_agree(architecture: str, precision: str, random: np.random.Generator) -> None:
    model = untrained(architecture, precision)
    images = random.integers(0, 255, (200, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():  # logits as far apart as those of a trained model
        spread = model(torch.from_numpy(images)).std()
        for weight in model.network.parameters():
            if weight.dim() == 2 and len(weight) == len(CLASSES):
                weight.mul_(3 / spread)
    expected, served = model.predict(images), replica.fast(model)(images)
    np.testing.assert_allclose(served.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(served, expected, atol=1e-6)
    assert (served.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_a_model_that_cannot_be_loaded_for_whatever_reason_is_told_and_not_tried_at_each_look(
    params: Params, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (publish(registry, tmp_path, seed) for seed in (1, 2))
    registry.link(old, params.registered_model, ("production",), reason="a test")
    served = replica.Replica(params.store, params.registered_model, threads=1, cuda=False, max_batch_size=1)
    registry.link(new, params.registered_model, ("production",), reason="a test")
    monkeypatch.setattr(classifier, "load", lambda *_: int([]))  # type: ignore[call-overload]
    for _ in range(2):
        served.check()
        assert (served.failed_swaps, served.model.version) == (1, old)
        assert f"{new.ref} is in production but cannot be served: int()" in str(served.swap_error)


def test_swaps_free_the_old_models() -> None:
    def load(seed: int) -> int:
        replica.fast(untrained("standard", "auto", seed))(np.zeros((2, 32, 32, 3), dtype=np.uint8))
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    early = [load(seed) for seed in range(3)][-1]
    late = [load(seed) for seed in range(6)][-1]
    assert late - early < 100_000_000  # a model is 45 MB, and six were loaded
