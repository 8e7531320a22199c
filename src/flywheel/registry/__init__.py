"""Versioned artifacts in the store on disk. Knows nothing of W&B."""

from flywheel.registry.manifest import Inputs, RegistryError, Version, inputs_by_role
from flywheel.registry.registry import Registry

__all__ = ["Inputs", "Registry", "RegistryError", "Version", "inputs_by_role"]
