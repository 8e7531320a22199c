"""What the documents name is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_faults_names_tests_that_there_are() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 50
    assert named <= there, named - there


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        text = (page.parent / target if target else page).read_text()
        assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}, f"{target}#{anchor}"


def test_the_page_on_how_it_works_names_every_room() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    listed = text[text.index("## Rooms") : text.index("What the rooms that make something")]
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "src" / "flywheel").glob("[a-z]*")
        if path.is_dir() or path.suffix == ".py"
    }
    assert set(re.findall(r"`(\w+(?:\.py|/))`", listed)) - {"scripts/"} == there


def test_the_page_on_decisions_says_why_of_each_dependency_and_each_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[>=]", one)[0] for one in project["dependencies"]}
    developing = {re.split(r"[\[>=]", one)[0] for one in project["optional-dependencies"]["dev"]}
    text = (ROOT / "docs" / "decisions.md").read_text()
    rows = re.findall(r"^\| ([a-z][^|]*) \| ", text[: text.index("## What could have been")], re.M)
    named = {re.sub(r"\[.*", "", name) for row in rows for name in row.split(", ")} - {"package"}
    assert named - {"types-*"} == wanted | {name for name in developing if not name.startswith("types-")}
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "python-multipart": "python_multipart"}
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    unused = {
        name
        for name in wanted
        if not re.search(rf"^\s*(?:import|from) {modules.get(name, name.replace('-', '_'))}\b", source, re.M)
    }
    assert unused == {"greenlet", "python-multipart"}  # Optuna asks for the first, starlette for the second


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.stem)
def test_tables_of_figures_are_those_of_the_result_files(page: Path) -> None:
    assert tables.updated(page) == page.read_text()


def test_every_benchmark_with_a_table_has_it_in_a_page() -> None:
    text = "".join(page.read_text() for page in tables.PAGES)
    made = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef table(" in path.read_text()} - {"tables"}
    shown = re.findall(r"^<!-- (\w[\w-]*) -->$", text, re.M)
    assert all(any(name == stem or name.startswith(f"{stem}_") for name in shown) for stem in made)
    assert "headlines" in shown


def diffs() -> dict[str, str]:
    """Heading -> the diff below it, in docs/extend.md."""
    text = (ROOT / "docs" / "extend.md").read_text()
    return {found[0]: found[1] for found in re.findall(r"^## (.+?)$.*?^```diff\n(.*?)^```$", text, re.S | re.M)}


def test_the_diffs_of_the_page_on_extending_apply_to_the_code_as_it_stands(tmp_path: Path) -> None:
    assert list(diffs()) == ["A new architecture", "A new source", "A gate rule"]
    for heading, diff in diffs().items():
        (tmp_path / "change.diff").write_text(diff)
        command = ["git", "apply", "--check", str(tmp_path / "change.diff")]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, (heading, result.stderr)


CHECKS = {
    "A new architecture": ["-c", "import torch; from flywheel.models.architectures import architecture; "
                           "assert architecture('plain').build(7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)"],
    "A new source": ["-m", "pytest", "-q", "tests/data/test_npz.py"],
    "A gate rule": ["-m", "pytest", "-q", "tests/gate/test_gate.py", "-k", "surer_than_it_should_be"],
}  # fmt: skip


@pytest.mark.parametrize("heading", CHECKS)
def test_what_a_diff_of_the_page_on_extending_adds_works(heading: str, tmp_path: Path) -> None:
    for name in ("src", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("params.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)  # or a repository above would be meant
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diffs()[heading], text=True, check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    result = subprocess.run(
        [sys.executable, *CHECKS[heading]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
