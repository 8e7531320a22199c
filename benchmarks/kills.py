"""Requests lost and seconds to recover when a part of the server is killed under load, and processes left over.

    python benchmarks/kills.py [--repeats 10] [--replicas 1 2]         (make bench-long BENCH_LONG=kills, an hour)

Four clients without retries send an image each in a loop. `files` removes Ray's folder from the temporary directory
instead of killing a process; `host` kills the host itself, which must leave no process.

Reads   params.yaml
Writes  reports/bench.json; with --publish also benchmarks/results/kills.json and its table in docs/serving.md
"""

from __future__ import annotations

import collections
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import harness
import psutil
import requests
import serving

from flywheel import cli
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.serving.backend import MARK, RAY

# What is killed -> a part of its command line.
PARTS = {
    "HAProxy": "haproxy.cfg",
    "replica": "ray::ServeReplica",
    "controller": "ray::ServeController",
    "GCS": "gcs_server",
    "raylet": "raylet/raylet",
    "driver": "backend.main",
    "files": "raylet/raylet",
}
CLIENTS = 4
STEADY_S = 5  # answers without an error for so long after the last one: recovered
LONGEST_S = 180
ORPHANS_S = 30


def main() -> None:
    """Measure and write the table."""
    options = harness.options(
        __doc__,
        repeats=(10, "kills of each part"),
        replicas=([1, 2], "numbers of replicas"),
        parts=([*PARTS, "host"], "what is killed"),
        publish=harness.PUBLISH,
    )
    rows = []
    for replicas in options.replicas:
        with tempfile.TemporaryDirectory(prefix="fw-kills-") as folder:
            overrides = (
                f"serve.port={harness.free_port()} serve.min_replicas={replicas} serve.max_replicas={replicas} "
                f"serve.cpus_per_replica=0.5 {harness.scratch(folder)}"
            )
            rows += measure(Path(folder), overrides, replicas, options.repeats, options.parts)
    harness.publish("kills", "serving.md", {"kills": rows, **harness.stamp("ray")}, table, commit=options.publish)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    rows = [
        (
            row["part"], row["replicas"], row["kills"],
            *(harness.spread(row[key].values()) for key in ("unanswered", "refused")),
            harness.spread(row["seconds"].values(), ".1f"), row["orphans"],
        )
        for row in result["kills"]
    ]  # fmt: skip
    heads = ("killed", "replicas", "kills", "requests without an answer", "503 in JSON", "seconds", "orphans")
    text = f"{CLIENTS} clients without retries; medians (lowest to highest); seconds to the last request not answered."
    return harness.markdown(heads, rows) + harness.note(result, text)


def measure(folder: Path, overrides: str, replicas: int, repeats: int, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each part."""
    params = harness.params("demo", overrides)
    serving._publish(params, folder / "model")
    rows = []
    with harness.serving("demo", overrides) as url:
        for part in parts:
            found = []
            for number in range(repeats):
                found.append(
                    kill_host(params, overrides) if part == "host" else kill(url, params.store, part, replicas)
                )
                print(f"{replicas} replicas, {part} {number + 1}: {found[-1]}", flush=True)
            figures = {key: harness.extent([row[key] for row in found]) for key in ("unanswered", "refused", "seconds")}
            orphans = sum(row["orphans"] for row in found)
            rows.append({"part": part, "replicas": replicas, "kills": repeats, **figures, "orphans": orphans})
    return rows


def kill_host(params: Params, overrides: str) -> dict[str, float]:
    """Kill the host and start it again. Return the seconds until none of its processes is left."""
    served = server_record.read(params)
    assert served is not None
    at = time.monotonic()
    psutil.Process(served.pid).kill()
    while marked(params.store, "") and time.monotonic() < at + ORPHANS_S:
        time.sleep(0.1)
    seconds, orphans = time.monotonic() - at, len(marked(params.store, ""))
    harness.script("serve", "demo", overrides, quiet=True)
    return {"unanswered": 0, "refused": 0, "seconds": seconds, "orphans": orphans}


class Load:
    """Clients that send an image each in a loop while the block runs."""

    def __init__(self, url: str):
        self.url = url
        self.answers: list[tuple[float, float, str]] = []  # sent, answered, status or error
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]

    @property
    def statuses(self) -> collections.Counter[str]:
        """How many answers there were of each status or error."""
        return collections.Counter(status for _, _, status in self.answers)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        body = serving.image()
        with requests.Session() as session:
            session.trust_env = False  # no proxy
            session.headers["Connection"] = "close"  # so that each request has to be accepted
            while not self._stop.is_set():
                sent = time.monotonic()
                try:
                    answer = session.post(f"{self.url}/predict", data=body, timeout=120)
                    status = str(answer.status_code)
                    if answer.headers.get("content-type") != "application/json":
                        status += f" not JSON: {answer.text[:200]}"
                except requests.RequestException as error:
                    status = type(error).__name__
                self.answers.append((sent, time.monotonic(), status))
                time.sleep(0 if status == "200" else 0.05)


def kill(url: str, store: Path, part: str, replicas: int = 1) -> dict[str, Any]:
    """Kill a part under load; return what the clients saw until it was replaced and all requests were answered."""
    until = time.monotonic() + LONGEST_S
    while f"flywheel_replicas {replicas}\n" not in requests.get(f"{url}/metrics", timeout=60).text:
        if time.monotonic() > until:
            raise SystemExit(f"error: fewer than {replicas} replicas answer for {LONGEST_S} s")
        time.sleep(0.5)  # the one before may still be starting
    victim = marked(store, PARTS[part])[0]
    backend = victim.environ()[RAY] if part in ("GCS", "raylet", "driver", "files") else "none"
    with Load(url) as load:
        time.sleep(2)
        at = time.monotonic()
        if part == "files":
            for link in store.glob("serving/*/ray-*"):
                shutil.rmtree(link.resolve())
        else:
            victim.kill()
        while time.monotonic() < at + LONGEST_S:
            time.sleep(0.2)
            lost = [answered for _, answered, status in load.answers if status != "200"]
            steady = time.monotonic() - max([at, *lost]) > STEADY_S
            replaced = {process.pid for process in marked(store, PARTS[part])} - {victim.pid}
            if steady and replaced and backend not in _backends(store):
                break
    after = [answer for answer in load.answers if answer[1] > at]
    return {
        "requests": len(after),
        "refused": sum(status == "503" for _, _, status in after),
        "unanswered": sum(status not in ("200", "503") for _, _, status in after),
        "not_json": [status for _, _, status in after if "not JSON" in status],
        "seconds": max((answered - at for _, answered, status in after if status != "200"), default=0.0),
        "orphans": _backends(store).count(backend),
    }


def _backends(store: Path) -> list[str]:
    """Return the mark of the backend of each process."""
    found = []
    for process in marked(store, ""):
        with contextlib.suppress(psutil.Error, OSError):
            found.append(process.environ().get(RAY, ""))
    return found


def marked(store: Path, text: str) -> list[psutil.Process]:
    """Return the processes of a store's server with `text` in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(store) and text in " ".join(process.cmdline()):
                found.append(process)
    return found


if __name__ == "__main__":
    cli.main(main)
