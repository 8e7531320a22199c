"""What a searched value may be: a range or a list of choices, as written in params.yaml.

learning_rate: {log_uniform: [0.003, 0.3]}
weight_decay: {uniform: [0.0, 0.001]}
batch_size: [64, 128, 256]
optimizer: adam                                             # fixed
learning_rate: {per_architecture: {standard: {log_uniform: [0.01, 0.3]}, others: 0.1}}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LARGEST = 1e300
Scalar = float | int | str | bool


@dataclass(frozen=True)
class Range:
    """A range of numbers, searched uniformly or uniformly in the logarithm."""

    low: float
    high: float
    log: bool

    def values(self) -> tuple[Scalar, ...]:
        """Return the values that stand in params.yaml."""
        return tuple(int(bound) if bound == int(bound) else bound for bound in (self.low, self.high))

    def contains(self, value: Scalar) -> bool:
        """Tell whether the range holds a value."""
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choices:
    """A list of choices; a fixed value is a list of one."""

    choices: tuple[Scalar, ...]

    def values(self) -> tuple[Scalar, ...]:
        """Return the values that stand in params.yaml."""
        return self.choices

    def contains(self, value: Scalar) -> bool:
        """Tell whether a value is one of the choices."""
        return value in self.choices


@dataclass(frozen=True)
class PerArchitecture:
    """A domain an architecture; `others` holds for the architectures that are not named."""

    domains: dict[str, Range | Choices]

    def values(self) -> tuple[Scalar, ...]:
        """Return the values that stand in params.yaml."""
        return tuple(value for domain in self.domains.values() for value in domain.values())

    def of(self, architecture: str) -> Range | Choices | None:
        """Return the domain of an architecture, or None where it has none."""
        return self.domains.get(architecture, self.domains.get("others"))


Domain = Range | Choices | PerArchitecture


def parse(value: Any) -> Domain:
    """Return the domain that a value of params.yaml describes. Raises ValueError with what is wrong."""
    if isinstance(value, dict) and set(value) == {"per_architecture"}:
        parts = value["per_architecture"]
        if not isinstance(parts, dict) or not parts:
            raise ValueError("per_architecture must map architectures (or others) to ranges")
        domains: dict[str, Range | Choices] = {}
        for name, part in parts.items():
            domain = parse(part)
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
    # Neither infinity nor NaN nor an integer that no float can hold lies between these.
    kinds = [bound for bound in bounds if isinstance(bound, int | float) and not isinstance(bound, bool)]
    numbers = [bound for bound in kinds if -LARGEST < bound < LARGEST]
    if len(bounds) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"{kind} must be two numbers, the lower first (got {list(bounds)!r:.100})")
    if kind == "log_uniform" and numbers[0] <= 0:
        raise ValueError(f"log_uniform needs a lower bound above 0 (got {numbers[0]})")
    return Range(float(numbers[0]), float(numbers[1]), log=kind == "log_uniform")
