"""The section data of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flywheel.params.base import NAME, NOT_IDENTITY, FilePath, Fraction, Section, Seed, Severity
from flywheel.params.errors import KeyedError


class Drift(Section):
    """Seeded corruptions of the simulation images, each with a severity from 0 (none) to 5."""

    rotation: Severity = Field(description="random rotation by up to ±7 degrees times severity")
    noise: Severity = Field(description="Gaussian noise, standard deviation 4.7 % of the range times severity")
    blur: Severity = Field(description="Gaussian blur, radius 0.3 pixels (at 32 pixels) times severity")
    brightness: Severity = Field(description="random factor, up to 1 ± 0.12 times severity")
    contrast: Severity = Field(description="random factor around the mean, up to 1 ± 0.15 times severity")


READS_PATH = ("folder",)  # the sources that read data.path


class FolderSplit(Section):
    """The fractions of a source folder's images where it has no test folder."""

    train: Fraction = Field(description="fraction for training, of which validation_fraction is for validation")
    test: Fraction = Field(description="fraction for testing")
    simulation: Fraction = Field(description="fraction that simulates production traffic")

    @model_validator(mode="after")
    def _adds_up(self) -> FolderSplit:
        if abs(self.train + self.test + self.simulation - 1) > 1e-6:
            raise ValueError("train, test and simulation must add up to 1")
        return self


class Data(Section):
    """The data set that `make data` builds."""

    name: str = Field(pattern=NAME, description="prefix of the artifacts' names, such as <name>_dataset")
    source: Literal["cifar10", "folder", "digits"] = Field(description="where the images come from")
    path: Annotated[FilePath | None, NOT_IDENTITY] = Field(
        description="source folder: a directory, .tar, .tar.gz or .zip of images (docs/own-images.md); "
        "identified by its content, so moving it re-runs nothing"
    )
    image_size: Annotated[int, Field(ge=8, le=512)] = Field(description="height and width, in pixels")
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = Field(description="fraction of each class's images")
    test_fraction: Fraction = Field(description="source folder: fraction of test images; the rest is simulation")
    folder_split: FolderSplit
    skip_corrupt: bool = Field(description="source folder: leave out unreadable files and count them")
    seed: Seed = Field(description="seed of the splits and of the drift")
    drift: Drift

    @model_validator(mode="after")
    def _path_goes_with_the_source(self) -> Data:
        if self.source in READS_PATH and not self.path:
            raise KeyedError(("data", "source"), f"source {self.source} needs data.path, a directory or file")
        if self.source not in READS_PATH and self.path:
            only = " or ".join(READS_PATH)
            reason = f"is read by source {only} only (data.source is {self.source}); set data.source={READS_PATH[0]}"
            raise KeyedError(("data", "path"), reason)
        return self
