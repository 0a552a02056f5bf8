"""The tables that files of a person share: hyperparameters, fixed and searched, images, and scoring protocols."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, create_model, model_validator

from harness.gan.hparams import ALIASES, FIELDS, Channels, HParams, ImageSize, Precision, derive_seed, expand

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
_MOST_STEPS = 2**53  # more than a float can tell apart
Scalar = bool | int | float | str
# TOML's types are strict: "8" and 8.0 are not whole numbers, "true" is not a truth value.
Bool = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Kimg = Annotated[Float, Field(gt=0, le=1e6)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


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
        if step and (high - low) / step > _MOST_STEPS:
            raise ValueError(f"step ({step}) is too small for the range {low} to {high}")
        if log and step != type(self).model_fields["step"].default:
            raise ValueError("log and step exclude each other")
        return self


class FloatParam(_Range):
    """Optuna's suggest_float."""

    type: Literal["float"]
    low: Float
    high: Float
    log: Bool = False
    step: Float | None = Field(None, gt=0)


class IntParam(_Range):
    """Optuna's suggest_int."""

    type: Literal["int"]
    low: Int
    high: Int
    log: Bool = False
    step: Int = Field(1, ge=1)


class CategoricalParam(_Param):
    """Optuna's suggest_categorical."""

    type: Literal["categorical"]
    choices: tuple[Scalar, ...] = Field(min_length=1)


Param = Annotated[FloatParam | IntParam | CategoricalParam, Field(discriminator="type")]


def examples(param: Param) -> tuple[Scalar, ...]:
    """All choices of a searched parameter, or the ends of its range."""
    return param.choices if isinstance(param, CategoricalParam) else (param.low, param.high)


# left, top, width, height (px)
Box = tuple[
    Annotated[int, Field(ge=0, le=4096)],
    Annotated[int, Field(ge=0, le=4096)],
    Annotated[int, Field(ge=16, le=4096)],
    Annotated[int, Field(ge=16, le=4096)],
]
Crop = Literal["square", "face", "after_resize", "none"] | Annotated[int, Field(ge=16, le=4096)] | Box
# Of aligned CelebA photographs (width, height) the centred square that crop = "face" keeps: the face without hair, chin
# and background, as Udacity's courses cut it.
ALIGNED, FACE = (178, 218), 108
SOURCES = ("mnist", "mnist_idx", "fashion_mnist", "cifar10", "svhn", "celeba", "folder")


def _known_source(source: str) -> str:
    # A store is named after its function, and a name has at most 255 bytes.
    if source not in SOURCES and (len(source) > 200 or not re.fullmatch(FUNCTION_PATTERN, source)):
        raise ValueError(f"found {source!r}; use {', '.join(SOURCES)}, or package.module:function of your own")
    return source


class DataSpec(Table):
    """The images of the study."""

    source: Annotated[str, AfterValidator(_known_source)] = Field(
        description="mnist: 5,000 digits shipped in a package; mnist_idx, fashion_mnist: the full sets as idx files; "
        "cifar10, svhn: the published files; celeba: CelebA photographs; folder: any images, as files or as a NumPy "
        "array; package.module:function: what your own function returns or yields.",
        json_schema_extra={"anyOf": [{"enum": list(SOURCES)}, {"pattern": FUNCTION_PATTERN}]},
    )
    image_size: ImageSize = Field(description="Side of the square training images (px).")
    channels: Channels = Field(3, description="1 for grey, 3 for colour.")
    crop: Crop = Field(
        "square",
        description="square: the largest centred square, then resized; face: of aligned CelebA photographs (178x218 "
        "px) the centred 108 px, of others as square; a number: a centred square of that side (px), then resized; "
        "[left, top, width, height]: that box (px), stretched to a square; after_resize: the shorter "
        "side is resized, then the centre cropped; none: stretched to a square whatever the shape.",
    )
    resample: Literal["bicubic", "bilinear", "lanczos"] | None = Field(
        None, description="Pillow's filter for resizing, antialiased; default: bicubic."
    )
    sharpen: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Sharpness factor after resizing, as torchvision's: 1 changes nothing, 2 sharpens.",
    )
    held_out: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the images to keep out of training, chosen by hash of the file names; a source with test "
        "images of its own keeps those out instead.",
    )

    @model_validator(mode="after")
    def _not_enlarged(self) -> Self:
        side = FACE if self.crop == "face" else self.crop
        sides = side[2:] if isinstance(side, tuple) else (side,) if isinstance(side, int) else ()
        if any(side < self.image_size for side in sides):
            raise ValueError(f"crop {self.crop} is smaller than image_size = {self.image_size}; nothing is enlarged")
        return self


# With reference = "all" a score compares with no more real images than this, and with no fewer than that.
ALL_AT_MOST, FEWEST_IMAGES = 10_000, 50
Reference = Annotated[Int, Field(ge=20, le=1_000_000)] | Literal["all"]


class ScoreSpec(Table):
    """One scoring protocol."""

    metric: Literal["fid", "kid"] = Field("fid", description="What is minimised.")
    extractor: Literal["inception-v3", "mobilenet-v2"] = Field(
        "inception-v3",
        description="Feature extractor. inception-v3 gives the published FID; mobilenet-v2 is quick, "
        "and its scores carry mnv2 in their names.",
    )
    samples: Int = Field(ge=20, le=1_000_000, description="Generated images.")
    reference: Reference = Field(
        description="Real images compared with, the first of a fixed shuffle; all: every one, 10,000 at most.",
    )
    split: Literal["train", "held_out"] | None = Field(
        None, description="Real images to compare with: those trained on (the default), or those held out."
    )
    seed: Int = Field(2020, ge=0, lt=2**32, description="Seed of the noise that is sampled from.")
    precision: Literal["float32", "bf16"] | None = Field(
        None,
        description="Arithmetic of Inception's convolutions: float32, or bf16 for rungs alone. Default for rungs: "
        "the faster one, chosen once when the study starts.",
    )

    @property
    def n_reference(self) -> int:
        """Number of real images compared with; it must be known."""
        assert isinstance(self.reference, int), "with_reference_of was not called"
        return self.reference

    def with_reference_of(self, there: int) -> Self:
        """The protocol with ``all`` replaced by the number of real images."""
        return self.model_copy(update={"reference": min(there, ALL_AT_MOST)}) if self.reference == "all" else self

    @model_validator(mode="after")
    def _only_inception(self) -> Self:
        if self.precision == "bf16" and self.extractor != "inception-v3":
            raise ValueError(f"precision = bf16 is Inception's; {self.extractor} runs in float32")
        return self


class ScoringSpec(Table):
    """The final protocol scores finished trials; the rung protocol decides what is pruned."""

    final: ScoreSpec
    rung: ScoreSpec
    sampling_seeds: Int | None = Field(
        None,
        ge=1,
        le=100,
        description="Number of noise seeds that a finished generator is scored with, final.seed the first; the value "
        "is the mean of their scores. Default: 1; `harness confirm` has its own number.",
    )

    @model_validator(mode="after")
    def _final_is_exact(self) -> Self:
        if self.final.precision == "bf16":
            raise ValueError("final.precision = bf16: final scores are float32, bf16 is for rungs")
        return self


def sampling_seeds(scoring: ScoringSpec) -> list[int]:
    """The seeds of noise that a finished generator is scored with; the first is the protocol's own."""
    first = scoring.final.seed
    return [first, *(derive_seed(first, "sampling", index) for index in range(1, scoring.sampling_seeds or 1))]
