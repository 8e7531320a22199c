"""What prune and clean keep and remove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel import files
from flywheel.commands import housekeeping
from flywheel.params import Params
from flywheel.registry import Registry, RegistryError, Version
from flywheel.sweep.checkpoints import CheckpointStore

MODEL = "digits-classifier"


def publish(registry: Registry, tmp_path: Path, name: str, type: str, text: str, *inputs: Version) -> Version:
    path = tmp_path / f"{name}-{text}"
    path.write_text(f"{name} {text}")
    return registry.publish(name, type, {"a": path}, inputs={"from": [version.ref for version in inputs]})


@pytest.fixture
def versions(registry: Registry, tmp_path: Path) -> dict[str, Version]:
    """Two data sets; a model of the old one in production, three of the new one, one of them best."""
    old = publish(registry, tmp_path, "digits_dataset", "dataset", "old")
    new = publish(registry, tmp_path, "digits_dataset", "dataset", "new")
    made = {"old": old, "new": new, "production": publish(registry, tmp_path, "model-1", "model", "1", old)}
    for name in ("best", "loser", "receipt"):
        made[name] = publish(registry, tmp_path, f"model-{name}", "model", name, new)
    registry.link(made["production"], MODEL, ("production",), reason="x")
    registry.link(made["best"], MODEL, ("best",), reason="x")
    return made


def receipt(params: Params, name: str, outputs: list[str]) -> None:
    files.write_json(params.store / "receipts" / f"{name}.json", {"outputs": outputs, "inputs": {}})


def test_only_unneeded_versions_are_listed(
    params: Params, registry: Registry, versions: dict[str, Version], tmp_path: Path
) -> None:
    receipt(params, "sweep", [versions["receipt"].ref])
    publish(registry, tmp_path, "digits_dataset", "dataset", "newest, of which no model was made")
    assert housekeeping.unneeded(params, registry) == [versions["loser"]]


def test_the_best_model_ever_in_production_is_kept(
    params: Params, registry: Registry, versions: dict[str, Version]
) -> None:
    for name, accuracy in (("loser", 0.9), ("best", 0.8), ("receipt", 0.7)):
        gate = {"dataset": versions["new"].ref, "accuracy": {versions[name].ref: accuracy}}
        registry.link(versions[name], MODEL, ("production",), reason="x", gate=gate)
    assert housekeeping.unneeded(params, registry) == [versions["old"], versions["production"]]


def test_ancestors_of_kept_versions_are_kept(params: Params, registry: Registry, versions: dict[str, Version]) -> None:
    assert versions["old"] not in housekeeping.unneeded(params, registry)
    registry.link(versions["best"], MODEL, ("production",), reason="x")  # the former production is `previous` now
    assert versions["old"] not in housekeeping.unneeded(params, registry)
    registry.link(versions["receipt"], MODEL, ("production",), reason="x")
    unneeded = housekeeping.unneeded(params, registry)
    assert versions["old"] in unneeded
    assert versions["production"] in unneeded


def test_what_a_version_with_a_damaged_manifest_needs_is_not_pruned(
    params: Params, registry: Registry, versions: dict[str, Version]
) -> None:
    (registry.root / "versions/model-1/v0/manifest.json").write_text("{")  # in production; it was made from `old`
    with pytest.raises(RegistryError, match=r"model-1/v0/manifest.json: the manifest is damaged .*; remove its folder"):
        housekeeping.prune(params, registry)
    assert registry.has(versions["old"].ref)


def test_prune_removes_exactly_the_unneeded_versions(
    params: Params, registry: Registry, versions: dict[str, Version]
) -> None:
    doomed = housekeeping.unneeded(params, registry)
    removed, freed = housekeeping.prune(params, registry)
    assert removed == doomed == [versions["loser"], versions["receipt"]]
    assert freed == sum(version.size for version in doomed)
    assert housekeeping.unneeded(params, registry) == []
    for name in ("old", "new", "production", "best"):
        registry.verify(versions[name])


def test_nothing_is_pruned_while_a_stage_runs(params: Params, registry: Registry, versions: dict[str, Version]) -> None:
    with (
        files.lock(params.store / "locks" / "sweep.lock"),
        pytest.raises(files.Locked, match="another run holds sweep"),
    ):
        housekeeping.prune(params, registry)
    assert registry.resolve(versions["loser"].ref) == versions["loser"]
    with files.lock(params.store / "locks" / "serve.lock"):  # of a server, which runs for months
        assert versions["loser"] in housekeeping.prune(params, registry)[0]


def test_clean_keeps_receipts_and_versions(params: Params, registry: Registry, versions: dict[str, Version]) -> None:
    receipt(params, "data", [])
    (params.store / "trials" / "sweep-1").mkdir(parents=True)
    files.write_json(params.reports / "sweep.json", {})
    assert housekeeping.clean(params) == [params.reports, params.store / "trials"]
    assert housekeeping.clean(params) == []
    assert (params.store / "receipts" / "data.json").exists()
    for version in versions.values():
        registry.verify(version)


def test_clean_keeps_the_temporary_files_of_a_running_stage(params: Params) -> None:
    images = params.store_paths.scratch("data") / "images.npy"
    files.write_text(images, "half of them")
    with files.lock(params.store_paths.lock("data")):
        assert housekeeping.clean(params) == []
    with files.lock(params.store_paths.lock("serve")):
        assert housekeeping.clean(params) == [params.store_paths.all_scratch]


def test_clean_keeps_the_checkpoints_of_a_running_sweep(make_params: Callable[..., Params], tmp_path: Path) -> None:
    for overrides in ("", f"paths.checkpoints={tmp_path}/shared", f"paths.checkpoints=file://{tmp_path}/at-a-uri"):
        params = make_params(overrides)
        store = CheckpointStore(params.checkpoints).subfolder("sweep-1").subfolder("trial")
        store.write("state", b"here")
        with files.lock(params.store / "locks" / "sweep.lock"):
            housekeeping.clean(params)
        assert store.read("state") == b"here"
        housekeeping.clean(params)
        assert store.read("state") is None
