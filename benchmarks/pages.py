"""Tables in the docs that are generated: each stands between the markers of its name."""

from __future__ import annotations

from pathlib import Path

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
