"""Whatever the shell and the machine are set up for, our processes work or say in one sentence what they lack."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flywheel import cli
from flywheel.machine import environment
from flywheel.pipeline.server_record import Served

ROOT = Path(__file__).parents[1]
NOBODY = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]  # a uid without a name or capabilities


@pytest.fixture
def shell() -> Iterator[None]:
    """Restore the environment after the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def nobody() -> list[str]:
    """A command that runs another as a user without a name."""
    if subprocess.run([*NOBODY, "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not permitted on this machine")
    return NOBODY


def run(code: str, variables: Mapping[str, str | None], *prefix: str) -> subprocess.CompletedProcess[str]:
    """Run code as a script of ours does, in an environment with `variables`; None removes one."""
    given = {**os.environ, **variables}
    return subprocess.run(
        [*prefix, sys.executable, "-c", f"from flywheel import cli\ndef script():\n  {code}\ncli.main(script)"],
        env={name: value for name, value in given.items() if value is not None},
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server whose /healthz answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    ("variables", "others"),
    [
        ({"http_proxy": "http://127.0.0.1:1"}, ""),
        ({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "intranet, 10.0.0.1"}, "intranet,10.0.0.1,"),
        ({"ALL_PROXY": "socks5://127.0.0.1:1", "no_proxy": "intranet", "NO_PROXY": "other"}, "intranet,other,"),
    ],
)
def test_calls_to_this_machine_bypass_proxies(shell: None, server: str, variables: dict[str, str], others: str) -> None:
    os.environ.update(variables)
    assert not Served(server, 1, "now", "model", "digest").answers()
    environment.prepare()
    assert Served(server, 1, "now", "model", "digest").answers()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == others + "127.0.0.1,localhost,::1"


def test_calls_to_the_servers_own_address_bypass_proxies(shell: None) -> None:
    os.environ["no_proxy"] = "*"
    cli.load_params(cli.parser("").parse_args(["--set", "serve.host=192.0.2.1"]))
    assert os.environ["no_proxy"] == "*"  # which works only alone
    del os.environ["no_proxy"]
    cli.load_params(cli.parser("").parse_args(["--set", "serve.host=192.0.2.1"]))
    assert os.environ["no_proxy"] == "192.0.2.1"


def test_a_user_without_a_name_and_a_home_has_both(nobody: list[str]) -> None:
    code = "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    gone = dict.fromkeys(("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"))
    assert run(code, gone, *nobody).stdout == "uid-12345 /\n"
    assert run(code, {**gone, "HOME": "/x", "USER": "me"}, *nobody).stdout == "me /x\n"


def test_libraries_print_nothing_about_the_shell(nobody: list[str], tmp_path: Path) -> None:
    """A home that cannot be written, a folder that is not there, and values that no library understands."""
    (tmp_path / "home").mkdir(mode=0o555)
    garbage = {"OMP_NUM_THREADS": "all", "MKL_NUM_THREADS": "0", "OPENBLAS_NUM_THREADS": "", "MPLBACKEND": "garbage"}
    garbage |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "gone"), "WANDB_API_KEY": "key\n"}
    code = "import os, tempfile, torch, matplotlib.pyplot\n"
    code += "  print(os.environ['TMPDIR'] == tempfile.gettempdir(), os.environ['WANDB_API_KEY'], torch.ones(9).sum())"
    result = run(code, garbage, *nobody)
    assert (result.stderr, result.stdout) == ("", "True key tensor(9.)\n")
