"""The contract of every registry: the local store, and a mirror of it on W&B (tracking/test_mirror.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flywheel.params import file as params_file
from flywheel.registry import Registry, RegistryError, Version
from flywheel.tracking.mirror import Mirror, mirrored


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store" / "demo"


@pytest.fixture
def registry(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The local store, or a mirror with a project of its own when tracking/test_mirror.py runs this file."""
    if "CONTRACT_BASE_URL" not in os.environ:
        return Registry(store)
    for name in ("BASE_URL", "API_KEY"):
        monkeypatch.setenv(f"WANDB_{name}", os.environ[f"CONTRACT_{name}"])
    paths = f"paths.store={store.parent} paths.reports={tmp_path}/reports"
    overrides = f"{paths} tracking.wandb=online tracking.project={tmp_path.name.replace('_', '-')}"
    shared = mirrored(params_file.load(profile="demo", overrides=overrides))
    assert isinstance(shared.upstream, Mirror)
    assert shared.upstream.connection.online
    return shared


def content(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def publish(registry: Registry, tmp_path: Path, text: str, name: str = "thing", **kwargs: object) -> Version:
    return registry.publish(name, "test", content(tmp_path / f"in-{text}", a=text, sub__b="same"), **kwargs)  # type: ignore[arg-type]


def test_published_version_is_read_back_by_every_name(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry, tmp_path, "one", metadata={"key": [1, None]}, inputs={"dataset": "data@1234"})
    for reference in ("thing", "thing:latest", "thing:v0", version.ref, f"thing@{version.digest}"):
        assert registry.resolve(reference) == version
    folder = registry.open(version)
    assert (folder / "a").read_text() == "one"
    assert (folder / "sub" / "b").read_text() == "same"
    assert version.metadata == {"key": [1, None]}
    assert version.inputs == {"dataset": ("data@1234",)}
    assert version.size == len("one") + len("same")


def test_digest_equals_wandbs(registry: Registry, tmp_path: Path) -> None:
    import wandb

    folder = content(tmp_path / "in", a="one", b__c="two", B="three", **{"ä ö": "four"})
    artifact = wandb.Artifact("thing", "test")
    artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
    assert registry.publish("thing", "test", folder).digest == artifact.digest


def test_mapping_gives_the_paths_in_the_artifact(registry: Registry, tmp_path: Path) -> None:
    folder = content(tmp_path / "in", a="one")
    version = registry.publish("thing", "test", {"deep/name.txt": folder / "a"})
    assert (registry.open(version) / "deep" / "name.txt").read_text() == "one"


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a@b", ".hidden", "x" * 129, "a b"])
def test_bad_names_are_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="not an artifact name"):
        publish(registry, tmp_path, "one", name=name)


def test_nothing_to_publish_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="no files"):
        registry.publish("thing", "test", tmp_path / "empty")


@pytest.mark.parametrize("reference", ["absent", "thing:v7", "thing:best", "thing@0000", "thing:", "a/b", ""])
def test_unknown_reference_is_refused_in_one_sentence(registry: Registry, tmp_path: Path, reference: str) -> None:
    publish(registry, tmp_path, "one")
    if reference == "thing:":
        assert registry.resolve(reference).label == "thing:v0"
        return
    with pytest.raises(RegistryError) as caught:
        registry.resolve(reference)
    assert "\n" not in str(caught.value)


def test_equal_files_are_stored_once(registry: Registry, store: Path, tmp_path: Path) -> None:
    version = publish(registry, tmp_path, "one")
    publish(registry, tmp_path, "one")
    publish(registry, tmp_path, "two", name="other")
    blobs = {path.name: path for path in (store / "registry" / "blobs").glob("*/*")}
    assert len(blobs) == 3  # one, two, same
    shared = blobs[version.files["sub/b"].sha256]
    assert shared.samefile(registry.open(version) / "sub" / "b")
    assert shared.stat().st_nlink == 3  # the blob, and one file of each version


def test_files_of_a_version_are_read_only(registry: Registry, tmp_path: Path) -> None:
    path = registry.open(publish(registry, tmp_path, "one")) / "a"
    assert path.stat().st_mode & 0o222 == 0


def test_every_alias_move_is_recorded_with_who_when_why_from_to(registry: Registry, tmp_path: Path) -> None:
    one, two = publish(registry, tmp_path, "one"), publish(registry, tmp_path, "two")
    registry.link(one, "model", ("production",), reason="first")
    registry.link(two, "model", ("production",), reason="better", gate={"passed": True}, forced=True)
    registry.link(two, "model", ("production",), reason="again")  # points there already: nothing moves
    first, second = (entry for entry in registry.history("model") if entry["alias"] == "production")
    assert (first["from"], first["to"], first["reason"]) == (None, one.ref, "first")
    assert (second["from"], second["to"], second["gate"], second["forced"]) == (
        one.ref,
        two.ref,
        {"passed": True},
        True,
    )
    assert second["who"]
    assert second["at"] >= first["at"]
    assert registry.aliases_by_ref().get(two.ref, []) == ["latest", "model:production"]


def test_alias_that_moved_meanwhile_is_not_moved(registry: Registry, tmp_path: Path) -> None:
    one, two, three = (publish(registry, tmp_path, text) for text in ("one", "two", "three"))
    registry.link(one, "model", ("production",), reason="first", expected={"production": None})
    registry.link(two, "model", ("production",), reason="other", expected={"production": one.ref})
    for expected in (one.ref, None):
        with pytest.raises(RegistryError, match="model:production was moved meanwhile to thing@"):
            registry.link(three, "model", ("best", "production"), reason="late", expected={"production": expected})
    assert registry.aliases("model") == {"production": two.ref, "previous": one.ref}
    assert registry.resolve("model") == registry.resolve("model:v1") == two  # the last that was linked
    with pytest.raises(RegistryError, match="model has no candidate yet"):
        registry.resolve("model:candidate")


def test_unknown_aliases_are_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="unknown alias champion"):
        registry.link(publish(registry, tmp_path, "one"), "model", ("champion",), reason="x")


def test_lineage_reaches_the_first_ancestors_and_marks_missing_ones(registry: Registry, tmp_path: Path) -> None:
    data = publish(registry, tmp_path, "data", name="data")
    model = publish(registry, tmp_path, "model", name="model-1", inputs={"dataset": data.ref, "feedback": "gone@123"})
    child = publish(registry, tmp_path, "child", name="retrained", inputs={"parent": model.ref})
    found = [(depth, role, ref, version is not None) for depth, role, ref, version in registry.lineage(child)]
    assert found == [
        (0, "", child.ref, True), (1, "parent", model.ref, True), (2, "dataset", data.ref, True),
        (2, "feedback", "gone@123", False),
    ]  # fmt: skip


def test_lineage_follows_the_inputs_of_a_repeated_version_once(registry: Registry, tmp_path: Path) -> None:
    """Each round names the one before it twice: without a memory, the walk would take 2^10 steps here."""
    inputs: dict[str, str] = {}
    for number in range(10):
        feedback = publish(registry, tmp_path, f"feedback {number}", name="feedback", inputs=inputs)
        model = publish(registry, tmp_path, f"{number}", name="model", inputs={**inputs, "feedback": feedback.ref})
        inputs = {"previous": feedback.ref, "parent": model.ref}
    rows = list(registry.lineage(model))
    assert len(rows) < 80
    assert len({ancestor.ref for ancestor in rows}) == 20


def test_removing_versions_frees_their_own_blobs_and_their_numbers_are_not_reused(
    registry: Registry, store: Path, tmp_path: Path
) -> None:
    one, two, three = (publish(registry, tmp_path, text) for text in ("one", "two", "three"))
    assert registry.remove([one, three]) == len("one") + len("three")
    left = [path.read_text() for path in (store / "registry").rglob("*") if path.is_file()]
    assert not {"one", "three"} & set(left)  # `make forget` promises so
    assert [version.label for version in registry.versions("thing")] == ["thing:v1"]
    assert registry.resolve("thing") == two
    registry.verify(two)
    assert publish(registry, tmp_path, "four").label == "thing:v3"
    blobs = {p.name for p in (store / "registry" / "blobs").glob("*/*")}
    assert blobs == {entry.sha256 for v in registry.versions("thing") for entry in v.files.values()}


def test_a_collection_without_versions_is_not_listed(registry: Registry, tmp_path: Path) -> None:
    registry.remove([publish(registry, tmp_path, "one")])
    assert registry.collections() == []
    with pytest.raises(RegistryError, match="no artifact thing"):
        registry.resolve("thing")
    assert publish(registry, tmp_path, "one").label == "thing:v1"
