"""Check every node of a cluster in a few seconds, before the first trial or when it joins.

Each fault is reported with its fix.
"""

from __future__ import annotations

import logging
import math
import platform
import secrets
import threading
import time
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.pipeline import fingerprint
from flywheel.sweep import SweepError, nodes
from flywheel.sweep.checkpoints import CheckpointStore

log = logging.getLogger(__name__)

TIMEOUT_S = 15
MAX_CODE_BYTES = 20_000_000
NAMED_OFFENDERS = 3
# The packages that trials use. Ray compares its version and Python's when a driver connects, but not among nodes.
PACKAGES = ("ray", "torch", "numpy", "pydantic", "safetensors")
IDLE_SHARE = 0.1
LOOK_S = 2.0


def check_code(package: Path = fingerprint.PACKAGE) -> int:
    """Return the size of the code that is sent to the cluster. Raises SweepError when it is too large."""
    sizes = {path: path.stat().st_size for path in package.rglob("*") if path.is_file()}
    total = sum(size for path, size in sizes.items() if "__pycache__" not in path.parts)
    if total > MAX_CODE_BYTES:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:NAMED_OFFENDERS]
        named = ", ".join(f"{path.relative_to(package)} ({files.human_size(sizes[path])})" for path in largest)
        raise SweepError(
            f"{package} has {files.human_size(total)} and would be sent to every node (at most "
            f"{files.human_size(MAX_CODE_BYTES)}); move files out that are not code: {named}"
        )
    return total


def check_nodes(store: CheckpointStore, gpus: float, images_bytes: int, joined: Collection[str] = ()) -> None:
    """Check that every node of the connected cluster has our versions, shares the checkpoint store, and has room.

    Every node but this one will hold a copy of the images. With `joined`, only these nodes are checked, and one that
    is lost or does not answer is logged. Raises SweepError with one line for each fault.
    """
    import ray

    started = time.monotonic()
    token = f"preflight-{secrets.token_hex(4)}"
    shared = store.subfolder(token)
    _check_writable(store, token)
    try:
        alive, here = nodes.alive(), nodes.here()
        asked = [node for node in alive if not joined or node in joined]
        answers = nodes.ask(_probe, {node: (shared, node, token) for node in asked}, TIMEOUT_S)
        faults, checked = [], 0
        for node, answer in answers.items():
            name, needed = f"node {alive[node]['NodeManagerAddress']} ({node[:6]})", images_bytes * (node != here)
            found = [f"{name}: {fault}" for fault in _faults(answer, shared, node, gpus, needed)]
            if joined and not isinstance(answer, dict | ray.exceptions.RayTaskError):
                log.info(f"sweep: {found[0]}")
            else:
                faults += found
                checked += 1
    finally:
        store.remove(token)
    if faults:
        so_far = "finished work is kept" if joined else "no trial was started"
        many = f"{len(faults)} faults of the cluster, {so_far}:\n  " if len(faults) > 1 else ""
        raise SweepError(many + "\n  ".join(faults))
    if checked:
        took = f"{time.monotonic() - started:.1f} s"
        log.info(f"sweep: {files.count(checked, 'node')} checked in {took}: versions equal, {store.uri} shared")


class Joining:
    """Checks, in a thread, the nodes that join while trials run."""

    def __init__(self, store: CheckpointStore, gpus: float, images_bytes: int):
        self._arguments = (store, gpus, images_bytes)
        self._known = set(nodes.alive())
        self._thread: threading.Thread | None = None
        self._error: SweepError | None = None
        self._looked = time.monotonic()

    def look(self) -> None:
        """Start to check nodes that are new. Raises SweepError if such a node had a fault."""
        if self._error is not None:
            raise self._error
        checking = self._thread is not None and self._thread.is_alive()
        if checking or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        if joined := nodes.alive().keys() - self._known:
            self._known |= joined
            self._thread = threading.Thread(target=self._check, args=(joined,), name="joining nodes", daemon=True)
            self._thread.start()

    def _check(self, joined: Collection[str]) -> None:
        try:
            check_nodes(*self._arguments, joined=joined)
        except SweepError as error:
            self._error = error

    def wait(self) -> None:
        """Wait for the check that runs: Ray must not shut down meanwhile."""
        if self._thread is not None:
            self._thread.join()


def check_store(store: CheckpointStore) -> None:
    """Write to the checkpoint store of a sweep on this machine, and remove the file again. Raises SweepError."""
    token = f"preflight-{secrets.token_hex(4)}"
    _check_writable(store, token)
    store.remove(token)


def _check_writable(store: CheckpointStore, token: str) -> None:
    try:
        store.subfolder(token).write("driver", token.encode())
    except Exception as error:  # each kind of storage has its own errors, also for a missing package
        reason = " ".join(str(error).split())[:300]
        raise SweepError(f"{store.uri} cannot be written ({reason}); fix that or set paths.checkpoints") from None


def idle_share(gpus: float) -> str | None:
    """Return a line on how much of each GPU a fraction leaves unused; None if it is little."""
    if not 0 < gpus < 1:
        return None
    trials = math.floor(1 / gpus + 1e-9)
    idle = 1 - trials * gpus
    if idle < IDLE_SHARE:
        return None
    better = f"{1 / trials:.4g} fills it with as many trials, {1 / (trials + 1):.4g} with one more"
    return f"sweep.gpus_per_trial={gpus:g} leaves {idle:.0%} of each GPU unused; {better}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that trials use."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _probe(shared: CheckpointStore, node_id: str, token: str) -> dict[str, Any]:
    """On a node: read the file of the driver, write one beside it, and return versions and free disk space."""
    seen = shared.read("driver") == token.encode()
    error = None
    try:
        shared.write(node_id, token.encode())
    except (OSError, ImportError) as raised:
        error = str(raised)
    nodes.remove_unused()
    return {"seen": seen, "error": error, "versions": versions(), "free": nodes.free_bytes()}


def _faults(answer: Any, shared: CheckpointStore, node_id: str, gpus: float, copy_bytes: int) -> list[str]:
    if answer is None:
        return [f"no answer within {TIMEOUT_S} s; see ray status and the node's raylet log"]
    if isinstance(answer, Exception):
        cause = getattr(answer, "cause", None) or answer
        reason = " ".join(str(cause).split())[:200]
        return [f"cannot run this package ({reason}); install it there with requirements.lock"]
    here = versions()
    faults = [
        f"{name} {there} there, {here[name]} here; install requirements.lock on every node"
        for name, there in answer["versions"].items()
        if there != here[name]
    ]
    if gpus and "+cpu" in answer["versions"]["torch"]:
        faults.append("torch there is a CPU build; install the CUDA build or set sweep.gpus_per_trial=0")
    if answer["free"] < copy_bytes:
        has, needed = files.human_size(answer["free"]), files.human_size(copy_bytes)
        faults.append(f"{has} free for temporary files and its copy of the images needs {needed}; free space there")
    if not answer["seen"] or answer["error"] or shared.read(node_id) is None:
        why = answer["error"] or "it does not see what this machine writes there"
        folder = shared.uri.rpartition("/")[0]
        faults.append(
            f"{folder} is not shared ({why}); set paths.checkpoints to a directory or URI that every node reaches"
        )
    return faults
