"""Which stages run, and why: fingerprints, receipts, adoption, locks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage, StageError, Verdict
from flywheel.registry import Registry, Version

Make = Callable[..., Params]


class Example:
    """A stage whose work publishes `text`; counts how often it ran."""

    def __init__(self, params: Params, registry: Registry, folder: Path):
        self.params, self.registry, self.folder, self.runs = params, registry, folder, 0
        self.changes: dict[str, Any] = {}
        self.receipt, self.report = params.store_paths.receipt("example"), params.reports / "report.txt"
        self.output = params.store / "registry" / "versions" / "thing" / "v0"

    def define(self, **changes: Any) -> Stage:
        params = changes.get("params", self.params)
        values: dict[str, Any] = {
            "name": "example", "params": params, "registry": self.registry, "reads": {"data": "data@1"},
            "identity": {"data": params.data.identity()}, "roots": ("flywheel.params.sections",),
        }  # fmt: skip
        return Stage(**{**values, **self.changes, **changes})

    def run(self, text: str = "result", force: bool = False, adopt: Any = None, **changes: Any) -> Mapping[str, Any]:
        defined = self.define(**changes)

        def work() -> Outcome:
            self.runs += 1
            files.write_text(self.folder / "a", text)
            version = self.registry.publish("thing", "test", self.folder, metadata=defined.provenance())
            files.write_text(self.report, text)
            return Outcome((version,), (self.report,), {"made": 3})

        return stage.run(defined, work, force=force, adopt=adopt)

    def check(self, **changes: Any) -> Verdict:
        return stage.check(self.define(**changes))

    def reason(self, **changes: Any) -> str:
        """Return why it runs."""
        verdict = self.check(**changes)
        assert not verdict.up_to_date
        return verdict.reason


@pytest.fixture
def example(params: Params, registry: Registry, tmp_path: Path) -> Example:
    return Example(params, registry, tmp_path / "work")


def test_a_second_run_does_nothing_and_says_so_unless_forced(example: Example, said: list[str]) -> None:
    first = example.run()
    assert example.run() == first
    assert example.runs == 1
    assert said[0] == "example: running (never run)"
    assert said[1].startswith("example: up to date (nothing changed since ")
    example.run(force=True)
    assert example.runs == 2
    assert said[-1] == "example: running (forced)"


def test_each_change_of_the_fingerprint_is_the_reason(example: Example, make_params: Make) -> None:
    example.run()
    assert example.reason(params=make_params("data.drift.noise=1")) == "data.drift.noise changed: 5.0 -> 1.0"
    assert example.reason(reads={"data": "data@2"}) == "its input changed: data"
    roots = ("flywheel.params.sections", "flywheel.evaluation")
    assert example.reason(roots=roots) == "code changed: flywheel.evaluation"
    other = make_params("sweep.trials=3 paths.cache=/elsewhere gate.floor_accuracy=0.1")
    assert example.check(params=other).up_to_date


def test_a_missing_output_runs_it(example: Example, tmp_path: Path) -> None:
    example.run()
    example.output.rename(tmp_path / "gone")
    assert example.reason().startswith("an output is missing: no artifact thing@")


def test_a_missing_file_of_an_output_runs_it(example: Example) -> None:
    example.run()
    (example.output / "files" / "a").unlink()
    assert example.reason().startswith("an output is damaged: ")
    example.run()
    assert example.check().up_to_date
    example.registry.verify(example.registry.resolve("thing"))


def test_a_missing_report_runs_what_the_registry_cannot_give(example: Example) -> None:
    example.run()
    example.report.unlink()
    assert example.reason().endswith("report.txt is missing")


def test_a_missing_report_of_an_artifact_is_drawn_again_without_the_work(example: Example) -> None:
    example.changes = {"artifacts": "thing"}
    example.run()
    example.report.unlink()

    def adopt(version: Version) -> Outcome:
        files.write_text(example.report, "again")
        return Outcome((version,), (example.report,))

    example.run(adopt=adopt)
    assert example.runs == 1
    assert example.report.read_text() == "again"
    assert example.check().up_to_date


def test_without_a_receipt_the_registry_decides(example: Example) -> None:
    example.changes = {"artifacts": "thing"}
    example.run()
    example.receipt.unlink()
    assert example.check().up_to_date
    assert example.check().reason == "made before as thing:v0"
    example.run()
    assert example.runs == 1
    assert example.receipt.exists()


def test_going_back_to_former_params_adopts_the_former_version(example: Example, make_params: Make) -> None:
    example.changes = {"artifacts": "thing"}
    example.run("old")
    example.run("new", params=make_params("data.seed=1"))
    adopted: list[str] = []
    example.run("old", adopt=lambda version: (adopted.append(version.label), Outcome((version,)))[1])
    assert (example.runs, adopted) == (2, ["thing:v0"])


def test_work_left_over_runs_it_and_is_not_adopted(example: Example) -> None:
    def unfinished(metrics: Mapping[str, int]) -> str | None:
        made = metrics.get("made", 0)
        return None if made >= 5 else f"5 are asked for, {made} were made"

    example.changes = {"artifacts": "thing"}
    example.run()
    assert example.check(unfinished=lambda metrics: None).up_to_date
    assert example.reason(unfinished=unfinished) == "5 are asked for, 3 were made"
    example.receipt.unlink()
    assert example.check().up_to_date
    assert not example.check(unfinished=unfinished).up_to_date


def test_a_lost_store_is_to_be_restored_and_an_empty_one_to_be_filled(example: Example, params: Params) -> None:
    with pytest.raises(StageError, match=r"^there is no digits_dataset; run make data PROFILE=demo$"):
        stage.dataset_of(params, example.registry)
    assert example.reason() == "never run"
    example.run()
    assert "restore" not in stage.after_loss(params, example.registry)
    files.write_json(params.reports / "evaluation.json", {})
    shutil.rmtree(params.store)
    hint = (
        rf"{params.reports}/evaluation.json tells of artifacts that are lost: restore {params.store} \(docs/operate.md"
    )
    with pytest.raises(StageError, match=hint + r"#back-up\), or run make data PROFILE=demo$"):
        stage.dataset_of(params, example.registry)
    assert re.match(f"never run; {hint}", example.reason())


def test_a_failing_stage_leaves_no_receipt(example: Example) -> None:
    def work() -> Outcome:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        stage.run(example.define(), work)
    assert not example.check().up_to_date
    with files.lock(example.params.store / "locks" / "example.lock"):
        pass  # the lock is free again


def test_a_damaged_receipt_is_as_none(example: Example) -> None:
    example.run()
    for damaged in ("{", "{}", "[1]", "3"):
        example.receipt.write_text(damaged)
        assert example.reason() == "never run"


def test_the_receipt_has_what_others_read(example: Example) -> None:
    receipt = example.run(seed=7)
    keys = {"stage", "fingerprint", "params", "inputs", "outputs", "code", "git", "versions", "seed", "started"}
    assert keys | {"wall_s", "metrics"} <= set(receipt)
    assert receipt["outputs"] == [example.registry.resolve("thing").ref]
    assert receipt["versions"]["torch"] == "2.14.1"
    assert receipt["seed"] == 7
    assert receipt == files.read_json(example.receipt)


def test_a_second_run_at_once_is_refused_with_the_pid(example: Example) -> None:
    held = files.lock(example.params.store_paths.lock("example"))
    with held, pytest.raises(files.Locked, match=rf"another run holds example \(pid {os.getpid()}\)"):
        example.run()
    assert example.runs == 0
