"""Where benchmarks write: tables in the docs, each between the markers of its name, and reports/bench.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel import files


def between(page: str, name: str, text: str) -> str:
    """Return the page with `text` between `<!-- name -->` and `<!-- end name -->`; unchanged without the markers."""
    opening, closing = f"<!-- {name} -->", f"<!-- end {name} -->"
    if opening not in page:
        return page
    head, rest = page.split(opening)
    return f"{head}{opening}\n{text}\n{closing}{rest.split(closing)[1]}"


def write(path: Path, name: str, text: str) -> None:
    """Put `text` into a page."""
    files.write_text(path, between(path.read_text(encoding="utf-8"), name, text))


def add_to_report(figures: Mapping[str, Any]) -> Path:
    """Put entries into reports/bench.json beside those of other benchmarks, and return its path."""
    report = Path(__file__).parents[1] / "reports" / "bench.json"
    before = files.read_json(report) if report.exists() else {}
    files.write_json(report, {**before, **figures})
    return report
