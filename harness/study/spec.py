"""StudySpec: a study file as typed, validated, immutable data."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.study.hparams import ALIASES, FIELDS, HParams, digest

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Scalar = bool | int | float | str


class Table(BaseModel):
    """A TOML table: immutable, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FixedParams(Table):
    """Hyperparameters that every trial of the study shares; what is absent keeps the paper's value."""

    model_config = ConfigDict(strict=True)  # "8" and 8.0 are no batch size, true is no width

    z_dim: int | None = Field(None, ge=1, le=4096, description="Size of the latent vector z (elements).")
    latent: Literal["normal", "uniform"] | None = Field(
        None, description="Law of z: normal is N(0, 1), uniform is U(-1, 1)."
    )
    ngf: int | None = Field(None, ge=1, le=1024, description="Width of the generator's last hidden layer (channels).")
    ndf: int | None = Field(None, ge=1, le=1024, description="Width of the discriminator's first layer (channels).")
    kernel_size: Literal[3, 4, 5] | None = Field(None, description="Side of the strided convolutions' kernels (px).")
    bn: Literal["none", "generator", "discriminator", "paper", "all"] | None = Field(
        None,
        description="BatchNorm placement. paper: everywhere but the generator's output and the discriminator's input; "
        "generator, discriminator: only in that network; all: also in the output and input layers.",
    )
    activation_g: Literal["relu", "leaky_relu"] | None = Field(None, description="Hidden activation, generator.")
    activation_d: Literal["relu", "leaky_relu"] | None = Field(None, description="Hidden activation, discriminator.")
    slope_g: float | None = Field(None, ge=0, lt=1, description="Negative slope of the generator's leaky_relu.")
    slope_d: float | None = Field(None, ge=0, lt=1, description="Negative slope of the discriminator's leaky_relu.")
    conv_bias: Literal["auto", "never", "always"] | None = Field(
        None, description="Biases of the convolutions. auto: only where no BatchNorm follows."
    )
    init: Literal["normal", "default"] | None = Field(
        None, description="Initial weights. normal: N(0, init_std); default: PyTorch's own (Kaiming uniform)."
    )
    init_std: float | None = Field(None, gt=0, le=1, description="Standard deviation of normal initial weights.")
    batch_size: int | None = Field(None, ge=2, le=4096, description="Real images per discriminator update.")
    lr_g: float | None = Field(None, gt=0, le=1, description="Adam's learning rate, generator.")
    lr_d: float | None = Field(None, gt=0, le=1, description="Adam's learning rate, discriminator.")
    beta1: float | None = Field(None, ge=0, lt=1, description="Adam's first-moment decay, both networks.")
    beta2: float | None = Field(None, ge=0, lt=1, description="Adam's second-moment decay, both networks.")
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="One-sided label smoothing: real images get the label 1 minus this."
    )
    n_dis: int | None = Field(None, ge=1, le=20, description="Discriminator updates per generator update.")
    ema: float | None = Field(
        None, ge=0, lt=1, description="Decay of the generator's moving average per step; 0 turns it off."
    )

    def params(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class DataSpec(Table):
    """The images of the study."""

    source: Literal["mnist", "celeba", "folder"] = Field(
        description="mnist: 5,000 digits shipped in a package; celeba: aligned CelebA photographs; folder: any images."
    )
    image_size: Literal[16, 32, 64, 128, 256] = Field(description="Side of the square training images (px).")
    channels: Literal[1, 3] = Field(3, description="1 for grey, 3 for colour.")
    crop: Literal["square"] | Annotated[int, Field(ge=16, le=4096)] = Field(
        "square", description="Centre crop before resizing: the largest square, or a side in px."
    )


class _Param(Table):
    when: dict[str, Scalar | list[Scalar]] = Field(
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
        if log and step not in (None, 1):
            raise ValueError("log and step exclude each other")
        return self


class FloatParam(_Range):
    """Optuna's suggest_float."""

    type: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    step: float | None = Field(None, gt=0)

    @property
    def examples(self) -> tuple[Scalar, ...]:
        return (self.low, self.high)


class IntParam(_Range):
    """Optuna's suggest_int."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int = Field(1, ge=1)

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


class BudgetSpec(Table):
    """How much is trained. kimg is thousands of real images shown to the discriminator."""

    trials: int = Field(ge=1, strict=True, description="Trials to finish (COMPLETE and PRUNED are counted).")
    kimg: float = Field(gt=0, allow_inf_nan=False, description="Length of a full trial (kimg).")
    rungs: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (), description="When a trial is scored and may be pruned, rising and below kimg (kimg)."
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must rise, found {list(self.rungs)}")
        if self.rungs and self.rungs[-1] >= self.kimg:
            raise ValueError(f"rungs must lie below kimg = {self.kimg}, found {self.rungs[-1]}")
        return self


class ScoreSpec(Table):
    """One scoring protocol."""

    metric: Literal["fid", "kid"] = Field("fid", description="What is minimised.")
    extractor: Literal["inception-v3", "mobilenet-v2"] = Field(
        "inception-v3",
        description="Feature extractor. inception-v3 gives the published FID; mobilenet-v2 is quick, "
        "and its scores carry mnv2 in their names.",
    )
    samples: int = Field(ge=20, le=1_000_000, description="Generated images.")
    reference: int = Field(ge=20, le=1_000_000, description="Real images compared with; the first of a fixed shuffle.")
    seed: int = Field(2020, ge=0, lt=2**32, description="Seed of the noise that is sampled from.")


class ScoringSpec(Table):
    """The final protocol scores finished trials; the rung protocol decides what is pruned."""

    final: ScoreSpec
    rung: ScoreSpec


class SamplerSpec(Table):
    """Optuna's sampler."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = Field(0, ge=0, description="Seed of the study: of its sampler and of every trial's training.")
    n_startup_trials: int = Field(10, ge=0, description="Random trials before TPE models the space.")


class PrunerSpec(Table):
    """Optuna's pruner, asked at each rung."""

    name: Literal["none", "median", "percentile", "successive_halving", "hyperband"] = "median"
    n_startup_trials: int = Field(4, ge=0, description="median, percentile: finished trials before any is pruned.")
    percentile: float = Field(
        25.0, gt=0, lt=100, description="percentile: a trial goes on where it is among this best share of them (%)."
    )
    reduction_factor: int = Field(3, ge=2, description="successive_halving, hyperband: 1 in this many goes on.")


class Preset(Table):
    """A known configuration that is tried before the sampler chooses."""

    name: str = Field(pattern=NAME_PATTERN)
    params: dict[str, Scalar]


class QuickSpec(Table):
    """A budget for trying a study out within minutes; its trials make a study of their own, NAME-quick."""

    trials: int = Field(ge=1, description="Trials to finish.")
    kimg: float = Field(gt=0, allow_inf_nan=False, description="Length of a full trial (kimg).")
    rungs: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    samples: int = Field(ge=20, description="Generated images of the final score, and at most of the rung scores.")
    reference: int = Field(ge=20, description="Real images that final and rung scores compare with.")


class StudySpec(Table):
    """A study file. Its name is the file's."""

    name: str = Field(pattern=NAME_PATTERN, description="Taken from the file's name.")
    description: str = ""
    data: DataSpec
    fixed: FixedParams = Field(default_factory=FixedParams)
    space: dict[str, Param] = Field(min_length=1, description="The search space, a table per parameter.")
    budget: BudgetSpec
    scoring: ScoringSpec
    sampler: SamplerSpec = Field(default_factory=SamplerSpec)
    pruner: PrunerSpec = Field(default_factory=PrunerSpec)
    presets: tuple[Preset, ...] = ()
    quick: QuickSpec | None = Field(None, description="The budget of `harness sweep --quick`.")

    @model_validator(mode="after")
    def _rungs_fit_pruner(self) -> Self:
        factor = self.pruner.reduction_factor
        if self.pruner.name in ("successive_halving", "hyperband"):
            rungs = (*self.budget.rungs, self.budget.kimg)
            if len(rungs) < 2:
                raise ValueError(f"pruner {self.pruner.name} needs at least one rung in budget.rungs")
            for low, high in pairwise(rungs):
                if high < low * factor:
                    raise ValueError(
                        f"pruner {self.pruner.name} needs rungs at least reduction_factor = {factor} times apart, "
                        f"found {low} and {high}"
                    )
        return self

    def identity(self) -> dict[str, Any]:
        """All that a trial's meaning depends on: everything but the description and the number of trials."""
        content = self.model_dump(mode="json", exclude_none=True, exclude={"description": True, "quick": True})
        del content["budget"]["trials"]
        return content

    @property
    def spec_hash(self) -> str:
        return digest(self.identity())

    def quickened(self) -> StudySpec:
        """The study NAME-quick with the budget of its [quick] table.

        Raises:
            ValueError: the file has no such table, or its rungs do not fit.
        """
        if self.quick is None:
            raise ValueError("it has no [quick] table")
        content = self.model_dump()
        quick = self.quick.model_dump()
        content["name"] = f"{self.name}-quick"
        content["budget"] = {key: quick[key] for key in ("trials", "kimg", "rungs")}
        content["scoring"]["final"] |= {"samples": quick["samples"], "reference": quick["reference"]}
        rung = content["scoring"]["rung"]
        rung |= {"samples": min(rung["samples"], quick["samples"]), "reference": quick["reference"]}
        return StudySpec.model_validate(content)

    def largest_batch(self) -> int:
        """The largest batch that a trial may use (images)."""
        searched = self.space.get("batch_size")
        sizes = searched.examples if searched else (self.hparams({}).batch_size,)
        return max(int(size) for size in sizes)

    def base_params(self) -> dict[str, Any]:
        """The parameters that no trial changes."""
        return {"image_size": self.data.image_size, "channels": self.data.channels, **self.fixed.params()}

    def hparams(self, params: dict[str, Any]) -> HParams:
        """The configuration that a trial with these suggested parameters trains."""
        return HParams.from_params(self.base_params(), params)


class BestParams(FixedParams):
    """The hyperparameters of one configuration, image size and channels included."""

    image_size: Literal[16, 32, 64, 128, 256]
    channels: Literal[1, 3]


class BestData(DataSpec):
    """The images that a configuration was found on."""

    fingerprint: str


class BestTraining(Table):
    """How a configuration was trained."""

    seed: int = Field(ge=0, strict=True)
    kimg: float = Field(gt=0, allow_inf_nan=False)


class BestConfig(Table):
    """A ``best.toml``: one configuration with all that is needed to train it again."""

    study: str = Field(pattern=NAME_PATTERN)
    trial: int
    hparams: BestParams
    data: BestData
    training: BestTraining
    scoring: ScoreSpec
    score: dict[str, Scalar]


def param_types(name: str) -> tuple[str, ...]:
    """The types that a searched parameter may have: as its field, or as a choice of values."""
    field = FixedParams.model_fields[ALIASES.get(name, (name,))[0]]
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    own = {int: ("int",), float: ("float",)}.get(kinds[0], ())
    return (*own, "categorical")


SEARCHABLE: tuple[str, ...] = (*(name for name in FIELDS if name in FixedParams.model_fields), *ALIASES)
