"""The params as typed, validated, frozen objects. Every knob stands in params.yaml; none has a default here."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from flywheel import search_space
from flywheel.search_space import Choices, Domain, PerArchitecture


class Section(BaseModel):
    """A section of params.yaml: frozen, strict about types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def identity(self) -> dict[str, Any]:
        """Return the params that change the result, as JSON values; those marked otherwise are left out."""
        result: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if not any(mark is NOT_IDENTITY for mark in field.metadata):
                value = getattr(self, name)
                result[name] = value.identity() if isinstance(value, Section) else plain(value)
        return result


def _whole_above_one(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"must be a fraction below 1 or a whole number (got {value:g})")
    return value


NOT_IDENTITY = object()  # marks a param that does not change the result
Severity = Annotated[float, Field(ge=0, le=5)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Drift(Section):
    """Seeded corruptions of the simulation images, severity 0 (none) to 5."""

    rotation: Severity = Field(description="by up to ±7 degrees a step")
    noise: Severity = Field(description="Gaussian, standard deviation 0.047 of the range a step")
    blur: Severity = Field(description="Gaussian, radius 0.3 pixels of a 32-pixel image a step")
    brightness: Severity = Field(description="factor between 1 - 0.12 and 1 + 0.12 a step")
    contrast: Severity = Field(description="factor between 1 - 0.15 and 1 + 0.15 a step")


class Data(Section):
    """What the `data` stage builds."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="names the artifacts: <name>_dataset, …")
    source: Literal["cifar10", "folder", "digits"] = Field(description="where the images come from")
    path: Annotated[str | None, NOT_IDENTITY] = Field(
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
    def _folder_has_a_path(self) -> Data:
        if self.source == "folder" and not self.path:
            raise ValueError("source folder needs data.path, a directory or archive")
        if self.source != "folder" and self.path:
            raise ValueError(f"path is read by source folder only (source is {self.source}); set data.source=folder")
        return self


Architecture = Literal["standard", "upsample", "modified", "compact"]  # the names in models/architectures.py
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


class RecipeDefaults(Section):
    """How a network is trained. Each of these can be searched: see sweep.space."""

    architecture: Architecture = Field(description="a name in models/architectures.py")
    optimizer: Literal["sgd", "adam"] = Field(description="SGD with Nesterov momentum, or Adam")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(description="peak, reached after the warm-up")
    batch_size: Annotated[int, Field(ge=2, le=16384)] = Field(description="images a step")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(description="of SGD; beta1 of Adam")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(description="of weights, not of biases and norms")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(description="mass moved from the label to all classes")
    warmup_fraction: Annotated[float, Field(ge=0, le=0.9)] = Field(description="of all steps; cosine decay follows")
    flip: bool = Field(description="mirror images at random (never digits)")
    translate: Annotated[int, Field(ge=0, le=64)] = Field(description="shift by up to so many pixels")
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="auto: bfloat16 where the hardware has it")
    seed: Seed = Field(description="of the weights, the order of images and the augmentation")


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
    cpus_per_trial: Annotated[float, Field(ge=0.1, le=1024), AfterValidator(_whole_above_one), NOT_IDENTITY] = Field(
        description="also the torch threads of a trial"
    )
    gpus_per_trial: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(_whole_above_one)], NOT_IDENTITY
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
            raise ValueError("searcher gp needs sweep.early_stopping=false (it ignores stopped trials)")
        return self


class Gate(Section):
    """What a model must show before it goes into production."""

    floor_accuracy: Annotated[float, Field(ge=0, le=1)] = Field(description="test accuracy of a first model, at least")


class Promotion(Section):
    """How models reach production."""

    auto: bool = Field(description="promote what passes the gate")


class Serve(Section):
    """The server: how much it takes, where it listens, how it grows."""

    host: str = Field(min_length=1, description="where HTTP is answered; 127.0.0.1 = this machine only")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="of HTTP")
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="copies of the model, at least")
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="at most; more than min_replicas autoscales")
    cpus_per_replica: Annotated[float, Field(ge=0.1, le=1024), AfterValidator(_whole_above_one)] = Field(
        description="also the torch threads of a replica"
    )
    gpus_per_replica: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(_whole_above_one)], Field()
    ] = Field(description="auto: 1 where there is one; 0.5 = two replicas a GPU")
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(description="images that the model takes at once")
    max_queued_images: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="images that wait in a replica; beyond them the answer is 503 with Retry-After"
    )
    max_body_bytes: Annotated[int, Field(ge=1_000, le=10**9)] = Field(description="of a request; beyond it 413")
    max_parts: Annotated[int, Field(ge=1, le=10_000)] = Field(description="images of a multipart request")
    poll_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(description="how often a replica looks at production")
    start_timeout_s: Annotated[float, Field(ge=5, le=3600)] = Field(description="until the server answers, at most")
    access_log: bool = Field(description="a line of JSON a request in store/<profile>/logs/access-<replica>.jsonl")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Serve:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        if self.max_queued_images < self.max_batch_size:
            raise ValueError(
                f"max_queued_images ({self.max_queued_images}) is below max_batch_size ({self.max_batch_size}): "
                "no batch would fill"
            )
        return self


class Tracking(Section):
    """Weights & Biases."""

    wandb: Annotated[Literal["auto", "online", "offline", "disabled"], NOT_IDENTITY] = Field(
        description="auto: WANDB_MODE if set, else online with a key and a network, else offline"
    )
    project: Annotated[str | None, NOT_IDENTITY] = Field(description="W&B project; null: flywheel-<profile>")


class Paths(Section):
    """Where things are kept; each profile has its own folder in store and reports."""

    store: Annotated[str, Field(min_length=1), NOT_IDENTITY] = Field(description="artifacts, receipts, journals")
    reports: Annotated[str, Field(min_length=1), NOT_IDENTITY] = Field(description="results and pictures")
    cache: Annotated[str, Field(min_length=1), NOT_IDENTITY] = Field(description="downloads, shared by profiles")
    checkpoints: Annotated[Annotated[str, Field(min_length=1)] | None, NOT_IDENTITY] = Field(
        description="of trials, while a sweep runs: a directory or an fsspec URI that every node of a cluster reaches; "
        "null: in the store"
    )


class Params(Section):
    """All of params.yaml with the profile and the overrides applied."""

    profile: Annotated[str, NOT_IDENTITY]
    data: Data
    recipe: RecipeDefaults
    sweep: Sweep
    gate: Gate
    promotion: Promotion
    serve: Serve
    tracking: Tracking
    paths: Paths

    @property
    def store(self) -> Path:
        """The profile's store."""
        return Path(self.paths.store).absolute() / self.profile

    @property
    def reports(self) -> Path:
        """The profile's reports."""
        return Path(self.paths.reports).absolute() / self.profile

    @property
    def cache(self) -> Path:
        """The downloads."""
        return Path(self.paths.cache).absolute()

    @property
    def checkpoints(self) -> str:
        """Where trials keep their checkpoints: an absolute path or a URI."""
        named = self.paths.checkpoints
        if named is None:
            return str(self.store / "trials")
        return f"{named.rstrip('/')}/{self.profile}" if "://" in named else str(Path(named).absolute() / self.profile)

    @property
    def dataset_name(self) -> str:
        """The data set's artifact."""
        return f"{self.data.name}_dataset"

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
            if name == "architecture" and not isinstance(domain, Choices):
                raise ValueError(f"sweep.space.architecture: must be a list of {', '.join(ARCHITECTURES)}")
            if isinstance(domain, PerArchitecture):
                for key in set(domain.domains) - {*ARCHITECTURES, "others"}:
                    known = (*ARCHITECTURES, "others")
                    raise ValueError(f"sweep.space.{name}.per_architecture.{key}: unknown{nearest(key, known)}")
            for value in domain.values():
                self._check_recipe_value(f"sweep.space.{name}", name, value)
        for index, first in enumerate(self.sweep.first):
            for name, value in first.items():
                path = f"sweep.first[{index}].{name}"
                self._check_recipe_value(path, name, value)
                within = self.sweep.space.get(name)
                if isinstance(within, PerArchitecture):
                    within = within.of(first.get("architecture", self.recipe.architecture))
                if within is not None and not within.contains(value):
                    raise ValueError(f"{path}: {value!r} lies outside sweep.space.{name}")
        return self

    def _check_recipe_value(self, path: str, name: str, value: Any) -> None:
        if name not in RecipeDefaults.model_fields:
            raise ValueError(f"{path}: unknown key{nearest(name, RecipeDefaults.model_fields)}")
        try:
            self.complete_recipe({name: value}, epochs=1)
        except ValidationError as error:
            raise ValueError(f"{path}: {explain(error.errors()[0])}") from None


def plain(value: Any) -> Any:
    """Return a value as JSON would: tuples become lists, models and dataclasses mappings."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def nearest(key: str, valid: Any) -> str:
    """Return `; did you mean x?` for the valid key that is nearest, else the list of valid keys."""
    close = difflib.get_close_matches(str(key), list(valid), n=1)
    return f"; did you mean {close[0]}?" if close else f"; valid keys: {', '.join(sorted(valid))}"


def explain(error: Any) -> str:
    """Return what is wrong with a value, from one entry of ValidationError.errors()."""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "string_pattern_mismatch":
        return f"must be lower-case letters, digits and hyphens (got {error['input']!r})"
    if error["type"] in ("value_error", "assertion_error"):
        return str(message)
    return f"must be {message} (got {error['input']!r})"
