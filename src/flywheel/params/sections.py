"""The params as typed, validated, frozen objects. params.yaml sets every value; none has a default here."""

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
    """Seeded corruptions of the simulation images, each with a severity from 0 (none) to 5."""

    rotation: Severity = Field(description="random rotation by up to ±7 degrees times severity")
    noise: Severity = Field(description="Gaussian noise, standard deviation 4.7 % of the range times severity")
    blur: Severity = Field(description="Gaussian blur, radius 0.3 pixels (at 32 pixels) times severity")
    brightness: Severity = Field(description="random factor, up to 1 ± 0.12 times severity")
    contrast: Severity = Field(description="random factor around the mean, up to 1 ± 0.15 times severity")


READS_PATH = ("folder",)  # the sources that read data.path


class Data(Section):
    """The data set that `make data` builds."""

    name: str = Field(pattern=NAME, description="prefix of the artifacts' names, such as <name>_dataset")
    source: Literal["cifar10", "folder", "digits"] = Field(description="where the images come from")
    path: Annotated[Text | None, NOT_IDENTITY] = Field(
        description="source folder: a directory, .tar, .tar.gz or .zip with train/<class>/* and test/<class>/*; "
        "identified by its content, so moving it re-runs nothing"
    )
    image_size: Annotated[int, Field(ge=8, le=512)] = Field(description="height and width, in pixels")
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = Field(description="fraction of each class's images")
    test_fraction: Fraction = Field(description="source folder: fraction of test images; the rest is simulation")
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


Architecture = Literal["standard", "upsample", "modified", "compact"]  # the names in models/architectures.py
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


# What `weight_decay: auto` stands for. AdamW's is a share of the rate, SGD's and Adam's a term of the loss.
WEIGHT_DECAY = {"sgd": 5e-4, "adam": 5e-4, "muon": 0.1}


class RecipeDefaults(Section):
    """How a network is trained. `sweep.space` can search each of these."""

    architecture: Architecture = Field(description="the network, by its name in models/architectures.py")
    optimizer: Literal["sgd", "adam", "muon"] = Field(
        description="SGD with Nesterov momentum, Adam, or Muon with AdamW beside it (docs/training.md)"
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(description="peak, reached after the warm-up")
    batch_size: Annotated[int, Field(ge=2, le=16384)] = Field(description="images per optimizer step")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(description="of SGD and Muon; beta1 of Adam and AdamW")
    weight_decay: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        description="applied to weights, not to biases and norms; auto: 0.0005; with Muon 0.1, by AdamW only"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(description="probability spread over all classes")
    warmup_fraction: Annotated[float, Field(ge=0, le=0.9)] = Field(
        description="fraction of all steps in which the learning rate rises; afterwards it falls linearly to zero"
    )
    flip: bool = Field(description="mirror images horizontally at random; not for digits")
    translate: Annotated[int, Field(ge=0, le=64)] = Field(description="random shift by up to this many pixels")
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="auto: bfloat16 where the hardware has it")
    compile: bool = Field(description="use torch.compile; worth it for long trainings on a GPU")
    seed: Seed = Field(description="seed of the initial weights, the image order and the augmentation")

    def identity(self) -> dict[str, Any]:
        """Return the params that change the result; for `auto` the numbers that it stands for."""
        result = super().identity()
        if self.weight_decay == "auto":
            result["weight_decay"] = dict(WEIGHT_DECAY)
        return result


class Recipe(RecipeDefaults):
    """A complete recipe, with a number for each `auto`: what a training follows and what a model records."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(description="applied to weights, not to biases and norms")
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
    searcher: Literal["tpe", "gp", "random"] = Field(description="tpe and gp are Bayesian, random is not")
    early_stopping: bool = Field(description="stop trials that fall behind the others (ASHA)")
    seed: Seed = Field(description="seed of the searcher")
    max_concurrent_trials: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)], NOT_IDENTITY] = Field(
        description="trials at a time; auto: as many as the CPUs and GPUs allow, at most a third of all trials"
    )
    cpus_per_trial: Annotated[float, Field(ge=0.1, le=1024), AfterValidator(whole_above_one), NOT_IDENTITY] = Field(
        description="CPUs per trial, also its number of torch threads"
    )
    gpus_per_trial: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(whole_above_one)], NOT_IDENTITY
    ] = Field(description="GPUs per trial: 0.5 puts two trials on a GPU; auto: 1 if there is a GPU, otherwise 0")
    time_budget_s: Annotated[Annotated[float, Field(ge=1)] | None, NOT_IDENTITY] = Field(
        description="limit on the total running time of the sweep; at the limit the best model so far is published; "
        "raise it to continue"
    )
    checkpoint_interval_s: Annotated[float, Field(ge=0, le=86_400), NOT_IDENTITY] = Field(
        description="seconds after which a trial saves its state, at the next end of an epoch; 0: after every epoch"
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000), NOT_IDENTITY] = Field(
        description="number of finished trials whose models are published; the best one gets the alias best"
    )
    initial_trials: tuple[dict[str, Any], ...] = Field(
        description="trials to run before the search: recipe values that differ from the defaults"
    )
    space: dict[str, Annotated[Domain, BeforeValidator(parse_domain)]] = Field(
        description="what to search: choices or ranges"
    )

    @model_validator(mode="after")
    def _searcher_fits(self) -> Sweep:
        if self.searcher == "gp" and self.early_stopping:
            raise KeyedError(("sweep", "searcher"), "gp needs sweep.early_stopping=false (it ignores stopped trials)")
        return self


class Gate(Section):
    """The rules that a model must pass before it goes into production."""

    floor_accuracy: Annotated[float, Field(ge=0, le=1)] = Field(description="minimum test accuracy of the first model")
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="how much test accuracy a candidate may lose against production and against the best model ever "
        "there, by the lower 95 % bound; 0: it must be shown better (docs/gate.md)"
    )
    class_margin: Annotated[float, Field(ge=0, le=1)] = Field(
        description="refuse if a class's interval (95 % for all classes together) is entirely below minus this"
    )


class Promotion(Section):
    """Whether models go into production automatically."""

    auto: bool = Field(description="promote a model that passes the gate")


class Serve(Section):
    """The server that `make serve` starts: address, replicas and limits."""

    host: Text = Field(description="address to listen on; 127.0.0.1: this machine only")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="HTTP port")
    min_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="minimum number of copies of the model")
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="above min_replicas, Ray Serve autoscales")
    cpus_per_replica: Annotated[float, Field(ge=0.1, le=1024), AfterValidator(whole_above_one)] = Field(
        description="CPUs per replica, also its number of torch threads"
    )
    gpus_per_replica: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(whole_above_one)], Field()
    ] = Field(description="GPUs per replica: 0.5 puts two replicas on a GPU; auto: 1 if there is a GPU, otherwise 0")
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(description="maximum size of a batch, in images")
    max_queued_images: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="maximum number of waiting images per replica; further requests get 503 with Retry-After"
    )
    max_body_bytes: Annotated[int, Field(ge=1_000, le=10**9)] = Field(description="larger requests get 413")
    max_parts: Annotated[int, Field(ge=1, le=10_000)] = Field(description="maximum images in a multipart request")
    poll_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(description="time between checks of the production alias")
    start_timeout_s: Annotated[float, Field(ge=5, le=3600)] = Field(description="how long make serve waits for it")
    access_log: bool = Field(description="log requests as JSON in store/<profile>/logs/access-<replica>.jsonl")

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
    """The client that simulates production traffic: it sends the simulation images to the server."""

    url: Annotated[str | None, AfterValidator(_base_url), NOT_IDENTITY] = Field(
        description="address of the server, such as http://127.0.0.1:8000; null: the server that make serve started"
    )
    requests: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        description="number of simulation images to send, drawn at random; null: all"
    )
    seed: Seed = Field(description="seed of the draw and of the order")
    concurrency: Annotated[int, Field(ge=1, le=1024), NOT_IDENTITY] = Field(description="requests in flight at a time")
    timeout_s: Annotated[float, Field(gt=0, le=3600), NOT_IDENTITY] = Field(
        description="timeout for connecting, and again for waiting for the answer"
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000), NOT_IDENTITY] = Field(
        description="maximum number of attempts per image; 5xx answers, resets and timeouts are retried"
    )
    max_error_fraction: Annotated[float, Field(ge=0, lt=1), NOT_IDENTITY] = Field(
        description="maximum fraction of images without an answer; above it, the simulation fails and publishes nothing"
    )
    table_rows: Annotated[int, Field(ge=0, le=10_000), NOT_IDENTITY] = Field(
        description="maximum number of right predictions in the W&B table, drawn at random; 0: no table"
    )


class Retrain(Section):
    """Continue training the production model on the original images and its failures."""

    min_failures: Annotated[int, Field(ge=1, le=10_000_000), NOT_IDENTITY] = Field(
        description="minimum number of new failures on the side train; with fewer, make retrain does nothing"
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(description="passes over originals and failures")
    weight: Annotated[float, Field(gt=0, le=5)] = Field(
        description="how often an epoch uses each failure, beside every original once; fractions are rounded at random"
    )
    learning_rate_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        description="learning rate as a fraction of the rate in the sweep's recipe"
    )
    control: Annotated[bool, NOT_IDENTITY] = Field(
        description="train a second model on right answers instead of the failures, for comparison; doubles the time"
    )
    seed: Seed = Field(description="seed of image order, augmentation, rounding and the control arm's images")


class Tracking(Section):
    """The connection to Weights & Biases."""

    wandb: Annotated[Literal["auto", "online", "offline", "disabled"], BeforeValidator(_no_switch), NOT_IDENTITY] = (
        Field(description="auto: WANDB_MODE if set; else online if there is a key and W&B answers; else offline")
    )
    project: Annotated[Text | None, NOT_IDENTITY] = Field(description="W&B project; null: flywheel-<profile>")
    registry: Annotated[Annotated[str, AfterValidator(_a_collection)] | None, NOT_IDENTITY] = Field(
        description="W&B registry and collection that models are linked to, one per profile; "
        "null: wandb-registry-model/<data.name>-classifier"
    )
    machine_info: Annotated[bool, NOT_IDENTITY] = Field(
        description="send host name, paths, command line, git state and machine load to W&B"
    )


class Paths(Section):
    """Folders on disk. Each profile has its own subfolder in the store and in the reports."""

    store: Annotated[Text, NOT_IDENTITY] = Field(description="folder of artifacts, receipts and journals")
    reports: Annotated[Text, NOT_IDENTITY] = Field(description="folder of results and pictures")
    cache: Annotated[Text, NOT_IDENTITY] = Field(description="folder of downloads, shared by all profiles")
    checkpoints: Annotated[Text | None, NOT_IDENTITY] = Field(
        description="where running trials save checkpoints: a directory or an fsspec URI that every node of a cluster "
        "reaches; null: in the store"
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
        """The paths of all files in the profile's store."""
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
    def _space_and_initial_trials_are_recipes(self) -> Params:
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
        for index, values in enumerate(self.sweep.initial_trials):
            for name, value in values.items():
                self._check_recipe_value(("sweep", "initial_trials", f"[{index}]", name), value)
            for name, value in values.items():
                within = self.sweep.space.get(name)
                if isinstance(within, PerArchitecture):
                    within = within.of(values.get("architecture", self.recipe.architecture))
                if within is not None and not within.contains(value):
                    reason = f"{show_value(value)} lies outside sweep.space.{name}"
                    raise KeyedError(("sweep", "initial_trials", f"[{index}]", name), reason)
        return self

    def _check_recipe_value(self, key: tuple[str, ...], value: Any) -> None:
        if key[-1] not in RecipeDefaults.model_fields:
            raise KeyedError(key, f"unknown key{nearest(key[-1], RecipeDefaults.model_fields, dotted(key[:-1]))}")
        try:
            RecipeDefaults.model_validate({**self.recipe.model_dump(), key[-1]: value})
        except ValidationError as error:
            raise KeyedError(key, either(map(explain, error.errors()))) from None
