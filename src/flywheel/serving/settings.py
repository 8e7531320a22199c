"""What a server is to be: where it listens, which settings and code it has, which model it serves."""

from __future__ import annotations

import socket

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import fingerprint
from flywheel.registry import LocalRegistry, RegistryError, Version
from flywheel.serving import ServingError
from flywheel.tracking.mirror import Mirror
from flywheel.tracking.remote import abandon


def digest(params: Params) -> str:
    """Return the digest of all that decides how a server behaves, but the model: that it follows by itself."""
    modules = fingerprint.digests("flywheel.serving.deployment", "flywheel.models.classifier")
    return files.digest_json({"serve": params.serve.model_dump(), "model": params.registered_model, "code": modules})


def url(params: Params) -> str:
    """Return where clients on this machine reach the server."""
    host = params.serve.host
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{params.serve.port}"


def port_trouble(params: Params) -> str | None:
    """Return why serve.host and serve.port cannot be listened on, or None."""
    family = socket.AF_INET6 if ":" in params.serve.host else socket.AF_INET
    with socket.socket(family) as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
        try:
            trying.bind((params.serve.host, params.serve.port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def production(params: Params, *, ask_wandb: bool = True) -> Version:
    """Return the production model, every byte verified. Raises ServingError that says what to type.

    With `ask_wandb` W&B is asked too, when online: for where production is, and for a model that is not here.
    """
    registry = Mirror(params) if ask_wandb else LocalRegistry(params.store)
    registry.refresh()
    ref = registry.aliases(params.registered_model).get("production")
    profile = f"PROFILE={params.profile}"
    if ref is None:
        raise ServingError(f"{params.registered_model} has no production model; run make data sweep evaluate {profile}")
    try:
        version = registry.resolve(ref)
        registry.open(version)
    except RegistryError as error:
        raise ServingError(f"the production model cannot be served: {error}; run make rollback {profile}") from None
    finally:
        abandon()  # W&B's process is not needed while serving
    return version
