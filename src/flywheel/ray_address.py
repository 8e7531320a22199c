"""Which Ray to use: one of our own on this machine, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import os
import shlex
import socket
import sys

from flywheel import FlywheelError

PROBE_TIMEOUT_S = 3

# What Ray should leave, unless the user's environment says otherwise.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours (sweep/signals.py)
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files beside our journal
}


class RayAddressError(FlywheelError):
    """RAY_ADDRESS names no Ray that can be used."""


def wanted() -> str | None:
    """Return the address of the cluster that RAY_ADDRESS names; None = a Ray of our own. Raises RayAddressError."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return None
    check(address)
    return address


def own_python() -> dict[str, str]:
    """Return what the runtime environment of a Ray of our own must tell of its Python: nothing, in most places.

    Ray starts workers through a shell with the path of its Python as it stands (runtime_env/context.py), so that none
    starts where a folder's name has a space. Said only there, because workers wait ready without it.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def check(address: str) -> None:
    """Fail at once for an address that cannot be used; ray.init would try for minutes. Raises RayAddressError."""
    if address.startswith("ray://"):
        raise RayAddressError(
            "RAY_ADDRESS=ray://… cannot be used here (the driver would be far from its work); "
            "run make on a node of the cluster with RAY_ADDRESS=host:6379 or auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` and the like: ray.init knows where to look
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S):
            pass
    except OSError as error:
        raise RayAddressError(
            f"RAY_ADDRESS={address}: no answer ({error}); start Ray there or unset RAY_ADDRESS to run on this machine"
        ) from None
