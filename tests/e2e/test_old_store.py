"""Every command that reads a store works on one that the code of commit ec2013f wrote, before inputs had roles.

A script made it: git show b8a6dd4:tests/support/make_old_store.py.

The store holds: a data set, a sweep of two trials, feedback v0 and the model retrained on it, which is in production,
and feedback v1 with 29 failures that no model was trained on.
"""

from __future__ import annotations

import html
import json
import re
import tarfile
from pathlib import Path

import pytest
from scripts import ROOT
from served import Server, of_store, serving
from wandb_double import WandbDouble

from flywheel import files
from flywheel.commands import compare
from flywheel.tracking import run_files
from flywheel.traffic import feedback

# What the store was made with, besides the profile demo: what reads it needs the same.
OVERRIDES = (
    "data.image_size=8 recipe.translate=1 sweep.trials=2 sweep.epochs=2 sweep.space.architecture=compact "
    "sweep.space.optimizer=muon gate.floor_accuracy=0 simulate.table_rows=4 retrain.epochs=2 tracking.wandb=offline"
)
ARCHIVE = ROOT / "tests" / "fixtures" / "old_store.tar.xz"
SWEPT, RETRAINED = "model-7e703efe:v0", "retrained-model:v0"
PROMOTED = "no measurable harm: +0.00 points (-2.79 to +2.79) on test"
DONE = "[exit 0]"


def unpack(folder: Path) -> Server:
    """Return the old store, unpacked into a folder, with the params that it was made with."""
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(folder, filter="tar")
    return of_store(folder, OVERRIDES)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The old store for commands that only read."""
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture
def old(tmp_path: Path) -> Server:
    """The old store for one test."""
    return unpack(tmp_path)


def test_status_says_that_the_code_changed_and_what_retrain_would_do(unchanged: Server) -> None:
    lines = unchanged.run("status").splitlines()
    said = {name: " ".join(rest) for name, *rest in map(str.split, lines)}
    assert said["data"] == "to run data.folder_split.simulation changed: None -> 0.1"  # a param it did not have
    assert said["sweep"] == said["evaluate"] == "waiting for data"
    assert said["retrain"].startswith("to run 29 new ")
    assert said["retrain"].endswith("(feedback digits-feedback:v1)")
    aliases = {alias: said[alias] for alias in ("best", "candidate", "production", "previous")}
    assert aliases == {"best": SWEPT, "candidate": RETRAINED, "production": RETRAINED, "previous": SWEPT}


def test_artifacts_lists_and_verifies_every_version(unchanged: Server) -> None:
    printed = unchanged.run("artifacts")
    pointers = {line.split()[0]: line for line in printed.splitlines()[:-1]}
    assert list(pointers) == ["digits-feedback:v0", "digits-feedback:v1", "digits_dataset:v0", SWEPT, RETRAINED]
    assert pointers[SWEPT].endswith("  latest, digits-classifier:best, digits-classifier:previous")
    assert pointers[RETRAINED].endswith("  latest, digits-classifier:candidate, digits-classifier:production")
    *verified, end = unchanged.run("artifacts", "--verify").splitlines()
    assert end == DONE
    assert [line.split()[0] for line in verified] == list(pointers)


def test_history_says_who_promoted_what_and_why(unchanged: Server) -> None:
    first, second, end = unchanged.run("history").splitlines()
    assert end == DONE
    assert f"flywheel  production: nothing -> {SWEPT}  no model to compare with: 94.22% on test" in first
    assert second.endswith(f"flywheel  production: {SWEPT} -> {RETRAINED}  {PROMOTED}")


def test_lineage_infers_the_role_of_each_input(unchanged: Server) -> None:
    assert lineage(unchanged) == [
        (0, "", RETRAINED),
        (1, "dataset", "digits_dataset:v0"),
        (1, "feedback", "digits-feedback:v0"),
        (2, "dataset", "digits_dataset:v0"),
        (2, "model", SWEPT),
        (3, "dataset", "digits_dataset:v0"),
        (1, "parent", SWEPT),
    ]
    inputs = [row[1:] for row in lineage(unchanged, "digits-feedback:v1") if row[0] == 1]
    assert inputs == [("dataset", "digits_dataset:v0"), ("model", RETRAINED), ("previous", "digits-feedback:v0")]


def lineage(server: Server, *reference: str) -> list[tuple[int, str, str]]:
    """Return (depth, role, name:vN) of each line of the command's tree."""
    printed = server.done("lineage", *reference)
    found = re.findall(r"^( *)(?:└─ (\w+): )?([\w-]+:v\d+)  \(", printed, re.MULTILINE)
    assert len(found) == printed.count("\n")
    return [(len(indent) // 3, role, label) for indent, role, label in found]


def test_prune_finds_that_every_version_is_needed(unchanged: Server) -> None:
    assert unchanged.run("prune") == f"prune: all are needed\n{DONE}"


def test_the_report_has_the_figures_of_every_stage(unchanged: Server) -> None:
    unchanged.done("report")
    page = (unchanged.params.reports / "index.html").read_text()
    text = " ".join(html.unescape(re.sub("<[^>]+>", " ", page)).split())
    for shown in (
        f"model {RETRAINED} since", PROMOTED,
        "93.8 % on validation", f"{SWEPT}: 94.22 % of 450 test images",  # sweep, evaluate
        "118 of 547 answers were wrong", "digits-feedback:v1 lists all labelled images, 49 of them new",  # simulate
        f"promoted {RETRAINED} against {SWEPT}", "+14.46 +5.14 to +23.64",  # gate
        "206 failures", "166 74.7 %", "as many right answers",  # retrain
        "8 of 8 are in the store only",  # runs for W&B
    ):  # fmt: skip
        assert shown in text, shown


def test_compare_tells_the_models_apart(unchanged: Server) -> None:
    found = compare.versions(unchanged.params, unchanged.registry, SWEPT, RETRAINED)
    printed = "\n".join(compare.table(found))
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert rows["stage"] == ["sweep", "retrain"]
    assert rows["feedback"] == ["–", "digits-feedback:v0"]
    assert rows["parent"] == ["–", SWEPT]
    assert re.search(r"^  test +450 ", printed, re.MULTILINE)
    assert re.search(r"^  holdout +166 ", printed, re.MULTILINE)


def test_retrain_continues_from_production_with_the_new_feedback(old: Server) -> None:
    known = {record.key for record in run_files.records(old.params.store)}
    old.done("retrain", extra="retrain.epochs=1 retrain.control=true")
    (record,) = [record for record in run_files.records(old.params.store) if record.key not in known]
    assert (record.job_type, record.finished) == ("retrain", "finished")
    assert {"all/accuracy", "random/accuracy"} <= {name for row in record.rows for name in row}
    assert [ref.partition("@")[0] for ref in record.made] == ["retrained-model"]
    report = files.read_json(old.params.reports / "retrain.json")
    labels = {key: old.registry.label(report[key]) for key in ("parent", "dataset", "feedback", "candidate")}
    assert labels == {
        "parent": RETRAINED,
        "dataset": "digits_dataset:v0",
        "feedback": "digits-feedback:v1",
        "candidate": "retrained-model:v1",
    }
    assert report["hard_examples"] == 235  # those of v0 that train, and 29
    assert report["examples"] == {"right": 0, "wrong": 235, "disputed": 0}
    assert [row for row in lineage(old, "retrained-model:v1") if row[0] == 1] == [
        (1, "dataset", "digits_dataset:v0"),
        (1, "feedback", "digits-feedback:v1"),
        (1, "parent", RETRAINED),
    ]
    assert old.registry.aliases("digits-classifier")["candidate"] == report["candidate"]
    assert re.search("^retrain +nothing to do", old.run("status"), re.MULTILINE)


def test_sync_uploads_runs_artifacts_and_aliases(old: Server, double: WandbDouble) -> None:
    old.done("sync", env=double.environment)
    project = double.projects["flywheel-demo"]
    for name in old.registry.collections():
        uploaded = [member.digest for member in double.collection("flywheel-demo", name).members]
        assert uploaded == [version.digest for version in old.registry.versions(name)]
    (retrained,) = double.collection("flywheel-demo", "retrained-model").members
    inputs = json.loads(retrained.given["metadata"])["flywheel"]["inputs"]
    labels = {role: [old.registry.label(ref) for ref in refs] for role, refs in inputs.items()}
    assert labels == {"dataset": ["digits_dataset:v0"], "feedback": ["digits-feedback:v0"], "parent": [SWEPT]}
    for record in run_files.records(old.params.store):
        run = project.runs[record.key]
        assert run.config.keys() - {"_wandb"} == record.config.keys()
        assert (run.fields["jobType"], run.state) == (record.job_type, "finished")
        assert [f"{one.collection.name}@{one.digest}" for one in run.used] == list(record.used)
        assert len(record.confirmed) == 1
    digests = {alias: ref.partition("@")[2] for alias, ref in old.registry.aliases("digits-classifier").items()}
    aliases = double.aliases("wandb-registry-model", "digits-classifier")
    assert aliases == {**digests, "latest": digests["production"]}


@pytest.mark.long
def test_serve_answers_with_production_and_simulate_adds_to_the_feedback(old: Server) -> None:
    before = {row.hash: row for row in feedback.read(old.registry, old.registry.resolve("digits-feedback:v1"))}
    with serving(old):
        old.done("simulate")
    report = files.read_json(old.params.reports / "simulation.json")
    assert report["models"] == {RETRAINED: 547}
    newest = old.registry.resolve("digits-feedback")
    assert report["feedback"] == newest.ref
    listed = {row.hash: row for row in feedback.read(old.registry, newest)}
    assert len(listed) == 547
    assert {key: listed[key] for key in before} == before  # format 1 stays as it was known: failures
