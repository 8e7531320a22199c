"""From a point of the search space to a recipe and back.

The searcher works in [0, 1] for every range and this module maps to the range of the architecture: one
name with several ranges would drop out of multivariate TPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel.params import Params, Recipe, RecipeDefaults
from flywheel.search_space import Choices, Domain, Range

Point = dict[str, float | int | str | bool]


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
            values[name] = _in_type(name, inner.at(float(point[name])))
    return params.complete_recipe(values, params.sweep.epochs)


def to_point(params: Params, first: Mapping[str, Any]) -> Point:
    """Return the point of a trial of sweep.first; defaults that lie outside the space move to its nearest end."""
    recipe = params.recipe.model_copy(update=dict(first))
    values = recipe.model_dump()
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
                values[name] = recipe.decay()  # `auto` has no place in a range
            point[name] = inner.position(values[name]) if inner else 0.5
    return point


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
