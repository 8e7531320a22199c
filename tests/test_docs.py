"""The pages name what exists, their tables come from the result files, and the code of docs/extend.md runs."""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tables
import torch
from shades import two_shades

from flywheel.data import DataError, build, sources
from flywheel.gate import rules
from flywheel.models import architectures, classifier
from flywheel.params import Gate, Params, sections
from flywheel.training.loop import fit

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flywheel"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def test_tests_named_in_the_table_of_faults_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    tests = (ROOT / "tests").rglob("test_*.py")
    assert len(named) > 50
    assert named <= {name for path in tests for name in re.findall(r"def (test_\w+)", path.read_text())}


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.+)$", linked.read_text(), re.M)), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda path: path.name)
def test_source_files_named_on_a_page_exist(page: Path) -> None:
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
        if name != "src/flywheel/models/plain.py":  # the new file of docs/extend.md
            assert any((folder / name).exists() for folder in (ROOT, SOURCE)), name


def test_the_layout_lists_every_package() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", text[text.index("## Layout") : text.index("## Where to look")], re.M)
    names = {f"{path.name}/" if path.is_dir() else path.name for path in SOURCE.glob("[a-z]*")}
    assert {name for row in rows for name in re.findall(r"`(.*?)`", row)} == names


def test_each_dependency_is_explained_and_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[>=]", one)[0] for one in project["dependencies"]}
    developing = {re.split(r"[\[>=]", one)[0] for one in project["optional-dependencies"]["dev"]}
    text = (ROOT / "docs" / "decisions.md").read_text()
    rows = re.findall(r"^\| ([a-z][^|]*) \| ", text[: text.index("## Alternatives")], re.M)
    named = {re.sub(r"\[.*", "", name) for row in rows for name in row.split(", ")} - {"package"}
    assert named - {"types-*"} == wanted | {name for name in developing if not name.startswith("types-")}
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "python-multipart": "python_multipart"}
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    unused = {
        name
        for name in wanted
        if not re.search(rf"^\s*(?:import|from) {modules.get(name, name.replace('-', '_'))}\b", source, re.M)
    }
    assert unused == {"greenlet", "python-multipart"}  # Optuna asks for the first, starlette for the second


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.stem)
def test_tables_of_figures_are_those_of_the_result_files(page: Path) -> None:
    assert tables.updated(page) == page.read_text()


def test_every_benchmark_with_a_table_has_it_in_a_page() -> None:
    text = "".join(page.read_text() for page in tables.PAGES)
    made = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef table(" in path.read_text()} - {"tables"}
    shown = re.findall(r"^<!-- (\w[\w-]*) -->$", text, re.M)
    assert all(any(name == stem or name.startswith(f"{stem}_") for name in shown) for stem in made)
    assert "headlines" in shown


# -- the code of docs/extend.md, executed with the real code -------------------------------------------


def blocks(heading: str) -> list[str]:
    """Return the code blocks below a heading of docs/extend.md."""
    text = (ROOT / "docs" / "extend.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.S | re.M)


def executed(code: str, module: ModuleType) -> dict[str, Any]:
    """Execute code as if it stood at the end of a module; returns the names that are then defined there."""
    names = dict(vars(module))
    exec(code, names)
    return names


def test_the_new_architecture_trains_loads_and_predicts(
    params: Params, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (code,) = blocks("An architecture")
    plain = architectures.Architecture(executed(code, architectures)["plain"])
    monkeypatch.setitem(architectures.ARCHITECTURES, "plain", plain)
    data, device = two_shades(random, 16), torch.device("cpu")
    recipe = params.complete_recipe({"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 16}, epochs=3)
    recipe = recipe.model_copy(update={"architecture": "plain"})
    model = data.classifier(recipe)
    losses = [result.train_loss for result in fit(model, data, recipe, device)]
    assert losses[-1] < losses[0]
    model.save(tmp_path, recipe.model_dump())
    loaded = classifier.load(tmp_path, device)
    images = torch.from_numpy(data.validation_images)
    assert loaded(images).shape == (40, 2)
    assert torch.equal(loaded(images), model.eval()(images))


def test_the_new_source_builds_a_data_set(
    make_params: Callable[..., Params], random: np.random.Generator, tmp_path: Path
) -> None:
    (code,) = blocks("A source")
    npz = executed(code, sources)["npz"]
    images, labels = random.integers(0, 256, (150, 9, 9), dtype=np.uint8), np.arange(150) % 5
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images[:100], y_train=labels[:100], x_test=images[100:], y_test=labels[100:])
    data = make_params("data.image_size=9").data.model_copy(update={"source": "npz", "path": str(path)})
    found = npz(data)
    assert np.array_equal(found.test.images, images[100:][found.test.ids])
    dataset = build.build(found, data)
    assert dataset.class_names == ("0", "1", "2", "3", "4")
    splits = ("train", "validation", "test", "simulation")
    assert [len(dataset.split(name).labels) for name in splits] == [80, 20, 40, 10]
    np.savez(path, x_train=images)
    with pytest.raises(DataError, match=r"is not an \.npz file with x_train, y_train, x_test and y_test"):
        npz(data)


def test_the_new_gate_rule_decides(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, param = blocks("A gate rule")
    before, anchor, after = Path(str(rules.__file__)).read_text().partition("    if checks.passed:\n")
    assert anchor
    changed: Any = ModuleType("changed_rules")
    monkeypatch.setitem(sys.modules, "changed_rules", changed)  # dataclasses look there for the annotations
    exec(before + textwrap.indent(rule, "    ") + anchor + after, vars(changed))
    gate = executed(f"class Extended(Gate):\n{textwrap.indent(param, '    ')}", sections)["Extended"]
    limits = gate(**params.gate.model_dump(), calibration_margin=0.05)
    assert isinstance(limits, Gate)
    labels = np.arange(400) % 4
    truth = changed.GateLabels("data@0", tuple("abcd"), labels, labels)
    old = changed.Predictions("old@0", "old:v0", tuple("abcd"), labels, labels, ece=0.02)
    refused, accepted = (
        changed.decide(limits, truth, replace(old, model="new@0", ece=ece), old, old) for ece in (0.08, 0.06)
    )
    assert (refused.decision, accepted.decision) == ("keep", "promote")
    assert refused.reasons == ("calibration error rises by 0.060; gate.calibration_margin is 0.05",)
