"""Ray for a sweep: a local one of our own, stopped afterwards, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flywheel import code
from flywheel.params import Sweep
from flywheel.sweep import SweepError

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files beside our journal
}


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
    """Use a running Ray of this process, the cluster at RAY_ADDRESS, or a local Ray that ends with the block."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise SweepError(
            "RAY_ADDRESS=ray://… cannot run a sweep (the driver would be far from its trials); "
            "run make on a node of the cluster with RAY_ADDRESS=host:6379 or auto"
        )
    try:
        if address and address != "local":
            # Workers import the package from what is shipped; the nodes need its dependencies only.
            environment = {"py_modules": [str(code.PACKAGE)]}
            ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"the cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
        raise SweepError(f"cannot use {where}: {' '.join(str(error).split())[:300]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def allot(sweep: Sweep) -> Resources:
    """Return what each trial gets from the connected Ray. Raises SweepError when not one trial fits."""
    import ray

    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    has_cpus, has_gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    gpus = min(1.0, has_gpus) if sweep.gpus_per_trial == "auto" else float(sweep.gpus_per_trial)
    if sweep.cpus_per_trial > has_cpus:
        raise SweepError(f"sweep.cpus_per_trial={sweep.cpus_per_trial:g} but Ray has {has_cpus:g} CPUs; ask for fewer")
    if gpus > has_gpus:
        raise SweepError(f"sweep.gpus_per_trial={gpus:g} but Ray has {has_gpus:g} GPUs; use 0 or auto")
    fitting = int(has_cpus // sweep.cpus_per_trial)
    if gpus:
        fitting = min(fitting, int(has_gpus / gpus + 1e-9))
    wanted = sweep.trials if sweep.max_concurrent_trials == "auto" else sweep.max_concurrent_trials
    return Resources(sweep.cpus_per_trial, gpus, max(1, min(fitting, wanted, sweep.trials)))


def results_folder(store: Path) -> Path:
    """Return where trials keep their best weights while a sweep runs; on a cluster every node must reach it."""
    return store / "trials"
