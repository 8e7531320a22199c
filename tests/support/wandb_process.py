"""Code that uses W&B, run in a process of its own, since wandb reads its environment once a process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import scripts
from scripts import ROOT

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
    """How a process ended."""

    code: int
    lines: list[str]
    errors: str

    def of_wandb(self) -> list[str]:
        return [line for line in self.lines if line.startswith("W&B")]


def clean_environment(base: Path, **environment: str) -> dict[str, str]:
    """Return an environment without a developer's keys, whose home is a folder that does not exist."""
    return scripts.environment(HOME=str(base / "home"), TMPDIR=os.environ.get("TMPDIR", "/tmp"), **environment)


def store_of(base: Path) -> Path:
    return base / "store" / "demo"


def start(base: Path, code: str, wandb: str = "online", more: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start a process that runs code after HEAD."""
    base.mkdir(parents=True, exist_ok=True)
    overrides = scripts.overrides(base, f"tracking.wandb={wandb} {more}")
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=clean_environment(base, BASE=str(base), OVERRIDES=overrides, **environment),
    )  # fmt: skip


def end(process: subprocess.Popen[str], given: str | None = None, timeout_s: float = 300) -> Done:
    """Wait for the end of a process; kill it when it hangs."""
    try:
        printed, errors = process.communicate(given, timeout=timeout_s)
    finally:
        process.kill()
    return Done(process.returncode, printed.splitlines(), errors)


def python(base: Path, code: str, wandb: str = "online", more: str = "", **environment: str) -> Done:
    """Run code after HEAD."""
    return end(start(base, code, wandb, more, **environment), timeout_s=120)
