"""Show status, artifacts, lineage, history and logs, read from receipts, manifests, the audit log and log files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flywheel import FlywheelError, files
from flywheel.data import stage as data_stage
from flywheel.evaluation import stage as evaluation_stage
from flywheel.files import human_size
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.registry import Registry, RegistryError, Version
from flywheel.sweep import stage as sweep_stage

STAGES = (("data", data_stage), ("sweep", sweep_stage), ("evaluate", evaluation_stage))
LOGS = (
    *(name for name, _ in STAGES),
    *("demo", "serve", "simulate", "label", "collect", "monitor", "forget", "retrain", "promote", "rollback", "sync"),
)


def status(params: Params, registry: Registry) -> Iterator[str]:
    """Yield a line for each stage with its state and the reason, then a line for each alias."""
    yield f"profile {params.profile}, store {params.store}"
    for name, state, reason in states(params, registry):
        yield f"{name:<12}{state:<20} {reason}"
    aliases = registry.aliases(params.registered_model)
    for alias in ("best", "candidate", "production", "previous"):
        if alias not in aliases:
            if alias == "best":
                yield f"{alias:<12}none"
            elif alias == "production":
                yield f"{alias:<12}{'none':<20} make evaluate promotes the best model or says why not"
        elif registry.has(aliases[alias]):
            yield f"{alias:<12}{registry.resolve(aliases[alias]).label}"
        else:
            yield f"{alias:<12}missing: {aliases[alias]} is not in the store"


def states(params: Params, registry: Registry) -> Iterator[tuple[str, str, str]]:
    """Yield (stage, state, reason) for data, sweep, evaluate, serve, traffic, monitor and retrain.

    A stage waits if one before it is to run, even if its own outputs are up to date now.
    """
    first = ""  # the first stage that is not up to date
    for name, module in STAGES:
        state, reason = _state(name, module, params, registry)
        if first and not state.startswith("running"):
            state, reason = "waiting", f"for {first}"
        elif state != "up to date":
            first = first or name
        yield name, state, reason
    yield "serve", *_server(params)
    yield "traffic", *traffic(params)
    yield "monitor", *_monitor(params)
    yield "retrain", *_retraining(params, registry)


def artifacts(registry: Registry) -> Iterator[str]:
    """Yield a line for each version: label, type, size, time, aliases."""
    versions, named = list(_versions(registry)), registry.aliases_by_ref()
    for version in versions:
        aliases = ", ".join(named.get(version.ref, ()))
        created = version.created[:19].replace("T", " ")
        yield f"{version.label:<28}{version.type:<10}{human_size(version.size):>10}  {created}  {aliases}"
    if not versions:
        yield "no artifact in this store yet; run make data"


def verify(registry: Registry) -> Iterator[str]:
    """Verify every file and yield a line for each version. Raises RegistryError at the end if one is damaged."""
    damaged = []
    for reason in registry.damaged():
        damaged.append("a manifest")
        yield reason
    for version in _versions(registry):
        try:
            state = "intact" if registry.verify(version) else "not in this store"
            yield f"{version.label:<28}{human_size(version.size):>10}  {state}"
        except RegistryError as error:
            damaged.append(version.label)
            yield str(error)
    if damaged:
        raise RegistryError(f"damaged: {', '.join(damaged)}")


def lineage(params: Params, registry: Registry, reference: str | None) -> Iterator[str]:
    """Yield the tree of the versions that a version was made from; by default of production, otherwise of best."""
    if reference is None:
        aliases = registry.aliases(params.registered_model)
        reference = aliases.get("production") or aliases.get("best") or params.dataset_name
    for depth, role, ref, version in registry.lineage(stage.named(params, registry, reference)):
        indent = "   " * depth + (f"└─ {role}: " if depth else "")
        yield indent + (_describe(version) if version else f"{ref} (not in this store)")


def history(params: Params, registry: Registry, everything: bool = False) -> Iterator[str]:
    """Yield a line for each move of production (or of every alias): when, who, which models, why. Newest last."""
    entries = [
        entry
        for entry in registry.history(params.registered_model)
        if entry["alias"] == "production" or (everything and entry["alias"])
    ]
    for entry in entries:
        before = _short(registry, entry["from"]) if entry["from"] else "nothing"
        forced = "FORCED " if entry["forced"] else ""
        yield f"{entry['at'][:19].replace('T', ' ')}  {entry['who']}  {entry['alias']}: {before} -> " + (
            f"{_short(registry, entry['to'])}  {forced}{entry['reason']}"
        )
    if not entries:
        yield f"{params.registered_model}: nothing was promoted yet"


def logs(paths: Sequence[Path], lines: int) -> Iterator[str]:
    """Yield the path and the last lines of each log."""
    for path in paths:
        if not path.exists():
            yield f"{path} (none yet)"
            continue
        yield str(path)
        with path.open(encoding="utf-8", errors="replace") as log:  # the server's processes print what they like
            yield from (f"    {line.rstrip()}" for line in deque(log, maxlen=max(lines, 0)))


def _server(params: Params) -> tuple[str, str]:
    """Return the state of the server and its URL. A server that runs is asked whether it answers."""
    from flywheel.pipeline import server_record

    served = server_record.read(params)
    if served is not None and served.address is not None:
        state = "deployed" if served.answers() else "deployed, does not answer"
        return state, f"{served.url}, on the cluster at {served.address}"
    if files.holder(params.store_paths.lock("serve")) is not None:
        if served is None:
            return "starting", "or stopping"
        where = f"{served.url} (pid {served.pid})"
        if served.answers():
            return "running", where
        return "running, does not answer", f"{where}; make logs shows why, make serve replaces it"
    return ("crashed", "make serve starts it again") if served else ("stopped", "make serve starts it")


def traffic(params: Params) -> tuple[str, str]:
    """Return what the server recorded, from the files; the server knows what it could not record."""
    from flywheel.pipeline import server_record
    from flywheel.traffic import records, retention

    kept = retention.measure(params.store_paths)
    if kept.oldest is None:
        return "nothing recorded", "make serve records what it answers"
    served = server_record.read(params)
    dropped = served.dropped() if served else None
    lost = f", {dropped:,} answers not recorded" if dropped else ""
    if cut_off := records.cut_off(params.store_paths):
        lost = f", {cut_off:,} lines cut off by killed processes are skipped{lost}"
    return f"{kept.images:,} images kept", f"{human_size(kept.size_bytes)} since {kept.oldest:%Y-%m-%d %H:%M} UTC{lost}"


def _monitor(params: Params) -> tuple[str, str]:
    """Return what `make monitor` last said of the production model."""
    from flywheel.traffic import monitor
    from flywheel.traffic.monitor_text import clock

    if running := _running(params, "monitor"):
        return running
    report = monitor.read(params)
    if report is None:
        return "not yet", "make monitor watches what is recorded, without labels"
    last = f"last run at {clock(report.at)}"
    if report.alarm.state == "none":
        return "not yet", f"{report.label or 'no model'} in production has no prediction that counts; {last}"
    if report.alarm.state == "alarm":
        since = clock(report.alarm.since)
        return "alarm", f"{report.label}, since {since}; make label asks people for the truth; {last}"
    return "no alarm", f"{report.label}, presumed accuracy {report.alarm.presumed_accuracy:.1%}; {last}"


def _retraining(params: Params, registry: Registry) -> tuple[str, str]:
    """Return the state of `make retrain` and the reason."""
    from flywheel.retraining import plan
    from flywheel.traffic import feedback

    if running := _running(params, "retrain"):
        return running
    newest = feedback.latest(params, registry)
    if newest is not None and registry.missing_file(newest) is not None:
        return "waiting", f"the files of {newest.label} are not in the store; make retrain downloads what W&B has"
    try:
        planned = plan.make(params, registry)
    except FlywheelError as error:
        return "waiting", str(error)
    if isinstance(planned, str):
        return "nothing to do", planned
    return "to run", f"{planned.new} (feedback {planned.feedback.label})"


def _state(name: str, module: Any, params: Params, registry: Registry) -> tuple[str, str]:
    if running := _running(params, name):
        return running
    try:
        defined = module.define(params, registry)
        verdict = stage.check(defined)
        if verdict.up_to_date:
            return "up to date", verdict.reason
        half_done = sweep_stage.interrupted(defined) if module is sweep_stage else None
        return "to run", half_done or verdict.reason
    except FlywheelError as error:
        return "waiting", str(error)


def _running(params: Params, name: str) -> tuple[str, str] | None:
    pid = files.holder(params.store_paths.lock(name))
    return (f"running (pid {pid})", f"make logs PROFILE={params.profile} shows its messages") if pid else None


def _versions(registry: Registry) -> Iterator[Version]:
    for name in registry.collections():
        yield from registry.versions(name)


def _short(registry: Registry, ref: str) -> str:
    label = registry.label(ref)
    return f"{ref[:-20]} (gone)" if label == ref else label


def _describe(version: Version) -> str:
    git = version.metadata.get("git") or {}
    commit = f", code {git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git.get("commit") else ""
    return f"{version.label}  ({version.type}, {version.created[:19].replace('T', ' ')}, {version.digest[:12]}{commit})"
