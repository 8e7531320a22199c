"""The registry under faults: damaged files, full and read-only disks, concurrent and killed processes.

Files are really damaged, full disks are small file systems or a limit on the size of files, and writers are child
processes that are killed. `check_integrity` is what every test asserts afterwards.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flywheel import files
from flywheel.files import Digests
from flywheel.registry import Registry, RegistryError, Version, manifest, versions

FORK = multiprocessing.get_context("fork")
ROOT = os.getuid() == 0
NOBODY = 65534
DIED = "died"


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, which another user can reach: pytest's own are closed to all but their owner."""
    made = Path(tempfile.mkdtemp(prefix="registry-faults-"))
    made.chmod(0o755)
    monkeypatch.chdir(made)
    yield made
    for folder in (made, *(path for path in made.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    monkeypatch.undo()
    shutil.rmtree(made)


@pytest.fixture
def store(base: Path) -> Path:
    return base / "store"


@pytest.fixture
def registry(store: Path) -> Registry:
    return Registry(store)


# -- damaged files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 70_000, 149_999])
def test_flipped_byte_is_found_by_open_and_verify_and_with_old_time_stamp_by_verify(
    registry: Registry, position: int
) -> None:
    version = publish(registry, "one", extra=150_000)
    path = registry.open(version) / "extra"
    before = path.stat()
    flip(path, position)
    for read in (registry.open, registry.verify):
        with pytest.raises(RegistryError, match=r"thing:v0: .*/v0/files/extra is damaged"):
            read(version)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RegistryError, match=r"files/extra is damaged"):
        registry.verify(version)


@pytest.mark.parametrize("inside", ["a", "sub/b"])
def test_following_the_advice_for_a_damaged_file_repairs_it(registry: Registry, store: Path, inside: str) -> None:
    version = publish(registry, "one")
    flip(registry.open(version) / inside)
    with pytest.raises(RegistryError) as caught:
        registry.verify(version)
    advice = re.search(r"remove (\S+) and create it again", str(caught.value))
    assert advice
    shutil.rmtree(advice[1])
    again = publish(registry, "one")
    assert again.ref == version.ref
    check_integrity(store, [again])


@pytest.mark.parametrize("record", ["", "{", "null", "[]", '{"a": null, "sub/b": [4, 0]}'])
def test_damaged_record_of_verified_files_makes_them_be_read_again(
    registry: Registry, store: Path, record: str
) -> None:
    version = publish(registry, "one")
    path = folder_of(store, version) / "verified.json"
    path.write_text(record)
    assert (registry.open(version) / "a").read_text() == "one"
    flip(registry.open(version) / "a")
    path.write_text(record)
    with pytest.raises(RegistryError, match="files/a is damaged"):
        registry.open(version)


def test_file_missing_everywhere_is_named_and_restored_by_publishing_again(registry: Registry, store: Path) -> None:
    one, two = publish(registry, "one"), publish(registry, "two")
    missing = blob(store, one.files["a"].sha256)
    missing.unlink()
    check_integrity(store, [one, two])  # a version has its own links
    (folder_of(store, one) / "files" / "a").unlink()
    for read in (registry.open, registry.verify):
        with pytest.raises(RegistryError, match=r"thing:v0: .*/v0/files/a cannot be read \(No such file or directory"):
            read(one)
    registry.verify(two)
    assert publish(registry, "one") == one
    assert missing.read_text() == "one"
    check_integrity(store, [one, two])


@pytest.mark.parametrize("text", ["", "x", "99\n", "-1\n", "0\n0\n", "\0\0\0"])
def test_damaged_latest_pointer_resolves_to_the_newest(registry: Registry, store: Path, text: str) -> None:
    publish(registry, "one")
    two = publish(registry, "two")
    (store / "registry" / "versions" / "thing" / "latest").write_text(text)
    assert registry.resolve("thing") == two
    assert publish(registry, "three").label == "thing:v2"


# -- damaged manifests ---------------------------------------------------------------------------------


def forge_digest(manifest: Path) -> None:
    content = files.read_json(manifest)
    content["files"]["a"]["md5"] = content["files"]["sub/b"]["md5"]
    files.write_json(manifest, content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda manifest: manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2]),
    "empty": lambda manifest: manifest.write_bytes(b""),
    "missing": lambda manifest: manifest.unlink(),
    "not an object": lambda manifest: manifest.write_text("[1, 2]\n"),
    "forged digest": forge_digest,
    "of another version": lambda manifest: shutil.copy(manifest.parents[1] / "v0" / "manifest.json", manifest),
    "of another artifact": lambda manifest: shutil.copy(manifest.parents[2] / "other/v0/manifest.json", manifest),
}


@pytest.fixture
def three(registry: Registry, base: Path) -> list[Version]:
    """Versions v0, v1 and v2 of `thing`; `other` has one of its own, made of them."""
    versions = [publish(registry, text) for text in ("one", "two", "three")]
    registry.publish(
        "other", "test", {"a": write(base / "other", "other")}, inputs={"from": (versions[0].ref, versions[2].ref)}
    )
    return versions


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_manifest_is_refused_by_its_path_and_everything_else_works(
    registry: Registry, store: Path, three: list[Version], damage: str
) -> None:
    DAMAGES[damage](manifest_of(store, three[1]))
    for reference in ("thing:v1", three[1].ref):
        assert "\n" not in refusal(lambda reference=reference: registry.resolve(reference))
    with pytest.raises(RegistryError, match=re.escape(str(manifest_of(store, three[1])))):
        registry.resolve("thing:v1")
    for number in (0, 2):  # the other versions of this artifact
        version = three[number]
        for reference in (f"thing:v{number}", version.ref):
            assert registry.resolve(reference) == version
        assert (registry.open(version) / "sub" / "b").read_text() == "same"
        registry.verify(version)
        assert registry.aliases_by_ref().get(version.ref, []) == (["latest"] if number == 2 else [])
    assert registry.resolve("thing") == three[2]
    assert [version.label for version in registry.versions("thing")] == ["thing:v0", "thing:v2"]
    other = registry.resolve("other")  # another artifact, and its lineage
    registry.verify(other)
    assert registry.collections() == ["other", "thing"]
    assert registry.versions("other") == [other]
    rows = [(0, "", other.ref, other), *((1, "from", three[n].ref, three[n]) for n in (0, 2))]
    assert list(registry.lineage(other)) == rows
    assert publish(registry, "four").label == "thing:v3"
    assert publish(registry, "one") == three[0]
    registry.link(three[2], "model", ("best", "production"), reason="x")
    assert registry.resolve("model:production") == three[2]
    registry.remove([three[0]])
    with pytest.raises(RegistryError, match="no version v0"):
        registry.resolve("thing:v0")
    registry.verify(three[2])
    again = publish(registry, "two")  # the damaged version: repaired, or published again
    assert registry.resolve(three[1].ref) == registry.resolve("thing") == again
    registry.verify(again)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_manifest_neither_resolves_to_an_older_version_nor_hides_it(
    registry: Registry, store: Path, three: list[Version], damage: str
) -> None:
    DAMAGES[damage](manifest_of(store, three[2]))
    with pytest.raises(RegistryError, match=re.escape(str(manifest_of(store, three[2])))):
        registry.resolve("thing")
    assert registry.resolve(three[1].ref) == three[1]
    assert registry.aliases_by_ref().get(three[1].ref, []) == []
    assert publish(registry, "four").label == "thing:v3"


@pytest.mark.parametrize(
    "junk", [b"\0" * 40 + b"\n", b"\xff\xfe\n", b'{"at": "2026', b"\n", b"null\n", b"[]\n", b"{}\n", b"7\n"]
)
def test_invalid_line_of_the_audit_log_hides_no_other(registry: Registry, store: Path, junk: bytes) -> None:
    one, two = publish(registry, "one"), publish(registry, "two")
    registry.link(one, "model", ("production",), reason="first")
    with (store / "audit.jsonl").open("ab") as log:
        log.write(junk)
    registry.link(two, "model", ("production",), reason="second")
    assert [entry["reason"] for entry in registry.history("model")] == ["first", "second", "second"]
    assert registry.aliases("model") == {"production": two.ref, "previous": one.ref}
    assert registry.registered_models() == ["model"]


def test_audit_log_cut_anywhere_in_its_last_write_shows_all_of_it_or_nothing_and_can_be_appended(
    registry: Registry, store: Path
) -> None:
    one, two, three = (publish(registry, text) for text in ("one", "two", "three"))
    registry.link(one, "model", ("production",), reason="first")
    registry.link(two, "model", ("production",), reason="second")
    log = store / "audit.jsonl"
    before, earlier, history = log.read_bytes(), registry.aliases("model"), registry.history()
    registry.link(three, "model", ("best", "production"), reason="third")
    after, later = log.read_bytes(), registry.aliases("model")
    for cut in range(len(before), len(after) + 1):
        log.write_bytes(after[:cut])
        aliases = registry.aliases("model")
        assert aliases in (earlier, later)
        assert aliases == earlier or cut >= len(after) - 1  # without its newline, the last line is complete, too
        if (cut - len(before)) % 41 == 0 or cut == len(after) - 1:
            registry.link(three, "model", ("candidate",), reason="fourth")
            found = registry.history()
            assert found[: len(history)] == history
            assert (found[-1]["alias"], found[-1]["to"], found[-1]["reason"]) == ("candidate", three.ref, "fourth")
    log.write_bytes(after)
    assert registry.aliases("model") == later


# -- full disks ----------------------------------------------------------------------------------------


def test_failing_write_publishes_nothing(registry: Registry, store: Path) -> None:
    one = publish(registry, "one")
    for size in (10_001, 1_500_000, 3_000_000):
        sources = content(f"{size}", extra=size)
        with pytest.raises(RegistryError, match="File too large"):
            in_child(lambda sources=sources: registry.publish("thing", "test", sources), file_limit_bytes=10_000)
        assert registry.versions("thing") == [one]
    two = publish(registry, "two", extra=10_001)
    assert two.label == "thing:v1"
    assert leftovers_in_tmp(store) == []
    check_integrity(store, [one, two])


# -- no permission, read-only, moved -------------------------------------------------------------------


def test_store_that_cannot_be_created_is_refused_in_one_sentence(store: Path) -> None:
    store.write_text("")
    message = refusal(lambda: Registry(store).publish("thing", "test", content("one")))
    assert message.startswith(f"cannot change {store}/registry: ")


def test_unreadable_source_is_not_reported_as_an_error_of_the_store(registry: Registry, store: Path) -> None:
    store.mkdir(mode=0o777)
    store.chmod(0o777)
    sources = content("one")
    (sources / "a").chmod(0)
    message = refusal(lambda: in_child(lambda: registry.publish("thing", "test", sources), user=NOBODY))
    assert str(sources / "a") in message
    assert "write the store" not in message
    assert registry.collections() == []


def test_manifest_without_read_permission_is_not_called_damaged(registry: Registry, store: Path) -> None:
    version = publish(registry, "one")
    manifest_of(store, version).chmod(0)
    message = refusal(lambda: in_child(lambda: registry.resolve("thing:v0"), user=NOBODY))
    assert str(manifest_of(store, version)) in message
    assert "remove" not in message


def test_read_only_store_can_be_read_and_refuses_every_change_in_one_sentence(registry: Registry, store: Path) -> None:
    data = publish(registry, "data")
    version = publish(registry, "one", name="model-1", inputs={"dataset": data.ref})
    registry.link(version, "model", ("best",), reason="x")
    (folder_of(store, data) / "verified.json").unlink()
    sources = content("two")
    for path in (store, *store.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)

    def read() -> None:
        there = Registry(store)
        for reference in ("model:best", "model", "model-1:v0", version.ref):
            assert there.resolve(reference) == version
        assert (there.open(data) / "a").read_text() == "data"
        assert (there.open(version) / "a").read_text() == "one"
        assert [ancestor.ref for ancestor in there.lineage(version)] == [version.ref, data.ref]
        assert [entry["reason"] for entry in there.history("model")] == ["x"]
        assert there.aliases_by_ref().get(version.ref, []) == ["latest", "model:best"]
        check_integrity(store, [data, version])

    in_child(read, user=NOBODY)
    changes: list[Callable[[], object]] = [
        lambda: Registry(store).publish("thing", "test", sources),
        lambda: Registry(store).link(version, "model", ("production",), reason="y"),
        lambda: Registry(store).set_latest(version),
        lambda: Registry(store).remove([version]),
    ]
    for change in changes:
        message = refusal(lambda change=change: in_child(change, user=NOBODY))
        assert "/store/registry" in message
        assert "ermission denied; make it writable, or set paths.store" in message
    check_integrity(store, [data, version])
    assert registry.aliases("model") == {"best": version.ref}


def test_copied_store_is_the_same_store(registry: Registry, store: Path, base: Path) -> None:
    data, one = publish(registry, "data", name="data"), publish(registry, "one")
    two = publish(registry, "two", inputs={"dataset": data.ref})
    registry.link(one, "model", ("production",), reason="first")
    registry.link(two, "model", ("production",), reason="second")
    holding = [path for path in store.rglob("*") if path.is_file() and str(base).encode() in path.read_bytes()]
    assert holding == []
    history = registry.history()
    moved = base / "elsewhere" / "deeper"
    shutil.copytree(store, moved)  # other time stamps, and no hard links
    shutil.rmtree(store)
    there = Registry(moved)
    assert there.history() == history
    assert there.resolve("model:previous") == one
    lineage = there.lineage(there.resolve("model:production"))
    assert [ancestor.ref for ancestor in lineage] == [two.ref, data.ref]
    assert (there.open(two) / "a").read_text() == "two"
    assert publish(there, "one") == one
    three = publish(there, "three")
    assert three.label == "thing:v2"
    check_integrity(moved, [data, one, two, three])
    assert not store.exists()


# -- processes at once -----------------------------------------------------------------------------------


def test_twenty_concurrent_publishes_get_a_number_each_and_readers_see_only_complete_versions(
    registry: Registry, store: Path
) -> None:
    every = {who: content(f"{who}", extra=20_000 + who) for who in range(20)}

    def work(who: int) -> object:
        if who < 20:
            return Registry(store).publish("thing", "test", every[who])
        seen, until = 0, time.monotonic() + 60
        while seen < 20 and time.monotonic() < until:
            versions = Registry(store).versions("thing")
            assert len(versions) >= seen
            seen = len(versions)
            for version in versions:
                Registry(store).open(version)
            if versions:
                assert Registry(store).resolve("thing").number < 20
        return seen

    *published, seen = at_once(21, work)
    assert seen == 20
    assert sorted(version.number for version in published) == list(range(20))
    assert registry.versions("thing") == sorted(published, key=lambda version: version.number)
    assert registry.resolve("thing").number == 19
    assert leftovers_in_tmp(store) == []
    check_integrity(store, published)


def test_twenty_concurrent_alias_moves_leave_a_chain(registry: Registry, store: Path) -> None:
    versions = [publish(registry, f"{who}") for who in range(20)]
    at_once(20, lambda who: Registry(store).link(versions[who], "model", ("production",), reason=f"{who}"))
    moves = [entry for entry in registry.history("model") if entry["alias"] == "production"]
    assert sorted(entry["to"] for entry in moves) == sorted(version.ref for version in versions)
    assert [entry["from"] for entry in moves] == [None, *(entry["to"] for entry in moves[:-1])]
    assert registry.aliases("model") == {"production": moves[-1]["to"], "previous": moves[-1]["from"]}


# -- processes that die ----------------------------------------------------------------------------------


def things(registry: Registry) -> list[Version]:
    return registry.versions("thing")


ACTIONS: dict[str, Callable[[Registry, int], object]] = {
    "publish new": lambda registry, step: publish(registry, f"new-{step}"),
    "publish existing": lambda registry, step: publish(registry, f"kept-{step % 2}"),
    "move latest": lambda registry, step: registry.set_latest(things(registry)[step % 2]),
    "move aliases": lambda registry, step: registry.link(
        things(registry)[step % 2], "model", ("best", "production"), reason=f"{step}"
    ),
    "remove": lambda registry, step: registry.remove(registry.versions("spare")[:1]),
    "open unverified": lambda registry, step: registry.open(things(registry)[0]),
}


@pytest.mark.parametrize("fault", ["killed", "disk full"])
@pytest.mark.parametrize("action", ACTIONS)
def test_fault_before_any_step_of_a_change_leaves_the_store_intact(
    registry: Registry, store: Path, action: str, fault: str
) -> None:
    kept = [publish(registry, f"kept-{index}") for index in range(2)]
    publish(registry, "spare", name="spare")
    registry.link(kept[1], "model", ("best", "production"), reason="start")
    for step in range(200):
        content(f"new-{step}")
        publish(registry, "spare", name="spare")
        (folder_of(store, kept[0]) / "verified.json").unlink(missing_ok=True)
        registry.set_latest(kept[0])
        aliases, history = registry.aliases("model"), registry.history()
        fault_hit, outcome = with_fault(lambda step=step: ACTIONS[action](registry, step), fault, step, store)

        found = Registry(store)
        check_integrity(store, kept)
        if isinstance(outcome, RegistryError):
            assert "No space left on device; free space, or set paths.store" in str(outcome)
        if action == "publish new" and isinstance(outcome, Version):
            assert found.resolve("thing") == outcome
            registry.verify(outcome)
        latest = [kept[0], *([kept[step % 2]] if action in ("move latest", "publish existing") else [])]
        newest = found.resolve("thing")
        assert newest in latest or (action == "publish new" and newest not in kept)
        target = kept[step % 2].ref
        done = {"best": target, "production": target, "previous": str(aliases["production"])}
        if action == "move aliases" and aliases["production"] != target:
            assert found.aliases("model") in (
                [aliases, done] if outcome is DIED else [done if outcome is None else aliases]
            )
        else:
            assert found.aliases("model") == aliases
        assert found.history()[: len(history)] == history

        after = publish(found, f"after-{step}")
        assert leftovers(store) == []
        registry.verify(after)
        found.remove([after])  # few versions, so that a step stays cheap
        if not fault_hit:
            break
    assert not fault_hit
    assert step >= 3  # the faults came


@pytest.mark.parametrize("fault", ["killed", "disk full"])
def test_fault_before_any_step_of_a_repair_is_repaired_by_publishing_again(
    registry: Registry, store: Path, base: Path, fault: str
) -> None:
    damaged, other = publish(registry, "damaged"), publish(registry, "other")
    for step in range(200):
        flip(folder_of(store, damaged) / "files" / "sub" / "b")
        registry.publish("thing", "test", base / "other")  # the file they share, in `other` too
        fault_hit, _ = with_fault(lambda: publish(registry, "damaged"), fault, step, store)
        registry.verify(other)
        assert publish(registry, "damaged") == damaged
        assert leftovers_in_tmp(store) == []
        check_integrity(store, [damaged, other])
        if not fault_hit:
            break
    assert not fault_hit
    assert step >= 3


# -- what the tests are made of --------------------------------------------------------------------------


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def content(text: str, extra: int = 0) -> Path:
    """A directory of files: `a` with the text, `sub/b` the same for all, `extra` of a size if one is asked for."""
    folder = Path.cwd() / text
    write(folder / "a", text)
    write(folder / "sub" / "b", "same")
    if extra:
        write(folder / "extra", Random(extra).randbytes(extra))
    return folder


def publish(registry: Registry, text: str, *, name: str = "thing", extra: int = 0, **more: Any) -> Version:
    return registry.publish(name, "test", content(text, extra), **more)


def folder_of(store: Path, version: Version) -> Path:
    return store / "registry" / "versions" / version.name / f"v{version.number}"


def manifest_of(store: Path, version: Version) -> Path:
    return folder_of(store, version) / "manifest.json"


def blob(store: Path, sha256: str) -> Path:
    return store / "registry" / "blobs" / sha256[:2] / sha256


def flip(path: Path, position: int = 0) -> None:
    """Flip one byte of a file in place: every hard link of it sees it."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)


def check_integrity(store: Path, finished: list[Version]) -> None:
    """Assert that every version folder is listed once and intact to the last byte, and all of `finished` is there."""
    registry = Registry(store)
    listed = {version.label: version for name in registry.collections() for version in registry.versions(name)}
    folders = (store / "registry" / "versions").glob("*/v*")
    assert sorted(listed) == sorted(f"{folder.parent.name}:{folder.name}" for folder in folders)
    assert len({version.ref for version in listed.values()}) == len(listed)
    for label, version in listed.items():
        assert registry.resolve(label) == version
        registry.verify(version)
        folder = registry.open(version)
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(version.files)
    assert {version.label: listed.get(version.label) for version in finished} == {v.label: v for v in finished}
    for name in registry.collections():
        assert registry.resolve(name).label in listed
    for model in registry.registered_models():
        for alias in registry.aliases(model):
            assert registry.resolve(f"{model}:{alias}").label in listed


def leftovers_in_tmp(store: Path) -> list[Path]:
    return list((store / "registry" / "tmp").rglob("*"))


def leftovers(store: Path) -> list[Path]:
    """What lies in a registry and is none of its files."""
    root = store / "registry"
    known = re.compile(
        r"blobs/../[0-9a-f]{64}|versions/[^/]+/(latest|next|v\d+/(manifest\.json|verified\.json|files/.+))|writer\.(lock|pid)"
    )
    return [p for p in root.rglob("*") if p.is_file() and not known.fullmatch(p.relative_to(root).as_posix())]


def refusal(action: Callable[[], object]) -> str:
    """The one sentence with which a RegistryError says no."""
    with pytest.raises(RegistryError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_child(action: Callable[[], Any], *, user: int | None = None, file_limit_bytes: int | None = None) -> Any:
    """Return what a function returns in a child process, or raise what it raises; DIED if the child was killed.

    `user` is who the child becomes (only root can, others stay who they are); no file of it grows past the limit.
    """
    receiving, sending = FORK.Pipe(duplex=False)

    def run() -> None:
        try:
            if user is not None and ROOT:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            if file_limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
            sending.send(action())
        except BaseException as error:
            sending.send(error)

    child = FORK.Process(target=run)
    child.start()
    sending.close()
    try:
        outcome = receiving.recv()
    except EOFError:
        outcome = DIED
    child.join()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def with_fault(action: Callable[[], Any], fault: str, step: int, store: Path) -> tuple[bool, Any]:
    """Run a change of the store in a child whose step of that number meets a fault.

    A step is a call that changes the file system below the store: to open for writing, make, rename, link, remove,
    change the mode. Python announces each before it happens, and there the fault comes; a writer that is killed at an
    opening leaves the file empty. Returns whether the fault came, and what came of the
    change: its result, its RegistryError, or DIED.
    """

    def run() -> tuple[bool, Any]:
        steps = 0

        def before(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal steps
            if event not in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod"):
                return
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
            if not path or (path.startswith("/") and not path.startswith(f"{store}/")):
                return
            if event == "open" and not int(arguments[2]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            steps += 1
            if steps == step + 1:
                if fault == "killed":
                    if event == "open":
                        os.close(os.open(path, int(arguments[2])))
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        sys.addaudithook(before)
        try:
            outcome: Any = action()
        except RegistryError as error:
            outcome = error
        return steps > step, outcome

    result = in_child(run)
    return (True, DIED) if result is DIED else result


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Start processes that begin together; return what each of them returned."""
    barrier: Barrier = FORK.Barrier(count)
    results = [FORK.Pipe(duplex=False) for _ in range(count)]

    def run(who: int) -> None:
        barrier.wait()
        results[who][1].send(work(who))

    children = [FORK.Process(target=run, args=(who,)) for who in range(count)]
    for child in children:
        child.start()
    for _, sending in results:
        sending.close()
    returned = [receiving.recv() for receiving, _ in results]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * count
    return returned


def test_publishing_reads_a_file_once_and_opening_reads_none(registry: Registry, base: Path) -> None:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("no /proc/self/io here")
    size = 20_000_000
    source = write(base / "large", os.urandom(size))

    def bytes_read(action: Callable[[], Any]) -> int:
        before, _, after = counters.read_text(), action(), counters.read_text()
        return int(re.findall(r"rchar: (\d+)", after)[0]) - int(re.findall(r"rchar: (\d+)", before)[0])

    assert size <= bytes_read(lambda: registry.publish("large", "test", {"file": source})) < 1.1 * size
    version = registry.resolve("large")
    assert bytes_read(lambda: registry.open(version)) < 0.1 * size
    assert bytes_read(lambda: registry.verify(version)) >= size


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the manifests that are read; ten are many."""
    read, original = list[str](), versions.VersionFolders.read
    monkeypatch.setattr(versions, "INDEX_FROM", 10)
    monkeypatch.setattr(
        versions.VersionFolders, "read", lambda self, name, number: read.append(name) or original(self, name, number)
    )
    return read


def forge(store: Path, name: str, number: int, inputs: Any = None, **metadata: str) -> Version:
    """Write a version's manifest only; its digest is that of its number."""
    content = {"file": Digests(1, f"{number:064}", f"{number:022}==")}
    digest, now = manifest.digest_of(content), files.timestamp()
    version = Version(name, number, "test", digest, content, inputs or {}, now, metadata)
    manifest.write(manifest_of(store, version), version)
    return version


def test_an_index_finds_a_digest_among_many_versions(store: Path, reads: list[str]) -> None:
    """The index is a cache: what it lacks is read, a wrong or unreadable one is made again."""
    made, index = list[Version](), store / "registry" / "versions" / "thing" / "index.json"
    for number in range(1_200):  # deeper than Python's stack
        made.append(forge(store, "thing", number, {"parent": (made[-1].ref,)} if made else {}))

    def look() -> int:
        """Return how many manifests are read to resolve two refs."""
        reads.clear()
        registry = Registry(store)
        assert registry.resolve(made[0].ref) == made[0]
        assert registry.resolve(made[-1].ref) == made[-1]
        assert registry.label(made[7].ref) == "thing:v7"
        return len(reads)

    assert look() == 1_202
    assert look() == 2
    index.write_text("{")
    assert look() == 1_202
    files.write_json(index, {made[0].digest: 5})
    assert look() >= 1_200
    assert look() == 2
    shutil.rmtree(folder_of(store, made[3]))
    assert not Registry(store).has(made[3].ref)
    assert len(list(Registry(store).lineage(made[-1]))) == 1_197  # down to v4, and v3, which is gone


def test_an_index_finds_a_fingerprint_among_many_artifacts(store: Path, reads: list[str]) -> None:
    """It is a cache, too; a manifest that was written since is read again."""
    for number in range(20):
        forge(store, f"model-{number}", 0, fingerprint=f"print-{number // 2}")

    def look(fingerprint: str, prefix: str = "model-") -> tuple[list[str], int]:
        """Return the names that are found and how many manifests are read."""
        reads.clear()
        return [version.name for version in Registry(store).with_fingerprint(prefix, fingerprint)], len(reads)

    assert look("print-3") == (["model-6", "model-7"], 20)
    assert look("print-3") == (["model-6", "model-7"], 2)
    assert look("print-3", "other-") == ([], 0)
    changed = forge(store, "model-9", 0, fingerprint="print-3")
    assert look("print-3") == (["model-6", "model-7", "model-9"], 3)
    assert look("print-4") == (["model-8"], 2)
    shutil.rmtree(folder_of(store, changed))
    (store / "registry" / "versions" / "fingerprints.json").write_text("{")
    assert look("print-3") == (["model-6", "model-7"], 19)
    assert look("none") == ([], 0)
