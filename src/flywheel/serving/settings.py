"""The settings of a server: its address, the digest of its params and code, and its model."""

from __future__ import annotations

import hashlib
import socket

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import fingerprint, stage
from flywheel.registry import Registry, RegistryError, Version
from flywheel.serving import ServingError
from flywheel.tracking.mirror import mirrored
from flywheel.tracking.remote import kill_wandb
from flywheel.traffic import keys


def digest(params: Params) -> str:
    """Return the digest of the params and code of a server. Without the model: a running server follows production."""
    modules = fingerprint.digests("flywheel.serving.host")
    token = hashlib.sha256(keys.token(params.store_paths).encode()).hexdigest()
    sections = {"serve": params.serve.model_dump(), "traffic": params.traffic.model_dump(), "token": token}
    return files.digest_json({**sections, "model": params.registered_model, "code": modules})


def url(params: Params) -> str:
    """Return the URL for clients on this machine."""
    host = params.serve.host
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{params.serve.port}"


def port_problem(params: Params) -> str | None:
    """Return why a server cannot listen on serve.host and serve.port, or None."""
    family = socket.AF_INET6 if ":" in params.serve.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind((params.serve.host, params.serve.port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def production(params: Params, *, ask_wandb: bool = True) -> Version:
    """Return the production model after verifying its files. Raises ServingError that says what to type.

    With `ask_wandb`, and online, W&B is asked for the newest production alias and for a model that is not here.
    """
    registry = mirrored(params) if ask_wandb else Registry(params.store)
    registry.refresh()
    ref = registry.aliases(params.registered_model).get("production")
    profile = f"PROFILE={params.profile}"
    if ref is None:
        raise ServingError(
            f"{params.registered_model} has no production model; "
            + stage.after_loss(params, registry, f"run make data sweep evaluate {profile}")
            + ", which says why if the gate refuses one"
        )
    try:
        version = registry.resolve(ref)
        registry.open(version)
    except RegistryError as error:
        raise ServingError(f"the production model cannot be served: {error}; run make rollback {profile}") from None
    finally:
        kill_wandb()  # W&B's process is not needed while serving
    return version
