"""Code that uses W&B, run in a process of its own, since wandb reads its environment once a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAD = """
import logging, os, sys, time
from pathlib import Path
from flywheel.params import file as params_file
from flywheel.registry import Registry
from flywheel.tracking.mirror import mirrored
from flywheel.tracking.runs import Tracker
logging.getLogger("flywheel").setLevel("INFO")
logging.getLogger("flywheel").addHandler(logging.StreamHandler(sys.stdout))
base = Path(os.environ["BASE"])
params = params_file.load(profile="demo", overrides=os.environ["OVERRIDES"])

def publish(registry, name, text, **kwargs):
    folder = base / "in" / f"{name}-{text[:9]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a").write_text(text)
    (folder / "b").write_text("same")
    return registry.publish(name, kwargs.pop("type", "model"), folder, **kwargs)
"""


@dataclass(frozen=True)
class Done:
    """How a process ended. `waited_s` is by the wall clock, start of Python and imports included."""

    code: int
    lines: list[str]
    errors: str
    wall_s: float


def clean_environment(base: Path, **environment: str) -> dict[str, str]:
    """Return an environment without a developer's keys, whose home is a folder that does not exist."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return {**inherited, "HOME": str(base / "home"), "TMPDIR": os.environ.get("TMPDIR", "/tmp"), **environment}


def store_of(base: Path) -> Path:
    return base / "store" / "demo"


def overrides(base: Path, wandb: str = "online", more: str = "") -> str:
    paths = f"paths.store={base}/store paths.reports={base}/reports paths.cache={base}/cache"
    return f"{paths} tracking.wandb={wandb} {more}"


def start(base: Path, code: str, wandb: str = "online", more: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start a process that runs code after HEAD."""
    base.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=clean_environment(base, BASE=str(base), OVERRIDES=overrides(base, wandb, more), **environment),
    )  # fmt: skip


def python(base: Path, code: str, wandb: str = "online", more: str = "", **environment: str) -> Done:
    """Run code after HEAD. Fails when it hangs."""
    began = time.monotonic()
    process = start(base, code, wandb, more, **environment)
    try:
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return Done(process.returncode, out.splitlines(), errors, time.monotonic() - began)


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
