"""W&B as the shared registry: a colleague, a server and a CI runner continue with empty stores.

The real commands and the real SDK against a double of the service.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import checkouts
import pytest
import requests
import scripts
import yaml
from served import free_port
from wandb_double import WandbDouble
from wandb_process import ROOT, clean_environment, python, store_of

from flywheel.registry import Registry
from flywheel.tracking import run_files

pytestmark = pytest.mark.long

PROJECT, REGISTRY, MODEL = "flywheel-demo", "wandb-registry-model", "digits-classifier"
SMALL = (
    "data.image_size=16 sweep.trials=2 sweep.epochs=2 sweep.space.architecture=compact "
    "gate.floor_accuracy=0.05 gate.allow_unlearned_classes=true "
    "retrain.epochs=1 retrain.min_failures=1 retrain.control=false gate.margin=1 gate.class_margin=1"
)
FAILURES = """
from flywheel.traffic import feedback
from flywheel.data import dataset
registry = mirrored(params)
version = registry.resolve(params.dataset_name)
opened = dataset.open_directory(registry.open(version))
import numpy as np
run = Tracker(params, registry).start("simulate", "by hand", {})
failed = feedback.examples(opened, opened.indices["simulation"][:60])
made, new = feedback.publish(params, registry, failed, {"dataset": [version.ref]}, {})
run.used(version)
run.made(made)
run.finish()
"""


@pytest.fixture(scope="module")
def double() -> Iterator[WandbDouble]:
    with WandbDouble() as served:
        yield served
        assert served.errors == []


def script(base: Path, double: WandbDouble, name: str, more: str = "") -> str:
    done = scripts.run(base, name, f"tracking.wandb=auto {SMALL} {more}", **double.environment, HOME=str(base / "home"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def workflow(runner: Path, double: WandbDouble) -> str:
    """Run the steps of the workflow in docs/operate.md in a fresh clone, as a hosted runner does; returns all said."""
    text = (runner / "docs" / "operate.md").read_text()
    written = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```$", text, re.S | re.M)[0])
    settings = f"{written['env']['SET']} {SMALL} serve.port={free_port()}"
    environment = clean_environment(runner.parent, **double.environment, PROFILE="demo", SET=settings)
    said = ""
    for step in written["jobs"]["retrain"]["steps"]:
        if "run" in step and "cache-hit" not in step.get("if", ""):  # the environment is there
            done = subprocess.run(
                ["bash", "-e", "-c", step["run"]], cwd=runner, env=environment, text=True, timeout=300,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            said += done.stdout
            assert done.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, double: WandbDouble) -> Path:
    """The machine that made everything, online."""
    base = tmp_path_factory.mktemp("first")
    for name in ("data", "sweep", "evaluate"):
        said = script(base, double, name)
        assert "W&B: online" in said
        assert len([line for line in said.splitlines() if line.startswith("W&B")]) == 1, said
    return base


def test_everything_of_a_turn_is_on_w_and_b(first: Path, double: WandbDouble) -> None:
    runs = {run.fields["jobType"]: run for run in double.runs(PROJECT)}
    assert set(runs) == {"data", "sweep", "trial", "evaluate"}
    assert [one.collection.name for one in runs["data"].logged] == ["digits_dataset"]
    assert [one.collection.name for one in runs["sweep"].used] == ["digits_dataset"]
    (model,) = runs["sweep"].logged
    assert {one.digest for one in runs["evaluate"].used} == {runs["data"].logged[0].digest, model.digest}
    assert double.aliases(REGISTRY, MODEL)["production"] == double.aliases(REGISTRY, MODEL)["best"] == model.digest
    assert all(record.confirmed for record in run_files.records(store_of(first)))
    here = Registry(store_of(first)).resolve(f"{MODEL}:production")
    assert here.digest == model.digest
    assert not double.mentions(os.uname().nodename)
    for told in (str(first), str(ROOT)):
        found = [text for text in double.texts() if told in text]
        assert not found, found[0][max(0, found[0].find(told) - 300) :][:600]


def test_a_colleague_with_an_empty_store_evaluates(first: Path, double: WandbDouble, tmp_path: Path) -> None:
    for name in ("data", "sweep", "evaluate"):
        said = script(tmp_path, double, name)
        if name != "evaluate":
            assert f"{name}: up to date (made before as " in said
    assert "W&B: downloaded " in said or "W&B: online" in said
    ours, theirs = (json.loads((base / "reports/demo/evaluation.json").read_text()) for base in (first, tmp_path))
    assert ours == theirs
    assert Registry(store_of(tmp_path)).aliases(MODEL) == Registry(store_of(first)).aliases(MODEL)


def test_a_server_with_an_empty_store_answers(first: Path, double: WandbDouble, tmp_path: Path) -> None:
    script(tmp_path, double, "serve", "serve.port=18765")
    try:
        model = requests.get("http://127.0.0.1:18765/healthz", timeout=30).json()
        assert Registry(store_of(first)).resolve(f"{MODEL}:production").name in str(model)
    finally:
        script(tmp_path, double, "stop")


def test_a_fresh_ci_runner_retrains_once(first: Path, double: WandbDouble, tmp_path: Path) -> None:
    done = python(first, FAILURES, more=SMALL, **double.environment)
    assert done.code == 0, done
    runner = checkouts.clone(tmp_path)
    said = workflow(runner, double)
    assert "ok       wandb       online (127.0.0.1 answers)" in said
    assert "nothing to do" not in said
    assert "sync: all is on W&B" in said
    assert (runner / "reports/demo/index.html").exists()
    retrained = Registry(store_of(runner)).resolve("retrained-model")
    assert retrained.digest in {one.digest for one in double.collection(PROJECT, "retrained-model").members}
    assert "promoted to production" in said
    said = script(tmp_path / "two", double, "retrain")
    assert "nothing to do (every labelled image that digits-feedback" in said
    shutil.rmtree(runner)
    # The replaced model is not promoted again on another machine: the lineage shows that it was in production.
    said = script(tmp_path / "three", double, "evaluate")
    assert "gate: keep, production unchanged: it was in production before and was replaced" in said
