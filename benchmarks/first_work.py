"""Run a stage until its first useful work, print the seconds until then, and exit; used by start_up.py.

STARTED=<seconds since the epoch> python benchmarks/first_work.py data <overrides>
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import time
from typing import Any

FIRST_WORK = {  # stage: the module and the function in it whose first call is the first useful work
    "data": ("flywheel.data.sources", "load"),
    "evaluate": ("flywheel.models.classifier", "Classifier.predict"),
    "retrain": ("flywheel.retraining.train", "train"),
}


def stop(*_: object, **__: object) -> None:
    """Print the seconds and end this process."""
    print(round(time.time() - float(os.environ["STARTED"]), 2), flush=True)
    os._exit(0)


def run(stage: str, overrides: str) -> None:
    """Replace the function of the first useful work by `stop`, and run the stage's script."""
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
