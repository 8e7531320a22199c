"""Checkouts with an environment, without an installation: their Python is a script that runs the tests' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def clone(place: Path) -> Path:
    """Return a fresh clone of what is committed here, with an environment, whose name has a space in it."""
    folder = place / "fly wheel"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    install(folder)
    return folder


def install(checkout: Path, python: str = sys.executable) -> None:
    """Make what a finished installation leaves in .venv; `python` runs instead of its own."""
    shown = subprocess.run(["make", "-n", "-p", "help"], cwd=checkout, capture_output=True, text=True).stdout
    stamp = checkout / next(line for line in shown.splitlines() if line.startswith("READY :=")).split()[-1]
    binary = checkout / ".venv" / "bin" / "python"
    binary.parent.mkdir(parents=True)
    binary.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    binary.chmod(0o755)
    stamp.touch()
