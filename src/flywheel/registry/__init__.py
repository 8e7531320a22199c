"""Versioned artifacts in the store on disk. Knows nothing of W&B."""

from flywheel.registry.base import Registry
from flywheel.registry.local import LocalRegistry
from flywheel.registry.manifest import Inputs, RegistryError, Version, inputs_by_role

__all__ = ["Inputs", "LocalRegistry", "Registry", "RegistryError", "Version", "inputs_by_role"]
