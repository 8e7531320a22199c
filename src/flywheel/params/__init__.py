"""The params of params.yaml: typed, validated, frozen."""

from flywheel.params.data import Data, Drift
from flywheel.params.operation import Gate, Retrain, Serve, Simulate, Tracking, Traffic
from flywheel.params.paths import StorePaths
from flywheel.params.sections import (
    ARCHITECTURES,
    RETRAINED_NAME,
    WEIGHT_DECAY,
    Choices,
    Params,
    Range,
    Recipe,
    RecipeDefaults,
    Scalar,
    Sweep,
)

__all__ = [
    "ARCHITECTURES",
    "RETRAINED_NAME",
    "WEIGHT_DECAY",
    "Choices",
    "Data",
    "Drift",
    "Gate",
    "Params",
    "Range",
    "Recipe",
    "RecipeDefaults",
    "Retrain",
    "Scalar",
    "Serve",
    "Simulate",
    "StorePaths",
    "Sweep",
    "Tracking",
    "Traffic",
]
