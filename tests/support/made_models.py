"""Models whose answers are made: nothing is trained, and the predictions are the same on every machine.

Each image shows two marks of 2 x 2 black and white pixels on grey: its label, and one of six groups. A model is the
real architecture `compact` with weights set by hand that reads the marks: it predicts the label, except for the images
of the groups named in `wrong`, for which it predicts class 0.

    data = made_models.dataset(params)                 a data set whose images show label and group, built by data.build
    made_models.publish_dataset(registry, params, data)
    model = made_models.model(data.class_names, wrong=(1, 2))             a Classifier
    version = made_models.publish(registry, params, "model-1", model, inputs={"dataset": ...})
    made_models.predicted(labels, groups, wrong=(1, 2))                   what it predicts for such images
    made_models.images([3, 4], groups=[0, 1])                             single images, for a server
    made_models.produce(registry, params, wrong=(3,))                     both published, the model in production

Of the images of `dataset`, the parts of the groups are GROUPS. Images are 8 pixels wide; 16 and more work too. At most
ten classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flywheel.data import build
from flywheel.data import dataset as datasets
from flywheel.data.dataset import Dataset, Images, SourceImages, Split
from flywheel.models.classifier import Classifier
from flywheel.params import Drift, Params
from flywheel.registry import Registry, Version

SIZE = 8
GROUPS = (0.60, 0.04, 0.04, 0.12, 0.10, 0.10)
DIGITS = tuple(str(digit) for digit in range(10))
# The sixteen patterns of 2 x 2 pixels, as -1 (black) and 1 (white): 0 to 9 are labels, the last six are groups.
PATTERNS = np.array([[2 * (number >> bit & 1) - 1 for bit in range(4)] for number in range(16)]).reshape(16, 2, 2)
FIRST_GROUP = 10
NOISE = 4  # of 255: makes every image another, and no mark unreadable


def images(
    labels: Sequence[int] | NDArray[np.int64],
    groups: Sequence[int] | NDArray[np.int64] | int = 0,
    *,
    size: int = SIZE,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Return images (n, size, size, 3) that show labels and groups."""
    noise = np.random.default_rng(seed).integers(-NOISE, NOISE + 1, (len(labels), size, size, 3))
    pixels = 127.5 + noise
    labels, groups = np.asarray(labels), np.broadcast_to(groups, len(labels))
    for corner, patterns in ((0, PATTERNS[labels]), (3, PATTERNS[FIRST_GROUP + groups])):
        pixels[:, corner : corner + 2, corner : corner + 2] += 123 * patterns[..., None]
    return pixels.clip(0, 255).astype(np.uint8)


def groups(pixels: Images) -> NDArray[np.int64]:
    """Return the groups that images (n, s, s, 3) show, (n,)."""
    marks = np.sign(np.asarray(pixels)[:, 3:5, 3:5, 0].astype(int) - 128)
    found: NDArray[np.int64] = (marks[:, None] == PATTERNS[FIRST_GROUP:]).all(axis=(2, 3)).argmax(axis=1)
    return found


def predicted(labels: NDArray[np.int64], groups: NDArray[np.int64], wrong: Iterable[int] = ()) -> NDArray[np.int64]:
    """Return the classes that a model with these wrong groups predicts."""
    return np.where(np.isin(groups, list(wrong)), 0, labels)


def model(
    class_names: Sequence[str] = DIGITS, wrong: Iterable[int] = (), *, size: int = SIZE, logit: float = 0.6
) -> Classifier:
    """Return a model that predicts the label that an image shows, and class 0 for images of the groups `wrong`.

    Its confidence rises with `logit`: about 0.9 at the default.
    """
    made = Classifier("compact", class_names, (0.5,) * 3, (0.5,) * 3, size)
    made.precision = "float32"
    network: Any = made.network
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.requires_grad and "bias" not in name:
                weight.zero_()
        # A pattern that is shown gives 8 at one position, every other at most -8, which GELU makes 0.
        first = torch.from_numpy(PATTERNS).float()[:, None] * 8 / 3
        network[0].weight.copy_(first.expand(-1, 3, -1, -1))
        network[0].bias.fill_(-24)
        for layer in network[1:]:
            if isinstance(layer, torch.nn.Conv2d):  # hands the sixteen channels on
                layer.weight[range(16), range(16), 1, 1] = 1
        head = network[-1].weight
        head[range(len(class_names)), range(len(class_names))] = logit
        for group in wrong:
            head[0, FIRST_GROUP + group] = 2 * logit
    return made.eval()


def dataset(
    params: Params,
    *,
    train: int = 120,
    test: int = 200,
    simulation: int = 150,
    classes: int = 10,
    seed: int = 0,
    drift: Drift | None = None,
) -> Dataset:
    """Return a data set of made images; splits, sides and hashes as the stage `data` makes them."""
    random = np.random.default_rng(seed)

    def split(count: int, number: int) -> Split:
        labels = np.arange(count) % classes
        shown = random.choice(len(GROUPS), count, p=GROUPS)
        pixels = images(labels, shown, size=params.data.image_size, seed=2 * seed + number)
        return Split(pixels, labels, np.arange(count))

    source = SourceImages(DIGITS[:classes], split(train, 0), split(test + simulation, 1), test)
    none = params.data.drift.model_copy(update=dict.fromkeys(type(params.data.drift).model_fields, 0.0))
    return build.build(source, params.data.model_copy(update={"drift": drift or none}))


def publish_dataset(registry: Registry, params: Params, data: Dataset) -> Version:
    """Publish a data set as the stage `data` does."""
    with tempfile.TemporaryDirectory() as folder:
        datasets.save(data, Path(folder))
        return registry.publish(params.dataset_name, "dataset", Path(folder), metadata=dict(data.description))


def publish(
    registry: Registry, params: Params, name: str, made: Classifier, *, inputs: Any = None, seed: int = 0
) -> Version:
    """Publish a model with a recipe of the params. Another `seed` gives another version with the same answers."""
    recipe = params.complete_recipe({"architecture": "compact", "precision": "float32", "seed": seed}, 1).model_dump()
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder), recipe)
        return registry.publish(name, "model", Path(folder), metadata={"recipe": recipe}, inputs=inputs or {})


def produce(registry: Registry, params: Params, wrong: Iterable[int]) -> Version:
    """Publish a data set and a model of it, model-1, which is put into production; return the model."""
    data = publish_dataset(registry, params, dataset(params))
    version = publish(registry, params, "model-1", model(wrong=wrong), inputs={"dataset": data.ref})
    registry.link(version, params.registered_model, ("best", "production"), reason="the parent of a test")
    return version
