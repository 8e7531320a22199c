"""How the page shows numbers, times and data: the filters of its templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00")  # in receipts


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as 99.8 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(bounds: Sequence[float] | None, digits: int = 1) -> str:
    """Return an interval of fractions as 98.8 to 100.0 %."""
    return "" if bounds is None else f"{100 * bounds[0]:.{digits}f} to {100 * bounds[1]:.{digits}f} %"


def points(value: float, digits: int = 2) -> str:
    """Return a difference in percentage points with its sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def thousands(value: float) -> str:
    """Return a number, rounded, as 12,345."""
    return f"{value:,.0f}"


def value(of: object) -> str:
    """Return the value of a param as text."""
    return f"{of:.3g}" if isinstance(of, float) else str(of)


def minutes(at: str) -> str:
    """Return a time in ISO 8601 as 2026-11-28 10:15."""
    return at[:16].replace("T", " ")


def when(at: str) -> Markup:
    """Return a <time> for a time in ISO 8601, UTC."""
    return Markup('<time datetime="{}">{} UTC</time>').format(at, minutes(at))


def plain_times(text: str) -> str:
    """Return a text with the times in it as people write them."""
    return TIME.sub(r"\1 \2 UTC", text)


def island(data: Mapping[str, Any], kind: str) -> Markup:
    """Return the data of a chart as JSON without "<": a name with "</script>" or "<!--" would end the element."""
    return Markup(json.dumps({"kind": kind, **data}, allow_nan=False).replace("<", "\\u003c"))
