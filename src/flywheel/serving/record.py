"""store/<profile>/serve.json: what serves this profile, and how to reach it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests

from flywheel import code, files
from flywheel.params import Params
from flywheel.registry import Registry, RegistryError, Version
from flywheel.registry.remote import abandon
from flywheel.registry.shared import SharedRegistry
from flywheel.serving import ServingError

PROBE_TIMEOUT_S = 3


@dataclass(frozen=True)
class Served:
    """A server that was started. `pid` is its host process (None: on the cluster at `address`)."""

    url: str
    pid: int | None
    started: str
    model: str
    settings: str
    address: str | None = None
    folder: str | None = None

    def answers(self) -> bool:
        """Tell whether it is ready."""
        return self.health() is not None

    def health(self) -> dict[str, Any] | None:
        """Return what /healthz says, or None."""
        with contextlib.suppress(requests.RequestException, ValueError):
            response = requests.get(f"{self.url}/healthz", timeout=PROBE_TIMEOUT_S)
            if response.ok:
                return dict(response.json())
        return None


def path(params: Params) -> Path:
    """Return where the record lies."""
    return params.store / "serve.json"


def read(params: Params) -> Served | None:
    """Return the record, or None when nothing was started (or it cannot be read)."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Served(**files.read_json(path(params)))
    return None


def write(params: Params, served: Served) -> None:
    """Write the record."""
    files.write_json(path(params), asdict(served))


def remove(params: Params) -> None:
    """Remove the record."""
    path(params).unlink(missing_ok=True)


def settings(params: Params) -> str:
    """Return the digest of all that decides how a server behaves, but the model: that it follows by itself."""
    modules = code.digests("flywheel.serving.deployment", "flywheel.models.classifier")
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


def production(params: Params, say: Callable[[str], None] | None = None) -> Version:
    """Return the production model, every byte verified. Raises ServingError that says what to type.

    With `say` W&B is asked too, when online: for where production is, and for a model that is not here.
    """
    registry = Registry(params.store) if say is None else SharedRegistry(params, say)
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
