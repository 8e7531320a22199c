"""From a point of the search space to a recipe and back.

The searcher works in [0, 1] for every range and this module maps to the range of the architecture: one
name with several ranges would drop out of multivariate TPE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flywheel.params import Params, Recipe, RecipeDefaults
from flywheel.params.space import Choices, Domain, Range, Scalar

Point = dict[str, Scalar]


def dimensions(params: Params) -> dict[str, tuple[Any, ...] | None]:
    """Return what is searched: name -> choices, or None for a position in [0, 1]. Fixed values are left out."""
    return {
        name: domain.choices if isinstance(domain, Choices) else None
        for name, domain in params.sweep.space.items()
        if not (isinstance(domain, Choices) and len(domain.choices) == 1)
    }


def searched_architectures(params: Params) -> list[str]:
    """Return the architectures that trials may have."""
    domain = params.sweep.space.get("architecture")
    return [str(name) for name in domain.values()] if domain else [params.recipe.architecture]


def to_recipe(params: Params, point: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a point; what the space does not name comes from the recipe's defaults."""
    values: dict[str, Any] = {}
    for name, domain in params.sweep.space.items():
        if isinstance(domain, Choices):
            values[name] = point.get(name, domain.choices[0])
    architecture = str(values.get("architecture", params.recipe.architecture))
    for name, domain in params.sweep.space.items():
        inner = _of(domain, architecture)
        if inner is not None and not isinstance(domain, Choices):
            values[name] = _in_type(name, value_at(inner, float(point[name])))
    return params.complete_recipe(values, params.sweep.epochs)


def to_point(params: Params, first: Mapping[str, Any]) -> Point:
    """Return the point of an initial trial; defaults that lie outside the space move to its nearest end."""
    values = params.recipe.model_copy(update=dict(first)).model_dump()
    architectures = searched_architectures(params)
    if values["architecture"] not in architectures:
        values["architecture"] = architectures[0]
    point: Point = {}
    for name, choices in dimensions(params).items():
        domain = params.sweep.space[name]
        if choices is not None:
            point[name] = values[name] if values[name] in choices else choices[0]
        else:
            inner = _of(domain, str(values["architecture"]))
            if name == "weight_decay" and isinstance(inner, Range):
                values[name] = params.complete_recipe(dict(first), epochs=1).weight_decay  # a number, also for `auto`
            point[name] = position_of(inner, values[name]) if inner else 0.5
    return point


def value_at(domain: Range | Choices, unit: float) -> Scalar:
    """Return the value at a position in [0, 1] of a range, or of a list of choices with equal shares."""
    if isinstance(domain, Choices):
        return domain.choices[min(int(unit * len(domain.choices)), len(domain.choices) - 1)]
    if domain.log:
        value = math.exp(math.log(domain.low) + unit * (math.log(domain.high) - math.log(domain.low)))
    else:
        value = domain.low + unit * (domain.high - domain.low)
    value = float(f"{value:.12g}")  # exp(log(x)) differs from x by rounding
    return min(max(value, domain.low), domain.high)


def position_of(domain: Range | Choices, value: Scalar) -> float:
    """Return the position of a value in [0, 1]: the nearest end for a value outside, the middle of a choice's share."""
    if isinstance(domain, Choices):
        index = domain.choices.index(value) if value in domain.choices else 0
        return (index + 0.5) / len(domain.choices)
    number = min(max(float(value), domain.low), domain.high)
    if domain.log:
        return (math.log(number) - math.log(domain.low)) / (math.log(domain.high) - math.log(domain.low))
    return (number - domain.low) / (domain.high - domain.low)


def logarithmic(params: Params) -> list[str]:
    """Return the searched params whose range is logarithmic."""

    def is_log(domain: Domain) -> bool:
        parts = [domain] if isinstance(domain, Range | Choices) else list(domain.domains.values())
        return any(isinstance(part, Range) and part.log for part in parts)

    return [name for name, domain in params.sweep.space.items() if is_log(domain)]


def _of(domain: Domain, architecture: str) -> Range | Choices | None:
    return domain if isinstance(domain, Range | Choices) else domain.of(architecture)


def _in_type(name: str, value: Any) -> Any:
    """Return a number from a range in the type of its recipe param: 64.2 is 64 for a batch size."""
    whole = RecipeDefaults.model_fields[name].annotation is int
    return round(value) if whole and isinstance(value, float) else value
