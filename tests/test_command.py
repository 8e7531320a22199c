"""What all scripts share: mistakes on the command line, the terminal, the log file."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import scripts

from flywheel import FlywheelError, cli
from flywheel.params import Params
from flywheel.params import file as params_file

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sweep.py", "--trials=3"), "unrecognized arguments: --trials=3; scripts/sweep.py --help lists what there is"),
        (("evaluate.py", "now"), "unrecognized arguments: now; scripts/evaluate.py --help lists what there is"),
        (
            ("sync.py", "--keep", "mine"),
            "argument --keep: invalid choice: 'mine' (choose from 'ours', 'theirs'); scripts/",
        ),
        (
            ("data.py", "--profile"),
            "argument --profile: expected one argument; scripts/data.py --help lists what there is",
        ),
        (
            ("status.py", "--params", "nothing.yaml"),
            "nothing.yaml: cannot be read (No such file or directory); run from",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = subprocess.run(
        [sys.executable, f"scripts/{arguments[0]}", *arguments[1:]], cwd=ROOT, capture_output=True, text=True
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {said}")
    assert (result.returncode, result.stdout) == (1, "")


def test_a_terminal_that_cannot_show_a_letter_gets_a_question_mark() -> None:
    code = "from flywheel import cli; cli.main(lambda: print('└─ ±7 × 2'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "?? ?7 ? 2\n")


def test_a_home_directory_in_a_path_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves ~ alone in SET="paths.store=~/store"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    places = "paths.store=~/store paths.reports=~/reports paths.cache=~/cache paths.checkpoints=~/shared"
    params = params_file.load(ROOT / "params.yaml", "demo", places)
    found = [str(place) for place in (params.store, params.reports, params.cache, params.checkpoints)]
    assert found == [f"{tmp_path}/{name}" for name in ("store/demo", "reports/demo", "cache", "shared/demo")]


def run_logged(params: Params, *steps: str | BaseException) -> int:
    """Run a script that logs the texts and raises the exceptions among `steps`; return its exit code."""

    def script() -> None:
        with cli.logged(params, "data"):
            for step in steps:
                if isinstance(step, BaseException):
                    raise step
                cli.log.info(step)

    try:
        cli.main(script)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("error", "code", "printed", "logged"),
    [
        (FlywheelError("no data"), 1, "error: no data\n", "error: no data"),
        (KeyboardInterrupt(), 130, "interrupted: finished work is kept; run the same command again\n", "interrupted"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device; free space", "OSError: "),
    ],
)
def test_an_error_is_one_line_on_stderr_and_in_the_log(
    params: Params, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, printed: str, logged: str
) -> None:
    assert run_logged(params, "first\nsecond", error) == code
    shown = capsys.readouterr()
    assert shown.out == "first\nsecond\n"
    assert shown.err.startswith(printed)
    assert len(shown.err.splitlines()) == 1
    lines = params.store_paths.log("data").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    texts = [line[20:] for line in lines]
    assert texts[:2] == ["first", "second"]
    assert texts[-1].startswith(logged)


def test_a_bug_leaves_its_traceback_in_the_log(params: Params) -> None:
    with pytest.raises(ZeroDivisionError):
        run_logged(params, "before", ZeroDivisionError("a bug"))
    log = params.store_paths.log("data").read_text()
    assert "Traceback" in log
    assert log.endswith("ZeroDivisionError: a bug\n")


def test_a_log_file_that_is_moved_away_is_written_anew(params: Params) -> None:
    path = params.store_paths.log("data")
    with cli.logged(params, "data"):
        cli.log.info("before")
        path.rename(path.with_suffix(".1"))
        cli.log.info("after")
    assert path.with_suffix(".1").read_text().endswith("before\n")
    assert [line[20:] for line in path.read_text().splitlines()] == ["after"]


def test_a_small_address_space_does_not_keep_a_server_running(tmp_path: Path) -> None:
    stop = shlex.join(scripts.command(tmp_path, "stop"))
    done = subprocess.run(["bash", "-c", f"ulimit -v 3000000; {stop}"], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("stop: nothing was running\n", "")


# What Python writes to stdout unless it is told to buffer nothing, as some shells do.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
LOGGING = """
import sys
from flywheel import cli
from flywheel.params import file
def script():
    with cli.logged(file.load("params.yaml", "demo", sys.argv[1]), "data"):
        for number in range(int(sys.argv[2])):
            cli.log.info("line %d", number)
cli.main(script)
"""
PRINTING = """
from flywheel import cli
def script():
    print("line")
cli.main(script)
"""


def test_a_closed_pipe_ends_the_command_without_a_message(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOGGING, f"paths.store={tmp_path}", "100000"]
    with subprocess.Popen(
        command, cwd=ROOT, env=BUFFERED, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert (tmp_path / "demo/logs/data.log").read_text().endswith(" stdout was closed\n")


def test_without_stdout_a_command_does_its_work() -> None:
    command = f"{shlex.join([sys.executable, '-c', PRINTING])} >&-"  # as some daemons start it
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, env=BUFFERED, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("code", "log", "stdout"),
    [(LOGGING, None, "/dev/full"), (PRINTING, None, "/dev/full"), (LOGGING, "/dev/full", os.devnull)],
)
def test_a_full_disk_under_stdout_or_the_log_is_one_line(
    tmp_path: Path, code: str, log: str | None, stdout: str
) -> None:
    if log is not None:
        (tmp_path / "demo/logs").mkdir(parents=True)
        (tmp_path / "demo/logs/data.log").symlink_to(log)
    command = [sys.executable, "-c", code, f"paths.store={tmp_path}", "1"]
    with Path(stdout).open("w") as output:
        result = subprocess.run(command, cwd=ROOT, env=BUFFERED, stdout=output, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: No space left on device; free space")
