"""The params as typed, validated, frozen objects. Every knob stands in params.yaml; none has a default here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from flywheel import search_space
from flywheel.params_errors import KeyedError, dotted, either, explain, nearest, show_value
from flywheel.params_production import Evaluate, Gate, Promotion, Retrain, Serve, Simulate
from flywheel.params_section import NAME, NOT_IDENTITY, Fraction, Section, Seed, Severity, Text, whole_above_one
from flywheel.search_space import Choices, Domain, PerArchitecture

RETRAINED_NAME = "retrained-model"  # the artifact of every turn
COLLECTION = re.compile(r"wandb-registry-[\w-]+/[A-Za-z0-9][\w.-]{0,127}")


def _a_collection(value: str) -> str:
    if not COLLECTION.fullmatch(value):
        raise ValueError(f"must be wandb-registry-<registry>/<collection> (got {value!r})")
    return value


def _local(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("YAML reads off and on as false and true; write disabled, offline, online or auto")
    return value


class Drift(Section):
    """Seeded corruptions of the simulation images, severity 0 (none) to 5."""

    rotation: Severity = Field(description="by up to ±7 degrees a step")
    noise: Severity = Field(description="Gaussian, standard deviation 0.047 of the range a step")
    blur: Severity = Field(description="Gaussian, radius 0.3 pixels of a 32-pixel image a step")
    brightness: Severity = Field(description="factor between 1 - 0.12 and 1 + 0.12 a step")
    contrast: Severity = Field(description="factor between 1 - 0.15 and 1 + 0.15 a step")


READS_PATH = ("folder",)  # the sources that read data.path


class Data(Section):
    """What the `data` stage builds."""

    name: str = Field(pattern=NAME, description="names the artifacts: <name>_dataset, …")
    source: Literal["cifar10", "folder", "digits"] = Field(description="where the images come from")
    path: Annotated[Text | None, NOT_IDENTITY] = Field(
        description="folder: a directory, .tar, .tar.gz or .zip of train/<class>/* and test/<class>/*; "
        "its content decides, not its place"
    )
    image_size: Annotated[int, Field(ge=8, le=512)] = Field(description="side of the stored images, in pixels")
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = Field(description="of the training images, by class")
    test_fraction: Fraction = Field(description="folder: of the test images; the rest is simulation")
    skip_corrupt: bool = Field(description="folder: leave out files that cannot be read, and count them")
    seed: Seed = Field(description="of the splits and of drift")
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


Architecture = Literal["standard", "upsample", "modified", "compact"]  # the names in models/architectures.py
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


# What `weight_decay: auto` stands for. AdamW's is a share of the rate, SGD's and Adam's a term of the loss.
WEIGHT_DECAY = {"sgd": 5e-4, "adam": 5e-4, "muon": 0.1}


class RecipeDefaults(Section):
    """How a network is trained. Each of these can be searched: see sweep.space."""

    architecture: Architecture = Field(description="a name in models/architectures.py")
    optimizer: Literal["sgd", "adam", "muon"] = Field(
        description="SGD with Nesterov momentum; Adam; or Muon for convolutions, AdamW for the rest (docs/training.md)"
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(description="peak, reached after the warm-up")
    batch_size: Annotated[int, Field(ge=2, le=16384)] = Field(description="images a step")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(description="of SGD and Muon; beta1 of Adam and AdamW")
    weight_decay: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        description="of weights, not of biases and norms; auto: 0.0005; with Muon 0.1, of what AdamW moves"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(description="mass moved from the label to all classes")
    warmup_fraction: Annotated[float, Field(ge=0, le=0.9)] = Field(
        description="of all steps; then the rate falls in a line to zero"
    )
    flip: bool = Field(description="mirror images at random (never digits)")
    translate: Annotated[int, Field(ge=0, le=64)] = Field(description="shift by up to so many pixels")
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="auto: bfloat16 where the hardware has it")
    compile: bool = Field(description="torch.compile; pays on a GPU where training takes longer than compiling")
    seed: Seed = Field(description="of the weights, the order of images and the augmentation")

    def decay(self) -> float:
        """Return the weight decay as a number, also where it is `auto`."""
        return WEIGHT_DECAY[self.optimizer] if self.weight_decay == "auto" else self.weight_decay


class Recipe(RecipeDefaults):
    """A complete recipe: what `training.fit` follows and what a model records."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(description="passes over the training images")


class Sweep(Section):
    """The search for the best recipe."""

    trials: Annotated[int, Field(ge=1, le=100_000), NOT_IDENTITY] = Field(description="how many recipes to try")
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(description="of a trial that is not stopped early")
    searcher: Literal["tpe", "gp", "random"] = Field(description="Bayesian: tpe, gp; or random")
    early_stopping: bool = Field(description="ASHA stops the trials that fall behind")
    seed: Seed = Field(description="of the searcher")
    max_concurrent_trials: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)], NOT_IDENTITY] = Field(
        description="auto: as many as the resources hold"
    )
    cpus_per_trial: Annotated[float, Field(ge=0.1, le=1024), AfterValidator(whole_above_one), NOT_IDENTITY] = Field(
        description="also the torch threads of a trial"
    )
    gpus_per_trial: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(whole_above_one)], NOT_IDENTITY
    ] = Field(description="a fraction shares a GPU; auto: one where there is one")
    time_budget_s: Annotated[Annotated[float, Field(ge=1)] | None, NOT_IDENTITY] = Field(
        description="of the whole sweep, over interruptions: then the best so far is published; raise it to go on"
    )
    checkpoint_interval_s: Annotated[float, Field(ge=0, le=86_400), NOT_IDENTITY] = Field(
        description="a trial notes where it stands at the first epoch's end after so long; 0: at each epoch"
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000), NOT_IDENTITY] = Field(
        description="how many of all trials that ended keep their weights; all of them are published, the best as best"
    )
    first: tuple[dict[str, Any], ...] = Field(
        description="trials before the search: recipe values that differ from the defaults"
    )
    space: dict[str, Annotated[Domain, BeforeValidator(search_space.parse)]] = Field(description="what is searched")

    @model_validator(mode="after")
    def _searcher_fits(self) -> Sweep:
        if self.searcher == "gp" and self.early_stopping:
            raise KeyedError(("sweep", "searcher"), "gp needs sweep.early_stopping=false (it ignores stopped trials)")
        return self


class Tracking(Section):
    """Weights & Biases."""

    wandb: Annotated[Literal["auto", "online", "offline", "disabled"], BeforeValidator(_no_switch), NOT_IDENTITY] = (
        Field(description="auto: WANDB_MODE if set, else online with a key and a network, else offline")
    )
    project: Annotated[Text | None, NOT_IDENTITY] = Field(description="W&B project; null: flywheel-<profile>")
    registry: Annotated[Annotated[str, AfterValidator(_a_collection)] | None, NOT_IDENTITY] = Field(
        description="W&B's registry and the collection in it that models are linked to, a profile its own; "
        "null: wandb-registry-model/<data.name>-classifier"
    )
    machine_info: Annotated[bool, NOT_IDENTITY] = Field(
        description="whether W&B is sent host name, paths, command line, git state and machine load"
    )


class Paths(Section):
    """Where things are kept; each profile has its own folder in store and reports."""

    store: Annotated[Text, NOT_IDENTITY] = Field(description="artifacts, receipts, journals")
    reports: Annotated[Text, NOT_IDENTITY] = Field(description="results and pictures")
    cache: Annotated[Text, NOT_IDENTITY] = Field(description="downloads, shared by profiles")
    checkpoints: Annotated[Text | None, NOT_IDENTITY] = Field(
        description="of trials, while a sweep runs: a directory or an fsspec URI that every node of a cluster reaches; "
        "null: in the store"
    )


class Params(Section):
    """All of params.yaml with the profile and the overrides applied."""

    profile: Annotated[str, Field(pattern=NAME), NOT_IDENTITY]
    data: Data
    recipe: RecipeDefaults
    sweep: Sweep
    evaluate: Evaluate
    gate: Gate
    promotion: Promotion
    serve: Annotated[Serve, NOT_IDENTITY]
    simulate: Simulate
    retrain: Retrain
    tracking: Tracking
    paths: Paths

    @property
    def store(self) -> Path:
        """The profile's store."""
        return _local(self.paths.store) / self.profile

    @property
    def reports(self) -> Path:
        """The profile's reports."""
        return _local(self.paths.reports) / self.profile

    @property
    def cache(self) -> Path:
        """The downloads."""
        return _local(self.paths.cache)

    @property
    def checkpoints(self) -> str:
        """Where trials keep their checkpoints: an absolute path or a URI."""
        named = self.paths.checkpoints
        if named is None:
            return str(self.store / "trials")
        if "://" in named:
            return f"{named.rstrip('/')}/{self.profile}"
        return str(_local(named) / self.profile)

    @property
    def dataset_name(self) -> str:
        """The data set's artifact."""
        return f"{self.data.name}_dataset"

    @property
    def feedback_name(self) -> str:
        """The failures' artifact."""
        return f"{self.data.name}-feedback"

    @property
    def registered_model(self) -> str:
        """The registered model whose versions are links."""
        return f"{self.data.name}-classifier"

    def complete_recipe(self, values: dict[str, Any], epochs: int) -> Recipe:
        """Return the recipe defaults with `values` put over them. Raises pydantic.ValidationError."""
        return Recipe.model_validate({**self.recipe.model_dump(), **values, "epochs": epochs})

    @model_validator(mode="after")
    def _space_and_first_are_recipes(self) -> Params:
        for name, domain in self.sweep.space.items():
            key = ("sweep", "space", name)
            if name == "architecture" and not isinstance(domain, Choices):
                raise KeyedError(key, f"must be a list of {', '.join(ARCHITECTURES)}")
            if isinstance(domain, PerArchitecture):
                known = (*ARCHITECTURES, "others")
                for part in set(domain.domains) - set(known):
                    raise KeyedError((*key, "per_architecture", part), f"unknown architecture{nearest(part, known)}")
            for value in domain.values():
                self._check_recipe_value(key, value)
        for index, first in enumerate(self.sweep.first):
            for name, value in first.items():
                self._check_recipe_value(("sweep", "first", f"[{index}]", name), value)
            for name, value in first.items():
                within = self.sweep.space.get(name)
                if isinstance(within, PerArchitecture):
                    within = within.of(first.get("architecture", self.recipe.architecture))
                if within is not None and not within.contains(value):
                    reason = f"{show_value(value)} lies outside sweep.space.{name}"
                    raise KeyedError(("sweep", "first", f"[{index}]", name), reason)
        return self

    def _check_recipe_value(self, key: tuple[str, ...], value: Any) -> None:
        if key[-1] not in RecipeDefaults.model_fields:
            raise KeyedError(key, f"unknown key{nearest(key[-1], RecipeDefaults.model_fields, dotted(key[:-1]))}")
        try:
            self.complete_recipe({key[-1]: value}, epochs=1)
        except ValidationError as error:
            raise KeyedError(key, either(map(explain, error.errors()))) from None
