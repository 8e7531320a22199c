"""The base class of all sections of the params: strict, frozen, and marked by whether they change a result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flywheel.params.errors import show_value

NOT_IDENTITY = object()  # marks a param that does not change the result
NAME = r"^[a-z0-9][a-z0-9-]{0,40}$"


class Section(BaseModel):
    """Base of a section of params.yaml: frozen, strict about types; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def section(cls, key: str) -> type[Section] | None:
        """Return the class of the section that a key holds, or None if it holds a value or does not exist."""
        field = cls.model_fields.get(key)
        kind = field.annotation if field else None
        return kind if isinstance(kind, type) and issubclass(kind, Section) else None

    def identity(self) -> dict[str, Any]:
        """Return the params that change the result, as JSON values; leave out those marked NOT_IDENTITY."""
        result: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if not any(mark is NOT_IDENTITY for mark in field.metadata):
                value = getattr(self, name)
                result[name] = value.identity() if isinstance(value, Section) else plain(value)
        return result


def _whole_above_one(value: float) -> float:
    """Refuse 1.5: resources are a fraction below 1 or a whole number."""
    if value > 1 and value != int(value):
        raise ValueError(f"must be a fraction below 1 or a whole number (got {value:g})")
    return value


def _shown(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"must be text that can be shown (got {show_value(value)})")
    return value


def _with_home(value: str) -> str:
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError(
            f"there is no home directory of {Path(value).parts[0]}; write ./~… for a folder whose name begins with ~"
        ) from None
    return value


Cpus = Annotated[float, Field(ge=0.1, le=1024), AfterValidator(_whole_above_one)]
Gpus = Literal["auto"] | Annotated[float, Field(ge=0, le=64), AfterValidator(_whole_above_one)]
Severity = Annotated[float, Field(ge=0, le=5)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_shown)]
FilePath = Annotated[Text, AfterValidator(_with_home)]  # ~ and ~user are expanded where it is used
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def plain(value: Any) -> Any:
    """Convert a value to plain JSON types: tuples become lists, models and dataclasses become mappings."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
