"""The sections recipe and sweep of params.yaml, with the search space, and `Params`, which holds all sections.

params.yaml sets every value; no param has a default here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from flywheel.params.base import NAME, NOT_IDENTITY, Cpus, Gpus, Section, Seed
from flywheel.params.data import Data
from flywheel.params.errors import KeyedError, dotted, either, explain, nearest, show_value
from flywheel.params.operation import (
    Gate,
    Label,
    Monitor,
    Paths,
    Promotion,
    Retrain,
    Serve,
    Simulate,
    Tracking,
    Traffic,
)
from flywheel.params.paths import StorePaths

RETRAINED_NAME = "retrained-model"  # the artifact of every retraining
LARGEST = 1e300  # bound of a range


Architecture = Literal["standard", "upsample", "modified", "compact"]  # the names in models/architectures.py
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


# The values of `weight_decay: auto`. AdamW's is a fraction of the learning rate, SGD's and Adam's a term of the loss.
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
        """Return the params that change the result; with the numbers of `auto`."""
        result = super().identity()
        if self.weight_decay == "auto":
            result["weight_decay"] = dict(WEIGHT_DECAY)
        return result


class Recipe(RecipeDefaults):
    """A complete recipe with a number for each `auto`, as a training uses it and a model records it."""

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


Scalar = float | int | str | bool


class _SimpleDomain:
    def of(self, architecture: str) -> Self:
        """Return the domain of an architecture: this one for all."""
        return self


@dataclass(frozen=True)
class Range(_SimpleDomain):
    """A range of numbers, searched uniformly or uniformly in the logarithm."""

    low: float
    high: float
    log: bool

    def values(self) -> tuple[Scalar, ...]:
        """Return the values in params.yaml."""
        return tuple(int(bound) if bound == int(bound) else bound for bound in (self.low, self.high))

    def contains(self, value: Scalar) -> bool:
        """Return whether a value is in the range."""
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choices(_SimpleDomain):
    """A list of choices; a fixed value is a list of one."""

    choices: tuple[Scalar, ...]
    log = False

    def values(self) -> tuple[Scalar, ...]:
        """Return the values in params.yaml."""
        return self.choices

    def contains(self, value: Scalar) -> bool:
        """Return whether a value is one of the choices."""
        return value in self.choices


@dataclass(frozen=True)
class PerArchitecture:
    """A domain for each architecture; `others` is for those without one of their own."""

    domains: dict[str, Range | Choices]

    @property
    def log(self) -> bool:
        """Whether one of the domains is logarithmic."""
        return any(domain.log for domain in self.domains.values())

    def values(self) -> tuple[Scalar, ...]:
        """Return the values in params.yaml."""
        return tuple(value for domain in self.domains.values() for value in domain.values())

    def of(self, architecture: str) -> Range | Choices | None:
        """Return the domain of an architecture, or None where it has none."""
        return self.domains.get(architecture, self.domains.get("others"))


Domain = Range | Choices | PerArchitecture


def parse_domain(value: Any) -> Domain:
    """Return the domain that a value of sweep.space describes. Raises ValueError.

    learning_rate: {log_uniform: [0.003, 0.3]}
    weight_decay: {uniform: [0.0, 0.001]}
    batch_size: [64, 128, 256]
    optimizer: adam                                             # fixed
    learning_rate: {per_architecture: {standard: {log_uniform: [0.01, 0.3]}, others: 0.1}}
    """
    if isinstance(value, dict) and set(value) == {"per_architecture"}:
        parts = value["per_architecture"]
        if not isinstance(parts, dict) or not parts:
            raise ValueError("per_architecture must map architectures (or others) to ranges")
        domains: dict[str, Range | Choices] = {}
        for name, part in parts.items():
            domain = parse_domain(part)
            if isinstance(domain, PerArchitecture):
                raise ValueError("per_architecture cannot be nested")
            domains[str(name)] = domain
        return PerArchitecture(domains)
    if isinstance(value, dict):
        return _parse_range(value)
    choices = value if isinstance(value, list | tuple) else (value,)
    if not choices or not all(isinstance(choice, str | int | float) for choice in choices):
        raise ValueError(
            f"must be a value, a list of choices, {{log_uniform: [low, high]}}, {{uniform: [low, high]}} "
            f"or {{per_architecture: …}} (got {value!r:.100})"
        )
    if len(set(map(repr, choices))) < len(choices):
        raise ValueError(f"lists a choice twice: {list(choices)!r:.100}")
    return Choices(tuple(choices))


def _parse_range(value: dict[str, Any]) -> Range:
    kind = next(iter(value), None)
    bounds = value.get(kind) if kind else None
    if len(value) != 1 or kind not in ("log_uniform", "uniform") or not isinstance(bounds, list | tuple):
        raise ValueError(f"must be {{log_uniform: [low, high]}} or {{uniform: [low, high]}} (got {value!r:.100})")
    # The bound excludes infinity, NaN and integers that no float can hold.
    kinds = [bound for bound in bounds if isinstance(bound, int | float) and not isinstance(bound, bool)]
    numbers = [bound for bound in kinds if -LARGEST < bound < LARGEST]
    if len(bounds) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"{kind} must be two numbers, the lower first (got {list(bounds)!r:.100})")
    if kind == "log_uniform" and numbers[0] <= 0:
        raise ValueError(f"log_uniform needs a lower bound above 0 (got {numbers[0]})")
    return Range(float(numbers[0]), float(numbers[1]), log=kind == "log_uniform")


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
    cpus_per_trial: Annotated[Cpus, NOT_IDENTITY] = Field(
        description="CPUs per trial, also its number of torch threads"
    )
    gpus_per_trial: Annotated[Gpus, NOT_IDENTITY] = Field(
        description="GPUs per trial: 0.5 puts two trials on a GPU; auto: 1 if there is a GPU, otherwise 0"
    )
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

    @property
    def searched(self) -> list[str]:
        """The params that vary in the search space."""
        return [n for n, domain in self.space.items() if not isinstance(domain, Choices) or len(domain.choices) > 1]

    @property
    def logarithmic(self) -> list[str]:
        """The params with a logarithmic range."""
        return [name for name, domain in self.space.items() if domain.log]

    @model_validator(mode="after")
    def _searcher_fits(self) -> Sweep:
        if self.searcher == "gp" and self.early_stopping:
            raise KeyedError(("sweep", "searcher"), "gp needs sweep.early_stopping=false (it ignores stopped trials)")
        return self


def _local(path: str) -> Path:
    return Path(path).expanduser().absolute()


class Params(Section):
    """All of params.yaml with the profile and the overrides applied."""

    profile: Annotated[str, Field(pattern=NAME), NOT_IDENTITY]
    data: Data
    recipe: RecipeDefaults
    sweep: Sweep
    gate: Gate
    promotion: Promotion
    serve: Annotated[Serve, NOT_IDENTITY]
    traffic: Annotated[Traffic, NOT_IDENTITY]
    label: Annotated[Label, NOT_IDENTITY]
    monitor: Annotated[Monitor, NOT_IDENTITY]
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
    def pixels_name(self) -> str:
        """The artifact of the production images that no data set holds."""
        return f"{self.data.name}-feedback-pixels"

    @property
    def feedback_name(self) -> str:
        """The failures' artifact."""
        return f"{self.data.name}-feedback"

    @property
    def registered_model(self) -> str:
        """The registered model whose versions are links."""
        return f"{self.data.name}-classifier"

    @property
    def architectures(self) -> list[str]:
        """The architectures that trials may have."""
        domain = self.sweep.space.get("architecture")
        return [str(name) for name in domain.values()] if domain else [self.recipe.architecture]

    def complete_recipe(self, values: dict[str, Any], epochs: int) -> Recipe:
        """Return the recipe with these values, and the defaults for all others. Raises pydantic.ValidationError."""
        return Recipe.model_validate({**self.recipe.model_dump(), **values, "epochs": epochs})

    @model_validator(mode="after")
    def _space_and_initial_trials_are_recipes(self) -> Params:
        for name, searched in self.sweep.space.items():
            key = ("sweep", "space", name)
            if name == "architecture" and not isinstance(searched, Choices):
                raise KeyedError(key, f"must be a list of {', '.join(ARCHITECTURES)}")
            if isinstance(searched, PerArchitecture):
                known = (*ARCHITECTURES, "others")
                for part in set(searched.domains) - set(known):
                    raise KeyedError((*key, "per_architecture", part), f"unknown architecture{nearest(part, known)}")
            for value in searched.values():
                self._check_recipe_value(key, value)
        for index, values in enumerate(self.sweep.initial_trials):
            for name, value in values.items():
                self._check_recipe_value(("sweep", "initial_trials", f"[{index}]", name), value)
            for name, value in values.items():
                domain = self.sweep.space.get(name)
                within = domain.of(values.get("architecture", self.recipe.architecture)) if domain else None
                if within is not None and not within.contains(value):
                    reason = f"{show_value(value)} is outside sweep.space.{name}"
                    raise KeyedError(("sweep", "initial_trials", f"[{index}]", name), reason)
        return self

    def _check_recipe_value(self, key: tuple[str, ...], value: Any) -> None:
        if key[-1] not in RecipeDefaults.model_fields:
            raise KeyedError(key, f"unknown key{nearest(key[-1], RecipeDefaults.model_fields, dotted(key[:-1]))}")
        try:
            RecipeDefaults.model_validate({**self.recipe.model_dump(), key[-1]: value})
        except ValidationError as error:
            raise KeyedError(key, either(map(explain, error.errors()))) from None
