"""Connect to Ray and decide how many trials run at a time, and with which resources."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flywheel.machine import ray_address
from flywheel.params import Sweep
from flywheel.sweep import SweepError, nodes, preflight

REFRESH_S = 2.0


@dataclass(frozen=True)
class Resources:
    """The CPUs and GPUs of a trial, and how many trials run at a time."""

    cpus: float
    gpus: float
    concurrent: int


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or start a local Ray that ends with the block. Raises RayError."""
    address = ray_address.wanted()
    if address is not None:
        preflight.check_code()
    with ray_address.connect(address):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # we log one line for a failed trial
        yield


class Slots:
    """How many trials may run at a time; checked repeatedly, because nodes come and go while a sweep runs."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep
        self.resources = allot(sweep)
        self._now, self._asked = self.resources.concurrent, time.monotonic()

    def now(self) -> int:
        """Return how many trials may run now; at least one, which waits for a node if none fits."""
        if time.monotonic() - self._asked > REFRESH_S:
            self._asked = time.monotonic()
            self._now = concurrent(self.sweep, self.resources.cpus, self.resources.gpus)
        return self._now


def allot(sweep: Sweep) -> Resources:
    """Return the resources of each trial on the connected Ray. Raises SweepError when no node fits a trial."""
    found = _nodes()
    most_cpus = max((node.get("CPU", 0.0) for node in found), default=0.0)
    most_gpus = max((node.get("GPU", 0.0) for node in found), default=0.0)
    cpus = sweep.cpus_per_trial
    gpus = min(1.0, most_gpus) if sweep.gpus_per_trial == "auto" else float(sweep.gpus_per_trial)
    if cpus > most_cpus:
        raise SweepError(f"sweep.cpus_per_trial={cpus:g} but no node has more than {most_cpus:g} CPUs; ask for fewer")
    if gpus > most_gpus:
        raise SweepError(f"sweep.gpus_per_trial={gpus:g} but no node has more than {most_gpus:g} GPUs; use 0 or auto")
    if not any(_fitting(node, cpus, gpus) for node in found):
        raise SweepError(
            f"no node has both {cpus:g} CPUs and {gpus:g} GPUs for a trial; lower sweep.cpus_per_trial or "
            "sweep.gpus_per_trial"
        )
    return Resources(cpus, gpus, concurrent(sweep, cpus, gpus))


def concurrent(sweep: Sweep, cpus: float, gpus: float) -> int:
    """Return how many trials with these resources may run at a time on the connected Ray."""
    fitting = sum(_fitting(node, cpus, gpus) for node in _nodes())
    wanted = sweep.trials if sweep.max_concurrent_trials == "auto" else sweep.max_concurrent_trials
    if sweep.max_concurrent_trials == "auto" and sweep.searcher != "random":
        # Trials that run at the same time cannot learn from each other: more would be random search.
        wanted = min(wanted, max(2, sweep.trials // 3))
    return max(1, min(fitting, wanted, sweep.trials))


def run_as_trial(sweep: Sweep, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments, threads, cuda)` on the connected Ray with the resources of a trial. Returns its result."""
    import ray

    given = allot(sweep)
    remote = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, max_retries=2)(work)
    return ray.get(remote.remote(*arguments, max(1, int(given.cpus)), given.gpus > 0))


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in nodes.alive().values()]


def _fitting(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many trials fit on a node. A fraction of a GPU is on one GPU: 0.3 fits three times on each."""
    by_cpus = int(node.get("CPU", 0.0) / cpus + 1e-9)
    if not gpus:
        return by_cpus
    has_gpus = node.get("GPU", 0.0)
    by_gpus = int(has_gpus) * int(1 / gpus + 1e-9) if gpus <= 1 else int(has_gpus / gpus)
    return min(by_cpus, by_gpus)
