"""Recipes, which are published DCGAN systems as fixed configurations, and ``best.toml``, what a study found."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.errors import NotFoundError, SpecError
from harness.gan.architecture import discriminator_layers, generator_layers, problems
from harness.gan.hparams import DCGAN, FIELDS, Channels, HParams, ImageSize
from harness.spec.tables import Crop, DataSpec, FixedParams, Float, Int, Kimg, Name, Scalar, ScoreSpec, Table
from harness.text import did_you_mean, number

# The last map of a scaled-down discriminator (px).
_SMALLEST = 3


class RecipeTraining(Table):
    """How long the authors trained, and what they looked at."""

    epochs: Float = Field(gt=0, le=1e6, description="Passes over the data.")
    images: Int | None = Field(None, ge=1, le=10**9, description="Images that the authors had in one of them.")
    seed: Int = Field(0, ge=0, description="Seed of weights, order and noise.")
    grid_images: Int = Field(64, ge=1, le=400, description="Images of the grid that is drawn after each epoch.")

    @property
    def kimg(self) -> float | None:
        """Length of the authors' training (thousands of images shown), where their number of images is known."""
        return self.epochs * self.images / 1000 if self.images else None

    def __str__(self) -> str:
        shown = f" of {self.images:,} images ({number(self.kimg)} kimg)" if self.kimg else ""
        return f"{self.epochs:g} epochs{shown}"


class VariantData(Table):
    crop: Crop | None = None


class Variant(Table):
    note: str
    data: VariantData = Field(default_factory=VariantData)
    hparams: FixedParams = Field(default_factory=FixedParams, description="Added to those that all variants share.")
    grid_z: Literal["fixed", "fresh"] = Field("fixed", description="Whether every grid is drawn from the same z.")


class Difference(Table):
    """Something that text and code disagree on, or a bug; ``switch`` names what turns it on here."""

    what: str
    written: str
    coded: str
    switch: tuple[str, ...] = Field((), description="Hyperparameters or keys; empty where it changes no result.")


class Recipe(Table):
    """A file of ``search_spaces/recipes/``. Its name is the file's."""

    name: Name
    title: str
    source: str = Field(description="Who published it, when and where.")
    images: str = Field(description="The images that it was made for.")
    data: DataSpec
    training: RecipeTraining
    scoring: ScoreSpec
    hparams: FixedParams = Field(default_factory=FixedParams, description="What all variants share.")
    variants: dict[Name, Variant] = Field(min_length=1)
    differences: tuple[Difference, ...] = ()
    left_out: tuple[str, ...] = Field((), description="What is not reproduced, and why.")

    @model_validator(mode="after")
    def _switches_exist(self) -> Recipe:
        known = {*FIELDS, "grid_z", "crop"}
        for difference in self.differences:
            for name in difference.switch:
                if name not in known:
                    raise ValueError(f"differences: {name} is neither a hyperparameter nor grid_z or crop")
        return self

    @property
    def default_variant(self) -> str:
        """What the authors ran, where text and code differ."""
        return "as_coded" if "as_coded" in self.variants else next(iter(self.variants))

    def images_of(self, variant: str) -> DataSpec:
        """How a variant prepares its images."""
        return self.data.model_copy(update=self.variants[variant].data.model_dump(exclude_none=True))

    def configuration(self, variant: str) -> HParams:
        if variant not in self.variants:
            raise NotFoundError(
                f"recipe {self.name} has no variant {variant!r}{did_you_mean(variant, self.variants)}",
                f"There are: {', '.join(self.variants)}.",
            )
        size = {"image_size": self.data.image_size, "channels": self.data.channels}
        return HParams.from_params(size, self.hparams.params(), self.variants[variant].hparams.params())

    def scaled(self, variant: str, image_size: ImageSize) -> HParams:
        """A variant's system for images of half, a quarter, … of its size (px); all but the networks is as it was.

        The generator loses the layers that are nearest z. The discriminator loses its last convolutions, until at
        least 3 px reach the logit.
        """
        hp = self.configuration(variant)
        lost = int(math.log2(hp.image_size // image_size))
        steps = len(generator_layers(hp)) - 1 - lost
        smaller = dataclasses.replace(
            hp,
            image_size=image_size,
            widths_g=_part(hp.widths_g, slice(lost, None)),
            act_before_bn=min(hp.act_before_bn, steps - 1),
            repeat_activation=hp.repeat_activation if hp.repeat_activation < steps else 0,
        )
        for depth in range(len(discriminator_layers(hp)), 0, -1):
            widths, strides = (_part(numbers, slice(depth)) for numbers in (hp.widths_d, hp.strides_d))
            candidate = dataclasses.replace(smaller, depth_d=depth, widths_d=widths, strides_d=strides)
            if not problems(candidate) and discriminator_layers(candidate)[-1].size >= _SMALLEST:
                return candidate
        raise SpecError(f"recipe {self.name} cannot be scaled down to {image_size} px")


def _part(numbers: str, kept: slice) -> str:
    """Of ``512-256-128`` the numbers to keep; ``auto`` stays."""
    return numbers if numbers == "auto" else "-".join(numbers.split("-")[kept])


class BestParams(FixedParams):
    network: str = DCGAN
    image_size: ImageSize
    channels: Channels


class BestData(DataSpec):
    fingerprint: str


class BestTraining(Table):
    seed: Int = Field(ge=0)
    kimg: Kimg


class BestWeights(Table):
    """The published weights of the generator: their file, from the home folder on, and its sha256."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class BestConfig(Table):
    """A ``best.toml``: one configuration with all that is needed to train it again."""

    study: Name
    trial: int
    hparams: BestParams
    data: BestData
    training: BestTraining
    scoring: ScoreSpec
    score: dict[str, Scalar]
    confirmed: dict[str, Any] | None = Field(None, description="Mean over training seeds, its interval, and ties.")
    weights: BestWeights | None = None
