"""The fingerprint: what re-runs a stage (code, constants, identity params) and what does not (comments, layout)."""

from __future__ import annotations

import ast
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel import files
from flywheel.data import stage as data_stage
from flywheel.evaluation import stage as evaluation_stage
from flywheel.params import Params, data, sections
from flywheel.pipeline import fingerprint
from flywheel.pipeline.stage import Stage
from flywheel.registry import Registry
from flywheel.retraining import stage as retraining_stage
from flywheel.sweep import stage as sweep_stage

Define = Callable[[], dict[str, Stage]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package instead of ours: root imports helper (inside a function) and files (infrastructure)."""
    package = tmp_path / "flywheel"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "root.py").write_text(
        '"""A docstring."""\nfrom flywheel import files\n\n'
        "def work():\n    from flywheel.helper import add\n    return add(1, 2)\n"
    )
    (package / "helper.py").write_text('def add(a, b):\n    """Add."""\n    return a + b\n')
    (package / "files.py").write_text("x = 1\n")
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    return package


def test_imports_inside_functions_count_and_infrastructure_does_not(package: Path) -> None:
    before = fingerprint.digests("flywheel.root")
    assert set(before) == {"flywheel.root", "flywheel.helper"}
    (package / "files.py").write_text("x = 2\n")
    assert fingerprint.digests("flywheel.root") == before


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ('def add(a, b):\n    """Add, in other words."""\n    return a + b\n', False),
        ("# a comment\ndef add(a, b):\n\n    return (a\n            + b)  # and another\n", False),
        ('def add(a, b):\n    "Add."\n    return a + b\n', False),
        ("def add(a, b):\n    return b + a\n", True),
        ("def add(a, b=0):\n    return a + b\n", True),
        ("def add(a, b):\n    return a + b + 0\n", True),
        ("def add(a, b):\n    return a - b\n", True),
        ("def add(a, b):\n    return 'a + b'\n", True),
    ],
)
def test_code_counts_and_docstrings_comments_and_layout_do_not(package: Path, text: str, counts: bool) -> None:
    before = fingerprint.digests("flywheel.root")
    (package / "helper.py").write_text(text)
    after = fingerprint.digests("flywheel.root")
    assert {module for module in before if before[module] != after[module]} == (
        {"flywheel.helper"} if counts else set()
    )


def test_imports_names_modules_not_their_members() -> None:
    tree = ast.parse(
        "from flywheel.params import Recipe\nfrom flywheel import files\n"
        "from flywheel.pipeline import fingerprint\nimport numpy"
    )
    assert fingerprint.imports(tree) == ["flywheel.files", "flywheel.params", "flywheel.pipeline.fingerprint"]


# The stages of this package


@pytest.fixture
def define(params: Params, registry: Registry, tmp_path: Path) -> Define:
    """Define the four stages anew, as a run does, for a registry that holds a data set and a best model."""
    files.write_text(tmp_path / "made" / "content", "")
    dataset = registry.publish(params.dataset_name, "dataset", tmp_path / "made")
    model = registry.publish("model-1", "model", tmp_path / "made", inputs={"dataset": dataset.ref})
    registry.link(model, params.registered_model, ("best",), reason="test")
    return lambda: {
        "data": data_stage.define(params, registry),
        "sweep": sweep_stage.define(params, registry),
        "evaluate": evaluation_stage.define(params, registry),
        "retrain": retraining_stage._define(params, registry, {"dataset": dataset.ref}),
    }


def constants(tree: ast.Module) -> list[ast.Assign]:
    """Return the assignments to names in capitals at the top of a module."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            if all(name.isupper() for name in names):
                found.append(node)
    return found


def test_a_changed_constant_changes_the_fingerprint(
    define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every constant that a stage's result may depend on; then one of each module, in a copy of the package."""
    monkeypatch.setattr(fingerprint, "PACKAGE", Path(shutil.copytree(fingerprint.PACKAGE, tmp_path / "flywheel")))
    before = define()
    changed, having = set(), set()
    for module, digest in {module: digest for one in before.values() for module, digest in one.code.items()}.items():
        tree = ast.parse(fingerprint.source_of(module).read_bytes())
        for node in constants(tree):
            value, node.value = node.value, ast.Constant("changed")
            changed.add(ast.unparse(node.targets[0]).strip("()"))
            assert fingerprint.digest(tree) != digest
            having.add(module)
            fingerprint.source_of(module).write_text(ast.unparse(tree))
            node.value = value
        assert fingerprint.digest(tree) == digest
    for name, after in define().items():
        expected = having & set(after.code)
        assert {module for module in after.code if after.code[module] != before[name].code[module]} == expected
        assert (after.fingerprint != before[name].fingerprint) == bool(expected)
    read_by_training = {"ADAMW_FACTOR, LAST_LAYER_FACTOR", "FIRST, WIDTHS", "BFLOAT16_CPU_FEATURES", "ARCHITECTURES"}
    assert {*read_by_training, "ROTATION_DEGREES", "HOLDOUT_PERCENT", "CALIBRATION_BINS"} <= changed


@pytest.mark.parametrize("optimizer", sections.WEIGHT_DECAY)
def test_a_changed_weight_decay_of_auto_changes_the_identity_and_the_recipe(
    optimizer: str, params: Params, define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = define()["sweep"]
    assert params.recipe.weight_decay == "auto"
    monkeypatch.setitem(sections.WEIGHT_DECAY, optimizer, 0.0123)
    assert define()["sweep"].identity != before.identity
    assert define()["sweep"].fingerprint != before.fingerprint
    assert params.complete_recipe({"optimizer": optimizer}, epochs=1).weight_decay == 0.0123


def test_stages_take_only_types_from_params(define: Define) -> None:
    """The fingerprint leaves params out: a function or constant there could change a result without a new run."""
    taken = set()
    for module in {module for one in define().values() for module in one.code}:
        tree = ast.parse(fingerprint.source_of(module).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flywheel.params"):
                taken |= {(module, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and "params" in {alias.name for alias in node.names}:
                parts = [part for part in ast.walk(tree) if isinstance(part, ast.Attribute)]
                taken |= {(module, part.attr) for part in parts if ast.unparse(part.value) == "params"}
    assert {("flywheel.training.loop", "Recipe"), ("flywheel.data.drift", "Drift")} <= taken
    for module, name in taken:
        value = getattr(data if hasattr(data, name) else sections, name)
        assert inspect.isclass(value) or value in (sections.Domain, sections.Scalar), (
            f"{module} takes {name} from params"
        )


def test_the_modules_of_a_trial_are_found(define: Define) -> None:
    found = set(define()["sweep"].code)
    assert found > {
        "flywheel.sweep.trial", "flywheel.sweep.searcher", "flywheel.training.loop", "flywheel.training.batches",
        "flywheel.training.optimizers", "flywheel.models.classifier", "flywheel.models.resnet",
        "flywheel.models.compact", "flywheel.models.architectures", "flywheel.models.device",
    }  # fmt: skip
    assert not [module for module in found if fingerprint.excluded(module)]
    assert "flywheel.data.sources" not in found  # the digest of the data set covers how it was made
