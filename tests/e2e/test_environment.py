"""The environment that make builds: one sentence for what is wrong, and a half-made one is made anew."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import checkouts
import pytest


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make needs for setting up, without an environment."""
    return checkouts.copy_makefile(tmp_path)


def setup(
    checkout: Path,
    *arguments: str,
    variables: Mapping[str, str] | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run make setup with a package index that does not answer."""
    unreachable = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "PIP_"))}
    return subprocess.run(
        ["make", "setup", *arguments], cwd=checkout, env={**environment, **unreachable, **(variables or {})},
        capture_output=True, text=True, timeout=240, preexec_fn=preexec_fn,
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


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A checkout whose half-made environment was set up without a package index: made once, it takes a while."""
    folder = checkouts.copy_makefile(tmp_path_factory.mktemp("refused"))
    binary = folder / ".venv" / "bin"
    binary.mkdir(parents=True)
    (binary / "python").symlink_to("/no/such/python")  # left by a kill within venv, or by a Python that was removed
    (folder / ".venv" / "half").write_text("")
    return folder, setup(folder, f"PYTHON={sys.executable}")


def test_no_package_index_is_said_and_nothing_is_taken_for_ready(
    refused: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, result = refused
    assert result.returncode == 2
    assert "error: the installation failed; the reason is above." in result.stderr
    assert "Traceback" not in result.stderr
    assert list((folder / ".venv").glob("ready-*")) == []


def test_a_half_made_environment_is_made_anew(refused: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    environment = refused[0] / ".venv"
    assert not (environment / "half").exists()
    command = [environment / "bin" / "python", "-m", "pip", "--version"]
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("python", "anew"),
    [
        ("/no/such/python", True),
        (f"{sys.executable} -S", True),  # an upgraded Python looks for packages in another folder and finds none
        (sys.executable, False),
    ],
)
def test_an_environment_whose_python_is_gone_or_another_is_made_anew(checkout: Path, python: str, anew: bool) -> None:
    checkouts.install(checkout, python)
    result = subprocess.run(["make", "-n", "setup"], cwd=checkout, capture_output=True, text=True)
    assert ("setup: installing into .venv" in result.stdout) is anew, result.stdout


def test_the_code_that_runs_is_that_of_the_checkout_wherever_its_environment_came_from(checkout: Path) -> None:
    """A checkout that was moved or copied brings an environment that points to the code of the first place."""
    checkouts.install(checkout, sys.executable)
    for name, text in (
        ("src/flywheel/__init__.py", ""),
        ("scripts/status.py", "import flywheel; print(flywheel.__file__)"),
    ):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).write_text(text)
    result = subprocess.run(["make", "status"], cwd=checkout, capture_output=True, text=True)
    assert result.stdout == f"{checkout}/src/flywheel/__init__.py\n", result.stderr


BACKEND = """
import zipfile
def build_editable(folder, *_):
    with zipfile.ZipFile(f"{folder}/tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    return "tiny-1-py3-none-any.whl"
"""


@pytest.fixture
def strange_shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for another Python, another environment and other places to install into."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "typing.py").write_text("raise RuntimeError('not for this project')")
    (folder / "pip.conf").write_text(f"[install]\nuser = true\ntarget = {folder}/elsewhere\nno-deps = true\n")
    pip = {"PIP_USER": "1", "PIP_TARGET": str(folder), "PIP_CONFIG_FILE": str(folder / "pip.conf"), "PIP_DRY_RUN": "1"}
    python = {"PYTHONPATH": str(folder), "PYTHONHOME": str(folder), "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2"}
    return {**pip, **python, "VIRTUAL_ENV": str(folder), "CONDA_PREFIX": str(folder), "CDPATH": "/:/usr"}


def test_setup_installs_into_the_environment_whatever_the_shell_is_set_up_for(
    checkout: Path, strange_shell: dict[str, str]
) -> None:
    project = '[project]\nname = "tiny"\nversion = "1"\n[project.optional-dependencies]\ndev = []\n'
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (checkout / "pyproject.toml").write_text(project + build)
    (checkout / "backend.py").write_text(BACKEND)
    (checkout / "scripts").mkdir()
    (checkout / "scripts/status.py").write_text("import tiny, typing; print(tiny.__file__, __debug__)")
    made = setup(checkout, f"PYTHON={sys.executable}", "status", variables=strange_shell)
    assert (made.returncode, made.stderr) == (0, "")
    (installed,) = (checkout / ".venv").glob("lib/*/site-packages/tiny.py")
    assert made.stdout.splitlines()[-1] == f"{installed} True"


def test_a_sound_environment_is_kept_whatever_the_shell_is_set_up_for(
    checkout: Path, strange_shell: dict[str, str]
) -> None:
    checkouts.install(checkout, sys.executable)
    kept = setup(checkout, variables=strange_shell)
    assert (kept.returncode, kept.stderr) == (0, "")
    assert "installing" not in kept.stdout


@pytest.mark.parametrize("missing", ["sys", "ensurepip"])
def test_nothing_is_removed_unless_a_new_environment_can_be_made(checkout: Path, missing: str) -> None:
    """The Python of .venv is broken, and so is the one that would make it again."""
    checkouts.install(checkout, "/no/such/python")
    packages = checkout / ".venv/packages"
    packages.write_text("6.6 GB")
    broken = checkout / "python"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *{missing}*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    broken.chmod(0o755)
    refused = setup(checkout, f"PYTHON={broken}")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert packages.exists()


def small_files() -> None:
    """What a full disk does, for one file: none may grow past 500 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


@pytest.mark.long
def test_no_space_for_the_environment_is_said_and_the_next_run_makes_it_anew(checkout: Path) -> None:
    full = setup(checkout, f"PYTHON={sys.executable}", preexec_fn=small_files)
    assert full.returncode == 2
    assert "error: cannot make .venv; the reason is above" in full.stderr
    assert list((checkout / ".venv").glob("ready-*")) == []
    setup(checkout, f"PYTHON={sys.executable}")
    python = checkout / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
