"""The environment that make builds: one sentence for what is wrong, and a half-made one is made anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make needs for setting up, without an environment."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def setup(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make setup with a package index that does not answer."""
    unreachable = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "PIP_"))}
    return subprocess.run(
        ["make", "setup", *arguments], cwd=checkout, env={**environment, **unreachable},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_python_that_is_too_old_is_one_sentence(checkout: Path) -> None:
    old = checkout / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")  # as sys.exit(version < (3, 11)) would
    old.chmod(0o755)
    for python in (str(old), "no-such-python"):
        result = setup(checkout, f"PYTHON={python}")
        assert result.returncode == 2
        assert result.stderr.splitlines()[0].startswith("error: Python 3.11 or newer is needed; name one")
        assert not (checkout / ".venv").exists()


def test_no_package_index_is_said_and_nothing_is_taken_for_ready(checkout: Path) -> None:
    result = setup(checkout, f"PYTHON={sys.executable}")
    assert result.returncode == 2
    assert "error: the installation failed; the reason is above." in result.stderr
    assert "Traceback" not in result.stderr
    assert list((checkout / ".venv").glob("ready-*")) == []


def test_a_half_made_environment_is_made_anew(checkout: Path) -> None:
    """Left by a kill between the two steps of venv, or by a Python that was removed."""
    binary = checkout / ".venv" / "bin"
    binary.mkdir(parents=True)
    (binary / "python").symlink_to("/no/such/python")
    (checkout / ".venv" / "half").write_text("")
    setup(checkout, f"PYTHON={sys.executable}")
    assert not (checkout / ".venv" / "half").exists()
    assert subprocess.run([binary / "python", "-m", "pip", "--version"], capture_output=True).returncode == 0
