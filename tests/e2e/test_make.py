"""The commands, run through the Makefile as users type them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    "data.image_size=8 sweep.trials=2 sweep.epochs=2 sweep.space.architecture=[compact] gate.floor_accuracy=0 "
    "gate.allow_unlearned_classes=true"
)


def make(folder: Path, *arguments: str, overrides: str = SMALL) -> subprocess.CompletedProcess[str]:
    """Run make in the repository with store, reports and cache in `folder`."""
    paths = f"paths.store={folder}/store paths.reports={folder}/reports paths.cache={folder}/cache"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "WANDB", "RAY"))}
    return subprocess.run(
        ["make", *arguments, f"SET={paths} {overrides}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def built(folder: Path) -> subprocess.CompletedProcess[str]:
    """make evaluate in an empty folder."""
    return make(folder, "evaluate", "PROFILE=demo")


def test_evaluate_runs_the_whole_chain(built: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert built.returncode == 0, built.stdout + built.stderr
    for line in (
        "data: running (never run)",
        "sweep: running (never run)",
        "evaluate: running (never run)",
        "gate: first",
    ):
        assert line in built.stdout
    reports = {path.name for path in (folder / "reports" / "demo").iterdir()}
    assert reports == {
        "samples_train.png", "samples_validation.png", "samples_test.png", "samples_simulation.png",
        "sweep.json", "sweep.csv", "sweep_history.png", "sweep_params.png",
        "evaluation.json", "gate.json", "confusion_matrix.png", "reliability.png", "worst.png",
    }  # fmt: skip


def test_nothing_is_printed_on_stderr(built: subprocess.CompletedProcess[str]) -> None:
    assert built.stderr == ""


def test_a_second_time_every_stage_is_up_to_date(built: subprocess.CompletedProcess[str], folder: Path) -> None:
    again = make(folder, "data", "sweep", "evaluate", "PROFILE=demo")
    assert again.returncode == 0
    assert again.stdout.count("up to date (nothing changed since") == 3
    assert "running" not in again.stdout


@pytest.mark.parametrize("script", ["data", "sweep", "evaluate", "status", "artifacts", "lineage"])
def test_an_up_to_date_stage_imports_nothing_heavy(
    built: subprocess.CompletedProcess[str], folder: Path, script: str
) -> None:
    """That makes it answer in a fraction of a second. Modules are checked, because the clock depends on the load."""
    overrides = f"paths.store={folder}/store paths.reports={folder}/reports paths.cache={folder}/cache {SMALL}"
    probe = (
        "import sys, runpy\n"
        f"sys.argv = ['scripts/{script}.py', '--profile', 'demo', '--set', {overrides!r}]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'ray', 'wandb', 'matplotlib', 'sklearn', 'optuna', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    shown = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "running" not in shown


def test_an_unrelated_param_runs_nothing_and_a_related_one_its_dependants(
    built: subprocess.CompletedProcess[str], folder: Path
) -> None:
    states = {}
    for change in ("sweep.max_concurrent_trials=1", "gate.floor_accuracy=0.2", "sweep.epochs=3", "data.seed=1"):
        shown = make(folder, "status", "PROFILE=demo", overrides=f"{SMALL} {change}").stdout.splitlines()
        lines = [line for line in shown if line.startswith(("data", "sweep", "evaluate"))]
        states[change] = ["up to date" in line for line in lines]
        assert all("changed" in line for line in lines if "to run" in line)
    assert states == {
        "sweep.max_concurrent_trials=1": [True, True, True],
        "gate.floor_accuracy=0.2": [True, True, False],
        "sweep.epochs=3": [True, False, False],
        "data.seed=1": [False, False, False],
    }


def test_artifacts_and_lineage_show_what_came_from_what(built: subprocess.CompletedProcess[str], folder: Path) -> None:
    artifacts = make(folder, "artifacts", "PROFILE=demo").stdout
    assert "digits_dataset:v0" in artifacts
    assert "digits-classifier:best, digits-classifier:production" in artifacts
    for arguments in ((), ("ARGS=digits-classifier:best",)):
        tree = make(folder, "lineage", "PROFILE=demo", *arguments).stdout.splitlines()
        assert tree[0].startswith("model-")
        assert tree[1].strip().startswith("└─ dataset: digits_dataset:v0")


def test_verifying_reads_every_byte_and_names_what_is_damaged(
    built: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path
) -> None:
    whole = make(folder, "artifacts", "ARGS=--verify", "PROFILE=demo")
    assert (whole.returncode, whole.stdout.count("intact")) == (0, 2)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    path = copy / "store/demo/registry/versions/digits_dataset/v0/files/labels.npy"
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as on a failing disk: the time stamp stays
    damaged = make(copy, "artifacts", "ARGS=--verify", "PROFILE=demo")
    assert damaged.returncode == 2
    assert "labels.npy is damaged" in damaged.stdout
    assert "error: damaged: digits_dataset:v0" in damaged.stderr


def test_logs_keep_what_a_stage_said_and_why_it_failed(
    built: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path
) -> None:
    shown = make(folder, "logs", "PROFILE=demo").stdout
    for name in ("data", "sweep", "evaluate"):
        assert str(folder / "store/demo/logs" / f"{name}.log") in shown
    assert "gate: first" in shown
    make(tmp_path, "data", overrides="data.source=folder data.path=/etc/hostname")
    assert "error: /etc/hostname: not a readable directory" in make(tmp_path, "logs").stdout


def test_only_store_and_reports_are_written(built: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"store", "reports"}
    status = subprocess.run(["git", "status", "--porcelain", "--ignored"], cwd=ROOT, capture_output=True, text=True)
    assert "wandb/" not in status.stdout


def test_no_process_is_left(built: subprocess.CompletedProcess[str], folder: Path) -> None:
    marked = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                marked.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    assert marked == []


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("sweep", "PROFILE=dmo"), "", "error: PROFILE=dmo: unknown profile; choose one of cifar10, laptop, demo"),
        (
            ("data", "PROFILE=demo"),
            "sweep.trails=3",
            "error: SET: sweep.trails: unknown key; did you mean sweep.trials?",
        ),
        (("lineage", "PROFILE=demo"), "", "error: no artifact digits_dataset in"),
        (("data",), "data.source=folder data.path=/nowhere", "error: /nowhere: no such directory or archive"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(
    tmp_path: Path, arguments: tuple[str, ...], overrides: str, message: str
) -> None:
    result = make(tmp_path, *arguments, overrides=overrides)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make: ***")]
    assert result.returncode == 2  # make's own; the script's is 1
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_make_alone_lists_every_target(tmp_path: Path) -> None:
    shown = make(tmp_path).stdout
    phony = [
        name
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith(".PHONY:")
        for name in line.split()[1:]
        if not name.startswith("$")  # a file that is made anew
    ]
    assert phony
    for name in phony:
        assert f"make {name} " in shown


def test_a_script_without_its_input_names_the_command_to_run_first(tmp_path: Path) -> None:
    for script, message in (("sweep", "run make data PROFILE=demo"), ("evaluate", "run make data PROFILE=demo")):
        result = subprocess.run(
            [sys.executable, f"scripts/{script}.py", "--profile", "demo", "--set", f"paths.store={tmp_path}"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_the_environment_follows_the_content_of_what_is_installed(tmp_path: Path) -> None:
    """A new time stamp changes nothing; another byte requires an installation."""

    def ready() -> str:
        shown = subprocess.run(["make", "-n", "-p", "help"], cwd=tmp_path, capture_output=True, text=True).stdout
        return next(line for line in shown.splitlines() if line.startswith("READY :="))

    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    before = ready()
    (tmp_path / "pyproject.toml").touch()
    assert ready() == before
    (tmp_path / "requirements.lock").write_text((ROOT / "requirements.lock").read_text() + "# changed\n")
    assert ready() != before


def test_gate_json_has_the_keys_that_others_read(built: subprocess.CompletedProcess[str], folder: Path) -> None:
    gate = json.loads((folder / "reports/demo/gate.json").read_text())
    assert {
        "candidate", "production", "best_ever", "decision", "reasons", "overall", "best_ever_difference", "per_class",
        "holdout", "checks", "reported",
    } <= set(gate)  # fmt: skip


def test_report_and_compare_by_the_makefile(built: subprocess.CompletedProcess[str], folder: Path) -> None:
    result = make(folder, "report", "PROFILE=demo")
    path = folder / "reports" / "demo" / "index.html"
    assert result.stdout == f"report: {path}\n"
    shown = path.read_text()
    path.unlink()  # the files of the reports are counted above
    assert "The best of 2 trials" in shown
    assert "Not yet; type <code>make serve simulate PROFILE=demo</code>" in shown
    model = next((folder / "store" / "demo" / "registry" / "versions").glob("model-*")).name
    result = make(folder, "compare", "PROFILE=demo", "ARGS=--json", f"A={model}", "B=digits-classifier:best")
    assert json.loads(result.stdout)["paired"]["test"]["difference"] == 0
    result = make(folder, "compare", "PROFILE=demo")
    assert result.stderr.startswith("error: which two? make compare A=name:version B=name:version PROFILE=demo")


def test_promote_and_rollback_with_nothing_to_do_are_refused(
    built: subprocess.CompletedProcess[str], folder: Path
) -> None:
    no_model = make(folder, "promote", "PROFILE=demo")
    assert no_model.stderr.startswith("error: which model? make promote MODEL=name:version")
    unreasoned = make(folder, "promote", "MODEL=digits-classifier:best", "FORCE=1", "PROFILE=demo")
    assert unreasoned.stderr.startswith('error: FORCE=1 needs REASON="why"')
    gone = make(folder, "rollback", "PROFILE=demo")
    assert gone.stderr.startswith("error: there is nothing to roll back to: digits-classifier has had one production")
    there = make(folder, "promote", "MODEL=digits-classifier:best", "PROFILE=demo")
    assert (there.returncode, "is in production already" in there.stdout) == (0, True)
    assert len(make(folder, "history", "PROFILE=demo").stdout.splitlines()) == 1


@pytest.mark.long
def test_promote_rollback_and_history_by_hand(
    built: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path
) -> None:
    """Force a second model with a reason full of shell syntax, roll back, and read the history."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    second = make(copy, "sweep", "PROFILE=demo", overrides=f"{SMALL} sweep.seed=5 sweep.epochs=1 recipe.seed=1")
    assert second.returncode == 0, second.stderr
    candidate = "digits-classifier:best"
    strict = f"{SMALL} gate.margin=0"
    refused = make(copy, "promote", f"MODEL={candidate}", "PROFILE=demo", overrides=strict)
    assert refused.returncode == 2
    assert len([line for line in refused.stderr.splitlines() if not line.startswith("make: ***")]) == 1
    assert 'FORCE=1 REASON="why" overrides' in refused.stderr
    reason = """it's "better" (say 50 % of; us) $HOME `id` -x"""
    arguments = (f"MODEL={candidate}", "FORCE=1", f"REASON={reason.replace('$', '$$')}", "PROFILE=demo")
    forced = make(copy, "promote", *arguments, overrides=strict)
    assert forced.returncode == 0, forced.stderr
    assert "is in production by force" in forced.stdout
    recorded = [path.read_text() for path in (copy / "store/demo/wandb/runs").glob("*.jsonl")]
    assert sum("gate/test/low" in run for run in recorded if '"promote"' in run) == 2  # the refused and the forced one
    tracked = [path.read_bytes() for path in (copy / "store/demo/wandb").rglob("*.wandb")]
    cut_short = sum("W&B: it does not answer" in done.stdout for done in (refused, forced))  # on a busy machine
    assert sum(b"gate/test/low" in run for run in tracked) == 2 - cut_short  # in W&B too
    assert make(copy, "rollback", "REASON=second thoughts", "PROFILE=demo").returncode == 0
    shown = make(copy, "history", "PROFILE=demo").stdout.splitlines()
    assert len(shown) == 3
    assert f"FORCED {reason}" in shown[1]
    assert shown[2].endswith(": second thoughts")
    assert "previous: " in make(copy, "history", "ARGS=--all", "PROFILE=demo").stdout
