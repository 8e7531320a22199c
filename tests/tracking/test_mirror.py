"""The store with W&B behind it: what one machine published, another with an empty store reads, or gets one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wandb_double import WandbDouble
from wandb_process import ROOT, Done, clean_environment, python, store_of

from flywheel import files
from flywheel.registry import LocalRegistry

PROJECT, REGISTRY, MODEL = "flywheel-demo", "wandb-registry-model", "digits-classifier"

# One machine: two data sets, two models of the same size, aliases.
ONE = """
registry = Mirror(params)
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
from flywheel.registry import LocalRegistry, RegistryError
registry = Mirror(params)
def tell(*references):
    for reference in references:
        try:
            version = registry.resolve(reference)
            text = (registry.open(version) / "a").read_text()
            print(json.dumps([reference, version.ref, text, version.metadata, version.inputs]))
        except RegistryError as error:
            print("RegistryError:", error)
"""


@pytest.fixture
def one(tmp_path: Path, double: WandbDouble) -> Path:
    done = python(tmp_path / "one", ONE, **double.environment)
    assert (done.code, done.errors, len(done.lines)) == (0, "", 1), done
    return tmp_path / "one"


def other(one: Path, double: WandbDouble, code: str, wandb: str = "online") -> Done:
    done = python(one.parent / "other", OTHER + code, wandb=wandb, **double.environment)
    assert done.errors == ""
    return done


def told(done: Done) -> dict[str, list[Any]]:
    return {row[0]: row[1:] for line in done.lines if line.startswith("[") for row in [json.loads(line)]}


def test_every_name_and_all_that_belongs_to_a_version_is_known_elsewhere(one: Path, double: WandbDouble) -> None:
    here = LocalRegistry(store_of(one))
    data, first, second = (here.resolve(name) for name in ("digits_dataset", "model-a", "model-b"))
    names = ["digits_dataset", "digits_dataset:latest", data.ref, f"{MODEL}:best", f"{MODEL}:production", first.ref]
    names += ["model-c:v0", "model-c"]  # which no alias names
    lineage = f"""
tell(*{names!r}, "{MODEL}:candidate", "absent", "digits_dataset:v7")
print("lineage", [ref for _, _, ref, version in registry.lineage(registry.resolve("{second.ref}")) if version])
print("versions", [version.ref for version in registry.versions("digits_dataset")])
print(json.dumps(registry.aliases("{MODEL}")))
"""
    done = other(one, double, lineage)
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
    there = LocalRegistry(store_of(one.parent / "other"))
    for name in ("digits_dataset", "model-a", "model-b"):
        assert there.resolve(name).files == here.resolve(name).files
        there.verify(there.resolve(name))
    assert not (store_of(one.parent / "other") / "wandb" / "artifacts").exists()  # no second copy in a cache


def test_what_is_here_is_not_asked_for(one: Path, double: WandbDouble) -> None:
    other(one, double, 'tell("digits_dataset", "model-a")')
    before = double.operations.total()
    assert len(told(other(one, double, 'tell("digits_dataset:latest", "model-a:v0")'))) == 2
    assert double.operations.total() == before


def test_offline_nothing_is_asked(one: Path, double: WandbDouble) -> None:
    before = double.operations.total()
    done = other(one, double, 'tell("digits_dataset")', wandb="offline")
    assert done.lines == [f"RegistryError: no artifact digits_dataset in {store_of(one.parent / 'other')}/registry"]
    assert double.operations.total() == before


def test_a_blob_that_arrives_damaged_is_named_and_not_kept(one: Path, double: WandbDouble) -> None:
    double.fail("GET blob", "corrupt", times=1)
    ref = LocalRegistry(store_of(one)).resolve("model-a").ref
    done = other(one, double, f"tell({ref!r})")
    assert "arrived damaged from W&B; nothing was kept, try again" in done.lines[-1]
    blobs = store_of(one.parent / "other") / "registry" / "blobs"
    assert [path for path in blobs.rglob("*") if path.is_file()] == []
    done = other(one, double, 'tell("model-a")')
    assert told(done)["model-a"][1] == "weights of a"


def test_a_file_that_was_lost_here_comes_back(one: Path, double: WandbDouble) -> None:
    version = LocalRegistry(store_of(one)).resolve("model-a")
    (LocalRegistry(store_of(one)).open(version) / "a").unlink()
    done = python(one, OTHER + 'tell("model-a")', **double.environment)
    assert told(done)["model-a"][1] == "weights of a"


@pytest.mark.parametrize("how", [500, "hang", "drop"])
@pytest.mark.long
def test_a_service_that_fails_while_files_are_fetched_is_one_sentence(
    one: Path, double: WandbDouble, how: int | str
) -> None:
    double.fail("GET blob", how)
    done = other(one, double, 'tell("digits_dataset")')
    assert done.code == 0
    assert done.lines[-1].startswith("RegistryError: digits_dataset:v1 is not here and W&B does not give it")


@pytest.mark.long
def test_aliases_that_moved_there_follow_and_those_that_moved_in_both_places_are_said(
    one: Path, double: WandbDouble
) -> None:
    other(one, double, 'registry.refresh(); tell("model-a")')
    move = """
registry = Mirror(params)
run = Tracker(params, registry).start("promote", "back", {})
registry.link(registry.resolve("model-a"), params.registered_model, ("production",), reason="back")
run.finish()
"""
    assert len(python(one, move, **double.environment).lines) == 1
    here = LocalRegistry(store_of(one))
    assert double.aliases(REGISTRY, MODEL)["production"] == here.resolve("model-a").digest
    follow = f'registry.refresh(); print(registry.resolve("{MODEL}:production").name)'
    assert other(one, double, follow).lines[-1] == "model-a"
    there = LocalRegistry(store_of(one.parent / "other"))
    there.link(there.resolve("model-b"), MODEL, ("production",), reason="here")
    theirs = """
registry = Mirror(params)
run = Tracker(params, registry).start("promote", "new", {})
new = publish(registry, "model-c", "weights of c")
run.made(new)
registry.link(new, params.registered_model, ("production",), reason="there")
run.finish()
"""
    assert len(python(one, theirs, **double.environment).lines) == 1
    done = other(one, double, follow)
    assert done.lines[-1] == "model-b"
    assert f"W&B: {MODEL}:production was moved both here and on W&B; make sync shows both" in done.lines


def test_nothing_stays_locked_when_w_and_b_is_asked_for_aliases_that_nobody_has(tmp_path: Path) -> None:
    """Linking asks where aliases are, before the writer's lock is taken: asking writes too."""
    with WandbDouble() as double:
        code = """
registry = Mirror(params)
registry.link(publish(registry, "model-a", "a"), params.registered_model, ("best",), reason="x")
print(registry.resolve(f"{params.registered_model}:best").label)
"""
        assert python(tmp_path, code, **double.environment).lines[-1] == "model-a:v0"


@pytest.mark.long
def test_the_contract_holds_online(tmp_path: Path) -> None:
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


def test_manifests_without_files_take_next_to_nothing(one: Path, double: WandbDouble) -> None:
    other(one, double, "registry.refresh()")
    store = store_of(one.parent / "other")
    known = LocalRegistry(store)
    assert known.collections() == ["digits_dataset", "model-a", "model-b"]
    assert all(known.missing_file(version) for name in known.collections() for version in known.versions(name))
    assert files.size_of(store / "registry") < 20_000
