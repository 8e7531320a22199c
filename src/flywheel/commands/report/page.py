"""Write the page, one HTML file. Its content security policy forbids all requests and all other scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel import files
from flywheel.commands.report import evaluation, facts, gate, overview, simulation, sweep
from flywheel.commands.report.facts import Absent, Facts
from flywheel.commands.report.markup import Html, join, missing, section, tag
from flywheel.params import Params
from flywheel.registry import Registry

HERE = Path(__file__).parent
NAME = "index.html"


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
    body = join(head, tag("main", *(part for _, _, part in sections)), overview.footer(found))
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
    labels, command = found.labels, found.command
    production = found.production.label if found.production else None

    def shown(name: str, make: Callable[[Any], list[Html]]) -> list[Html]:
        report = found.reports[name]
        return [missing(report.reason, report.command)] if isinstance(report, Absent) else make(report)

    sections: list[tuple[str, str, list[Html]]] = [
        ("production", "In production",
         overview.production(found.production, found.registered_model, command("make evaluate"))),
        ("stages", "Stages", overview.stages(found.stages, found.profile)),
        ("sweep", "Sweep", shown("sweep", lambda report: [
            *sweep.trials(report, searched, logarithmic, labels.get(report.best.model, report.best.model)),
            *sweep.importances(found.importance, report.trials),
        ])),
        ("evaluation", "Evaluation", shown("evaluation", lambda report: evaluation.evaluation(
            report, labels, found.images["evaluation"], production))),
        ("traffic", "Traffic", shown("simulation", simulation.traffic)),
        ("failures", "Failures", shown("simulation", lambda report: simulation.failures(
            report, labels, found.images["simulation"], command("make retrain")))),
        ("gate", "Gate", [
            *shown("gate", lambda report: gate.gate(report, labels)), tag("h3", "What the failures taught"),
            *shown("retrain", lambda report: gate.retraining(report, labels)),
        ]),
        ("lineage", "Lineage", overview.lineage(found.nodes, found.older, command("make sweep"))),
        ("history", "Promotions", overview.history(found.moves, command("make evaluate"))),
        ("runs", "Weights & Biases", overview.runs(found.runs, command("make sync"))),
    ]  # fmt: skip
    return [(id, title, section(id, title, *children)) for id, title, children in sections]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
