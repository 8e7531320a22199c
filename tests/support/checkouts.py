"""Clones of this repository with an environment, without an installation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def clone(parent: Path) -> Path:
    """Clone the last commit into a directory with a space in its name, with an environment, and return it.

    Its Python, with which Ray starts workers, is in the clone; its packages are links to those of the tests.
    """
    folder = parent / "fly wheel"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    install(folder)
    own, environment = Path(sys.prefix), folder / ".venv"
    shutil.copy(own / "pyvenv.cfg", environment)
    for path in own.iterdir():
        if not (environment / path.name).exists() and not path.name.startswith("ready-"):
            (environment / path.name).symlink_to(path)
    (environment / "bin/python").unlink()
    for path in (own / "bin").iterdir():
        (environment / "bin" / path.name).symlink_to(path.resolve() if path.name.startswith("python") else path)
    return folder


def copy_makefile(folder: Path) -> Path:
    """Copy what make needs for setting up, without an environment, into a folder, and return that."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def stamp(checkout: Path) -> Path:
    """Return the file that a finished installation leaves."""
    shown = subprocess.run(["make", "-n", "-p", "help"], cwd=checkout, capture_output=True, text=True).stdout
    return checkout / next(line for line in shown.splitlines() if line.startswith("READY :=")).split()[-1]


def install(checkout: Path, python: str = sys.executable) -> None:
    """Make .venv look like a finished installation; its Python is a script that runs `python`."""
    ready = stamp(checkout)
    binary = checkout / ".venv" / "bin" / "python"
    binary.parent.mkdir(parents=True)
    binary.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    binary.chmod(0o755)
    ready.touch()
