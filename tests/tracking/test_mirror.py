"""The mirror: a machine with an empty store reads what another one published, or gets one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from wandb_double import WandbDouble
from wandb_process import ROOT, Done, clean_environment, python, store_of

from flywheel import files
from flywheel.params import Params
from flywheel.registry import Registry, RegistryError, manifest
from flywheel.tracking import remote, transfer
from flywheel.tracking.connection import Mode
from flywheel.tracking.mirror import Mirror, mirrored

PROJECT, REGISTRY, MODEL = "flywheel-demo", "wandb-registry-model", "digits-classifier"

# One machine: two data sets, two models of the same size, aliases.
ONE = """
registry = mirrored(params)
old = publish(registry, "digits_dataset", "old images", type="dataset")
data = publish(registry, "digits_dataset", "images", type="dataset", metadata={"fingerprint": "f", "n": [1, None]})
first = publish(registry, "model-a", "weights of a", inputs={"dataset": data.ref})
second = publish(registry, "model-b", "weights of b", inputs={"dataset": data.ref, "parent": first.ref})
registry.link(first, params.registered_model, ("best", "production"), reason="x")
registry.link(second, params.registered_model, ("production",), reason="y")
run = Tracker(params, registry).start("sweep", "all", {})
run.made(old, data, first, second, publish(registry, "model-c", "weights of c"))
run.finish()
"""
# Another, whose store is empty.
OTHER = """
import json
from flywheel.registry import Registry, RegistryError
registry = mirrored(params)
def tell(*references):
    for reference in references:
        try:
            version = registry.resolve(reference)
            text = (registry.open(version) / "a").read_text()
            print(json.dumps([reference, version.ref, text, version.metadata, version.inputs]))
        except RegistryError as error:
            print("RegistryError:", error)
"""


@pytest.fixture(scope="module")
def service() -> Iterator[WandbDouble]:
    with WandbDouble() as served:
        yield served
        assert served.errors == []


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, service: WandbDouble) -> Path:
    """The machine that published."""
    base = tmp_path_factory.mktemp("one")
    done = python(base, ONE, **service.environment)
    assert (done.code, done.errors, len(done.lines)) == (0, "", 1), done
    return base


@pytest.fixture
def double(service: WandbDouble) -> Iterator[WandbDouble]:
    """The service that all tests of this module share; faults end with their test."""
    yield service
    service.mend()


def other(base: Path, double: WandbDouble, code: str) -> Done:
    """Run code on a machine that starts with an empty store."""
    done = python(base, OTHER + code, **double.environment)
    assert done.errors == ""
    return done


def told(done: Done) -> dict[str, list[Any]]:
    return {row[0]: row[1:] for line in done.lines if line.startswith("[") for row in [json.loads(line)]}


def test_another_machine_resolves_every_name_and_asks_once(one: Path, double: WandbDouble, tmp_path: Path) -> None:
    here = Registry(store_of(one))
    data, first, second = (here.resolve(name) for name in ("digits_dataset", "model-a", "model-b"))
    names = ["digits_dataset", "digits_dataset:latest", data.ref, f"{MODEL}:best", f"{MODEL}:production", first.ref]
    names += ["model-c:v0", "model-c"]  # which no alias names
    lineage = f"""
tell(*{names!r}, "{MODEL}:candidate", "absent", "digits_dataset:v7")
print("lineage", [a.ref for a in registry.lineage(registry.resolve("{second.ref}")) if a.version])
print("versions", [version.ref for version in registry.versions("digits_dataset")])
print(json.dumps(registry.aliases("{MODEL}")))
"""
    done = other(tmp_path, double, lineage)
    found = told(done)
    assert found["digits_dataset"] == found[data.ref] == [data.ref, "images", {"fingerprint": "f", "n": [1, None]}, {}]
    assert found[f"{MODEL}:best"] == found[first.ref] == [first.ref, "weights of a", {}, {"dataset": [data.ref]}]
    made_of = {"dataset": [data.ref], "parent": [first.ref]}
    assert found[f"{MODEL}:production"] == [second.ref, "weights of b", {}, made_of]  # of the same size
    assert found["model-c"] == found["model-c:v0"] == [here.resolve("model-c").ref, "weights of c", {}, {}]
    assert len([line for line in done.lines if line.startswith("RegistryError")]) == 3
    assert done.lines[-3] == f"lineage {[second.ref, data.ref, first.ref, data.ref]}"
    assert done.lines[-2] == f"versions {[version.ref for version in here.versions('digits_dataset')]}"
    assert json.loads(done.lines[-1]) == here.aliases(MODEL)
    there = Registry(store_of(tmp_path))
    for name in ("digits_dataset", "model-a", "model-b"):
        assert there.resolve(name).files == here.resolve(name).files
        there.verify(there.resolve(name))
    assert not (store_of(tmp_path) / "wandb" / "artifacts").exists()  # no second copy in a cache
    before = double.operations.total()
    assert len(told(other(tmp_path, double, 'tell("digits_dataset:latest", "model-a:v0")'))) == 2
    assert double.operations.total() == before


def test_offline_nothing_is_requested(
    double: WandbDouble, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in double.environment.items():
        monkeypatch.setenv(name, value)
    before = double.operations.total()
    with pytest.raises(RegistryError, match=r"^no artifact digits_dataset in "):
        mirrored(make_params("tracking.wandb=offline")).resolve("digits_dataset")
    assert double.operations.total() == before


def test_damaged_download_is_named_and_not_kept(one: Path, double: WandbDouble, tmp_path: Path) -> None:
    double.fail("GET blob", "corrupt", times=1)
    ref = Registry(store_of(one)).resolve("model-a").ref
    done = other(tmp_path, double, f"tell({ref!r})")
    assert "arrived damaged from W&B; nothing was kept, try again" in done.lines[-1]
    blobs = store_of(tmp_path) / "registry" / "blobs"
    assert [path for path in blobs.rglob("*") if path.is_file()] == []
    done = other(tmp_path, double, 'tell("model-a")')
    assert told(done)["model-a"][1] == "weights of a"


def test_manifest_that_does_not_arrive_is_one_sentence(one: Path, double: WandbDouble, tmp_path: Path) -> None:
    double.fail("FetchArtifactManifest", 403)
    done = other(tmp_path, double, 'tell("digits_dataset")')
    assert done.code == 0
    assert done.lines[1].endswith("continuing offline with the local store; make sync uploads the rest")
    assert done.lines[2].startswith("RegistryError: no artifact digits_dataset in ")


@pytest.mark.parametrize(("path", "taken"), [("b/a", True), ("../a", False), ("b/../../a", False), ("/a", False)])
def test_manifest_whose_files_lie_elsewhere_is_not_taken(path: str, taken: bool) -> None:
    entry = files.Digests(1, "0" * 64, "md5")
    logged = SimpleNamespace(
        metadata={"flywheel": {"files": {path: [entry.sha256, entry.size]}, "inputs": {}, "created": "now"}},
        manifest=SimpleNamespace(entries={path: SimpleNamespace(digest=entry.md5)}),
        source_name="thing:v0", source_version="v0", type="test", digest=manifest.digest_of({path: entry}),
    )  # fmt: skip
    assert (remote._version(logged) is not None) == taken


def test_download_that_is_slow_is_waited_for_and_so_is_the_store(
    params: Params, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time without progress that a stage waits is 1 s here, and 12 s else."""

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "400000")
            self.end_headers()
            for _ in range(8):
                self.wfile.write(bytes(50_000))
                time.sleep(0.3)

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "a").write_bytes(bytes(400_000))
    version = registry.add_manifest(Registry(tmp_path / "elsewhere").publish("thing", "test", {"a": tmp_path / "a"}))
    there = Mirror(params)
    there.connection._mode = Mode("online", "a test")
    there.connection.stall_budget_s = 1
    publish = there.local.publish
    monkeypatch.setattr(there.local, "publish", lambda *given, **options: time.sleep(2) or publish(*given, **options))
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(there.remote, "fetch", lambda version, folder: transfer.download(url, folder / "a"))
        there.fetch(version)
        server.shutdown()
    registry.verify(version)


def test_process_of_w_and_b_may_end_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(ended.pid)
    ended.wait()
    monkeypatch.setattr(remote, "wandb_processes", lambda: [process])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    remote.kill_wandb()


def test_lost_file_is_downloaded_again(one: Path, double: WandbDouble, tmp_path: Path) -> None:
    here = Registry(store_of(one))
    (here.open(here.resolve("model-a")) / "a").unlink()
    done = python(one, OTHER + 'tell("model-a")', **double.environment)
    assert told(done)["model-a"][1] == "weights of a"
    latest = here.resolve("digits_dataset")
    (here.open(here.resolve("digits_dataset:v0")) / "a").unlink()
    found = told(python(one, OTHER + 'tell("digits_dataset:v0", "digits_dataset")', **double.environment))
    assert found["digits_dataset:v0"][1] == "old images"
    assert found["digits_dataset"][0] == latest.ref  # a download moves no pointer


@pytest.mark.parametrize("how", [500, "hang", "drop"])
@pytest.mark.long
def test_failing_download_is_one_sentence(one: Path, double: WandbDouble, tmp_path: Path, how: int | str) -> None:
    double.fail("GET blob", how)
    done = other(tmp_path, double, 'tell("digits_dataset")')
    assert done.code == 0
    assert done.lines[-1].startswith("RegistryError: digits_dataset:v1 is not here and W&B does not give it")


def test_manifests_take_little_space_and_those_logged_before_inputs_had_roles_are_read(
    one: Path, double: WandbDouble, tmp_path: Path
) -> None:
    here = Registry(store_of(one))
    data, first, second = (here.resolve(name) for name in ("digits_dataset", "model-a", "model-b"))
    (logged,) = double.collection(PROJECT, "model-b").members
    now = logged.given["metadata"]
    metadata = json.loads(now)
    assert metadata["flywheel"]["inputs"] == {"dataset": [data.ref], "parent": [first.ref]}
    metadata["flywheel"]["inputs"] = [data.ref, first.ref]  # as older code logged them
    logged.given["metadata"] = json.dumps(metadata)
    other(tmp_path, double, "registry.refresh()")
    logged.given["metadata"] = now
    known = Registry(store_of(tmp_path))
    assert known.collections() == ["digits_dataset", "model-a", "model-b"]
    assert known.resolve(second.ref).inputs == {"dataset": (data.ref,), "parent": (first.ref,)}
    assert all(known.missing_file(version) for name in known.collections() for version in known.versions(name))
    assert files.size_of(store_of(tmp_path) / "registry") < 20_000


def test_linking_asks_for_aliases_before_it_takes_the_writers_lock(tmp_path: Path) -> None:
    """Asking writes, too."""
    with WandbDouble() as double:
        code = """
registry = mirrored(params)
registry.link(publish(registry, "model-a", "a"), params.registered_model, ("best",), reason="x")
print(registry.resolve(f"{params.registered_model}:best").label)
"""
        assert python(tmp_path, code, **double.environment).lines[-1] == "model-a:v0"


@pytest.mark.long
def test_contract_of_the_registry_holds_online(tmp_path: Path) -> None:
    """All of test_contract.py, in a process whose registry has W&B behind it."""
    with WandbDouble() as double:
        settings = {name.replace("WANDB", "CONTRACT"): value for name, value in double.environment.items()}
        contract = str(Path(__file__).parents[1] / "registry" / "test_contract.py")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", contract],
            cwd=ROOT, capture_output=True, text=True, timeout=600,
            env={**clean_environment(tmp_path), **settings, "HOME": os.environ["HOME"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        assert double.operations["ArtifactMembershipByName"] > 20  # what is not here was asked for
        assert double.errors == []


@pytest.mark.long
def test_aliases_moved_on_w_and_b_are_followed_and_those_moved_in_both_are_named(
    one: Path, double: WandbDouble, tmp_path: Path
) -> None:
    """The last test of this module: it moves aliases that the others read."""
    other(tmp_path, double, 'registry.refresh(); tell("model-a")')
    move = """
registry = mirrored(params)
run = Tracker(params, registry).start("promote", "back", {})
registry.link(registry.resolve("model-a"), params.registered_model, ("production",), reason="back")
run.finish()
"""
    assert len(python(one, move, **double.environment).lines) == 1
    here = Registry(store_of(one))
    assert double.aliases(REGISTRY, MODEL)["production"] == here.resolve("model-a").digest
    follow = f'registry.refresh(); print(registry.resolve("{MODEL}:production").name)'
    assert other(tmp_path, double, follow).lines[-1] == "model-a"
    there = Registry(store_of(tmp_path))
    there.link(there.resolve("model-b"), MODEL, ("production",), reason="here")
    theirs = """
registry = mirrored(params)
run = Tracker(params, registry).start("promote", "new", {})
new = publish(registry, "model-c", "weights of c")
run.made(new)
registry.link(new, params.registered_model, ("production",), reason="there")
run.finish()
"""
    assert len(python(one, theirs, **double.environment).lines) == 1
    done = other(tmp_path, double, follow)
    assert done.lines[-1] == "model-b"
    assert f"W&B: {MODEL}:production was moved both here and on W&B; make sync shows both" in done.lines
