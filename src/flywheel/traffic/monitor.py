"""The command `monitor`: how production does, with and without labels.

It reads the records that are new, writes the report, the picture and the server's gauges, and then what it has counted:
a run that is killed in between changed nothing that the next one does not write again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel import FlywheelError, files
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.registry import Registry, RegistryError
from flywheel.traffic import monitor_text, retention, sampling
from flywheel.traffic.monitor_report import Alarm, Distance, Labelled, MonitorReport, Promotion, Row, Traffic, Watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flywheel.traffic.observed import Judge, Observed, State
    from flywheel.traffic.reference import ModelReference

log = logging.getLogger(__name__)

FEWEST = 50  # predictions of a row
NEWEST = 500  # predictions, at least, of whose rows the presumed accuracy is that of the newest


def run(params: Params, registry: Registry) -> MonitorReport | None:
    """Read what is new and write everything. Returns None if there has been no traffic. Raises files.Locked."""
    with files.lock(params.store_paths.lock("monitor")):
        registry.refresh()

        from flywheel.metrics import alarm
        from flywheel.traffic import observed

        state = observed.load(params.store_paths)
        before = _counts(state)
        models = _Models(params, registry)
        samples = sampling.estimates(params.store_paths)
        _restart(state, samples)
        state.update(params.store_paths, models.judge, alarm.alarm_level(params.monitor.false_alarm_every))
        _restart(state, samples)
        if not state.models and not state.unwatched:
            return None
        _log_counts(before, _counts(state))
        known, report = read(params), _report(params, registry, state, models, samples)
        files.write_json(params.reports / "monitor.json", report.model_dump(mode="json"))
        files.write_text(params.store_paths.monitor_metrics, monitor_text.gauges(report))
        picture, momentary = params.reports / "monitor.png", {"at", "traffic"}
        changed = known is None or known.model_dump(exclude=momentary) != report.model_dump(exclude=momentary)
        if changed or not picture.exists():
            from flywheel.traffic import plots

            plots.story(report, picture)
        observed.save(params.store_paths, state)
        if changed:
            _track(params, registry, report, picture)
    return report


def read(params: Params) -> MonitorReport | None:
    """Return the report of the last run, or None if there is none that can be read."""
    try:
        return MonitorReport.model_validate(files.read_json(params.reports / "monitor.json"))
    except (OSError, ValueError):
        return None


def _track(params: Params, registry: Registry, report: MonitorReport, picture: Path) -> None:
    """Record a W&B run with the rows over time."""
    from flywheel.tracking.runs import Tracker

    name = f"monitor-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    watched = [one.model for one in (report, *report.others) if one.model]
    used = [registry.resolve(ref) for ref in watched if registry.has(ref)]
    config = {"model": report.model, **params.monitor.model_dump()}
    with Tracker(params, registry).run("monitor", name, config, used=used) as run:
        for step, row in enumerate(report.change):
            changed = {key: getattr(row, key).distance for key in ("classes_changed", "confidence_changed")}
            values = row.model_dump(include={"n", "presumed_accuracy", "evidence", "confidence"}) | changed
            run.log({"time": datetime.fromisoformat(row.end).timestamp(), **values}, step=step)
        run.log_pictures([picture])
        labelled = report.labelled.model_dump() if report.labelled else {}
        run.summarize(
            {
                "predictions": report.predictions,
                **{f"alarm/{key}": value for key, value in report.alarm.model_dump().items() if value is not None},
                **{f"labelled/{key}": value for key, value in labelled.items() if key != "interval"},
            }
        )


class _Models:
    """The references of the models that answered; each is loaded when it is first asked for."""

    def __init__(self, params: Params, registry: Registry):
        self._params, self._registry = params, registry
        self.problems: dict[str, str] = {}
        self.reference, self.judge = functools.cache(self._reference), functools.cache(self._judge)

    def _reference(self, ref: str) -> ModelReference | None:
        """Return the reference of a model, or None if it has none that gives an alarm."""
        from flywheel.traffic import reference

        try:
            found = reference.load(self._params, self._registry, ref)
        except FlywheelError as error:
            self.problems[ref] = str(error)
            return None
        if found.alarm is None:
            self.problems[ref] = found.problem
            return None
        return found

    def _judge(self, ref: str) -> Judge | None:
        """Return what the predictions of a model are judged by, or None if it has no reference."""
        from flywheel.traffic import observed, reference

        found = self.reference(ref)
        if found is None or found.alarm is None:
            return None
        try:
            trained = reference.trained_on(self._registry, self._registry.resolve(ref))
        except RegistryError as error:
            self.problems[ref] = str(error)
            return None
        return observed.Judge(found.alarm, len(found.predicted), trained)


def _restart(state: State, samples: Sequence[Labelled]) -> None:
    """End each alarm that was answered: a sample that was drawn later has all its labels."""
    for sample in samples:
        seen = state.models.get(sample.model)
        made_ms = datetime.fromisoformat(sample.made).timestamp() * 1000
        if seen is not None and seen.since_ms is not None and seen.since_ms < made_ms and not sample.waiting:
            seen.restart()


def _report(
    params: Params, registry: Registry, state: State, models: _Models, samples: Sequence[Labelled]
) -> MonitorReport:
    """Return the report of what is known."""
    rows: dict[str, list[Row]] = {}
    watched: dict[str, Watched] = {}
    production = registry.aliases(params.registered_model).get("production")
    for ref, seen in state.models.items():
        found = models.reference(ref)
        if found is not None:
            rows[ref] = _rows(ref, seen, state.width_s, found)
            labelled = [sample for sample in samples if sample.model == ref]
            watched[ref] = _watched(params, registry.label(ref), seen, found, rows[ref], labelled)
    kept = retention.measure(params.store_paths)
    served = server_record.read(params)
    first = watched.pop(production, None) if production else None
    if first is None:
        first = Watched(model=production, label=registry.label(production) if production else "")
    return MonitorReport(
        **first.model_dump(),
        at=files.timestamp(),
        others=tuple(one for ref, one in watched.items() if rows[ref]),
        unwatched={ref: models.problems[ref] for ref in state.unwatched if models.judge(ref) is None},
        change=tuple(sorted((row for of in rows.values() for row in of), key=lambda row: (row.start, row.model))),
        samples=tuple(samples),
        promotions=tuple(
            Promotion(at=entry["at"], model=entry["to"])
            for entry in registry.history(params.registered_model)
            if entry["alias"] == "production" and entry["to"]
        ),
        traffic=Traffic(kept=kept.images, dropped=served.dropped() if served else None, bytes=kept.size_bytes),
    )


def _watched(
    params: Params, label: str, seen: Observed, found: ModelReference, rows: Sequence[Row], samples: Sequence[Labelled]
) -> Watched:
    from flywheel.metrics.alarm import alarm_level
    from flywheel.traffic import observed

    assert found.alarm is not None
    newest, right = 0, 0.0
    for row in reversed(rows):
        newest, right = newest + row.n, right + row.n * row.presumed_accuracy
        if newest >= NEWEST:
            break
    alarm = Alarm(
        state="alarm" if seen.since_ms is not None else "quiet" if seen.predictions else "none",
        since=None if seen.since_ms is None else _time(seen.since_ms / 1000, "milliseconds"),
        evidence=_rounded(max(seen.level, 0.0)),
        limit=_rounded(alarm_level(params.monitor.false_alarm_every)),
        presumed_accuracy=_rounded(right / newest) if newest else None,
        newest=newest,
        reference_accuracy=_rounded(1 - found.alarm.presumed / found.alarm.n),
        reference_n=found.alarm.n,
        reference_confidence=_rounded(observed.mean_confidence(found.confidence)),
        lowest_accuracy=_rounded(1 - found.alarm.bound),
    )
    return Watched(
        model=found.model, label=label, predictions=seen.predictions,
        left_out={"repeated": seen.repeated, "trained on": seen.trained_on},
        alarm=alarm, labelled=samples[-1] if samples else None,
    )  # fmt: skip


def _rows(ref: str, seen: Observed, width_s: int, found: ModelReference) -> list[Row]:
    """Return the bins of a model as rows of at least `FEWEST` predictions; the rest joins the last row."""
    import numpy as np

    from flywheel.traffic import observed

    totals = np.cumsum(seen.table[:, observed.N]) if len(seen.table) else np.zeros(0, np.int64)
    ends, counted = [], 0
    for position, total in enumerate(totals):
        if total - counted >= FEWEST:
            ends.append(position + 1)
            counted = total
    ends = [*ends[:-1], len(totals)] if ends else [len(totals)]
    rows = []
    for first, end in zip([0, *ends], ends, strict=False):
        if end > first:
            sums = seen.table[first:end].sum(axis=0)
            n = int(sums[observed.N])
            rows.append(
                Row(
                    model=ref,
                    start=_time(int(seen.starts[first])),
                    end=_time(int(seen.starts[end - 1]) + width_s),
                    n=n,
                    presumed_accuracy=_rounded(1 - sums[observed.MISTAKES] / n),
                    evidence=_rounded(max(float(seen.peaks[first:end].max()), 0.0)),
                    confidence=_rounded(sums[observed.CONFIDENCE] / observed.MILLION / n),
                    classes_changed=_distance(sums[observed.CLASSES :], found.predicted),
                    confidence_changed=_distance(sums[observed.HISTOGRAM : observed.CLASSES], found.confidence),
                )
            )
    return rows


def _distance(counts: NDArray[np.int64], reference: Sequence[int]) -> Distance:
    """Return the total variation distance of two samples by their counts.

    By chance: the sum over the cells of the mean absolute difference of two shares, normal and with the pooled share.
    """
    import numpy as np

    of_reference = np.array(reference)
    n, m = counts.sum(), of_reference.sum()
    pooled = (counts + of_reference) / (n + m)
    chance = np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / n + 1 / m)).sum() / 2
    return Distance(
        distance=_rounded(np.abs(counts / n - of_reference / m).sum() / 2), by_chance=_rounded(min(chance, 1.0))
    )


def _counts(state: State) -> dict[str, int]:
    return {
        "count": sum(one.predictions for one in state.models.values()),
        "repeat an image": sum(one.repeated for one in state.models.values()),
        "show an image that the model was trained on": sum(one.trained_on for one in state.models.values()),
        "are of a model without a reference": sum(state.unwatched.values()),
    }


def _log_counts(before: Mapping[str, int], now: Mapping[str, int]) -> None:
    new = {what: count - before[what] for what, count in now.items()}
    parts = ", ".join(f"{count:,} {what}" for what, count in new.items() if count)
    log.info(f"monitor: {sum(new.values()):,} new predictions{f': {parts}' if parts else ''}")


def _time(seconds: float, precision: str = "seconds") -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision)


def _rounded(value: Any) -> float:
    return round(float(value), 6)
