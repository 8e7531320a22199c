"""Ray for a sweep: a local one of our own, stopped afterwards, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flywheel import code, ray_address
from flywheel.params import Sweep
from flywheel.sweep import SweepError

CHECK_TIMEOUT_S = 60


@dataclass(frozen=True)
class Resources:
    """What a trial is given and how many run at a time."""

    cpus: float
    gpus: float
    concurrent: int

    def per_trial(self) -> dict[str, float]:
        """Return the resources of a trial as Ray takes them."""
        return {"cpu": self.cpus, "gpu": self.gpus} if self.gpus else {"cpu": self.cpus}


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Use a running Ray of this process, the cluster at RAY_ADDRESS, or a local Ray that ends with the block.

    Until the block ends SIGTERM is a KeyboardInterrupt, as Ctrl-C is. Raises SweepError when there is no Ray to use.
    """
    os.environ.update({name: value for name, value in ray_address.QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    address = ray_address.wanted()
    remote = address is not None
    # Workers import the package from what is shipped; a cluster's nodes need its dependencies only.
    options = {"runtime_env": {"py_modules": [str(code.PACKAGE)]}} if remote else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"the cluster at RAY_ADDRESS={address}" if remote else "Ray on this machine"
        raise SweepError(f"cannot use {where}: {' '.join(str(error).split())[:300]}") from None
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's failure is one line, of ours
    before = signal.signal(signal.SIGTERM, _interrupt)  # ray.init set its own
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def allot(sweep: Sweep) -> Resources:
    """Return what each trial gets from the connected Ray. Raises SweepError when not one trial fits on any node."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    most_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    cpus = sweep.cpus_per_trial
    gpus = min(1.0, most_gpus) if sweep.gpus_per_trial == "auto" else float(sweep.gpus_per_trial)
    if cpus > most_cpus:
        raise SweepError(f"sweep.cpus_per_trial={cpus:g} but no node has more than {most_cpus:g} CPUs; ask for fewer")
    if gpus > most_gpus:
        raise SweepError(f"sweep.gpus_per_trial={gpus:g} but no node has more than {most_gpus:g} GPUs; use 0 or auto")
    fitting = sum(_fitting(node, cpus, gpus) for node in nodes)
    wanted = sweep.trials if sweep.max_concurrent_trials == "auto" else sweep.max_concurrent_trials
    if sweep.max_concurrent_trials == "auto" and sweep.searcher != "random":
        # Whatever starts side by side cannot learn from each other: more at a time is random search.
        wanted = min(wanted, max(2, sweep.trials // 3))
    return Resources(cpus, gpus, max(1, min(fitting, wanted, sweep.trials)))


def check_nodes(resources: Resources, folder: Path) -> None:
    """Make sure that every node that may run a trial reaches the folder of results. Raises SweepError."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder.mkdir(parents=True, exist_ok=True)
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) == 1:
        return
    reach = ray.remote(num_cpus=0)(_reaches)
    asked = {
        node["NodeManagerAddress"]: reach.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(folder))
        for node in nodes
        if _fitting(node["Resources"], resources.cpus, resources.gpus)
    }
    try:
        blind = [address for address, answer in asked.items() if not ray.get(answer, timeout=CHECK_TIMEOUT_S)]
    except ray.exceptions.GetTimeoutError:
        raise SweepError(f"a node of the cluster gave no answer within {CHECK_TIMEOUT_S} s; see ray status") from None
    if blind:
        raise SweepError(
            f"{folder.parent} cannot be written on {', '.join(sorted(blind))}; "
            "set paths.store to a directory that every node shares"
        )


def results_folder(store: Path) -> Path:
    """Return where trials keep their best weights while a sweep runs; on a cluster every node must reach it."""
    return store / "trials"


def _fitting(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many trials fit on a node. A fraction of a GPU lies on one GPU: 0.3 fits three times on each."""
    by_cpus = int(node.get("CPU", 0.0) / cpus + 1e-9)
    if not gpus:
        return by_cpus
    has_gpus = node.get("GPU", 0.0)
    by_gpus = int(has_gpus) * int(1 / gpus + 1e-9) if gpus <= 1 else int(has_gpus / gpus)
    return min(by_cpus, by_gpus)


def _reaches(folder: str) -> bool:
    return Path(folder).is_dir() and os.access(folder, os.W_OK)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
