"""W&B runs: the real SDK against a double of the service. No failure of W&B fails a stage or delays it for long."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until
from wandb_double import WandbDouble
from wandb_process import end, python, start, store_of

from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.tracking import run_files
from flywheel.tracking.connection import Mode
from flywheel.tracking.runs import Run, Tracker

Make = Callable[..., Params]
PROJECT = "flywheel-demo"

# A stage as the stages are: a run that uses and makes artifacts, and trials whose runs overlap.
STAGE = """
registry = mirrored(params)
data = publish(registry, "digits_dataset", "images", type="dataset")
first = Tracker(params, registry).start("data", "data", {})
first.made(data)
first.finish()
tracker = Tracker(params, registry)
run = tracker.start("sweep", "the sweep", {"trials": 3, "space": {"batch": [32, 64]}, "nothing": None})
run.used(data)
for number, how in enumerate(("finished", "finished", "failed")):
    trial = tracker.start("trial", f"compact-00{number}", {"learning_rate": 0.1 * number}, id=f"trial{number}")
    for epoch in (1, 2, 3):
        trial.log({"epoch": epoch, "accuracy": 0.5 + epoch / 10, "loss": float("nan")}, step=epoch)
    trial.summarize({"status": "stopped" if number else "finished", "error": None, "best_accuracy": 0.8})
    trial.end(how)
%s
run.log({"x": 1.5})
metadata = {"metrics": {"accuracy": 0.8}}
model = publish(registry, "model-trial0", "weights", metadata=metadata, inputs={"dataset": data.ref})
registry.link(model, params.registered_model, ("best",), reason="test")
run.made(model)
run.summarize({"artifact": model.ref, "interval": (0.7, 0.9)})
run.finish()
print("waited", tracker.connection.waited_s)
"""
HEALTHY = STAGE % ""
AFTER_THE_END = 'run.log({"x": 2})\nrun.summarize({"y": 3})\nrun.finish(failed=True)\n'


def recorded(base: Path) -> dict[str, run_files.RunRecord]:
    return {record.name: record for record in run_files.records(store_of(base))}


def test_disabled_writes_nothing(make_params: Make, tmp_path: Path, said: list[str]) -> None:
    params = make_params("tracking.wandb=disabled")
    run = Tracker(params, Registry(params.store)).start("data", "data", {})
    run.log({"a": 1})
    run.log_pictures([tmp_path / "no.png"])
    run.log_confusion_matrix([0], [0], ["a"])
    run.finish()
    assert said == ["W&B: disabled (tracking.wandb)"]
    assert list(tmp_path.iterdir()) == []


def test_online_every_run_is_uploaded_and_nothing_of_the_machine(tmp_path: Path, double: WandbDouble) -> None:
    done = python(tmp_path, HEALTHY, **double.environment)
    assert (done.code, done.errors) == (0, "")
    assert done.lines[0] == f"W&B: online (127.0.0.1 answers; project tester/{PROJECT})"
    assert len(done.lines) == 2  # and what was waited
    sweep = double.run_of(PROJECT, "sweep")
    assert sweep.state == "finished"
    assert {run.fields["groupName"] for run in double.runs(PROJECT)} == {"round-1"}
    trials = {run.name: run for run in double.runs(PROJECT) if run.fields["jobType"] == "trial"}
    assert {name: run.state for name, run in trials.items()} == {
        "trial0": "finished", "trial1": "finished", "trial2": "failed"
    }  # fmt: skip
    for number, run in enumerate(trials.values()):
        assert [row["accuracy"] for row in run.history] == [0.6, 0.7, 0.8]
        assert [row["_step"] for row in run.history] == [1, 2, 3]
        assert run.config["learning_rate"]["value"] == 0.1 * number
        assert run.summary["status"] == ("stopped" if number else "finished")
    assert [one.digest for one in sweep.used] == [double.aliases(PROJECT, "digits_dataset")["latest"]]
    assert [one.collection.name for one in sweep.logged] == ["model-trial0"]
    assert all(record.confirmed for record in recorded(tmp_path).values())
    assert double.aliases("wandb-registry-model", "digits-classifier")["best"] == sweep.logged[0].digest
    sent = b"\n".join(double.bodies)
    assert not double.mentions(socket.gethostname())
    for told in (str(tmp_path), str(Path.cwd()), sys.executable, "local-0000", "import os, sys"):
        assert told.encode() not in sent, told


def test_digests_of_large_files_are_no_stall(tmp_path: Path, double: WandbDouble) -> None:
    """Each of the two files takes 2 s here, and the stage waits 2.5 s without progress."""
    code = """
import wandb
add_file = wandb.Artifact.add_file
wandb.Artifact.add_file = lambda *given, **more: time.sleep(2) or add_file(*given, **more)
registry = mirrored(params)
tracker = Tracker(params, registry)
run = tracker.start("data", "data", {})
run.made(publish(registry, "digits_dataset", "images", type="dataset"))
tracker._idle.wait(60)  # until W&B's process runs
tracker.connection.stall_budget_s = 2.5
run.finish()
"""
    done = python(tmp_path, code, **double.environment)
    assert (done.code, done.errors, len(done.lines)) == (0, "", 1), done
    assert recorded(tmp_path)["data"].confirmed


def test_inputs_that_w_and_b_lacks_are_logged_once_and_left_for_sync(tmp_path: Path, double: WandbDouble) -> None:
    unmade = HEALTHY.replace("run.used(data)", 'run.used(data, publish(registry, "other", "never uploaded"))')
    done = python(tmp_path, unmade, more="tracking.machine_info=true", **double.environment)
    assert done.code == 0
    assert double.mentions(socket.gethostname())
    (line,) = [line for line in done.lines if "is not on W&B" in line]
    assert line.endswith("continuing offline; make sync uploads the rest")
    assert not recorded(tmp_path)["the sweep"].confirmed


def test_offline_everything_is_recorded_in_the_store_and_wandb_is_not_imported(tmp_path: Path) -> None:
    began = time.time()
    done = python(tmp_path, HEALTHY + AFTER_THE_END + 'print("wandb" in sys.modules)', wandb="offline")
    assert (done.code, done.errors) == (0, "")
    assert (done.lines[0], done.lines[-1]) == ("W&B: offline (tracking.wandb)", "False")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "store"}
    records = recorded(tmp_path)
    assert [path.name for path in (store_of(tmp_path) / "wandb").iterdir()] == ["runs"]
    assert {name: record.finished for name, record in records.items()} == {
        "data": "finished", "the sweep": "finished", "compact-000": "finished", "compact-001": "finished",
        "compact-002": "failed",
    }  # fmt: skip
    assert not any(record.confirmed or record.url for record in records.values())
    assert [row["x"] for row in records["the sweep"].rows] == [1.5]
    assert records["the sweep"].summary == {"artifact": records["the sweep"].made[0], "interval": [0.7, 0.9]}
    for epoch, row in enumerate(records["compact-002"].rows, start=1):
        assert began < row.pop("_timestamp") < time.time()
        assert row == {"epoch": epoch, "accuracy": 0.5 + epoch / 10, "loss": "NaN", "_step": epoch}


def test_killed_and_interrupted_stages_are_marked_as_such(tmp_path: Path, double: WandbDouble) -> None:
    python(tmp_path, STAGE % "time.sleep(0.5); os.kill(os.getpid(), 9)", wandb="offline")
    killed = recorded(tmp_path)["the sweep"]
    assert (killed.finished, killed.running) == (None, False)
    assert recorded(tmp_path)["compact-000"].finished == "finished"
    other = tmp_path / "other"
    ctrl_c = "try:\n    raise KeyboardInterrupt\nexcept BaseException:\n    run.finish(failed=True)\n    raise"
    interrupted = STAGE % f"tracker._idle.wait(60)  # until W&B's process runs\n{ctrl_c}"
    done = python(other, interrupted, **double.environment)
    assert done.code != 0
    assert recorded(other)["the sweep"].finished == "interrupted"
    assert double.run_of(PROJECT, "sweep").exit_code == 255


FAILURES: dict[str, Callable[[WandbDouble], object]] = {
    "401": lambda double: double.fail(".*", 401),
    "403": lambda double: double.fail(".*", 403),
    "500": lambda double: double.fail(".*", 500),
    "refused": lambda double: double.vanish(),
    "silent": lambda double: double.fail(".*", "hang"),
}


def test_failure_at_the_start_costs_the_probe_and_the_run_is_recorded_offline(
    tmp_path: Path, double: WandbDouble
) -> None:
    """Tests of choose_mode have the other failures."""
    FAILURES["silent"](double)
    done = python(tmp_path, HEALTHY, **double.environment)
    assert (done.code, done.errors) == (0, "")
    assert done.lines[0].startswith("W&B: offline (127.0.0.1 ")
    assert len(done.lines) == 2
    assert {record.finished for record in recorded(tmp_path).values()} == {"finished", "failed"}


def test_after_a_failure_no_queued_run_asks_w_and_b(
    make_params: Make, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    params, queued, asked = make_params("tracking.wandb=online"), threading.Event(), []

    def hang(record: run_files.RunRecord) -> None:
        asked.append(record.name)
        queued.wait(60)
        raise TimeoutError("no answer")

    tracker = Tracker(params, Registry(params.store))
    tracker.connection._mode = Mode("online", "")
    monkeypatch.setattr(tracker.mirror.remote, "init_run", hang)
    runs = [tracker.start("trial", name, {}) for name in "abc"]
    queued.set()
    for run in runs:
        run.end("finished")
    assert tracker._idle.wait(60)
    assert asked == ["a"]
    assert said[1:] == ["W&B: no answer; continuing offline; make sync uploads the rest"]


@pytest.mark.long
@pytest.mark.parametrize("failure", FAILURES)
def test_failure_during_a_run_is_logged_once_and_costs_under_20_s(
    tmp_path: Path, double: WandbDouble, failure: str
) -> None:
    """The stage stops to let the test break the service, when the runs have started."""
    stop = f'open({str(tmp_path / "started")!r}, "w"); input()'
    process = start(tmp_path, STAGE % stop, **double.environment)
    wait_until(lambda: (tmp_path / "started").exists() and double.operations["UpsertBucket"] >= 6)
    FAILURES[failure](double)
    done = end(process, "\n", timeout_s=120)
    assert (done.code, done.errors) == (0, "")
    _, said = done.of_wandb()
    assert said.endswith("make sync uploads the rest")
    assert float(done.lines[-1].split()[1]) < 20  # two stages
    sweep = recorded(tmp_path)["the sweep"]
    assert (len(sweep.rows), sweep.finished, sweep.confirmed) == (1, "finished", ())
    assert sweep.made
    assert sweep.used


def test_trials_whose_end_w_and_b_does_not_take_delay_no_other(tmp_path: Path, double: WandbDouble) -> None:
    """The driver goes on at once, and W&B's runs of later trials start while those of earlier ones are finishing."""
    code = """
import threading
tracker = Tracker(params, Registry(params.store))
run = tracker.start("sweep", "the sweep", {})
for number in range(3):
    trial = tracker.start("trial", f"compact-00{number}", {}, id=f"trial{number}")
    trial.log({"accuracy": 0.5}, step=1)
    trial.end("finished")
tracker.enqueue(lambda: print(sum(one.name == "W&B run" for one in threading.enumerate()), "finish", flush=True))
print("the driver goes on", flush=True)
input()
os._exit(0)
"""
    double.fail("file_stream", "hang")
    process = start(tmp_path, code, **double.environment)
    assert process.stdout is not None
    printed = [process.stdout.readline() for _ in range(3)]
    assert printed[1:] == ["the driver goes on\n", "3 finish\n"]
    assert [run.state for run in double.runs(PROJECT)] == ["running"] * 4
    assert end(process, "\n").code == 0


@pytest.mark.long
def test_death_of_w_and_bs_process_is_logged_once_and_fails_nothing(tmp_path: Path, double: WandbDouble) -> None:
    kill = (
        "time.sleep(4)\nfrom flywheel.tracking import connection\n[one.kill() for one in connection.wandb_processes()]"
    )
    done = python(tmp_path, STAGE % kill, **double.environment)
    assert done.code == 0
    assert len(done.of_wandb()) == 2
    assert len(recorded(tmp_path)["the sweep"].rows) == 1


class Broken:
    """A W&B run of which everything fails."""

    calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        raise RuntimeError("the server\nis gone")


@pytest.fixture
def offline_run(make_params: Make) -> Run:
    params = make_params("tracking.wandb=offline")
    return Run(Tracker(params, Registry(params.store)), run_files.RunFile(params.store, "abc"))


def test_first_error_of_a_run_is_logged_once_and_fails_nothing(
    offline_run: Run, tmp_path: Path, said: list[str]
) -> None:
    run, broken = offline_run, Broken()
    run._run = broken
    run.log({"a": 1})
    run.log({"a": 2})
    (tmp_path / "drawn.png").write_bytes(b"a picture")
    run.log_pictures([tmp_path / "drawn.png"])
    run.summarize({"a": 3})
    run.finish()
    assert said == ["W&B: the server is gone; results are in the reports, make sync uploads the rest"]
    assert broken.calls == 2  # the first, and the end


def test_picture_that_cannot_be_saved_is_logged_and_fails_nothing(
    offline_run: Run, tmp_path: Path, said: list[str]
) -> None:
    offline_run.log_pictures([tmp_path / "absent.png"])
    (line,) = said
    assert line.endswith("absent.png'; results are in the reports")
