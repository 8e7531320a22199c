"""Write the page, one HTML file. Its content security policy forbids all requests and all other scripts.

`facts.py` gathers what the page shows, `page.html` lays it out. Text is escaped where the template inserts it, so the
name of a class or run can never become markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from flywheel import files
from flywheel.commands.report import facts, formats, lineage, sweep
from flywheel.commands.report.facts import Absent, Facts
from flywheel.gate.table import notes, reported
from flywheel.params import Params
from flywheel.pipeline.plotting import READABLE_CLASSES
from flywheel.registry import Registry

HERE = Path(__file__).parent
NAME = "index.html"
FILTERS = (
    formats.percent, formats.interval, formats.points, formats.thousands, formats.value, formats.minutes, formats.when,
    files.human_size, formats.plain_times, formats.island, formats.x, formats.symmetric, formats.common, lineage.graph,
    formats.story, notes, reported, sweep.trials,
)  # fmt: skip


def write(params: Params, registry: Registry) -> Path:
    """Write the page into the reports of the profile and return its path."""
    path = params.reports / NAME
    found = facts.gather(params, registry)
    files.write_text(path, render(found, list(params.sweep.space), params.sweep.logarithmic))
    return path


def render(found: Facts, searched: Sequence[str], logarithmic: Sequence[str]) -> str:
    """Return the page. `searched` are the params of the sweep, `logarithmic` those on a logarithmic scale."""
    scripts = [_read("vendor/echarts.min.js"), _read("page.js")]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return environment().get_template("page.html").render(
        facts=found, searched=searched, logarithmic=logarithmic, style=_read("page.css"), scripts=scripts,
        allowed=" ".join(f"'sha256-{digest}'" for digest in digests),
    )  # fmt: skip


def environment() -> jinja2.Environment:
    """Return the environment of the templates in this folder. A name that does not exist is an error."""
    result = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    result.filters |= {one.__name__: one for one in FILTERS}
    result.tests["absent"] = lambda report: isinstance(report, Absent)
    result.globals |= {"READABLE_CLASSES": READABLE_CLASSES, "WIDTH": formats.WIDTH, "STATUSES": sweep.STATUSES}
    return result


def _read(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))
