"""Which stages run, and why: fingerprints, receipts, adoption, locks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage
from flywheel.registry import Registry, Version

Make = Callable[..., Params]


class Work:
    """A stage's work that publishes `text` and counts how often it ran."""

    def __init__(self, defined: Stage, tmp_path: Path, text: str = "result"):
        self.defined, self.folder, self.text, self.runs = defined, tmp_path / "work", text, 0

    def __call__(self) -> Outcome:
        self.runs += 1
        self.folder.mkdir(exist_ok=True)
        (self.folder / "a").write_text(self.text)
        version = self.defined.registry.publish("thing", "test", self.folder, metadata=self.defined.provenance())
        report = self.defined.params.reports / "report.txt"
        files.write_text(report, self.text)
        return Outcome((version,), (report,), {"made": 3})


def define(params: Params, registry: Registry, **changes: object) -> Stage:
    values = {
        "name": "example",
        "params": params,
        "registry": registry,
        "identity": {"data": params.data.identity()},
        "reads": {"data": "data@1"},
        "roots": ("flywheel.params.sections",),
        **changes,
    }
    return Stage(**values)  # type: ignore[arg-type]


def test_a_second_run_does_nothing_and_says_so(
    params: Params, registry: Registry, tmp_path: Path, said: list[str]
) -> None:
    work = Work(define(params, registry), tmp_path)
    first = stage.run(work.defined, work)
    second = stage.run(define(params, registry), work)
    assert work.runs == 1
    assert second == first
    assert said[0] == "example: running (never run)"
    assert said[1].startswith("example: up to date (nothing changed since ")


def test_force_runs_what_is_up_to_date(params: Params, registry: Registry, tmp_path: Path, said: list[str]) -> None:
    work = Work(define(params, registry), tmp_path)
    stage.run(work.defined, work)
    stage.run(work.defined, work, force=True)
    assert work.runs == 2
    assert said[-1] == "example: running (forced)"


def test_each_change_of_the_fingerprint_is_the_reason(
    make_params: Make, params: Params, registry: Registry, tmp_path: Path, said: list[str]
) -> None:
    work = Work(define(params, registry), tmp_path)
    stage.run(work.defined, work)
    for changed, reason in (
        (define(make_params("data.drift.noise=1"), registry), "data.drift.noise changed: 5.0 -> 1.0"),
        (define(params, registry, reads={"data": "data@2"}), "its input changed: data"),
        (
            define(params, registry, roots=("flywheel.params.sections", "flywheel.evaluation")),
            "code changed: flywheel.evaluation",
        ),
    ):
        verdict = stage.check(changed)
        assert not verdict.up_to_date
        assert verdict.reason == reason


def test_other_params_do_not_run_it(make_params: Make, params: Params, registry: Registry, tmp_path: Path) -> None:
    work = Work(define(params, registry), tmp_path)
    stage.run(work.defined, work)
    assert stage.check(
        define(make_params("sweep.trials=3 paths.cache=/elsewhere gate.floor_accuracy=0.1"), registry)
    ).up_to_date


def test_a_missing_output_runs_it(params: Params, registry: Registry, tmp_path: Path) -> None:
    work = Work(define(params, registry), tmp_path)
    stage.run(work.defined, work)
    (params.store / "registry" / "versions" / "thing" / "v0").rename(tmp_path / "gone")
    verdict = stage.check(work.defined)
    assert not verdict.up_to_date
    assert verdict.reason.startswith("an output is missing: no artifact thing@")


def test_a_missing_file_of_an_output_runs_it(params: Params, registry: Registry, tmp_path: Path) -> None:
    work = Work(define(params, registry), tmp_path)
    stage.run(work.defined, work)
    (params.store / "registry" / "versions" / "thing" / "v0" / "files" / "a").unlink()
    verdict = stage.check(work.defined)
    assert not verdict.up_to_date
    assert verdict.reason.startswith("an output is damaged: ")
    stage.run(work.defined, work)
    assert stage.check(work.defined).up_to_date
    registry.verify(registry.resolve("thing"))


def test_a_missing_report_runs_what_the_registry_cannot_give(
    params: Params, registry: Registry, tmp_path: Path
) -> None:
    work = Work(define(params, registry), tmp_path)
    stage.run(work.defined, work)
    (params.reports / "report.txt").unlink()
    verdict = stage.check(work.defined)
    assert not verdict.up_to_date
    assert verdict.reason.endswith("report.txt is missing")


def test_a_missing_report_of_an_artifact_is_drawn_again_without_the_work(
    params: Params, registry: Registry, tmp_path: Path
) -> None:
    work = Work(define(params, registry, artifacts="thing"), tmp_path)
    stage.run(work.defined, work)
    report = params.reports / "report.txt"
    report.unlink()

    def adopt(version: Version) -> Outcome:
        files.write_text(report, "again")
        return Outcome((version,), (report,))

    stage.run(work.defined, work, adopt=adopt)
    assert work.runs == 1
    assert report.read_text() == "again"
    assert stage.check(work.defined).up_to_date


def test_without_a_receipt_the_registry_decides(params: Params, registry: Registry, tmp_path: Path) -> None:
    work = Work(define(params, registry, artifacts="thing"), tmp_path)
    stage.run(work.defined, work)
    work.defined.params.store_paths.receipt("example").unlink()
    verdict = stage.check(work.defined)
    assert (verdict.up_to_date, verdict.reason) == (True, "made before as thing:v0")
    stage.run(work.defined, work)
    assert work.runs == 1
    assert work.defined.params.store_paths.receipt("example").exists()


def test_going_back_to_former_params_adopts_the_former_version(
    make_params: Make, params: Params, registry: Registry, tmp_path: Path
) -> None:
    old = Work(define(params, registry, artifacts="thing"), tmp_path, "old")
    new = Work(define(make_params("data.seed=1"), registry, artifacts="thing"), tmp_path, "new")
    stage.run(old.defined, old)
    stage.run(new.defined, new)
    adopted: list[Version] = []

    def adopt(version: Version) -> Outcome:
        adopted.append(version)
        return Outcome((version,))

    stage.run(old.defined, old, adopt=adopt)
    assert old.runs == 1
    assert [version.label for version in adopted] == ["thing:v0"]


def test_work_left_over_runs_it(params: Params, registry: Registry, tmp_path: Path) -> None:
    def unfinished(metrics: dict[str, int]) -> str | None:
        return None if metrics["made"] >= 3 else "more is asked for"

    work = Work(define(params, registry, unfinished=unfinished), tmp_path)
    stage.run(work.defined, work)
    assert stage.check(work.defined).up_to_date
    asked = define(params, registry, unfinished=lambda metrics: f"5 are asked for, {metrics['made']} were made")
    assert stage.check(asked).reason == "5 are asked for, 3 were made"


def test_a_version_made_with_less_work_is_not_adopted(params: Params, registry: Registry, tmp_path: Path) -> None:
    def unfinished(metrics: Mapping[str, int]) -> str | None:
        return None if metrics.get("made", 0) >= 5 else "more is asked for"

    work = Work(define(params, registry, artifacts="thing", unfinished=unfinished), tmp_path)
    stage.run(work.defined, work)
    work.defined.params.store_paths.receipt("example").unlink()
    assert not stage.check(work.defined).up_to_date


def test_a_failing_stage_leaves_no_receipt(params: Params, registry: Registry) -> None:
    defined = define(params, registry)

    def work() -> Outcome:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        stage.run(defined, work)
    assert not stage.check(defined).up_to_date
    with files.lock(params.store / "locks" / "example.lock"):
        pass  # the lock is free again


def test_a_damaged_receipt_is_as_none(params: Params, registry: Registry, tmp_path: Path) -> None:
    work = Work(define(params, registry), tmp_path)
    stage.run(work.defined, work)
    for damaged in ("{", "{}", "[1]", "3"):
        work.defined.params.store_paths.receipt("example").write_text(damaged)
        assert stage.check(work.defined).reason == "never run"


def test_the_receipt_has_what_others_read(params: Params, registry: Registry, tmp_path: Path) -> None:
    work = Work(define(params, registry, seed=7), tmp_path)
    receipt = stage.run(work.defined, work)
    keys = {"stage", "fingerprint", "params", "inputs", "outputs", "code", "git", "versions", "seed", "started"}
    assert keys | {"wall_s", "metrics"} <= set(receipt)
    assert receipt["outputs"] == [registry.resolve("thing").ref]
    assert receipt["versions"]["torch"] == "2.14.1"
    assert receipt["seed"] == 7
    assert receipt == files.read_json(work.defined.params.store_paths.receipt("example"))


HOLD = """
import sys
from pathlib import Path
from flywheel import files
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_at_once_is_refused_with_the_pid(params: Params, registry: Registry, tmp_path: Path) -> None:
    work = Work(define(params, registry), tmp_path)
    path = params.store / "locks" / "example.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(files.Locked, match=rf"another run holds example \(pid {holder.pid}\)"):
            stage.run(work.defined, work)
        holder.kill()
    assert work.runs == 0
