"""The record of the running server, store/<profile>/serve.json: its URL, process, model and settings."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

from flywheel import files
from flywheel.params import Params

PROBE_TIMEOUT_S = 3
DROPPED = "flywheel_traffic{"  # in /metrics


@dataclass(frozen=True)
class Served:
    """A server that was started: by the host process `pid`, or on the cluster at `address`."""

    url: str
    pid: int | None
    started: str
    model: str
    settings: str
    address: str | None = None
    folder: str | None = None

    def answers(self) -> bool:
        """Return whether it is ready."""
        return self.health() is not None

    def health(self) -> dict[str, Any] | None:
        """Return the body of /healthz, or None if it does not answer, or something else does."""
        import requests

        with contextlib.suppress(requests.RequestException, ValueError, TypeError):
            response = requests.get(f"{self.url}/healthz", timeout=PROBE_TIMEOUT_S)
            if response.ok:
                return dict(response.json())
        return None

    def dropped(self) -> int | None:
        """Return how many answers were not recorded since the start, or None if the server does not answer."""
        import requests

        with contextlib.suppress(requests.RequestException, ValueError):
            text = requests.get(f"{self.url}/metrics", timeout=PROBE_TIMEOUT_S).text
            lines = [line for line in text.splitlines() if line.startswith(DROPPED)]
            return int(sum(float(line.rpartition(" ")[2]) for line in lines if 'what="dropped"' in line))
        return None


def read(params: Params) -> Served | None:
    """Return the record, or None if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Served(**files.read_json(params.store_paths.server))
    return None


def write(params: Params, served: Served) -> None:
    """Write the record."""
    files.write_json(params.store_paths.server, asdict(served))


def remove(params: Params) -> None:
    """Remove the record."""
    params.store_paths.server.unlink(missing_ok=True)
