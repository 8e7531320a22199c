"""Versioned artifacts in the store on disk. Knows nothing of W&B."""

from flywheel.registry.local import Registry
from flywheel.registry.manifest import Inputs, RegistryError, Version, inputs_by_role

__all__ = ["Inputs", "Registry", "RegistryError", "Version", "inputs_by_role"]
