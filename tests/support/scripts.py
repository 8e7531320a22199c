"""The scripts, run as a user runs them, with store, reports and cache in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flywheel.params import Params
from flywheel.params import file as params_file

ROOT = Path(__file__).parents[2]


def overrides(folder: Path, more: str = "") -> str:
    paths = f"paths.store={folder}/store paths.reports={folder}/reports paths.cache={folder}/cache"
    return f"{paths} {os.environ.get('FLYWHEEL_TEST_SET', '')} {more}"


def load(folder: Path, more: str = "", profile: str = "demo") -> Params:
    """Return the params that the scripts get."""
    return params_file.load(ROOT / "params.yaml", profile, overrides(folder, more))


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without what a developer or make may have set, and with more variables."""
    left_out = ("RAY_ADDRESS", "PROFILE", "SET")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "WANDB")) and k not in left_out}
    return {**inherited, **variables}


def command(folder: Path, script: str, more: str = "", *arguments: str) -> list[str]:
    return [sys.executable, f"scripts/{script}.py", "--profile", "demo", "--set", overrides(folder, more), *arguments]


def run(
    folder: Path, script: str, more: str = "", *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with more variables in its environment."""
    return subprocess.run(
        command(folder, script, more, *arguments), cwd=ROOT, env=environment(**variables), text=True,
        capture_output=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def start(folder: Path, script: str, more: str = "", **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, script, more), cwd=ROOT, env=environment(**variables), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
