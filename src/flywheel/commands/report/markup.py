"""HTML from plain data. Text is escaped unless it is already Html, so that no name of a class or run can be markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VOID = frozenset({"br", "img", "meta", "link"})
SHAPES = frozenset({"line", "path", "rect", "circle"})  # of SVG: closed in the tag itself, or the next one is inside


class Html(str):
    """Markup that is safe to put into a page."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return a value as markup: Html as it is, anything else escaped."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(*children: object) -> Html:
    """Return the children, each escaped unless it is Html, one after the other; None is left out."""
    return Html("".join(text(child) for child in children if child is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element. `class_` is class, `aria_label` aria-label; True is a bare attribute, None and False none."""
    shown = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown += f" {key}" if value is True else f' {key}="{text(value)}"'
    if name in SHAPES:
        return Html(f"<{name}{shown}/>")
    return Html(f"<{name}{shown}>" + ("" if name in VOID else f"{join(*children)}</{name}>"))


def parts(*children: Html | None) -> list[Html]:
    """Return the parts of a section that are there."""
    return [child for child in children if child is not None]


def section(id: str, title: str, *children: object) -> Html:
    """Return a section of the page with its heading."""
    return tag("section", tag("h2", title), *children, id=id, aria_label=title)


def note(*children: object) -> Html:
    """Return a line of small print."""
    return tag("p", *children, class_="note")


def missing(what: str, command: str) -> Html:
    """Return what stands in place of a part that is not there: why, and what to type."""
    return tag("p", what, " ", tag("code", command), class_="missing")


def details(summary: str, *children: object) -> Html:
    """Return a part that is shown when it is asked for."""
    return tag("details", tag("summary", summary), *children)


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], caption: str, *, words: Sequence[int] = (0,)
) -> Html:
    """Return a table that scrolls sideways by itself where it is too wide. Columns not in `words` are numbers."""

    def cell(name: str, column: int, value: object, **attributes: object) -> Html:
        return tag(name, value, class_=None if column in words else "number", **attributes)

    body = [
        tag(
            "tr", *(cell("th" if i == 0 else "td", i, v, scope="row" if i == 0 else None) for i, v in enumerate(row))
        )
        for row in rows
    ]  # fmt: skip
    header = tag("tr", *(cell("th", i, value, scope="col") for i, value in enumerate(head)))
    whole = tag(
        "table", tag("caption", caption, class_="hidden"), tag("thead", header), tag("tbody", *body)
    )  # fmt: skip
    return scrolling(whole, caption)


def scrolling(child: Html, label: str) -> Html:
    """Return what may be wider than the page, in a box that scrolls, by keyboard too."""
    return tag("div", child, class_="scroll", role="region", aria_label=label, tabindex=0)


def chart(kind: str, title: str, told: str, data: Mapping[str, Any], height: int = 320) -> Html:
    """Return a figure that page.js draws from `data`; `told` is what it shows, for who cannot see it."""
    # "</script>" or "<!--" in a name would end the element: no "<" stands in the JSON.
    island = json.dumps({"kind": kind, **data}, allow_nan=False).replace("<", "\\u003c")
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", class_="chart", role="img", aria_label=told, style=f"height:{height}px"),
        tag("script", Html(island), type="application/json"),
        class_="plot",
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Return a part as people read it: 99.8 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """Return an interval of parts: 98.8 to 100.0 %."""
    return "" if bounds is None else f"{100 * bounds[0]:.{digits}f} to {100 * bounds[1]:.{digits}f} %"


def points(value: float, digits: int = 2) -> str:
    """Return a difference in percentage points, with its sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def when(at: str) -> Html:
    """Return a time as the registry records it (ISO 8601, UTC), for people and for machines."""
    return tag("time", f"{at[:16].replace('T', ' ')} UTC", datetime=at)
