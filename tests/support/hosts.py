"""Hosts of a cluster as network namespaces of this machine (Linux, root): own address, own folder, own Ray node.

    with hosts.network() as made:                 skips the test, with the reason, where this cannot be made
        address = made.head("a")
        made.join("b", address)
        made.start("a", ["python", ...])          a process on a host
        made.cut("b")                             its link is down
        made.kill("b")                            every process of the host ends at once

Each host sees a folder of its own at `own` (all others: `folder_of(host)`), also for temporary files, and all share
`shared`. A bridge in a namespace of its own connects them, so nothing of the machine's network changes.
Host a is to have the head.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import scripts

NET, PORT = "10.213.77", 6379
JOIN_TIMEOUT_S = 120
NAMES = "abc"


class Hosts:
    """The hosts by name: a, b and c."""

    def __init__(self, folder: Path):
        self.folder, self.own, self.shared = folder, folder / "own", folder / "shared"
        self.prefix = f"fly{os.getpid()}"
        self.switch = f"{self.prefix}-net"
        self.environment = {"TMPDIR": f"{self.own}/tmp", "HOME": str(self.own), "RAY_AUTH_MODE": "disabled"}

    def folder_of(self, host: str) -> Path:
        """Return what a host sees at `own`."""
        return self.folder / "of" / host

    def address(self, host: str) -> str:
        return f"{NET}.{1 + NAMES.index(host)}"

    def make(self) -> None:
        """Make the namespaces and their links. Raises CalledProcessError or OSError."""
        for path in (self.own, self.shared):
            path.mkdir()
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for host in NAMES:
            (self.folder_of(host) / "tmp").mkdir(parents=True)
            name = f"{self.prefix}-{host}"
            ip("netns", "add", name)
            ip("-n", self.switch, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", self.switch, "link", "set", f"to-{host}", "master", "br0", "up")
            ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "route", "add", "default", "dev", "eth0")  # Ray asks which address would reach the world

    def remove(self) -> None:
        """End all processes of the hosts and remove their namespaces."""
        for host in NAMES:
            self.kill(host)
        for name in (*(f"{self.prefix}-{host}" for host in NAMES), self.switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def start(self, host: str, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Start a command on a host."""
        mount = f'mount --bind {self.folder_of(host)} {self.own} && exec "$@"'
        return subprocess.Popen(
            ["ip", "netns", "exec", f"{self.prefix}-{host}", "unshare", "--mount", "sh", "-c", mount, "sh", *command],
            cwd=scripts.ROOT, env=scripts.environment(**self.environment, **environment), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def script(self, host: str, name: str, more: str = "", *, folder: Path, **environment: str) -> str:
        """Run a script on a host to its end; return what it printed, and its exit code."""
        process = self.start(host, scripts.command(folder, name, more), **environment)
        printed, errors = process.communicate(timeout=900)
        return f"{printed}{errors}[exit {process.returncode}]"

    def head(self, host: str, cpus: int = 1) -> str:
        """Start a Ray on a host; return its address."""
        address = f"{self.address(host)}:{PORT}"
        temporary = f"--temp-dir={self.own}/ray"  # the other nodes take the same path, in their own folders
        self._node(host, "--head", f"--num-cpus={cpus}", f"--port={PORT}", "--include-dashboard=false", temporary)
        self._joined(host, address)
        return address

    def join(self, host: str, address: str) -> str:
        """Start a node of the Ray at an address on a host; return its id."""
        self._node(host, f"--address={address}", "--num-cpus=1")
        return self._joined(host, address)

    def cut(self, host: str) -> None:
        ip("-n", self.switch, "link", "set", f"to-{host}", "down")

    def kill(self, host: str) -> None:
        """End every process of a host at once, as a power failure does."""
        listed = subprocess.run(["ip", "netns", "pids", f"{self.prefix}-{host}"], capture_output=True, text=True)
        processes = []
        for pid in listed.stdout.split():
            with contextlib.suppress(psutil.Error):
                processes.append(psutil.Process(int(pid)))
                processes[-1].kill()
        psutil.wait_procs(processes, timeout=10)

    def _node(self, host: str, *options: str) -> None:
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        where = [f"--node-ip-address={self.address(host)}", f"--object-store-memory={150 << 20}"]
        inside = ["sh", "-c", f'cd {self.own} && exec "$@" >ray.log 2>&1', "sh"]
        self.start(host, [*inside, *ray, *where, *options])

    def _joined(self, host: str, address: str) -> str:
        """Wait until the Ray has a live node on a host; return its id."""
        code = (
            f"import ray; ray.init('{address}', log_to_driver=False, logging_level=50)\n"
            f"print(*[n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeName'] == '{self.address(host)}'])"
        )
        until = time.monotonic() + JOIN_TIMEOUT_S
        while True:
            printed, errors = self.start(NAMES[0], [sys.executable, "-c", code]).communicate()
            if printed.strip():
                return printed.strip()
            assert time.monotonic() < until, errors
            time.sleep(1)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def network() -> Iterator[Hosts]:
    """Make three hosts, and remove them at the end."""
    if shutil.which("ip") is None:
        pytest.skip("no hosts as network namespaces here: iproute2 is not installed")
    folder = Path(tempfile.mkdtemp(prefix="fly", dir="/tmp"))  # short: Ray's sockets are below
    hosts = Hosts(folder)
    try:
        try:
            hosts.make()
            assert hosts.start("a", ["true"]).wait() == 0, "cannot mount"
        except (OSError, subprocess.CalledProcessError, AssertionError) as error:
            pytest.skip(f"no hosts as network namespaces here: {getattr(error, 'stderr', '') or error}")
        yield hosts
    finally:
        hosts.remove()
        shutil.rmtree(folder, ignore_errors=True)
