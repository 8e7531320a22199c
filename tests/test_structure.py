"""The structure of the code: imports point one way, checks are light, scripts are thin."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flywheel.commands import status
from flywheel.pipeline import fingerprint

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flywheel"
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
ENDING = 'if __name__ == "__main__":\n    cli.main(main)'

# From the bottom up: a package may import itself and the packages above its own line here.
LAYERS = (
    ("files", "machine"),
    ("params",),
    ("registry",),
    ("tracking",),
    ("pipeline",),
    ("data",),
    ("models",),
    ("training",),
    ("metrics",),
    ("traffic",),
    ("gate",),
    ("evaluation", "sweep", "serving", "simulation", "retraining"),
    ("commands",),
    ("cli",),
)
LEVEL = {package: level for level, layer in enumerate(LAYERS) for package in layer}


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def package_of(module: str) -> str:
    return module.split(".")[1]


def test_the_top_of_the_package_has_at_most_20_names() -> None:
    names = {path.name for path in SOURCE.iterdir() if path.name != "__pycache__"}
    assert {name.removesuffix(".py") for name in names} == {*LEVEL, "__init__"}
    assert len(names) <= 20


@pytest.mark.parametrize("module", sorted(set(modules()) - {"flywheel"}))
def test_imports_point_one_way(module: str) -> None:
    own = package_of(module)
    for imported in fingerprint.imports(ast.parse(modules()[module].read_text())):
        if imported != "flywheel":
            other = package_of(imported)
            assert other == own or LEVEL[other] < LEVEL[own], f"{module} imports {imported}"


def test_only_tracking_imports_wandb_and_none_scripts_or_tests() -> None:
    importers: dict[str, set[str]] = {}
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                importers.setdefault(name.split(".")[0], set()).add(package_of(module))
    assert importers["wandb"] == {"tracking"}
    assert not {"scripts", "tests"} & importers.keys()


def test_what_a_client_sends_is_compared_with_a_secret_in_constant_time() -> None:
    called = 0
    for package in ("serving", "traffic"):
        for path in (SOURCE / package).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                called += isinstance(node, ast.Attribute) and node.attr == "compare_digest"
                if isinstance(node, ast.Compare):
                    assert not re.search("token|secret|cookie", ast.unparse(node)), (path, node.lineno)
    assert called == 3  # the token of /feedback, that of the label page, and its cookie


def test_fingerprints_leave_out_packages_and_no_single_modules() -> None:
    assert set(fingerprint.EXCLUDED) == {"cli", "commands", "files", "params", "pipeline", "registry", "tracking"}


def test_modules_of_400_lines_are_looked_at() -> None:
    long = {m: n for m, p in modules().items() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, "does it do two things? if not, name it here"


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


def test_help_is_light() -> None:
    """--help imports nothing heavy and so takes well under a second: the modules are asserted, not the clock."""
    probe = (
        "import sys, runpy\n"
        f"for script in {[str(script) for script in SCRIPTS]!r}:\n"
        "    sys.argv = [script, '--help']\n"
        "    try:\n        runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as stop:\n        assert stop.code == 0, script\n"
        "    heavy = {'torch', 'ray', 'wandb', 'numpy', 'matplotlib', 'sklearn', 'optuna'} & set(sys.modules)\n"
        "    assert not heavy, (script, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_the_driver_of_a_sweep_leaves_torch_to_its_workers() -> None:
    probe = "import sys, flywheel.sweep.stage, flywheel.sweep.tune_runner; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_make_logs_shows_every_log_that_a_script_writes() -> None:
    asked = re.compile(r'cli\.logged\(params, "(\w+)"')
    written = {name for script in SCRIPTS for name in asked.findall(script.read_text())}
    assert written == set(status.LOGS)
