"""Write the page, one HTML file. Its content security policy forbids all requests and all other scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.commands.report import facts, judging, searching, standing, traffic
from flywheel.commands.report.facts import REPORTS, Absent, Facts
from flywheel.commands.report.markup import Html, join, missing, section, tag
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.sweep.report import SweepReport

HERE = Path(__file__).parent
NAME = "index.html"
OLDER = (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration)


def write(params: Params, registry: Registry) -> Path:
    """Write the page into the reports of the profile and return its path."""
    path = params.reports / NAME
    found = facts.gather(params, registry)
    files.write_text(path, render(found, list(params.sweep.space), params.sweep.logarithmic))
    return path


def render(found: Facts, searched: list[str], logarithmic: list[str]) -> str:
    """Return the page. `searched` are the params of the sweep, `logarithmic` those on a logarithmic scale."""
    sections = _sections(found, searched, logarithmic)
    links = [tag("a", title, href=f"#{id}") for id, title, _ in sections]
    head = tag(
        "header", tag("p", "The data flywheel", class_="over"), tag("h1", f"Profile {found.profile}"),
        tag("nav", *links, aria_label="Sections"),
    )  # fmt: skip
    body = join(head, tag("main", *(part for _, _, part in sections)), standing.footer(found))
    scripts = [Html((HERE / name).read_text(encoding="utf-8")) for name in ("vendor/echarts.min.js", "page.js")]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    return "<!doctype html>\n" + tag(
        "html",
        tag(
            "head", tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("link", rel="icon", href="data:,"),
            tag("title", f"Flywheel: {found.profile}"),
            tag("style", Html((HERE / "page.css").read_text(encoding="utf-8"))),
        ),
        tag("body", body, tag("noscript", "The plots need JavaScript; the tables below them have the figures."),
            *(tag("script", script) for script in scripts)),
        lang="en",
    )  # fmt: skip


def _sections(found: Facts, searched: list[str], logarithmic: list[str]) -> list[tuple[str, str, Html]]:
    """Return (id, title, section) in the order of the page."""
    parts, labels, command = found.parts, found.labels, found.command

    def told(name: str, make: Callable[[Any], Iterable[Html]]) -> list[Html]:
        report = parts[name]
        if isinstance(report, Absent):
            return [missing(report.reason, report.command)]
        try:
            return list(make(report))
        except OLDER as error:
            again = command(REPORTS[name]) + ("" if name == "simulation" else " FORCE=1")
            reason = f"{name}.json is not as this code writes it ({type(error).__name__}: {error}); written anew by"
            return [missing(reason, again)]

    def sweep(content: Any) -> list[Html]:
        report = SweepReport.model_validate(content)
        label = labels.get(report.best.model, report.best.model)
        judged = sum(trial.accuracy is not None and trial.status != "failed" for trial in report.trials)
        return [
            *searching.sweep(report, searched, logarithmic, label),
            *searching.importances(found.importance, judged),
        ]

    images, serving = found.images, found.production.label if found.production else None
    decision = told("gate", lambda report: judging.gate(report, labels))
    taught = told("retrain", lambda report: judging.control(report, labels))
    sections: list[tuple[str, str, list[Html]]] = [
        ("production", "In production",
         standing.production(found.production, found.registered_model, command("make evaluate"))),
        ("stages", "Stages", standing.stages(found.stages, found.profile)),
        ("sweep", "Sweep", told("sweep", sweep)),
        ("evaluation", "Evaluation",
         told("evaluation", lambda report: judging.evaluation(report, labels, images["evaluation"], serving))),
        ("traffic", "Traffic", told("simulation", traffic.traffic)),
        ("failures", "Failures",
         told("simulation", lambda report: traffic.failures(
             report, labels, images["simulation"], command("make retrain")))),
        ("gate", "Gate", [*decision, tag("h3", "What the failures taught"), *taught]),
        ("lineage", "Lineage", standing.lineage(found.nodes, found.older, command("make sweep"))),
        ("history", "Promotions", standing.history(found.moves, command("make evaluate"))),
        ("runs", "Weights & Biases", standing.runs(found.runs, command("make sync"))),
    ]  # fmt: skip
    return [(id, title, section(id, title, *shown)) for id, title, shown in sections]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
