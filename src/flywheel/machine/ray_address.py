"""Connect to Ray: a local one that this process starts, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flywheel import FlywheelError

PACKAGE = Path(__file__).parents[1]
PROBE_TIMEOUT_S = 3
NODE_WAIT_S, NODE_POLL_S = 20, 0.05

# Set before Ray starts, unless the user's environment sets them already.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours (sweep/signals.py)
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files beside our journal
    # Try to connect to a starting raylet for 10 s, every 20 ms. By default once a second, and often the first try comes
    # too early: half of the starts on two cores then take a second longer.
    "RAY_raylet_client_num_connect_attempts": "500",
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
}


class RayError(FlywheelError):
    """Ray does not start, or RAY_ADDRESS names no cluster that can be used."""


def wanted() -> str | None:
    """Return the address of the cluster that RAY_ADDRESS names; None = a local Ray."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


@contextlib.contextmanager
def connect(address: str | None, **options: Any) -> Iterator[None]:
    """Connect this process to the cluster at `address`, or start a local Ray (None) that ends with the block.

    A process that is connected already stays connected as it is. `options` go to ray.init. Raises RayError.
    """
    given = [name for name in os.environ if name.startswith(("RAY_", "TUNE_")) and name not in SETTINGS]
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    if address is None:
        environment: dict[str, Any] = local_python()
        _start_fast()
        options = {"include_dashboard": False, **_local_options(), **options}
    else:
        check(address)
        environment = {"py_modules": [str(PACKAGE)]}  # the nodes of a cluster have our dependencies, but not our code
    before = signal.getsignal(signal.SIGTERM)  # ray.init replaces the handler, and ray.shutdown removes it
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=environment,
            **options,
        )
    except Exception as error:  # Ray raises Exception itself when its processes do not start in time
        where = "Ray on this machine" if address is None else f"the cluster at RAY_ADDRESS={address}"
        reason = " ".join(str(error).split())[:300]
        advice = f"; Ray reads {', '.join(sorted(given))}: unset what it does not need" if given else ""
        if not given and address is None and "timed out" in reason:
            advice = "; the machine may be too busy: run the same command again later"
        if "mismatch" in reason:
            advice = "; the same Python and requirements.lock must be on both sides"
        raise RayError(f"cannot use {where}: {reason}{advice}") from None
    signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        # Ray ends the process with 1 if another thread drops a reference while Ray shuts down, also as garbage.
        gc.collect()
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _start_fast() -> None:
    """Keep a local Ray from starting three processes, and notice at once when it is ready.

    The processes take 1.9 of the 5 CPU seconds of Ray's start and 0.9 % of a core idle. They are for the dashboard, the
    autoscaler and the printing of workers' output, none of which is used. Ray has no option for all of them.
    """
    from ray._private import services
    from ray._private.node import Node

    replaced: Any = Node
    replaced.start_api_server = lambda node, **_: setattr(node, "_webui_url", None)
    replaced.start_monitor = replaced.start_log_monitor = lambda _: None
    services.get_node = _get_node


def _get_node(gcs_address: str, node_id: str) -> Any:
    """Return Ray's description of the node once it is up, like Ray's own function, which asks only once a second."""
    from ray import _private

    ray: Any = _private
    nodes = ray.state.GlobalState()
    nodes._initialize_global_state(ray.services._get_gcs_client_options(gcs_address))
    until = time.monotonic() + NODE_WAIT_S
    while not nodes.node_table() and time.monotonic() < until:
        time.sleep(NODE_POLL_S)
    return nodes.get_node(node_id)


def _local_options() -> dict[str, Any]:
    """Return the folders of a local Ray, and give it a token of its own. Raises RayError if it cannot run here."""
    from flywheel.machine import limits

    for lack in limits.lacks():
        raise RayError(f"Ray cannot run on this machine: {lack.text}; {lack.fix}")
    # Ray refuses clients without its token; it would write one into the home directory.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = limits.temporary_folder()
    options = {"_temp_dir": f"{folder}/ray"}
    if os.access("/dev/shm", os.W_OK | os.X_OK):
        return options
    return options | {"_plasma_directory": str(folder), "object_store_memory": limits.object_store_bytes()}


def local_python() -> dict[str, str]:
    """Return the runtime environment that a local Ray needs to find this Python: an empty one for most paths.

    Ray starts workers through a shell with the unquoted path of its Python (runtime_env/context.py), so it must be
    quoted where it has a space. It is left out otherwise, because Ray prestarts workers only for an empty environment.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def check(address: str) -> None:
    """Fail at once for an address that cannot be used; ray.init would try for minutes. Raises RayError."""
    if address.startswith("ray://"):
        raise RayError(
            "RAY_ADDRESS=ray://… cannot be used here (the driver would be far from its work); "
            "run make on a node of the cluster with RAY_ADDRESS=host:6379 or auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` and the like: ray.init knows where to look
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S):
            pass
    except (OSError, OverflowError, ValueError) as error:  # the host or the port can be none
        raise RayError(
            f"RAY_ADDRESS={address}: no answer ({error}); start Ray there or unset RAY_ADDRESS to run on this machine"
        ) from None
