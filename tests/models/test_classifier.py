"""The classifier: uint8 in, probabilities out, the same after saving and loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from flywheel import files, params
from flywheel.models import ModelError, classifier
from flywheel.models import device as devices
from flywheel.models.architectures import ARCHITECTURES, architecture
from flywheel.models.classifier import Classifier
from flywheel.models.compact import Halve, compact
from flywheel.models.resnet import resnet

CPU = torch.device("cpu")
NAMES = tuple("abc")


def make(name: str = "compact", precision: str = "float32", size: int = 32, seed: int = 0) -> Classifier:
    made = Classifier(name, NAMES, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size, precision, seed)
    return made.move_to(CPU).eval()


@pytest.fixture
def images(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_every_architecture_gives_probabilities_for_any_image_size(name: str, size: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    probabilities = make(name, size=size).predict(images)
    assert probabilities.shape == (2, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_params_name_the_same_architectures() -> None:
    assert set(ARCHITECTURES) == set(params.ARCHITECTURES)


def test_upsample_enlarges_the_images_and_modified_keeps_the_resolution_that_standard_quarters() -> None:
    sides: dict[str, list[int]] = {}
    for name in ("standard", "upsample", "modified"):
        model = make(name)
        for module in (model.network, model.network.layer1):
            module.register_forward_pre_hook(  # type: ignore[union-attr]
                lambda _, inputs, name=name: sides.setdefault(name, []).append(inputs[0].shape[-1])
            )
        model.predict(np.zeros((1, 32, 32, 3), np.uint8))
    assert sides == {"standard": [32, 8], "upsample": [224, 56], "modified": [32, 32]}


@pytest.mark.parametrize("size", [8, 16, 32, 48])
def test_standard_computes_what_torchvisions_network_computes(size: int) -> None:
    networks = []
    for build in (resnet, lambda classes: resnet18(num_classes=classes)):
        torch.manual_seed(0)
        networks.append(build(3).double())  # so that rounding is no question
    ours, published = networks
    for (name, weights), (expected_name, expected) in zip(
        ours.state_dict().items(), published.state_dict().items(), strict=True
    ):
        assert name == expected_name
        assert torch.equal(weights, expected)
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for network in (ours, published):
        logits = network(x)
        logits.square().sum().backward()
        results.append([logits.detach(), *(weights.grad for weights in network.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_preprocessing_is_the_textbooks(images: np.ndarray) -> None:
    model = make()
    seen: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.predict(images)
    expected = (images / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    np.testing.assert_allclose(seen[0].numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_saved_model_loads_to_the_same_probabilities(images: np.ndarray, tmp_path: Path) -> None:
    model = make("standard", seed=3)
    model.save(tmp_path, {"learning_rate": 0.1})
    loaded = classifier.load(tmp_path, CPU, "float32")
    np.testing.assert_array_equal(loaded.predict(images), model.predict(images))
    assert (loaded.class_names, loaded.architecture, loaded.image_size) == (NAMES, "standard", 32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert files.read_json(tmp_path / "model.json")["recipe"] == {"learning_rate": 0.1}


def test_the_seed_decides_the_weights_and_leaves_torchs_own_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two, other = (make(seed=seed).network.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    first = next(iter(one))
    assert torch.equal(one[first], two[first])
    assert not torch.equal(one[first], other[first])


def test_predictions_do_not_depend_on_the_batch_size(images: np.ndarray) -> None:
    model = make()
    alone = np.concatenate([model.predict(image[None]) for image in images])
    np.testing.assert_allclose(model.predict(images), alone, atol=1e-5)


def test_large_images_are_predicted_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "PREDICT_PIXELS", 4 * 64 * 64)
    model, sizes = make(size=64), list[int]()
    model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    model.predict(np.zeros((10, 64, 64, 3), np.uint8))
    assert sizes == [4, 4, 2]
    model.predict(np.zeros((20, 32, 32, 3), np.uint8))
    assert sizes[3:] == [16, 4]


MEMORY_OF_PREDICTIONS = """
import sys
import numpy as np
import psutil
import torch
from flywheel.data.dataset import ImageRows
from flywheel.models.classifier import Classifier

images = ImageRows.of(np.load(sys.argv[1], mmap_mode="r"))
model = Classifier("compact", ["a", "b"], [0.5] * 3, [0.25] * 3, 224, "float32")
model.network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))

def private(count):
    model.predict(images.select(np.arange(count)))
    used = psutil.Process().memory_info()
    return used.rss - used.shared

print(-private(100) + private(1600))
"""


def test_the_memory_of_predictions_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """1,600 images of 224 pixels are 241 MB; the file is sparse."""
    np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (1600, 224, 224, 3)).flush()
    command = [sys.executable, "-c", MEMORY_OF_PREDICTIONS, str(tmp_path / "images.npy")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 120e6


def test_predicting_leaves_the_mode_as_it_was(images: np.ndarray) -> None:
    model = make().train()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.predict(images)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())


def test_bfloat16_changes_no_more_than_a_rounding(images: np.ndarray, tmp_path: Path) -> None:
    make().save(tmp_path, {})
    exact = classifier.load(tmp_path, CPU, "float32").predict(images)
    rounded = classifier.load(tmp_path, CPU, "bfloat16").predict(images)
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.02)


def test_a_model_computes_in_the_precision_of_its_recipe(tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        make().save(tmp_path, {"precision": precision})
        assert classifier.load(tmp_path, CPU).precision == precision


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert devices.resolve_precision("auto", CPU) == "bfloat16"
    for limit, precision in (("AVX512_CORE_BF16", "bfloat16"), ("AVX512_CORE", "float32"), ("avx2", "float32")):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert devices.resolve_precision("auto", CPU) == precision
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert devices.resolve_precision("auto", CPU) == "float32"
    assert devices.resolve_precision("bfloat16", CPU) == "bfloat16"
    with pytest.raises(ModelError, match=r"recipe\.precision"):
        devices.resolve_precision("bfloat16", torch.device("mps"))


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="unknown architecture 'standart'; did you mean standard"):
        architecture("standart")


@pytest.mark.parametrize("damage", ["absent", "truncated", "other", "format", "not json", "no key"])
def test_what_is_not_a_model_is_refused(tmp_path: Path, damage: str) -> None:
    make().save(tmp_path, {})
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    described = files.read_json(description)
    {
        "absent": weights.unlink,
        "truncated": lambda: weights.write_bytes(weights.read_bytes()[:1000]),
        "not json": lambda: description.write_text("{"),
        "other": lambda: files.write_json(description, {**described, "architecture": "standard"}),
        "format": lambda: files.write_json(description, {**described, "format": 99}),
        "no key": lambda: files.write_json(description, {k: v for k, v in described.items() if k != "mean"}),
    }[damage]()
    with pytest.raises(ModelError) as caught:
        classifier.load(tmp_path, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "sides"), [(8, [7, 3, 1, 1]), (32, [31, 15, 7, 3])])
def test_compact_halves_its_maps_until_one_pixel_is_left(size: int, sides: list[int]) -> None:
    network = compact(10)
    seen: list[int] = []
    for layer in network:
        if isinstance(layer, torch.nn.Conv2d | Halve):
            layer.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert seen == [sides[0], *[side for k in range(3) for side in (sides[k], sides[k + 1], sides[k + 1])]]
    pixels = torch.arange(2.0 * 3 * 4 * 4).view(2, 3, 4, 4)
    assert torch.equal(Halve()(pixels), pixels[..., 1::2, 1::2])
    assert torch.equal(Halve()(pixels[..., :1, :1]), pixels[..., :1, :1])


def test_an_untrained_compact_is_nearly_undecided(images: np.ndarray) -> None:
    fresh = make("compact").train()
    logits = fresh(torch.from_numpy(images)).detach()
    assert 0.01 < logits.std() < 0.3  # nine times as much without its small first weights
