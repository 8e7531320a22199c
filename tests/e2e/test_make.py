"""The real commands, through the Makefile, as a user types them."""

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
    "data.image_size=16 sweep.trials=3 sweep.epochs=2 gate.floor_accuracy=0.1 "
    "sweep.space.architecture=[compact, standard]"
)


def make(place: Path, *arguments: str, overrides: str = SMALL) -> subprocess.CompletedProcess[str]:
    """Run make in the repository with its store, reports and cache at `place`."""
    paths = f"paths.store={place}/store paths.reports={place}/reports paths.cache={place}/cache"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "WANDB", "RAY"))}
    return subprocess.run(
        ["make", *arguments, f"SET={paths} {overrides}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def turned(place: Path) -> subprocess.CompletedProcess[str]:
    """The first half of the wheel, from nothing."""
    return make(place, "evaluate", "PROFILE=demo")


def test_evaluate_runs_the_whole_chain(turned: subprocess.CompletedProcess[str], place: Path) -> None:
    assert turned.returncode == 0, turned.stdout + turned.stderr
    for line in (
        "data: running (never run)",
        "sweep: running (never run)",
        "evaluate: running (never run)",
        "gate: first",
    ):
        assert line in turned.stdout
    reports = {path.name for path in (place / "reports" / "demo").iterdir()}
    assert reports == {
        "samples_train.png", "samples_validation.png", "samples_test.png", "samples_simulation.png",
        "sweep.json", "sweep.csv", "sweep_history.png", "sweep_params.png",
        "evaluation.json", "gate.json", "confusion_matrix.png", "reliability.png", "worst.png",
    }  # fmt: skip


def test_nothing_is_said_on_stderr(turned: subprocess.CompletedProcess[str]) -> None:
    assert turned.stderr == ""


def test_a_second_time_every_stage_is_up_to_date(turned: subprocess.CompletedProcess[str], place: Path) -> None:
    again = make(place, "data", "sweep", "evaluate", "PROFILE=demo")
    assert again.returncode == 0
    assert again.stdout.count("up to date (nothing changed since") == 3
    assert "running" not in again.stdout


@pytest.mark.parametrize("script", ["data", "sweep", "evaluate", "status", "artifacts", "lineage"])
def test_an_up_to_date_stage_is_light(turned: subprocess.CompletedProcess[str], place: Path, script: str) -> None:
    """It answers in a fraction of a second since it imports nothing heavy: modules are asserted, not the clock."""
    overrides = f"paths.store={place}/store paths.reports={place}/reports paths.cache={place}/cache {SMALL}"
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
    turned: subprocess.CompletedProcess[str], place: Path
) -> None:
    states = {}
    for change in ("sweep.max_concurrent_trials=1", "gate.floor_accuracy=0.2", "sweep.epochs=3", "data.seed=1"):
        shown = make(place, "status", "PROFILE=demo", overrides=f"{SMALL} {change}").stdout.splitlines()
        lines = [line for line in shown if line.startswith(("data", "sweep", "evaluate"))]
        states[change] = ["up to date" in line for line in lines]
        assert all("changed" in line for line in lines if "to run" in line)
    assert states == {
        "sweep.max_concurrent_trials=1": [True, True, True],
        "gate.floor_accuracy=0.2": [True, True, False],
        "sweep.epochs=3": [True, False, False],
        "data.seed=1": [False, False, False],
    }


def test_artifacts_and_lineage_show_what_came_from_what(turned: subprocess.CompletedProcess[str], place: Path) -> None:
    artifacts = make(place, "artifacts", "PROFILE=demo").stdout
    assert "digits_dataset:v0" in artifacts
    assert "digits-classifier:best, digits-classifier:production" in artifacts
    for arguments in ((), ("ARGS=digits-classifier:best",)):
        tree = make(place, "lineage", "PROFILE=demo", *arguments).stdout.splitlines()
        assert tree[0].startswith("model-")
        assert tree[1].strip().startswith("└─ digits_dataset:v0")


def test_verifying_reads_every_byte_and_names_what_is_damaged(
    turned: subprocess.CompletedProcess[str], place: Path, tmp_path: Path
) -> None:
    whole = make(place, "artifacts", "ARGS=--verify", "PROFILE=demo")
    assert (whole.returncode, whole.stdout.count("intact")) == (0, 2)
    copy = tmp_path / "copy"
    shutil.copytree(place, copy, symlinks=True)
    path = copy / "store/demo/registry/versions/digits_dataset/v0/files/labels.npy"
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a rotten disk would: no time stamp tells
    damaged = make(copy, "artifacts", "ARGS=--verify", "PROFILE=demo")
    assert damaged.returncode == 2
    assert "labels.npy is damaged" in damaged.stdout
    assert "error: damaged: digits_dataset:v0" in damaged.stderr


def test_logs_keep_what_a_stage_said_and_why_it_failed(
    turned: subprocess.CompletedProcess[str], place: Path, tmp_path: Path
) -> None:
    shown = make(place, "logs", "PROFILE=demo").stdout
    for name in ("data", "sweep", "evaluate"):
        assert str(place / "store/demo/logs" / f"{name}.log") in shown
    assert "gate: first" in shown
    make(tmp_path, "data", overrides="data.source=folder data.path=/etc/hostname")
    assert "error: /etc/hostname: not a readable directory" in make(tmp_path, "logs").stdout


def test_nothing_but_the_named_places_is_written(turned: subprocess.CompletedProcess[str], place: Path) -> None:
    assert {path.name for path in place.iterdir()} == {"store", "reports"}
    status = subprocess.run(["git", "status", "--porcelain", "--ignored"], cwd=ROOT, capture_output=True, text=True)
    assert "wandb/" not in status.stdout


def test_no_process_is_left(turned: subprocess.CompletedProcess[str], place: Path) -> None:
    marked = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(place).encode() in (folder / "environ").read_bytes():
                marked.append((folder / "cmdline").read_text().replace("\0", " "))
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


def test_a_script_run_alone_says_what_to_make_first(tmp_path: Path) -> None:
    for script, message in (("sweep", "run make data PROFILE=demo"), ("evaluate", "run make data PROFILE=demo")):
        result = subprocess.run(
            [sys.executable, f"scripts/{script}.py", "--profile", "demo", "--set", f"paths.store={tmp_path}"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_the_environment_follows_the_content_of_what_is_installed(tmp_path: Path) -> None:
    """Touching the files changes nothing; another byte asks for an installation."""

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


def test_gate_json_has_the_keys_that_others_read(turned: subprocess.CompletedProcess[str], place: Path) -> None:
    gate = json.loads((place / "reports/demo/gate.json").read_text())
    assert {
        "candidate", "production", "best_ever", "decision", "reasons", "overall", "best_ever_difference", "per_class",
        "holdout", "checks", "reported",
    } <= set(gate)  # fmt: skip


def test_report_and_compare_by_the_makefile(turned: subprocess.CompletedProcess[str], place: Path) -> None:
    result = make(place, "report", "PROFILE=demo")
    path = place / "reports" / "demo" / "index.html"
    assert result.stdout == f"report: {path}\n"
    shown = path.read_text()
    path.unlink()  # the files of the reports are counted above
    assert "The best of 3 trials" in shown
    assert "Not yet; type <code>make serve simulate PROFILE=demo</code>" in shown
    model = next((place / "store" / "demo" / "registry" / "versions").glob("model-*")).name
    result = make(place, "compare", "PROFILE=demo", f"A={model}:v0", "B=digits-classifier:best")
    assert result.stdout == f"{model}:v0 and {model}:v0 are the same version\n"
    result = make(place, "compare", "PROFILE=demo", "ARGS=--json", f"A={model}", f"B={model}")
    assert json.loads(result.stdout)["paired"]["test"]["difference"] == 0
    result = make(place, "compare", "PROFILE=demo")
    assert result.stderr.startswith("error: which two? make compare A=name:version B=name:version PROFILE=demo")


def test_promote_and_rollback_with_nothing_to_move_say_so(
    turned: subprocess.CompletedProcess[str], place: Path
) -> None:
    no_model = make(place, "promote", "PROFILE=demo")
    assert no_model.stderr.startswith("error: which model? make promote MODEL=name:version")
    unreasoned = make(place, "promote", "MODEL=digits-classifier:best", "FORCE=1", "PROFILE=demo")
    assert unreasoned.stderr.startswith('error: FORCE=1 needs REASON="why"')
    gone = make(place, "rollback", "PROFILE=demo")
    assert gone.stderr.startswith("error: there is nothing to roll back to: digits-classifier has had one production")
    there = make(place, "promote", "MODEL=digits-classifier:best", "PROFILE=demo")
    assert (there.returncode, "is in production already" in there.stdout) == (0, True)
    assert len(make(place, "history", "PROFILE=demo").stdout.splitlines()) == 1


@pytest.mark.long
def test_promote_rollback_and_history_by_hand(
    turned: subprocess.CompletedProcess[str], place: Path, tmp_path: Path
) -> None:
    """A second model by force, with a reason that a shell would take apart; back; and who did what and why."""
    copy = tmp_path / "copy"
    shutil.copytree(place, copy, symlinks=True)
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
