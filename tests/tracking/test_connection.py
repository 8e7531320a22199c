"""The mode is chosen without a prompt, within 3 s, from the environment and netrc alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import scripts
from wandb_double import ENTITY, WandbDouble

from flywheel.params import Params
from flywheel.tracking import run_files
from flywheel.tracking.connection import PROBE_TIMEOUT_S, Connection, WandbError, base_url, choose_mode

KEY = "0" * 40
NO_KEY = "no API key; `.venv/bin/wandb login` or WANDB_API_KEY brings runs online"


@pytest.mark.parametrize(
    ("param", "variables", "folder", "user", "mode", "why"),
    [
        ("auto", {}, "offline", "", "offline", "mode in wandb/settings"),
        ("auto", {}, "disabled", "", "disabled", "mode in wandb/settings"),
        ("online", {"WANDB_MODE": "online"}, "offline", "", "offline", "mode in wandb/settings"),
        ("auto", {"WANDB_MODE": "offline"}, "disabled", "", "disabled", "mode in wandb/settings"),
        ("auto", {}, "online", "disabled", "disabled", "mode in user/settings"),
        ("online", {"WANDB_MODE": "offline"}, "", "", "offline", "WANDB_MODE"),
        ("online", {"WANDB_DISABLED": "true"}, "", "", "disabled", "WANDB_DISABLED"),
        ("auto", {"WANDB_DISABLED": "false"}, "online", "", "online", "127.0.0.1 answers"),
        ("auto", {"WANDB_MODE": "disabled"}, "", "", "disabled", "WANDB_MODE"),
        ("auto", {"WANDB_MODE": "dryrun"}, "", "", "offline", "WANDB_MODE"),
        ("auto", {"WANDB_MODE": "sideways"}, "", "", "offline", "WANDB_MODE=sideways is not a mode"),
        ("disabled", {"WANDB_MODE": "online"}, "", "", "disabled", "tracking.wandb"),
        ("online", {"WANDB_API_KEY": ""}, "", "", "offline", NO_KEY),
    ],
)
def test_of_several_wishes_the_most_private_counts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    double: WandbDouble,
    param: str,
    variables: dict[str, str],
    folder: str,
    user: str,
    mode: str,
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", "user")
    for name, value in {**double.environment, **variables}.items():
        monkeypatch.setenv(name, value)
    for path, asked in (("wandb", folder), ("user", user)):
        (tmp_path / path).mkdir()
        (tmp_path / path / "settings").write_text(f"[default]\nmode = {asked}\n")
    assert choose_mode(param)[:2] == (mode, why)


def test_an_upload_that_the_user_asks_for_goes_online(
    monkeypatch: pytest.MonkeyPatch, params: Params, double: WandbDouble
) -> None:
    for name, value in {**double.environment, "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    assert Connection(params, upload=True).mode.name == "online"


def test_the_settings_that_wandb_itself_writes_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its commands `offline` and `login --host`, here in a process of their own."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path))  # the command writes the key to .netrc
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()
    for command in (["offline"], ["login", "--host", "https://wandb.example", "--no-verify", "local-" + KEY]):
        subprocess.run([sys.executable, "-m", "wandb", *command], check=True, capture_output=True)
    assert choose_mode("online")[:2] == ("offline", "mode in wandb/settings")
    assert base_url() == "https://wandb.example"


@pytest.mark.parametrize("address", ["foo", "api.wandb.ai", "ftp://host", "http://", "http://[::1"])
def test_invalid_address_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    assert choose_mode("auto")[0] == "offline"
    assert choose_mode("auto").why == f"WANDB_BASE_URL={address.rstrip('/')} is not an http address"


def test_a_run_is_recorded_offline_despite_an_invalid_address(tmp_path: Path) -> None:
    address = "http://[::1"
    done = scripts.run(
        tmp_path, "data", "data.image_size=8 tracking.wandb=auto", WANDB_API_KEY=KEY, WANDB_BASE_URL=address
    )
    told = [line for line in (done.stdout + done.stderr).splitlines() if "W&B" in line]
    assert told == [f"W&B: offline (WANDB_BASE_URL={address} is not an http address)"]
    (record,) = run_files.records(tmp_path / "store" / "demo")
    assert (record.job_type, record.finished) == ("data", "finished")


def test_auto_is_online_with_a_key_that_the_host_knows(monkeypatch: pytest.MonkeyPatch, double: WandbDouble) -> None:
    for name, value in double.environment.items():
        monkeypatch.setenv(name, value)
    assert choose_mode("auto") == ("online", "127.0.0.1 answers", ENTITY)
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert choose_mode("online").entity == "team"


def test_key_is_not_sent_to_the_target_of_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str | None]] = []

    class Redirecting(BaseHTTPRequestHandler):
        def answer(self) -> None:
            here = int(self.server.server_address[1])
            seen.append((here, self.headers.get("Authorization")))
            self.send_response(302 if here == first.server_port else 404)
            self.send_header("Location", f"http://127.0.0.1:{second.server_port}/")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as first,
        ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as second,
    ):
        for server in (first, second):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{first.server_port}")
        assert choose_mode("auto").name == "offline"
        for server in (first, second):
            server.shutdown()
    assert [port for port, _ in seen] == [first.server_port, second.server_port]
    assert seen[0][1] is not None
    assert seen[1][1] is None


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (401, "127.0.0.1 refuses the key (401)"),
        (403, "127.0.0.1 refuses the key (403)"),
        (500, "127.0.0.1 answers with an error (500)"),
        ("hang", "127.0.0.1 does not answer"),
        ("drop", "127.0.0.1 does not answer"),
        ("refused", "127.0.0.1 does not answer"),
    ],
)
def test_host_that_refuses_or_does_not_answer_leads_to_offline_soon(
    monkeypatch: pytest.MonkeyPatch, double: WandbDouble, how: int | str, why: str
) -> None:
    for name, value in double.environment.items():
        monkeypatch.setenv(name, value)
    double.vanish() if how == "refused" else double.fail("Viewer", how)
    began = time.monotonic()
    mode = choose_mode("auto")
    assert mode.name == "offline"
    assert mode.why.startswith(why)
    assert time.monotonic() - began < PROBE_TIMEOUT_S + 10


@pytest.mark.parametrize("with_port", [True, False], ids=["as wandb login writes it", "by hand"])
def test_key_in_netrc_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, double: WandbDouble, with_port: bool
) -> None:
    machine = double.url.removeprefix("http://") if with_port else "127.0.0.1"
    (tmp_path / "netrc").write_text(f"machine {machine} login user password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", double.url)
    assert choose_mode("auto").name == "online"


def test_netrc_that_is_no_text_holds_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_bytes(b"machine \xff\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert choose_mode("auto")[:2] == ("offline", NO_KEY)


def test_stall_budget_is_used_up_only_while_nothing_moves(params: Params) -> None:
    connection = Connection(params)
    connection.stall_budget_s = 0.6
    moved = iter(range(0, 10**9, 10**6))
    done = threading.Event()
    threading.Timer(1.5, done.set).start()
    assert connection.wait(done, count_bytes=lambda: next(moved))
    assert connection.stall_budget_s == 0.6
    assert not connection.wait(threading.Event(), count_bytes=lambda: 0)
    assert not connection.wait(threading.Event())  # the budget stays used up
    with pytest.raises(WandbError, match="does not answer"):
        connection.run(lambda: time.sleep(60))


def test_error_of_an_action_is_raised(params: Params) -> None:
    assert Connection(params).run(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        Connection(params).run(lambda: 1 // 0)


def test_first_error_is_logged_once(params: Params, said: list[str]) -> None:
    connection = Connection(params)
    connection.give_up("one\ntwo", "going on")
    connection.give_up("three", "going on")
    assert said == ["W&B: one two; going on"]
