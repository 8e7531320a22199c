"""The model in production from which rounds of the loop start, really trained."""

from __future__ import annotations

from pathlib import Path

from flywheel.data import dataset
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.training.loop import TrainingData, fit


def produce(params: Params, registry: Registry, folder: Path, epochs: int) -> Version:
    """Train a model with the params' recipe on the newest data set, publish it, and put it into production."""
    data = registry.resolve(params.dataset_name)
    images = TrainingData.of(dataset.open_directory(registry.open(data)))
    recipe = params.complete_recipe({}, epochs)
    model = images.classifier(recipe)
    for _ in fit(model, images, recipe, model.device):
        pass
    model.save(folder, recipe.model_dump())
    metadata = {"recipe": recipe.model_dump()}
    version = registry.publish("model-1", "model", folder, metadata=metadata, inputs={"dataset": data.ref})
    registry.link(version, params.registered_model, ("best", "production"), reason="the parent of a test")
    return version
