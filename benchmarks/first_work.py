"""Run a stage until its first useful work, print the seconds until then as JSON, and exit; used by start_up.py.

    STARTED=<seconds since the epoch> python benchmarks/first_work.py data <overrides>

Prints  {"all": …, "imports": …, "ray": …}: seconds since STARTED, and those of imports and of the start of Ray
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

FIRST_WORK = {  # stage: the module and the function in it whose first call is the first useful work
    "data": ("flywheel.data.sources", "load"),
    "sweep": ("flywheel.sweep.tune_runner", "run"),
    "evaluate": ("flywheel.models.classifier", "Classifier.predict"),
    "retrain": ("flywheel.retraining.arms", "train"),
}
seconds = {"imports": 0.0, "ray": 0.0}
timing = ray_is_timed = False


def timed(part: str, action: Callable[..., Any]) -> Callable[..., Any]:
    """Return the action with its time added to a part; time within another part counts there only."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        global timing
        if timing or threading.current_thread() is not threading.main_thread():
            return action(*args, **kwargs)
        started, timing = time.perf_counter(), True
        try:
            return action(*args, **kwargs)
        finally:
            timing = False
            seconds[part] += time.perf_counter() - started
            time_ray()

    return wrapper


def time_ray() -> None:
    """Time ray.init as soon as Ray has been imported."""
    global ray_is_timed
    ray: Any = sys.modules.get("ray")
    if hasattr(ray, "init") and not ray_is_timed:
        ray_is_timed, ray.init = True, timed("ray", ray.init)


def stop(*_: object, **__: object) -> None:
    """Print the seconds and end the process."""
    found = {"all": time.time() - float(os.environ["STARTED"]), **seconds}
    print(json.dumps({part: round(value, 2) for part, value in found.items()}), flush=True)
    if seconds["ray"]:
        sys.modules["ray"].shutdown()
    os._exit(0)


def run(stage: str, overrides: str) -> None:
    """Replace the function of the first useful work by `stop`, and run the stage's script."""
    builtins.__import__ = timed("imports", builtins.__import__)
    module, name = FIRST_WORK[stage]
    owner: Any = importlib.import_module(module)
    *classes, function = name.split(".")
    for one in classes:
        owner = getattr(owner, one)
    setattr(owner, function, stop)
    sys.argv = [f"scripts/{stage}.py", "--profile", "demo", "--set", overrides, "--force"]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    run(*sys.argv[1:])
