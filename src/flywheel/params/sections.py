"""The params as typed, validated, frozen objects. Every knob stands in params.yaml; none has a default here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from flywheel.params.base import NAME, NOT_IDENTITY, Fraction, Section, Seed, Severity, Text, whole_above_one
from flywheel.params.errors import KeyedError, dotted, either, explain, nearest, show_value
from flywheel.params.paths import StorePaths
from flywheel.params.space import Choices, Domain, PerArchitecture
from flywheel.params.space import parse as parse_domain

RETRAINED_NAME = "retrained-model"  # the artifact of every turn
COLLECTION = re.compile(r"wandb-registry-[\w-]+/[A-Za-z0-9][\w.-]{0,127}")


def _a_collection(value: str) -> str:
    if not COLLECTION.fullmatch(value):
        raise ValueError(f"must be wandb-registry-<registry>/<collection> (got {value!r})")
    return value


def _base_url(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", value):
        raise ValueError(f"must be like http://127.0.0.1:8000 (got {value!r})")
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

    def identity(self) -> dict[str, Any]:
        """Return the params that change the result; for `auto` the numbers that it stands for."""
        result = super().identity()
        if self.weight_decay == "auto":
            result["weight_decay"] = dict(WEIGHT_DECAY)
        return result


class Recipe(RecipeDefaults):
    """A complete recipe, with a number for each `auto`: what a training follows and what a model records."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(description="of weights, not of biases and norms")
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(description="passes over the training images")

    @model_validator(mode="before")
    @classmethod
    def _resolve_auto(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and values.get("weight_decay") == "auto"
            and values.get("optimizer") in WEIGHT_DECAY
        ):
            return {**values, "weight_decay": WEIGHT_DECAY[values["optimizer"]]}
        return values


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
    space: dict[str, Annotated[Domain, BeforeValidator(parse_domain)]] = Field(description="what is searched")

    @model_validator(mode="after")
    def _searcher_fits(self) -> Sweep:
        if self.searcher == "gp" and self.early_stopping:
            raise KeyedError(("sweep", "searcher"), "gp needs sweep.early_stopping=false (it ignores stopped trials)")
        return self


class Gate(Section):
    """What a model must show before it goes into production."""

    floor_accuracy: Annotated[float, Field(ge=0, le=1)] = Field(description="test accuracy of a first model, at least")
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="test accuracy that a candidate may lose to production, or to the best ever, within the 95 % "
        "interval; 0: it must be shown better (docs/gate.md)"
    )
    class_margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="a class is harmed if its interval (95 % for all classes together) lies wholly below minus this"
    )


class Promotion(Section):
    """How models reach production."""

    auto: bool = Field(description="promote what passes the gate")


class Serve(Section):
    """The server: how much it takes, where it listens, how it grows."""

    host: Text = Field(description="where HTTP is answered; 127.0.0.1 = this machine only")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="of HTTP")
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="copies of the model, at least")
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="at most; more than min_replicas autoscales")
    cpus_per_replica: Annotated[float, Field(ge=0.1, le=1024), AfterValidator(whole_above_one)] = Field(
        description="also the torch threads of a replica"
    )
    gpus_per_replica: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(whole_above_one)], Field()
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


class Simulate(Section):
    """The client that plays production traffic: the simulation images, sent to the server."""

    url: Annotated[str | None, AfterValidator(_base_url), NOT_IDENTITY] = Field(
        description="of the server, such as http://127.0.0.1:8000; null: what make serve started"
    )
    requests: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        description="how many of the simulation images to send, drawn at random; null: all"
    )
    seed: Seed = Field(description="of the draw and of the order")
    concurrency: Annotated[int, Field(ge=1, le=1024), NOT_IDENTITY] = Field(description="requests in flight at a time")
    timeout_s: Annotated[float, Field(gt=0, le=3600), NOT_IDENTITY] = Field(
        description="to connect, and again for each wait for an answer"
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000), NOT_IDENTITY] = Field(
        description="for each image: 5xx answers, resets and timeouts are tried again"
    )
    max_error_fraction: Annotated[float, Field(ge=0, lt=1), NOT_IDENTITY] = Field(
        description="of the images may go without an answer; beyond, the simulation ends and publishes nothing"
    )
    table_rows: Annotated[int, Field(ge=0, le=10_000), NOT_IDENTITY] = Field(
        description="right predictions in the W&B table, at most, drawn at random; 0: no table"
    )


class Retrain(Section):
    """Training on from production with the failures it had."""

    min_failures: Annotated[int, Field(ge=1, le=10_000_000), NOT_IDENTITY] = Field(
        description="new ones for training that make it worth while; fewer: nothing is done"
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(description="passes over the mix")
    weight: Annotated[float, Field(gt=0, le=5)] = Field(
        description="how often each failure stands in the mix, beside every original once; fractions by seeded rounding"
    )
    learning_rate_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        description="of the learning rate that the sweep's model was trained with"
    )
    control: Annotated[bool, NOT_IDENTITY] = Field(
        description="train a second time on right answers in place of the failures, to compare; doubles the time"
    )
    seed: Seed = Field(description="of the order, the augmentation, the rounding and the control arm's draw")


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
    def store_paths(self) -> StorePaths:
        """Where everything lies in the profile's store."""
        return StorePaths(self.store)

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
            return str(self.store_paths.trials)
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
            RecipeDefaults.model_validate({**self.recipe.model_dump(), key[-1]: value})
        except ValidationError as error:
            raise KeyedError(key, either(map(explain, error.errors()))) from None
