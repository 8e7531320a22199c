"""The digest of code: what changes it and what does not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from flywheel import FlywheelError
from flywheel.pipeline import fingerprint

ROOTS = ("flywheel.sweep.trial", "flywheel.sweep.space")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A little package in place of ours: root imports helper (inside a function) and files (infrastructure)."""
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


def test_imports_are_followed_also_inside_functions_and_infrastructure_is_left_out(package: Path) -> None:
    assert set(fingerprint.digests("flywheel.root")) == {"flywheel.root", "flywheel.helper"}


@pytest.mark.parametrize(
    "text",
    [
        'def add(a, b):\n    """Add, said otherwise."""\n    return a + b\n',
        "# a comment\ndef add(a, b):\n\n    return (a\n            + b)  # and another\n",
        'def add(a, b):\n    "Add."\n    return a + b\n',
    ],
)
def test_docstrings_comments_and_layout_count_nothing(package: Path, text: str) -> None:
    before = fingerprint.digests("flywheel.root")
    (package / "helper.py").write_text(text)
    assert fingerprint.digests("flywheel.root") == before


@pytest.mark.parametrize(
    "text",
    [
        "def add(a, b):\n    return b + a\n",
        "def add(a, b=0):\n    return a + b\n",
        "def add(a, b):\n    return a + b + 0\n",
        "def add(a, b):\n    return a - b\n",
        "def add(a, b):\n    return 'a + b'\n",
    ],
)
def test_an_imported_helpers_code_counts(package: Path, text: str) -> None:
    before = fingerprint.digests("flywheel.root")
    (package / "helper.py").write_text(text)
    after = fingerprint.digests("flywheel.root")
    assert after["flywheel.helper"] != before["flywheel.helper"]
    assert after["flywheel.root"] == before["flywheel.root"]


def test_infrastructure_does_not_count(package: Path) -> None:
    before = fingerprint.digests("flywheel.root")
    (package / "files.py").write_text("x = 2\n")
    assert fingerprint.digests("flywheel.root") == before


def test_what_determines_a_trial_is_found() -> None:
    expected = {
        "flywheel.training.loop", "flywheel.training.batches", "flywheel.models.classifier", "flywheel.models.resnet",
        "flywheel.models.compact", "flywheel.models.architectures", "flywheel.models.device",
        *ROOTS,
    }  # fmt: skip
    found = set(fingerprint.digests(*ROOTS))
    assert expected <= found
    assert not [module for module in found if fingerprint.excluded(module)]
    assert "flywheel.data.sources" not in found  # the data set's digest stands for how it was made


def test_imports_names_modules_not_their_members() -> None:
    tree = ast.parse(
        "from flywheel.params import Recipe\nfrom flywheel import files\n"
        "from flywheel.pipeline import fingerprint\nimport numpy"
    )
    assert fingerprint.imports(tree) == ["flywheel.files", "flywheel.params", "flywheel.pipeline.fingerprint"]


def test_a_syntax_error_is_one_line_with_its_place(package: Path) -> None:
    (package / "helper.py").write_text("def add(:\n")
    with pytest.raises(FlywheelError, match=r"helper\.py:1: .*; fix it and run again"):
        fingerprint.digests("flywheel.root")
