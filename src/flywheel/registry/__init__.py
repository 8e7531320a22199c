"""Versioned artifacts behind one interface; `local` is the store on disk."""

from flywheel.registry.local import Registry, RegistryError, Version

__all__ = ["Registry", "RegistryError", "Version"]
