"""Whatever the shell and the machine are set up for, our processes work or say in one sentence what they lack."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import ray
import torch

from flywheel import FlywheelError, cli
from flywheel.commands.doctor import Finding
from flywheel.machine import environment, limits
from flywheel.machine.ray_address import SETTINGS, RayError, check, wanted
from flywheel.pipeline.server_record import Served

ROOT = Path(__file__).parents[1]
NOBODY = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]  # a uid without a name or capabilities


@pytest.fixture
def shell() -> Iterator[None]:
    """An environment without proxies, restored after the test."""
    before = dict(os.environ)
    for name in before:
        if name.lower().endswith("_proxy"):
            del os.environ[name]
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


@pytest.mark.parametrize(("name", "below"), [("store", ""), ("reports", "/sub/folder"), ("cache", "")])
def test_a_path_that_is_a_file_is_named_by_the_scripts(name: str, below: str, tmp_path: Path, shell: None) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--profile", "demo", "--set", f"paths.{name}={tmp_path}/file{below}"]
    with pytest.raises(FlywheelError) as refused:
        cli.load_params(cli.parser("").parse_args(arguments))
    assert str(refused.value) == f"paths.{name}: {tmp_path}/file is a file; set paths.{name} to a directory"


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


def test_ray_knows_the_settings_for_its_processes() -> None:
    """An unknown name is ignored, and Ray starts a second later."""
    raylet = (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").read_bytes()
    names = [name.removeprefix("RAY_") for name in SETTINGS if name.startswith("RAY_raylet")]
    assert len(names) == 2
    assert [name for name in names if f"RAY_{name}".encode() not in raylet] == []


RAY = """
  from flywheel.machine import ray_address
  with ray_address.connect(None, num_cpus=1):
    import ray; print(ray.get(ray.remote(lambda: 7).remote()))"""
GARBAGE = """
  import gc, threading, time
  from flywheel.machine import ray_address
  with ray_address.connect(None, num_cpus=1):
    import ray; gc.disable()
    for _ in range(20_000):
      cycle = [ray.put(1)]; cycle.append(cycle)
    threading.Thread(target=lambda: time.sleep(0.01) or gc.collect(), daemon=True).start()
  time.sleep(1); print("alive")"""
DOCTOR = "from flywheel.commands.doctor import _machine; print(*_machine())"
SWEEP = "from flywheel.machine import ray_address; ray_address.connect(None).__enter__()"


@pytest.mark.long
def test_ray_shuts_down_while_a_thread_collects_garbage_that_refers_to_its_objects() -> None:
    result = run(GARBAGE, {})
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


@pytest.mark.parametrize(
    ("limits", "cause"),
    [
        ("ulimit -n 64", "64 open files are allowed, Ray needs "),
        ("ulimit -v 3000000", "the address space is limited to 3.1 GB, Ray needs "),
    ],
)
def test_a_limit_is_said_before_ray_starts_and_by_the_doctor(limits: str, cause: str) -> None:
    result = run(f"{DOCTOR}\n  {SWEEP}", {}, "sh", "-c", f'{limits}; exec "$@"', "sh")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: Ray cannot run on this machine: {cause}")
    assert result.returncode == 1
    text, fix = line.removeprefix("error: Ray cannot run on this machine: ").split("; ")
    assert result.stdout == f"{Finding('machine', text, fix)}\n"


def test_limits_of_the_container_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In version 2 of control groups and in version 1."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    assert list(limits.lacks()) == []
    for name, text in (("memory.max", "1000000000\n"), ("pids/pids.max", "100"), ("pids/pids.current", "90")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    threads, memory = limits.lacks()
    assert threads.text.startswith("10 more processes and threads are allowed, Ray needs ")
    assert memory.text == "1.0 GB of memory, Ray needs 1.5 GB"
    (tmp_path / "pids/pids.max").write_text("max\n")
    assert list(limits.lacks()) == [memory]


def test_limits_of_a_control_group_above_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm limits the job, and runs its tasks in groups below."""
    job, own = tmp_path / "slurm" / "job_1", tmp_path / "slurm" / "job_1" / "step_0" / "task_0"
    own.mkdir(parents=True)
    for folder, name, text in (
        (job, "memory.max", "1000000000"), (own, "memory.max", "max"), (job, "pids.max", "100"),
        (job, "pids.current", "90"), (own, "pids.max", "max"), (own, "pids.current", "5"),
    ):  # fmt: skip
        (folder / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text("0::/slurm/job_1/step_0/task_0\n")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_CGROUPS", tmp_path / "own")
    threads, memory = limits.lacks()
    assert threads.text.startswith("10 more processes and threads are allowed, Ray needs ")
    assert memory.text == "1.0 GB of memory, Ray needs 1.5 GB"


def test_a_folder_for_rays_sockets_is_short_and_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("a" * limits.SOCKET_FOLDER_CHARACTERS)
    long.mkdir()
    for unusable in (long, tmp_path / "gone", Path("/proc")):
        monkeypatch.setenv("TMPDIR", str(unusable))
        assert limits.temporary_folder() == Path("/tmp")
    monkeypatch.setattr(limits, "TEMPORARY_BYTES", 1 << 60)
    (lack,) = limits.lacks()
    assert lack.text.startswith("no temporary folder for Ray: none of /proc, /tmp, /var/tmp, /dev/shm can be written")


@pytest.mark.parametrize("address", ["a..b:6379", "localhost:\u00b2"])
def test_an_address_that_can_be_none_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert wanted() == address  # a running sweep asks, and must not end because nobody answers
    with pytest.raises(RayError, match=rf"^RAY_ADDRESS={address}: no answer \(.*\); start Ray there or unset"):
        check(address)


READ_ONLY = "mount -t tmpfs -o ro none /dev/shm"
MISSING = (
    "mount -t tmpfs none $new && for name in null zero full random urandom; do "
    "touch $new/$name && mount --bind /dev/$name $new/$name || exit 1; done && mount --rbind $new /dev"
)


@pytest.mark.parametrize(
    "shm", [READ_ONLY, pytest.param(MISSING, marks=pytest.mark.long)], ids=["read-only", "missing"]
)
def test_ray_needs_no_home_and_no_shared_memory(nobody: list[str], tmp_path: Path, shm: str) -> None:
    """A home and a shared memory that cannot be written, a long TMPDIR, proxies for everything, no docstrings."""
    (tmp_path / "home").mkdir(mode=0o555)
    (tmp_path / ("a" * 80)).mkdir()
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1")
    (tmp_path / "dev").mkdir()
    hidden = ["unshare", "-m", "sh", "-c", f'new={tmp_path}/dev && {shm} && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        hidden = []  # nothing can be mounted here: the rest is tried
    variables = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / ("a" * 80)), "PYTHONOPTIMIZE": "2", **proxies}
    result = run(RAY, variables, *hidden, *nobody)
    assert (result.stdout, result.returncode) == ("7\n", 0), result.stderr
    assert list((tmp_path / "home").iterdir()) == []


def test_a_variable_that_keeps_ray_from_starting_is_named() -> None:
    others = dict.fromkeys(name for name in os.environ if name.startswith("RAY_"))  # a Ray in this process sets some
    result = run(RAY, {**others, "RAY_RUNTIME_ENV_HOOK": "no.such.hook"})
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "error: cannot use Ray on this machine: No module named 'no'; Ray reads RAY_RUNTIME_ENV_HOOK"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: bytearray(10**13), r"error: there is not enough memory \([\d.]+ .B free\); end other programs"),
        (lambda: torch.empty(10**13), r"error: there .* free, 40000000000000 bytes more were asked for\); end other"),
        (RuntimeError("can't start new thread"), r"error: no more threads can be started; raise the limit of"),
        (
            OSError(28, os.strerror(28), "src/x"),
            r"error: src/x: No space left on device \([\d.]+ .B free\); free space, or set paths\.store",
        ),
        (OSError(24, os.strerror(24)), "error: Too many open files; raise the limit of open files"),
    ],
)
def test_a_limit_that_is_met_later_is_one_sentence(
    error: Exception | Callable[[], object], said: str, shell: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def script() -> None:
        if isinstance(error, Exception):
            raise error
        error()

    with pytest.raises(SystemExit) as ended:
        cli.main(script)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(said, line)
    assert ended.value.code == 1


def test_a_stage_says_that_the_address_space_is_too_small_for_torch() -> None:
    command = ["sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", sys.executable, "scripts/data.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = "error: the address space is limited to 3.1 GB, torch needs 4.0 GB; ulimit -v unlimited\n"
    assert (result.returncode, result.stderr) == (1, said)
