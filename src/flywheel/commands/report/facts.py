"""Read what the page shows from the reports and receipts of the stages, the registry and the journal of the sweep."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from flywheel import FlywheelError, files
from flywheel.commands import status
from flywheel.commands.report.lineage import Node, ordered
from flywheel.commands.report.sweep import importance
from flywheel.evaluation.report import EvaluationReport
from flywheel.gate.report import GateReport
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.registry import Registry
from flywheel.retraining.report import RetrainReport, Score
from flywheel.simulation.report import SimulationReport
from flywheel.sweep.journal import Journal
from flywheel.sweep.report import SweepReport
from flywheel.tracking import run_files
from flywheel.tracking.run_files import RunRecord
from flywheel.traffic.monitor_report import MonitorReport

# Report file -> its model and the command that writes it.
REPORTS: dict[str, tuple[type[BaseModel], str]] = {
    "sweep": (SweepReport, "make sweep"),
    "evaluation": (EvaluationReport, "make evaluate"),
    "gate": (GateReport, "make evaluate"),
    "simulation": (SimulationReport, "make serve simulate"),
    "monitor": (MonitorReport, "make monitor"),
    "retrain": (RetrainReport, "make retrain"),
}
MAX_NODES = 24  # of the drawn lineage; older ones are counted
MAX_SIDE = 64  # pixels; 40 images of CIFAR-10 are 100 kB of PNG


@dataclass(frozen=True)
class Absent:
    """A report that is missing or cannot be read: why, and the command that writes it."""

    reason: str
    command: str


@dataclass(frozen=True)
class Facts:
    """All that the page shows. `images` are data URIs by report and image id, `labels` name:vN by ref.

    `moves` are the promotions as the audit log has them, newest first; the first one tells what is in production, and
    `production` is the score of that model on the test images.
    """

    profile: str
    at: str
    registered_model: str
    stages: tuple[tuple[str, str, str], ...]
    production: Score | None
    reports: Mapping[str, BaseModel | Absent]
    labels: Mapping[str, str]
    importance: Mapping[str, float] | None
    images: Mapping[str, Mapping[int, str]]
    nodes: tuple[Node, ...]
    older: int
    moves: Sequence[Mapping[str, Any]]
    runs: tuple[RunRecord, ...]  # W&B's, newest first
    newest_receipt: Mapping[str, Any]

    def command(self, text: str) -> str:
        """Return a command with the profile."""
        return f"{text} PROFILE={self.profile}"


def gather(params: Params, registry: Registry) -> Facts:
    """Read everything. A report that is missing or damaged becomes an Absent."""
    reports = {name: _report(params, name) for name in REPORTS}
    receipts = filter(None, map(stage.read_receipt, sorted(params.store_paths.receipts.glob("*.json"))))
    refs = _refs([report.model_dump() for report in reports.values() if isinstance(report, BaseModel)])
    history = registry.history(params.registered_model)
    refs |= {entry[end] for entry in history for end in ("from", "to") if entry[end]}
    moves = [entry for entry in reversed(history) if entry["alias"] == "production"]
    nodes = _nodes(params, registry)
    sweep = reports["sweep"]
    record = Journal(params.store_paths.journal(sweep.sweep_id)).read() if isinstance(sweep, SweepReport) else None
    return Facts(
        profile=params.profile,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        registered_model=params.registered_model,
        stages=tuple(_stages(params, registry, reports["simulation"])),
        production=_score(params, registry, reports, moves[0]["to"]) if moves else None,
        reports=reports,
        labels={ref: registry.label(ref) for ref in refs},
        importance=importance(record) if record else None,
        images={
            name: _images(registry, reports[name], split)
            for name, split in (("evaluation", "test"), ("simulation", "simulation"))
        },
        nodes=tuple(nodes[-MAX_NODES:]),
        older=max(0, len(nodes) - MAX_NODES),
        moves=moves,
        runs=tuple(reversed([*run_files.records(params.store)])),
        newest_receipt=max(receipts, key=lambda one: str(one.get("started")), default={}),
    )


def _stages(params: Params, registry: Registry, simulation: BaseModel | Absent) -> Iterator[tuple[str, str, str]]:
    """Yield (stage, state, reason) as `make status` does, and for the last simulation."""
    for row in status.states(params, registry):
        if row[0] == "data":
            row = (*row[:2], row[2] + _image_files(params))
        if row[0] == "retrain":
            if isinstance(simulation, SimulationReport):
                yield "simulate", "done", f"last at {simulation.at}"
            else:
                yield "simulate", "not yet", "make simulate sends the simulation images to the server"
        yield row


def _image_files(params: Params) -> str:
    """Return what the data stage counted in a folder, empty for other sources."""
    receipt = stage.read_receipt(params.store_paths.receipt("data")) or {}
    counted = receipt.get("metrics", {}).get("files")
    if not counted:
        return ""
    left_out = [f"{of['count']:,} {reason}, such as {of['example']}" for reason, of in counted["left_out"].items()]
    return f"; {counted['used']:,} image files used; left out: {'; '.join(left_out) or 'none'}"


def _report(params: Params, name: str) -> BaseModel | Absent:
    model, command = REPORTS[name]
    path, command = params.reports / f"{name}.json", f"{command} PROFILE={params.profile}"
    try:
        return model.model_validate(files.read_json(path))
    except FileNotFoundError:
        return Absent("Not yet; type", command)
    except (OSError, ValueError) as error:  # also pydantic.ValidationError
        reason = " ".join(str(error).split())[:200]
        force = "" if name in ("simulation", "monitor") else " FORCE=1"
        return Absent(f"{path} cannot be read ({reason}); written again by", command + force)


def _refs(value: object) -> set[str]:
    """Return every ref, name@digest, in a report."""
    if isinstance(value, Mapping):
        return _refs(list(value.values())) | _refs(list(value))
    if isinstance(value, list | tuple):
        return set().union(*(_refs(one) for one in value))
    return {value} if isinstance(value, str) and value.count("@") == 1 and " " not in value else set()


def _images(registry: Registry, report: BaseModel | Absent, split: str) -> dict[int, str]:
    """Return id -> PNG as a small data URI, for the mistakes that a report shows. Missing images are left out."""
    if not isinstance(report, EvaluationReport | SimulationReport) or not report.worst:
        return {}
    if isinstance(report, SimulationReport) and report.drift == "none":
        split = "clean"

    import numpy as np
    from PIL import Image

    from flywheel.data import dataset

    try:
        opened = dataset.open_directory(registry.open(registry.resolve(report.dataset)))
    except FlywheelError:
        return {}  # removed or damaged: show the figures without images
    indices = opened.indices[split]
    found = {}
    for index in indices[np.isin(opened.ids[indices], [mistake.id for mistake in report.worst])]:
        image = Image.fromarray(np.asarray(opened.images[index]))
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        found[int(opened.ids[index])] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found


def _score(params: Params, registry: Registry, reports: Mapping[str, BaseModel | Absent], ref: str) -> Score:
    """Return a model's score on test: from a report of it, else from the audit log and the data set that it names."""
    match reports["evaluation"], reports["retrain"]:
        case EvaluationReport(model=model) as scored, _ if model == ref:
            return Score(n=scored.n, accuracy=scored.accuracy, interval=scored.interval)
        case _, RetrainReport(candidate=candidate) as retrained if candidate == ref:
            return retrained.after.test
        case _, RetrainReport(parent=parent) as retrained if parent == ref:
            return retrained.before.test
    for entry in reversed(registry.history(params.registered_model)):
        record = entry["gate"] or {}
        accuracy, dataset = (record.get("accuracy") or {}).get(ref), record.get("dataset")
        if accuracy is not None:
            known = registry.resolve(dataset).metadata if dataset and registry.has(dataset) else {}
            n = known.get("splits", {}).get("test") or 0
            if n:
                from flywheel.metrics.classification import wilson_interval
            return Score(n=n, accuracy=accuracy, interval=wilson_interval(round(accuracy * n), n) if n else None)
    return Score(n=0, accuracy=None, interval=None)


def _nodes(params: Params, registry: Registry) -> list[Node]:
    aliases = registry.aliases(params.registered_model)
    ref = aliases.get("production") or aliases.get("best")
    if ref is None or not registry.has(ref):
        return []
    versions = {ancestor.ref: ancestor.version for ancestor in registry.lineage(registry.resolve(ref))}
    return ordered(
        [
            Node(
                name, version.label, version.type, version.created,
                tuple(ref for refs in version.inputs.values() for ref in refs),
                tuple(alias for alias, to in aliases.items() if to == name),
            )
            for name, version in versions.items()
            if version is not None
        ]
    )  # fmt: skip
