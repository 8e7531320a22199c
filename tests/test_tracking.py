"""W&B: the mode is chosen without a prompt, and nothing that goes wrong there fails a stage."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel.params import Params
from flywheel.tracking import Run, Tracker, choose_mode

Make = Callable[..., Params]


TRACK = """
import sys
from flywheel import params_file
from flywheel.tracking import Tracker
run = Tracker(params_file.load(profile="demo", overrides=sys.argv[1]), "turn-1").start("data", "data", {})
run.log({"a": 1})
run.finish()
"""


def track(place: Path, overrides: str, **environment: str) -> list[str]:
    """Track a run in a process of its own, since wandb reads its environment once a process; return what was said."""
    return subprocess.run(
        [sys.executable, "-c", TRACK, f"paths.store={place}/store {overrides}"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("WANDB")}, **environment},
    ).stdout.splitlines()  # fmt: skip


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        held: list[socket.socket] = []
        stopping = threading.Event()

        def accept() -> None:
            while not stopping.is_set():
                try:
                    held.append(server.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stopping.set()
        thread.join()
        for connection in held:
            connection.close()


def test_without_a_key_auto_is_offline() -> None:
    assert choose_mode("auto")[0] == "offline"
    assert "no API key" in choose_mode("auto")[1]


def test_the_environment_decides_before_keys_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for value, mode in (("disabled", "disabled"), ("dryrun", "offline"), ("offline", "offline"), ("online", "online")):
        monkeypatch.setenv("WANDB_MODE", value)
        assert choose_mode("auto") == (mode, "WANDB_MODE")


def test_with_a_key_auto_is_online_if_the_host_answers(monkeypatch: pytest.MonkeyPatch, silent_server: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    assert choose_mode("auto") == ("online", "127.0.0.1 answers")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert choose_mode("auto") == ("offline", "127.0.0.1 does not answer")


def test_a_key_in_netrc_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent_server: str) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password " + "0" * 40 + "\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    assert choose_mode("auto")[0] == "online"


def test_params_decide_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert choose_mode("disabled") == ("disabled", "tracking.wandb")


def test_disabled_does_not_import_wandb(make_params: Make, tmp_path: Path) -> None:
    said: list[str] = []
    run = Tracker(make_params("tracking.wandb=disabled"), "turn-1", said.append).start("data", "data", {})
    run.log({"a": 1})
    run.log_pictures([tmp_path / "no.png"])
    run.log_confusion_matrix([0], [0], ["a"])
    run.finish()
    assert said == ["W&B: disabled (tracking.wandb)"]
    assert list(tmp_path.iterdir()) == []


def test_an_offline_run_lies_in_the_store_and_nowhere_else(tmp_path: Path) -> None:
    shown = track(tmp_path, "tracking.wandb=offline", HOME=str(tmp_path / "home"))
    assert shown == ["W&B: offline (tracking.wandb)"]
    (folder,) = (tmp_path / "store" / "demo" / "wandb" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


class Broken:
    """A W&B run of which everything fails."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        raise RuntimeError("the server\nis gone")


def test_the_first_trouble_is_said_once_and_fails_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    broken = Broken()
    run = Run(broken, said.append)
    run.log({"a": 1})
    run.log({"a": 2})
    run.log_pictures([tmp_path / "no.png"])
    run.summarize({"a": 3})
    run.finish()
    assert said == ["W&B: the server is gone; going on without it, results are in the reports"]
    assert broken.calls == 1


@pytest.mark.long
def test_a_server_that_never_answers_costs_little_and_the_run_goes_on_offline(
    tmp_path: Path, silent_server: str
) -> None:
    started = time.monotonic()
    shown = track(tmp_path, "tracking.wandb=auto", WANDB_API_KEY="0" * 40, WANDB_BASE_URL=silent_server)
    assert time.monotonic() - started < 60
    assert shown[0] == "W&B: online (127.0.0.1 answers)"
    assert shown[1].endswith("going on offline")
    assert len(shown) == 2
    assert list((tmp_path / "store" / "demo" / "wandb" / "wandb").glob("offline-run-*"))
