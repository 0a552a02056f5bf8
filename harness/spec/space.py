"""The search space of a study file: parameters, their ranges, and their conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from harness.spec.params import Bool, Float, Int, Scalar, Table


def is_active(when: Mapping[str, Scalar | list[Scalar]], params: Mapping[str, Any]) -> bool:
    """Whether every condition of ``when`` holds."""
    return all(
        params.get(name) in wanted if isinstance(wanted, list) else params.get(name) == wanted
        for name, wanted in when.items()
    )


class _Param(Table):
    when: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Search this parameter only where others have the given value (or one of a list).",
    )


class _Range(_Param):
    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high, log, step = (getattr(self, name) for name in ("low", "high", "log", "step"))
        if low > high:
            raise ValueError(f"low ({low}) must not exceed high ({high})")
        if log and low <= 0:
            raise ValueError(f"log = true needs low > 0, found {low}")
        whole = isinstance(self, IntParam)  # whose step is 1 where none is given
        if log and step != (1 if whole else None):
            raise ValueError("log and step exclude each other")
        return self


class FloatParam(_Range):
    """Optuna's suggest_float."""

    type: Literal["float"]
    low: Float
    high: Float
    log: Bool = False
    step: Float | None = Field(None, gt=0)

    @property
    def examples(self) -> tuple[Scalar, ...]:
        return (self.low, self.high)


class IntParam(_Range):
    """Optuna's suggest_int."""

    type: Literal["int"]
    low: Int
    high: Int
    log: Bool = False
    step: Int = Field(1, ge=1)

    @property
    def examples(self) -> tuple[Scalar, ...]:
        return (self.low, self.high)


class CategoricalParam(_Param):
    """Optuna's suggest_categorical."""

    type: Literal["categorical"]
    choices: tuple[Scalar, ...] = Field(min_length=1)

    @property
    def examples(self) -> tuple[Scalar, ...]:
        return self.choices


Param = Annotated[FloatParam | IntParam | CategoricalParam, Field(discriminator="type")]
