"""make sync: everything is uploaded and compared, whatever fails in between."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import scripts
from PIL import Image
from wandb_double import Run, WandbDouble
from wandb_process import ROOT, clean_environment, python, store_of

from flywheel.registry import Registry
from flywheel.tracking import run_files

PROJECT, REGISTRY, MODEL = "flywheel-demo", "wandb-registry-model", "digits-classifier"

# A round offline: a data set, a model made from it in a run with rows, a picture, an alias.
ROUND = """
import numpy as np
from PIL import Image
registry = mirrored(params)
data = publish(registry, "digits_dataset", "images", type="dataset")
run = Tracker(params, registry).start("data", "data", {"source": "digits"}, id="data0")
run.made(data)
run.finish()
run = Tracker(params, registry).start("sweep", "train", {"rate": 0.1}, id="train0")
run.used(data)
for epoch in range(5):
    run.log({"epoch": epoch, "accuracy": epoch / 10}, step=epoch)
model = publish(registry, "model-a", "weights of a" * 1000, inputs={"dataset": data.ref})
registry.link(model, params.registered_model, ("best", "production"), reason="first")
run.made(model)
Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(base / "drawn.png")
run.log_pictures([base / "drawn.png"])
run.log_table("answers", ["image", "right", "confidence"], [[np.zeros((4, 4, 3), np.uint8), True, np.float32(0.5)]])
run.log_confusion_matrix([0, 1], [0, 0], ["zero", "one"])
run.summarize({"accuracy": 0.4})
run.finish()
"""
MOVE = """
registry = Registry(params.store)
model = publish(registry, "model-%s", "weights of %s" * 1000)
registry.link(model, params.registered_model, ("production",), reason="a test moves it")
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("round")
    assert python(base / "here", ROUND, wandb="offline").code == 0
    shutil.copytree(base / "here", base / "copy", symlinks=True)
    return base


@pytest.fixture
def base(recorded: Path) -> Path:
    """The round as it was recorded, at the path where it was recorded."""
    shutil.rmtree(recorded / "here")
    return Path(shutil.copytree(recorded / "copy", recorded / "here", symlinks=True))


def command(base: Path, *more: str) -> list[str]:
    return scripts.command(base, "sync", "tracking.wandb=offline tracking.machine_info=true", *more)


def sync(base: Path, double: WandbDouble, *more: str, code: int = 0) -> str:
    """Run make sync, which must exit with this code; return all that it said."""
    done = subprocess.run(
        command(base, *more), cwd=ROOT, text=True, capture_output=True, timeout=180,
        env=clean_environment(base, **double.environment),
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def check_uploaded(base: Path, double: WandbDouble) -> None:
    """All that the round made is on W&B, once."""
    registry = Registry(store_of(base))
    data, model = registry.resolve("digits_dataset"), registry.resolve("model-a")
    train = double.projects[PROJECT].runs["train0"]
    assert [row["accuracy"] for row in train.history if "accuracy" in row] == [epoch / 10 for epoch in range(5)]
    (record,) = [one for one in run_files.records(store_of(base)) if one.key == "train0"]
    assert [row["_timestamp"] for row in train.history[:5]] == [row["_timestamp"] for row in record.rows]
    assert train.summary["accuracy"] == 0.4
    assert train.config["rate"]["value"] == 0.1
    assert (train.fields["groupName"], train.fields["jobType"], train.state) == ("round-1", "sweep", "finished")
    made = [one for one in train.logged if one.state == "COMMITTED"]
    assert [one.digest for one in made if one.collection.type == "model"] == [model.digest]
    check_pictures_and_tables(base, double, train)
    assert [one.digest for one in train.used] == [data.digest]
    made = double.projects[PROJECT].runs["data0"].logged
    assert [one.digest for one in made if one.state == "COMMITTED"] == [data.digest]
    for version in (data, model):
        (member,) = double.collection(PROJECT, version.name).members
        assert (member.digest, member.state) == (version.digest, "COMMITTED")
        for path, entry in member.contents.items():
            content = double.blobs[double.key(entry)]
            assert content == (registry.open(version) / path).read_bytes()
    assert double.aliases(REGISTRY, MODEL) == {
        "latest": model.digest, "best": model.digest, "production": model.digest
    }  # fmt: skip
    assert all(record.confirmed for record in run_files.records(store_of(base)))


def check_pictures_and_tables(base: Path, double: WandbDouble, run: Run) -> None:
    def file_of(name: str) -> bytes:
        return double.blobs[run.files[run.summary[name]["path"]]]

    assert file_of("drawn") == (base / "drawn.png").read_bytes()
    table = json.loads(file_of("answers"))
    assert table["columns"] == ["image", "right", "confidence"]
    assert table["data"][0][1:] == [True, 0.5]
    assert len(json.loads(file_of("confusion_matrix_interactive_table"))["data"]) == 4
    tables = {one.collection.name: one for one in run.logged if one.collection.type == "run_table"}
    (answers,) = {one.digest: one for name, one in tables.items() if name.endswith("-answers")}.values()
    (image,) = [entry for path, entry in answers.contents.items() if path.endswith(".png")]
    assert Image.open(io.BytesIO(double.blobs[double.key(image)])).size == (4, 4)


def test_everything_is_uploaded_and_a_second_call_changes_nothing(base: Path, double: WandbDouble) -> None:
    said = sync(base, double)
    assert "sync: run 2 of 2: sweep train, 5 rows" in said
    check_uploaded(base, double)
    assert not double.mentions(os.uname().nodename)  # the runs may be of another machine
    for told in (str(base), str(ROOT)):
        assert told.encode() not in b"\n".join(double.bodies)
    uploads = [double.operations[name] for name in ("CommitArtifact", "UpsertBucket", "LinkArtifact")]
    run_files.RunFile(store_of(base), "live").start("evaluate", "evaluate x", "round-1", {})  # by this process
    said = sync(base, double)
    assert "2 runs before" in said
    assert "evaluate x: in progress, left for later" in said
    assert uploads == [double.operations[name] for name in ("CommitArtifact", "UpsertBucket", "LinkArtifact")]


@pytest.mark.long
def test_another_service_gets_everything(base: Path, double: WandbDouble) -> None:
    sync(base, double)
    with WandbDouble() as another:
        sync(base, another)
        check_uploaded(base, another)


def test_offline_exits_1_and_says_so(base: Path, double: WandbDouble) -> None:
    double.fail("Viewer", 401)
    said = sync(base, double, code=1)
    assert "error: W&B is not online, nothing was uploaded: 127.0.0.1 refuses the key (401)" in said


@pytest.mark.long
def test_versions_of_unknown_runs_are_uploaded(base: Path, double: WandbDouble) -> None:
    python(base, MOVE % ("b", "b"))
    said = sync(base, double)
    assert "the run that made it is unknown" in said
    registry = Registry(store_of(base))
    aliases = double.aliases(REGISTRY, MODEL)
    assert aliases["production"] == registry.resolve("model-b").digest
    assert aliases["previous"] == aliases["best"] == registry.resolve("model-a").digest


@pytest.mark.long
def test_pruned_versions_and_media_are_left_out_and_named(base: Path, double: WandbDouble) -> None:
    made = """
registry = mirrored(params)
run = Tracker(params, registry).start("sweep", "another", {})
version = publish(registry, "model-gone", "weights")
run.made(version)
run.finish()
registry.remove([version])
"""
    python(base, made, wandb="offline")
    shutil.rmtree(store_of(base) / "wandb" / "runs" / "media")
    said = sync(base, double)
    assert "pruned before it was on W&B, left out" in said
    assert "drawn, answers, confusion_matrix_interactive of sweep train: the file is gone, left out" in said
    sync(base, double)


@pytest.mark.long
@pytest.mark.parametrize("operation", ["CommitArtifact", "UseArtifact", "LinkArtifact"])
def test_sync_killed_at_a_request_is_completed_by_the_next_call(
    base: Path, double: WandbDouble, operation: str
) -> None:
    process = subprocess.Popen(
        command(base), cwd=ROOT, env=clean_environment(base, **double.environment),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    double.meanwhile(operation, lambda: os.kill(process.pid, signal.SIGKILL))
    assert process.wait(timeout=120) == -signal.SIGKILL
    sync(base, double)
    check_uploaded(base, double)


@pytest.mark.long
def test_blob_lost_in_the_upload_is_noticed_and_uploaded_by_the_next_call(base: Path, double: WandbDouble) -> None:
    double.fail("PUT blob", "lose", times=1)
    said = sync(base, double, code=1)
    assert "is not on W&B" in said
    assert "aliases on W&B stay until everything else is uploaded" in said
    assert REGISTRY not in double.projects or MODEL not in double.projects[REGISTRY].collections
    double.mend()
    assert "delete that version there" in sync(base, double, code=1)  # it is the same content, so nothing is sent again
    home = double.collection(PROJECT, "digits_dataset")
    home.members.clear()
    home.aliases.clear()
    double.projects[PROJECT].runs["data0"].logged.clear()
    sync(base, double)
    check_uploaded(base, double)


@pytest.mark.long
@pytest.mark.parametrize(
    ("operation", "status"), [("CreateArtifact", 403), ("PUT blob", 403), ("PUT file", 403), ("file_stream", 500)]
)
def test_refused_uploads_are_listed_and_completed_later(
    base: Path, double: WandbDouble, operation: str, status: int
) -> None:
    double.fail(operation, status)
    said = sync(base, double, code=1)
    assert "sync: missing: " in said
    double.mend()
    sync(base, double)
    check_uploaded(base, double)


@pytest.mark.long
def test_stalled_service_ends_sync_in_bounded_time(base: Path, double: WandbDouble) -> None:
    double.meanwhile("RunInputArtifacts", lambda: double.fail(".*", "hang"))
    said = sync(base, double, code=1)
    assert "W&B does not answer any more; the remaining items were not compared" in said


def moved_by_colleague(other: Path, double: WandbDouble, name: str) -> str:
    """A colleague moves production on W&B to a model of theirs; returns its digest."""
    colleague = """
registry = mirrored(params)
registry.refresh()
model = publish(registry, "model-%s", "weights of %s" * 1000)
run = Tracker(params, registry).start("promote", "theirs", {})
run.made(model)
registry.link(model, params.registered_model, ("production",), reason="a colleague moves it")
run.finish()
"""
    done = python(other, colleague % (name, name), **double.environment)
    assert done.code == 0, done
    return Registry(store_of(other)).resolve(f"model-{name}").digest


@pytest.mark.parametrize("keep", ["theirs", pytest.param("ours", marks=pytest.mark.long)])
def test_alias_moved_by_someone_else_stays_until_a_person_decides(
    base: Path, double: WandbDouble, tmp_path: Path, keep: str
) -> None:
    sync(base, double)
    theirs = moved_by_colleague(tmp_path, double, "theirs")
    python(base, MOVE % ("ours", "ours"))
    ours = Registry(store_of(base)).resolve("model-ours").digest
    said = sync(base, double, code=1)
    assert f"{MODEL}:production is model-theirs@{theirs} on W&B, moved by someone else, and model-ours:v0 here" in said
    assert double.aliases(REGISTRY, MODEL)["production"] == theirs
    said = sync(base, double, "--keep", keep)
    kept = {"ours": ours, "theirs": theirs}[keep]
    assert double.aliases(REGISTRY, MODEL)["production"] == kept
    assert Registry(store_of(base)).resolve(f"{MODEL}:production").digest == kept


@pytest.mark.long
def test_alias_moved_offline_several_times_is_uploaded(base: Path, double: WandbDouble) -> None:
    sync(base, double)
    for name in ("b", "c"):
        python(base, MOVE % (name, name))
    sync(base, double)
    registry = Registry(store_of(base))
    aliases = double.aliases(REGISTRY, MODEL)
    assert (aliases["production"], aliases["previous"]) == (
        registry.resolve("model-c").digest, registry.resolve("model-b").digest
    )  # fmt: skip


CAPTURED = """
import numpy as np
from flywheel.data import splits
from flywheel.traffic import feedback
registry = mirrored(params)
for number, share in enumerate((True, False)):
    image = np.full((8, 8, 3), number, np.uint8)
    key = splits.content_hashes(image[None])[0].tobytes().hex()
    example = feedback.Example(hash=key, label="1", side="train", source="traffic")
    kept = params.model_copy(update={"traffic": params.traffic.model_copy(update={"share": share})})
    feedback.publish(kept, registry, [example], {}, {}, {key: image})
"""


FORGET = """
from flywheel.traffic import feedback, forget
registry = mirrored(params)
first = registry.versions("digits-feedback")[0]
forgotten = forget.run(params, registry, [feedback.read(registry, first)[0].hash], everywhere=True)
print("left:", forgotten.holders[forget.UNREACHED])
"""


def test_captured_images_are_uploaded_if_the_params_share_them_and_deleted_when_they_are_forgotten(
    tmp_path: Path, double: WandbDouble
) -> None:
    def uploaded(name: str) -> list[str]:
        return [f"{name}@{member.digest}" for member in double.collection(PROJECT, name).members]

    assert python(tmp_path, CAPTURED, wandb="offline").code == 0
    sync(tmp_path, double)
    registry = Registry(store_of(tmp_path))
    shared, private = registry.versions("digits-feedback-pixels")
    listing = registry.versions("digits-feedback")
    assert [version.inputs["pixels"] for version in listing] == [(shared.ref,), (private.ref,)]
    assert uploaded("digits-feedback-pixels") == [shared.ref]
    assert uploaded("digits-feedback") == [version.ref for version in listing]
    done = python(tmp_path, FORGET, **double.environment)
    assert (done.code, done.lines[-1]) == (0, "left: ()"), done.errors
    (newest,) = registry.versions("digits-feedback")
    sync(tmp_path, double)
    assert (uploaded("digits-feedback"), uploaded("digits-feedback-pixels")) == ([newest.ref], [])
