"""The sections on production, the stages, the lineage, promotions and W&B runs, and the footer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flywheel.commands.report import lineage as graph
from flywheel.commands.report.facts import Facts, Move, Production
from flywheel.commands.report.lineage import Node
from flywheel.commands.report.markup import (
    Html,
    details,
    interval,
    join,
    missing,
    note,
    parts,
    percent,
    scrolling,
    table,
    tag,
    when,
)
from flywheel.tracking.run_files import RunRecord

MAX_MOVES, MAX_RUNS = 30, 12
TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00")  # in receipts
# State of a stage -> mark and CSS class. The mark is for readers who do not see the colour.
MARKS = {
    "up to date": ("✓", "good"),
    "done": ("✓", "good"),
    "running": ("●", "good"),
    "deployed": ("●", "good"),
    "to run": ("→", "next"),
    "starting": ("→", "next"),
    "crashed": ("✕", "bad"),
}


def production(model: Production | None, registered_model: str, command: str) -> list[Html]:
    """Return the model in production: its accuracy, since when and why."""
    if model is None:
        return parts(missing(f"{registered_model} has no production model yet; type", command))
    figure = join(
        tag("p", percent(model.accuracy), class_="figure"),
        tag(
            "p", "of ", tag("b", f"{model.n:,}"), " test images", tag("br"), f"95 % interval {interval(model.interval)}"
        )
        if model.n and model.interval
        else tag("p", "accuracy on test" if model.accuracy is not None else "its test accuracy is not recorded"),
    )
    forced = tag("span", "forced past the gate", class_="badge bad") if model.forced else None
    return parts(
        tag(
            "div",
            tag("div", figure, class_="headline"),
            tag(
                "dl",
                tag("dt", "model"),
                tag("dd", tag("code", model.label), " ", forced),
                tag("dt", "since"),
                tag("dd", when(model.since), f", by {model.who}"),
                tag("dt", "because"),
                tag("dd", model.reason),
            ),
            class_="hero",
        )
    )


def stages(rows: Sequence[tuple[str, str, str]], profile: str) -> list[Html]:
    """Return the state of each stage, and what to type for one that must run."""
    items = []
    for name, state, reason in rows:
        mark, kind = MARKS.get(state.partition(" (")[0], ("–", "idle"))
        reason = TIME.sub(r"\1 \2 UTC", reason)
        command = tag("code", f"make {name} PROFILE={profile}") if state == "to run" else None
        items.append(
            tag(
                "li", tag("span", mark, class_="mark", aria_hidden="true"),
                tag("div", tag("b", name), " ", tag("span", state, class_="state"), tag("p", reason), command),
                class_=kind,
            )
        )  # fmt: skip
    return parts(tag("ol", *items, class_="stages"))


def lineage(nodes: Sequence[Node], older: int, command: str) -> list[Html]:
    """Return a drawing of the versions that the production model was made from."""
    if not nodes:
        return parts(missing("No model yet; type", command))
    head = note("Time runs downwards: a model, the failures it had, the model trained on them. ") + (
        note(f"{older} older versions are not drawn; ", tag("code", command.replace("sweep", "lineage")), " lists all.")
        if older
        else ""
    )
    return parts(Html(head), scrolling(graph.draw(nodes), "Lineage of the production model"))


def history(moves: Sequence[Move], command: str) -> list[Html]:
    """Return the promotions, newest first."""
    if not moves:
        return parts(missing("Nothing was promoted yet; type", command))
    rows = [
        (
            when(move.at), tag("code", move.to),
            join(move.before or "nothing", tag("span", " forced", class_="badge bad") if move.forced else None),
            move.who, tag("span", move.reason, class_="wide"),
        )
        for move in moves[:MAX_MOVES]
    ]  # fmt: skip
    rest = len(moves) - MAX_MOVES
    return parts(
        table(("when", "into production", "before", "who", "why"), rows, "Promotions, newest first", words=range(5)),
        note(f"and {rest} earlier: make history lists all") if rest > 0 else None,
    )


def runs(found: Sequence[RunRecord], upload: str) -> list[Html]:
    """Return the W&B runs, and what to type to upload those that are in the store only."""
    shown = [run for run in found if run.job_type != "trial"]
    if not shown:
        return parts(note("No run is recorded for this profile (tracking.wandb is disabled, or no stage has run)."))
    waiting = sum(not run.confirmed for run in found)
    local = note(f"{waiting} of {len(found)} are in the store only; ", tag("code", upload), " uploads them.")
    trials = len(found) - len(shown)
    rows = [
        (
            run.name, run.job_type, tag("a", run.key, href=run.url) if run.url else tag("code", run.key), run.group,
            when(run.started), "on W&B" if run.confirmed else "in the store only",
        )
        for run in shown
    ]  # fmt: skip
    head = ("run", "stage", "id", "group", "started", "where")
    return parts(
        table(head, rows[:MAX_RUNS], "W&B runs of the stages, newest first", words=range(6)),
        details("Older runs", table(head, rows[MAX_RUNS:], "Older W&B runs", words=range(6)))
        if len(rows) > MAX_RUNS
        else None,
        note(f"and {trials} runs of trials") if trials else None,
        local if waiting else None,
    )


def footer(facts: Facts) -> Html:
    """Return the code and the libraries that made the newest result."""
    git, versions = facts.newest_receipt.get("git") or {}, facts.newest_receipt.get("versions") or {}
    commit = f"code {str(git['commit'])[:10]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else ""
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return tag(
        "footer", tag("p", "Written ", when(facts.at), " by ", tag("code", facts.command("make report")), "."),
        tag("p", f"The newest stage ran with {commit or 'code outside git'}: {libraries}.") if libraries else None,
    )  # fmt: skip
