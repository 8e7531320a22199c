"""Build HTML. Text is escaped unless it is Html already, so the name of a class or run can never become markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VOID = frozenset({"br", "img", "meta", "link"})
SHAPES = frozenset({"line", "path", "rect", "circle"})  # SVG: <line/>, because <line> would contain the next element


class Html(str):
    """Markup that needs no escaping."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return Html unchanged and anything else escaped."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(*children: object) -> Html:
    """Concatenate the children, escaped unless they are Html. None is left out."""
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
    """Return the children that are not None."""
    return [child for child in children if child is not None]


def section(id: str, title: str, *children: object) -> Html:
    """Return a section of the page with its heading."""
    return tag("section", tag("h2", title), *children, id=id, aria_label=title)


def note(*children: object) -> Html:
    """Return a line of small print."""
    return tag("p", *children, class_="note")


def missing(what: str, command: str) -> Html:
    """Return the text for a part that is missing: why, and what to type."""
    return tag("p", what, " ", tag("code", command), class_="missing")


def details(summary: str, *children: object) -> Html:
    """Return a part that opens with a click."""
    return tag("details", tag("summary", summary), *children)


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], caption: str, *, words: Sequence[int] = (0,)
) -> Html:
    """Return a table that scrolls if it is too wide. Columns in `words` are text, the others numbers."""

    def cell(name: str, column: int, value: object, **attributes: object) -> Html:
        return tag(name, value, class_=None if column in words else "number", **attributes)

    body = [
        tag(
            "tr", *(cell("th" if i == 0 else "td", i, v, scope="row" if i == 0 else None) for i, v in enumerate(row))
        )
        for row in rows
    ]  # fmt: skip
    header = tag("tr", *(cell("th", i, value, scope="col") for i, value in enumerate(head)))
    caption_tag = tag("caption", caption, class_="hidden")
    return scrolling(tag("table", caption_tag, tag("thead", header), tag("tbody", *body)), caption)


def scrolling(child: Html, label: str) -> Html:
    """Wrap an element that may be wider than the page in a box that scrolls, by keyboard too."""
    return tag("div", child, class_="scroll", role="region", aria_label=label, tabindex=0)


def chart(kind: str, title: str, description: str, data: Mapping[str, Any], height: int = 320) -> Html:
    """Return a figure that page.js draws from `data`; `description` is for screen readers."""
    # A name with "</script>" or "<!--" would end the element, so the JSON has no "<".
    island = json.dumps({"kind": kind, **data}, allow_nan=False).replace("<", "\\u003c")
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", class_="chart", role="img", aria_label=description, style=f"height:{height}px"),
        tag("script", Html(island), type="application/json"),
        class_="plot",
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as 99.8 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """Return an interval of fractions as 98.8 to 100.0 %."""
    return "" if bounds is None else f"{100 * bounds[0]:.{digits}f} to {100 * bounds[1]:.{digits}f} %"


def points(value: float, digits: int = 2) -> str:
    """Return a difference in percentage points with its sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def when(at: str) -> Html:
    """Return a <time> for a time in ISO 8601, UTC."""
    return tag("time", f"{at[:16].replace('T', ' ')} UTC", datetime=at)
