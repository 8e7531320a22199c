"""make doctor: each trouble is found, with its fix; a sound machine has none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from flywheel import doctor
from flywheel.doctor import Finding
from flywheel.params import Params
from flywheel.registry import Registry

Make = Callable[..., Params]


def findings(params: Params) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine(params, Registry(params.store))}


def test_a_sound_machine_has_no_trouble(params: Params) -> None:
    found = findings(params)
    assert list(found) == ["python", "packages", "device", "store disk", "cache disk", "registry", "ray", "wandb"]
    assert {name: finding.fix for name, finding in found.items() if finding.fix} == {}
    assert "torch 2.14.1" in found["packages"].text
    assert "trains in " in found["device"].text


def test_nothing_is_written(params: Params, tmp_path: Path) -> None:
    findings(params)
    assert list(tmp_path.iterdir()) == []


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_little_space_is_a_trouble(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**10, 10**10 - 10**9, 10**9))
    found = findings(params)["store disk"]
    assert "1.0 GB free" in found.text
    assert found.fix == "free space, or set paths.store to another disk"


def test_a_store_that_cannot_be_written_is_a_trouble(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in findings(params)["store disk"].text
    assert "set paths.store" in findings(params)["store disk"].fix


def test_a_damaged_manifest_is_a_trouble(params: Params, tmp_path: Path) -> None:
    registry = Registry(params.store)
    (tmp_path / "a").write_text("a")
    registry.publish("thing", "test", {"a": tmp_path / "a"})
    assert findings(params)["registry"].text.startswith("1 versions in ")
    (params.store / "registry/versions/thing/v0/manifest.json").write_text("{")
    found = findings(params)["registry"]
    assert "thing/v0/manifest.json: the manifest is damaged" in found.text
    assert found.fix


def test_a_cluster_that_does_not_answer_is_a_trouble(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = findings(params)["ray"]
    assert "no answer" in found.text
    assert found.fix == "start Ray there or unset RAY_ADDRESS to run on this machine"


def test_a_missing_package_is_a_trouble(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEPENDENCIES", ("torch", "no-such-package"))
    found = findings(params)["packages"]
    assert "no no-such-package" in found.text
    assert "make setup" in found.fix


def test_the_wandb_mode_comes_with_its_reason(make_params: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(make_params("tracking.wandb=disabled"))["wandb"].text == "disabled (tracking.wandb)"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert findings(make_params("tracking.wandb=auto"))["wandb"].text == "offline (WANDB_MODE)"
