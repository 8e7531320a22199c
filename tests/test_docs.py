"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import headlines
import pages
import pytest

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


def test_the_readmes_figures_are_those_of_the_result_files() -> None:
    readme = (ROOT / "README.md").read_text()
    assert pages.between(readme, "headlines", headlines.table()) == readme
    assert "| `make bench-long` |" in readme
