"""The commands on a store that `make evaluate` made, run through the Makefile as users type them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import scripts
from chain import SMALL, Built, make

from flywheel.commands import status


def test_evaluate_runs_the_whole_chain(built: Built) -> None:
    assert (built.result.returncode, built.result.stderr) == (0, "")
    for line in ("data: running (never run)", "sweep: running (never run)", "evaluate: running (never run)"):
        assert line in built.result.stdout
    assert {path.name for path in built.params.reports.iterdir()} == {
        "samples_train.png", "samples_validation.png", "samples_test.png", "samples_simulation.png",
        "sweep.json", "sweep.csv", "sweep_history.png", "sweep_params.png",
        "evaluation.json", "gate.json", "confusion_matrix.png", "reliability.png", "worst.png",
    }  # fmt: skip


def test_a_second_time_every_stage_is_up_to_date_and_imports_nothing_heavy(built: Built) -> None:
    """That makes it answer in a fraction of a second. Modules are checked, because the clock depends on the load."""
    names = ("data", "sweep", "evaluate", "status", "artifacts", "lineage")
    probe = (
        "import sys, runpy\n"
        f"for command in {[scripts.command(built.folder, name, SMALL)[1:] for name in names]!r}:\n"
        "    sys.argv = command\n"
        "    try:\n        runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as stop:\n        assert not stop.code\n"
        "    heavy = {'torch', 'ray', 'wandb', 'matplotlib', 'sklearn', 'optuna', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (command[0], heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=scripts.ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.count(": up to date (nothing changed since") == 3
    assert "running" not in done.stdout


def test_an_unrelated_param_runs_nothing_and_a_related_one_its_dependants(built: Built) -> None:
    states = {}
    for change in ("sweep.max_concurrent_trials=1", "gate.floor_accuracy=0.2", "sweep.epochs=3", "data.seed=1"):
        params = scripts.load(built.folder, f"{SMALL} {change}")
        found = {name: rest for name, *rest in status.states(params, built.registry)}
        stages = [found[name] for name in ("data", "sweep", "evaluate")]
        states[change] = [state == "up to date" for state, _ in stages]
        assert all("changed" in reason for state, reason in stages if state == "to run")
    assert states == {
        "sweep.max_concurrent_trials=1": [True, True, True],
        "gate.floor_accuracy=0.2": [True, True, False],
        "sweep.epochs=3": [True, False, False],
        "data.seed=1": [False, False, False],
    }


def test_artifacts_and_lineage_show_what_came_from_what(built: Built) -> None:
    artifacts = "\n".join(status.artifacts(built.registry))
    assert "digits_dataset:v0" in artifacts
    assert "digits-classifier:best, digits-classifier:production" in artifacts
    production = list(status.lineage(built.params, built.registry, None))
    for tree in (production, built.make("lineage", "ARGS=digits-classifier:best").stdout.splitlines()):
        assert tree[0].startswith("model-")
        assert tree[1].strip().startswith("└─ dataset: digits_dataset:v0")


def test_verifying_reads_every_byte_and_names_what_is_damaged(built: Built, tmp_path: Path) -> None:
    intact = built.make("artifacts", "ARGS=--verify")
    assert (intact.returncode, intact.stdout.count("intact")) == (0, 2)
    copy = built.copy(tmp_path / "copy")
    path = copy.folder / "store/demo/registry/versions/digits_dataset/v0/files/labels.npy"
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as on a failing disk: the time stamp stays
    damaged = copy.make("artifacts", "ARGS=--verify")
    assert damaged.returncode == 2
    assert "labels.npy is damaged" in damaged.stdout
    assert "error: damaged: digits_dataset:v0" in damaged.stderr


def test_logs_keep_what_a_stage_said_and_why_it_failed(built: Built, tmp_path: Path) -> None:
    shown = "\n".join(status.logs([built.params.store_paths.log(name) for name in status.LOGS], 10))
    for name in ("data", "sweep", "evaluate"):
        assert str(built.params.store_paths.log(name)) in shown
    assert "gate: first" in shown
    make(tmp_path, "data", more="data.source=folder data.path=/etc/hostname")
    assert "error: /etc/hostname: a file of this kind is not read" in make(tmp_path, "logs").stdout


def test_only_store_and_reports_are_written(built: Built) -> None:
    assert {path.name for path in built.folder.iterdir()} == {"store", "reports"}
    command = ["git", "status", "--porcelain", "--ignored"]
    assert "wandb/" not in subprocess.run(command, cwd=scripts.ROOT, capture_output=True, text=True).stdout


def test_no_process_is_left(built: Built) -> None:
    assert processes.left(str(built.folder)) == []


def test_report_and_compare_by_the_makefile(built: Built) -> None:
    path = built.params.reports / "index.html"
    assert built.make("report").stdout == f"report: {path}\n"
    shown = path.read_text()
    path.unlink()  # the files of the reports are counted above
    assert "The best of 3 trials" in shown
    assert "Not yet; type <code>make serve simulate PROFILE=demo</code>" in shown
    result = built.make("compare", "ARGS=--json", f"A={built.best.name}", "B=digits-classifier:best")
    assert json.loads(result.stdout)["paired"]["test"]["difference"] == 0
    result = built.make("compare")
    assert result.stderr.startswith("error: which two? make compare A=name:version B=name:version PROFILE=demo")


def test_promote_and_rollback_with_nothing_to_do_are_refused(built: Built) -> None:
    unreasoned = built.make("promote", "MODEL=digits-classifier:best", "FORCE=1")
    assert unreasoned.stderr.startswith('error: FORCE=1 needs REASON="why"')
    gone = built.make("rollback")
    assert gone.stderr.startswith("error: there is nothing to roll back to: digits-classifier has had one production")
    there = built.make("promote", "MODEL=digits-classifier:best")
    assert (there.returncode, "is in production already" in there.stdout) == (0, True)
    assert len(built.make("history").stdout.splitlines()) == 1


@pytest.mark.long
def test_promote_rollback_and_history_by_hand(built: Built, tmp_path: Path) -> None:
    """Force a second model with a reason full of shell syntax, roll back, and read the history."""
    copy = built.copy(tmp_path / "copy")
    second = copy.make("sweep", more="sweep.seed=5 sweep.epochs=1 recipe.seed=1")
    assert second.returncode == 0, second.stderr
    candidate, strict = "MODEL=digits-classifier:best", "gate.margin=0"
    refused = copy.make("promote", candidate, more=strict)
    assert refused.returncode == 2
    assert len([line for line in refused.stderr.splitlines() if not line.startswith("make: ***")]) == 1
    assert 'FORCE=1 REASON="why" overrides' in refused.stderr
    reason = """it's "better" (say 50 % of; us) $HOME `id` -x"""
    forced = copy.make("promote", candidate, "FORCE=1", f"REASON={reason.replace('$', '$$')}", more=strict)
    assert forced.returncode == 0, forced.stderr
    assert "is in production by force" in forced.stdout
    recorded = [path.read_text() for path in (copy.folder / "store/demo/wandb/runs").glob("*.jsonl")]
    assert sum("gate/test/low" in run for run in recorded if '"promote"' in run) == 2  # the refused and the forced one
    assert copy.make("rollback", "REASON=second thoughts").returncode == 0
    shown = copy.make("history").stdout.splitlines()
    assert len(shown) == 3
    assert f"FORCED {reason}" in shown[1]
    assert shown[2].endswith(": second thoughts")
    assert "previous: " in copy.make("history", "ARGS=--all").stdout
