"""What every script shares: a mistake on the command line is one line, and a poor terminal is no trouble."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flywheel.params import file as params_file

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sweep.py", "--trials=3"), "unrecognized arguments: --trials=3; scripts/sweep.py --help lists what there is"),
        (("evaluate.py", "now"), "unrecognized arguments: now; scripts/evaluate.py --help lists what there is"),
        (
            ("sync.py", "--keep", "mine"),
            "argument --keep: invalid choice: 'mine' (choose from 'ours', 'theirs'); scripts/",
        ),
        (
            ("data.py", "--profile"),
            "argument --profile: expected one argument; scripts/data.py --help lists what there is",
        ),
        (
            ("status.py", "--params", "nothing.yaml"),
            "nothing.yaml: cannot be read (No such file or directory); run from",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = subprocess.run(
        [sys.executable, f"scripts/{arguments[0]}", *arguments[1:]], cwd=ROOT, capture_output=True, text=True
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {said}")
    assert (result.returncode, result.stdout) == (1, "")


def test_a_terminal_that_cannot_show_a_letter_is_no_reason_to_fail() -> None:
    code = "from flywheel import cli; cli.main(lambda: print('└─ ±7 × 2'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "?? ?7 ? 2\n")


def test_a_home_directory_in_a_path_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves ~ alone in SET="paths.store=~/store"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    places = "paths.store=~/store paths.reports=~/reports paths.cache=~/cache paths.checkpoints=~/shared"
    params = params_file.load(ROOT / "params.yaml", "demo", places)
    found = [str(place) for place in (params.store, params.reports, params.cache, params.checkpoints)]
    assert found == [f"{tmp_path}/{name}" for name in ("store/demo", "reports/demo", "cache", "shared/demo")]
