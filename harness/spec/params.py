"""Hyperparameters as a person may write them in a file: those of HParams and their aliases, each of them optional."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, Strict, create_model

from harness.gan.hparams import ALIASES, FIELDS, HParams, Precision, expand

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
Scalar = bool | int | float | str
# What TOML knows apart: "8" and 8.0 are not whole numbers, "true" is not a truth value.
Bool = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Kimg = Annotated[Float, Field(gt=0, le=1e6)]


class Table(BaseModel):
    """A TOML table: immutable, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ParamsTable(Table):
    """A table of hyperparameters. What is absent keeps the default of ``HParams``."""

    model_config = ConfigDict(strict=True)

    def params(self) -> dict[str, Any]:
        """What is set, by field of HParams."""
        return expand(self.model_dump(exclude_none=True))


_DECLARED = get_type_hints(HParams, include_extras=True)
_DEFAULTS = HParams()
_OF_STUDY = ("network", "image_size", "channels")  # not a trial's choice
SEARCHABLE: tuple[str, ...] = (*(name for name in FIELDS if name not in _OF_STUDY), *ALIASES)


def _field(name: str) -> tuple[Any, None]:
    """A hyperparameter's field in a file's model: as HParams declares it, but optional."""
    targets = ALIASES.get(name, (name,))
    kind, *limits, meant = get_args(_DECLARED[targets[0]])
    limits.append(Field(description=f"{' and '.join(targets)}." if name in ALIASES else meant))
    if name != "precision":  # which the device decides where no file does
        limits.append(Field(json_schema_extra={"default": getattr(_DEFAULTS, targets[0])}))
    return Annotated[kind | None, *limits], None


if TYPE_CHECKING:

    class FixedParams(ParamsTable):
        precision: Precision | None = None

else:
    FixedParams = create_model(
        "FixedParams",
        __base__=ParamsTable,
        __module__=__name__,
        __doc__="Hyperparameters that every trial of the study shares; what is absent keeps its default.",
        **{name: _field(name) for name in SEARCHABLE},
    )


def param_types(name: str) -> tuple[str, ...]:
    """The types that a searched parameter may have: as its field, or as a choice of values."""
    kind = get_args(_DECLARED[ALIASES.get(name, (name,))[0]])[0]
    return (*{int: ("int",), float: ("float",)}.get(kind, ()), "categorical")


def meaning(name: str) -> str:
    """What a hyperparameter is, in a sentence or more."""
    return FixedParams.model_fields[name].description or ""


def label(name: str) -> str:
    """A hyperparameter in words, for an axis: the first sentence on it, and its name."""
    return f"{meaning(name).split('. ')[0].removesuffix('.')} ({name})"
