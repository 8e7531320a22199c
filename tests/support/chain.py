"""`make evaluate` in an empty folder: data, a sweep of three trials on Ray, evaluation and gate."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import scripts

from flywheel.data import dataset
from flywheel.params import Params
from flywheel.registry import Registry, Version
from flywheel.sweep.report import SweepReport

# The weights of the second trial grow ninefold a step (1 - learning_rate * weight_decay = -9), to infinity in an epoch.
SMALL = (
    "data.image_size=8 sweep.trials=3 sweep.epochs=2 sweep.space.architecture=compact gate.floor_accuracy=0 "
    "sweep.space.batch_size=[16, 64] sweep.space.learning_rate={log_uniform: [0.002, 10]} sweep.initial_trials=[{}, "
    "{optimizer: sgd, learning_rate: 10.0, weight_decay: 1.0, momentum: 0.0, batch_size: 16}] "
    "gate.allow_unlearned_classes=true"
)


def make(folder: Path, *arguments: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """Run make with the profile demo in the repository, with store, reports and cache in `folder`."""
    return subprocess.run(
        ["make", "PROFILE=demo", *arguments, f"SET={scripts.overrides(folder, f'{SMALL} {more}')}"],
        cwd=scripts.ROOT, env=scripts.environment(), text=True, timeout=600,
        capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A store after the whole chain, and what make printed."""

    folder: Path
    result: subprocess.CompletedProcess[str]

    def make(self, *arguments: str, more: str = "") -> subprocess.CompletedProcess[str]:
        return make(self.folder, *arguments, more=more)

    def copy(self, folder: Path) -> Built:
        return Built(Path(shutil.copytree(self.folder, folder, symlinks=True)), self.result)

    @cached_property
    def params(self) -> Params:
        return scripts.load(self.folder, SMALL)

    @property
    def registry(self) -> Registry:
        return Registry(self.params.store)

    @property
    def sweep(self) -> SweepReport:
        return SweepReport.model_validate_json((self.params.reports / "sweep.json").read_bytes())

    @property
    def best(self) -> Version:
        return self.registry.resolve("digits-classifier:best")

    @property
    def data(self) -> dataset.Dataset:
        return dataset.open_directory(self.registry.open(self.registry.resolve("digits_dataset")))
