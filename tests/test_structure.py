"""The rules of the house: imports point one way, checks are light, scripts are thin."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flywheel import code, overview

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flywheel"
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
ENDING = 'if __name__ == "__main__":\n    command.main(main)'

# From the ground up; a module may import from its own room and the rooms below.
LAYERS = (
    ("flywheel",),
    ("flywheel.files", "flywheel.search_space", "flywheel.code", "flywheel.ray_address"),
    ("flywheel.params_errors",),
    ("flywheel.params_section",),
    ("flywheel.params_production",),
    ("flywheel.params",),
    ("flywheel.params_file", "flywheel.wandb_environment", "flywheel.run_record", "flywheel.pictures"),
    ("flywheel.connection",),
    ("flywheel.registry",),
    ("flywheel.tracking",),
    ("flywheel.stage", "flywheel.params_reference", "flywheel.feedback"),
    ("flywheel.command",),
    ("flywheel.data",),
    ("flywheel.models",),
    ("flywheel.optimizers",),
    ("flywheel.training", "flywheel.evaluation"),
    ("flywheel.gate",),
    ("flywheel.sweep", "flywheel.promotion", "flywheel.serving", "flywheel.simulation", "flywheel.retraining"),
    ("flywheel.stages",),
    (
        "flywheel.overview",
        "flywheel.housekeeping",
        "flywheel.doctor",
        "flywheel.demo",
        "flywheel.compare",
        "flywheel.sync",
    ),
    ("flywheel.report",),
)
ROOMS = [room for layer in LAYERS for room in layer]


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    return max((room for room in ROOMS if module == room or module.startswith(f"{room}.")), key=len)


def level(room: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if room in layer)


def test_every_module_has_a_room() -> None:
    homeless = [m for m in modules() if room_of(m) == "flywheel" and m != "flywheel"]
    assert homeless == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module: str) -> None:
    own = room_of(module)
    for imported in code.imports(ast.parse(modules()[module].read_text())):
        other = room_of(imported)
        assert other == own or level(other) < level(own), f"{module} imports {imported}"


def test_stages_do_not_import_one_another() -> None:
    stages = [m for m in modules() if m.startswith("flywheel.stages.")]
    for module in stages:
        imported = code.imports(ast.parse(modules()[module].read_text()))
        assert not set(imported) & set(stages), module


def test_source_does_not_import_scripts_or_tests() -> None:
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("scripts", "tests")], module


def test_only_tracking_and_the_registrys_remote_side_import_wandb() -> None:
    importers = [
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "wandb" for alias in node.names)
    ]
    assert set(importers) == {"flywheel.tracking", "flywheel.registry.media", "flywheel.registry.remote"}


def test_infrastructure_modules_exist() -> None:
    assert set(modules()) >= code.INFRASTRUCTURE


def test_what_determines_a_result_is_not_infrastructure() -> None:
    """The list that a fingerprint leaves out is short and closed; a new module counts until it is listed here too."""
    expected = {"flywheel", "flywheel.files", "flywheel.code", "flywheel.command", "flywheel.stage"}
    expected |= {f"flywheel.params{name}" for name in ("", "_errors", "_file", "_production", "_section")}
    expected |= {"flywheel.tracking", "flywheel.pictures", "flywheel.gate.picture", "flywheel.gate.table"}
    expected |= {"flywheel.data.fetch"}
    expected |= {f"flywheel.registry{name}" for name in ("", ".local", ".manifest", ".audit", ".blobs", ".shelf")}
    expected |= {
        f"flywheel.registry.{name}" for name in ("comparison", "media", "remote", "shared", "transfer", "whole")
    }
    expected |= {"flywheel.connection", "flywheel.run_record", "flywheel.wandb_environment"}
    expected |= {f"flywheel.sweep.{name}" for name in ("checkpoints", "journal", "report", "runner")}
    assert expected == code.INFRASTRUCTURE


def test_modules_are_short() -> None:
    long = {m: n for m, p in modules().items() if (n := len(p.read_text().splitlines())) > 300}
    assert long == {}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin_and_say_what_they_read_and_write(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) <= 60
    docstring = ast.get_docstring(ast.parse(text)) or ""
    for part in (f"python scripts/{script.name}", "(make ", "Reads ", "Writes "):
        assert part in docstring
    assert text.rstrip().endswith(ENDING)


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmarks_tell_a_mistake_in_one_line_as_scripts_do(script: Path) -> None:
    text = script.read_text()
    assert "def main(" not in text or text.rstrip().endswith(ENDING)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_is_light(script: Path) -> None:
    """--help imports nothing heavy and so takes well under a second: the modules are asserted, not the clock."""
    probe = (
        "import sys, runpy\n"
        f"sys.argv = [{str(script)!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'ray', 'wandb', 'numpy', 'matplotlib', 'sklearn', 'optuna'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_make_logs_shows_every_log_that_a_script_writes() -> None:
    asked = re.compile(r'command\.logged\(params, "(\w+)"\)')
    written = {name for script in SCRIPTS for name in asked.findall(script.read_text())}
    assert written == set(overview.LOGS)
