"""The Makefile without a store: its help, its environment, and mistakes in one sentence."""

from __future__ import annotations

from pathlib import Path

import checkouts
import pytest
import scripts
from chain import make
from scripts import ROOT


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("sweep", "PROFILE=dmo"), "", "error: PROFILE=dmo: unknown profile; choose one of cifar10, laptop, demo"),
        (("data",), "sweep.trails=3", "error: SET: sweep.trails: unknown key; did you mean sweep.trials?"),
        (("lineage",), "", "error: no artifact digits_dataset in"),
        (("data",), "data.source=folder data.path=/absent/x", "error: /absent/x: no such directory or archive"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(
    tmp_path: Path, arguments: tuple[str, ...], overrides: str, message: str
) -> None:
    result = make(tmp_path, *arguments, more=overrides)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make: ***")]
    assert result.returncode == 2  # make's own; the script's is 1
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_make_alone_lists_every_target(tmp_path: Path) -> None:
    shown, text = make(tmp_path).stdout, (ROOT / "Makefile").read_text()
    phony = [name for line in text.splitlines() if line.startswith(".PHONY:") for name in line.split()[1:]]
    assert phony
    for name in phony:
        assert f"make {name} " in shown or name.startswith("$")  # a file that is made anew


@pytest.mark.parametrize("script", ["sweep", "evaluate"])
def test_a_script_without_its_input_names_the_command_to_run_first(tmp_path: Path, script: str) -> None:
    result = scripts.run(tmp_path, script)
    assert result.returncode == 1
    assert "run make data PROFILE=demo" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_environment_follows_the_content_of_what_is_installed(tmp_path: Path) -> None:
    """A new time stamp changes nothing; another byte requires an installation."""
    before = checkouts.stamp(checkouts.copy_makefile(tmp_path))
    (tmp_path / "pyproject.toml").touch()
    assert checkouts.stamp(tmp_path) == before
    (tmp_path / "requirements.lock").write_text((ROOT / "requirements.lock").read_text() + "# changed\n")
    assert checkouts.stamp(tmp_path) != before
