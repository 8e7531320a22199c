"""make compare on the versions of a real round."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flywheel import FlywheelError, files
from flywheel.commands import compare
from flywheel.metrics.comparison import paired_difference
from flywheel.params import Params
from flywheel.registry import Registry

ROOT = Path(__file__).parents[3]


@pytest.fixture
def first(loop: Any) -> str:
    """The sweep's best model, which was in production before the retrained one."""
    return str(loop.registry.label(loop.registry.aliases(loop.params.registered_model)["previous"]))


def test_the_paired_difference_is_the_gates(loop: Any, first: str) -> None:
    result = compare.versions(loop.params, loop.registry, first, "retrained-model:v0")
    gate = files.read_json(loop.params.reports / "gate.json")
    held = gate["holdout"]  # judged by an interval of 97.5 %, because the labels of traffic are judged, too
    for part, judged in (
        ("test", gate["overall"]),
        ("holdout", asdict(paired_difference(held["fixed"], held["broken"], held["n"]))),
    ):
        assert {key: result["paired"][part][key] for key in judged} == judged
    assert result["paired"]["test"]["p_value"] == gate["reported"]["p_value"]
    ref = {side: result[side]["ref"] for side in ("a", "b")}
    assert result["paired"]["accuracy"]["test"] == [gate["accuracy"][ref["a"]], gate["accuracy"][ref["b"]]]
    assert set(result["paired"]["per_class"]) == {str(digit) for digit in range(10)}


def test_it_is_b_minus_a(loop: Any, first: str) -> None:
    there = compare.versions(loop.params, loop.registry, first, "retrained-model")["paired"]["holdout"]
    back = compare.versions(loop.params, loop.registry, "retrained-model", first)["paired"]["holdout"]
    assert there["difference"] == pytest.approx((there["fixed"] - there["broken"]) / there["n"])
    assert back["difference"] == -there["difference"]
    assert (back["fixed"], back["broken"]) == (there["broken"], there["fixed"])
    assert (back["low"], back["high"]) == pytest.approx((-there["high"], -there["low"]))


def test_params_and_data_that_differ_are_named_and_others_are_not(loop: Any, first: str) -> None:
    differences = compare.versions(loop.params, loop.registry, first, "retrained-model:v0")["differences"]
    assert differences["params"]["recipe.epochs"] == [4, 2]
    assert differences["params"]["retrain.weight"] == [None, 2.0]
    assert "recipe.batch_size" not in differences["params"]
    assert differences["data"] == {"feedback": [None, "digits-feedback:v0"], "parent": [None, first]}
    assert differences["params"]["retrain.examples"] == [None, "all"]
    counts = {name: differences["metrics"][name] for name in ("hard_examples", "examples.wrong", "examples.right")}
    assert counts["hard_examples"] == counts["examples.wrong"] == [None, counts["hard_examples"][1]]
    assert counts["examples.right"][1] > 0
    assert not [name for name in differences["metrics"] if "per_class" in name]


def test_the_table_says_what_is_measurable(loop: Any, first: str) -> None:
    lines = list(compare.table(compare.versions(loop.params, loop.registry, first, "retrained-model:v0")))
    shown = "\n".join(lines)
    assert f"A  {first}" in lines[0]
    assert "B  retrained-model:v0" in lines[0]
    (holdout,) = [line for line in lines if line.startswith("  holdout")]
    assert "B is better" in holdout
    assert "classes that differ measurably on test" in shown
    same = list(compare.table(compare.versions(loop.params, loop.registry, first, first)))
    assert same == [f"{first} and {first} are the same version"]


def test_data_sets_are_compared_by_what_is_known_of_them(loop: Any) -> None:
    result = compare.versions(loop.params, loop.registry, "digits_dataset:v0", "digits_dataset:latest")
    assert result["paired"] is None
    assert all(rows == {} for rows in result["differences"].values())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("", "", r"which two\? make compare A=name:version B=name:version PROFILE=demo; make artifacts lists them"),
        ("retrained-model", "", r"which two\?"),
        ("nothing:v0", "retrained-model", r"no artifact nothing in .*; make artifacts PROFILE=demo lists"),
        ("retrained-model:v7", "retrained-model", r"retrained-model has no version v7; it has v0, latest; make art"),
        ("../etc", "retrained-model", "not of the form name, name:alias"),
        ("digits_dataset", "retrained-model", r"digits_dataset:v0 is a dataset and retrained-model:v0 a model; name"),
    ],
)
def test_a_mistake_is_one_sentence(loop: Any, a: str, b: str, message: str) -> None:
    with pytest.raises(FlywheelError, match=message) as raised:
        compare.versions(loop.params, loop.registry, a, b)
    assert "\n" not in str(raised.value)


def test_models_of_other_data_or_classes_are_refused(
    loop: Any, first: str, make_params: Callable[..., Params], tmp_path: Path
) -> None:
    params = make_params()
    shutil.copytree(loop.params.store, params.store)
    registry = Registry(params.store)
    source = registry.open(registry.resolve("retrained-model"))
    shutil.copytree(source, tmp_path / "model")
    description = files.read_json(tmp_path / "model" / "model.json")
    description["class_names"][0] = "nought"
    (tmp_path / "model" / "model.json").unlink()  # a hard link to the store's own
    files.write_json(tmp_path / "model" / "model.json", description)
    registry.publish("model-other", "model", tmp_path / "model")
    with pytest.raises(FlywheelError, match="model-other:v0 knows other classes than digits_dataset:v0"):
        compare.versions(params, registry, first, "model-other")
    data = registry.open(registry.resolve("digits_dataset"))
    registry.publish("letters_dataset", "dataset", data)
    letters = make_params("data.name=letters")
    with pytest.raises(FlywheelError, match="was made from digits_dataset, and PROFILE=demo has letters_dataset; name"):
        compare.versions(letters, registry, first, "retrained-model")
    with pytest.raises(FlywheelError, match="there is no empty_dataset; run make data PROFILE=demo"):
        compare.versions(make_params("data.name=empty"), registry, first, "retrained-model")


@pytest.mark.long
def test_the_script_prints_a_table_or_json(loop: Any, first: str) -> None:
    command = loop.command("compare", first, "retrained-model:v0")
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "on the same images, B minus A" in table.stdout
    assert table.stderr == ""
    result = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == compare.versions(loop.params, loop.registry, first, "retrained-model:v0")
    wrong = subprocess.run([*command[:-1], "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: no artifact nothing in")
    assert len(wrong.stderr.splitlines()) == 1
