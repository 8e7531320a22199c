"""The params of params.yaml: typed, validated, frozen."""

from flywheel.params.paths import StorePaths
from flywheel.params.sections import (
    ARCHITECTURES,
    RETRAINED_NAME,
    WEIGHT_DECAY,
    Data,
    Drift,
    Gate,
    Params,
    Recipe,
    RecipeDefaults,
    Retrain,
    Serve,
    Simulate,
    Sweep,
    Tracking,
)

__all__ = [
    "ARCHITECTURES",
    "RETRAINED_NAME",
    "WEIGHT_DECAY",
    "Data",
    "Drift",
    "Gate",
    "Params",
    "Recipe",
    "RecipeDefaults",
    "Retrain",
    "Serve",
    "Simulate",
    "StorePaths",
    "Sweep",
    "Tracking",
]
