"""Recipes: published DCGAN systems as fixed configurations, as their texts say and as their code does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.gan.hparams import FIELDS, HParams
from harness.spec.images import Crop, DataSpec
from harness.spec.params import NAME_PATTERN, FixedParams, Float, Int, Table
from harness.spec.scoring import ScoreSpec


class RecipeTraining(Table):
    """How long the authors trained, and what they looked at."""

    epochs: Float = Field(gt=0, le=1e6, description="Passes over the data.")
    seed: Int = Field(0, ge=0, description="Seed of weights, order and noise.")
    grid_images: Int = Field(64, ge=1, le=400, description="Images of the grid that is drawn after each epoch.")


class VariantData(Table):
    """What a variant prepares in another way."""

    crop: Crop | None = None


class Variant(Table):
    """One way to run a recipe."""

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

    name: str = Field(pattern=NAME_PATTERN)
    title: str
    source: str = Field(description="Who published it, when and where.")
    images: str = Field(description="The images that it was made for.")
    data: DataSpec
    training: RecipeTraining
    scoring: ScoreSpec
    hparams: FixedParams = Field(default_factory=FixedParams, description="What all variants share.")
    variants: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Variant] = Field(min_length=1)
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
        """How a variant prepares its images.

        Raises:
            KeyError: there is no such variant.
        """
        return self.data.model_copy(update=self.variants[variant].data.model_dump(exclude_none=True))

    def configuration(self, variant: str) -> HParams:
        """The hyperparameters of a variant.

        Raises:
            KeyError: there is no such variant.
        """
        size = {"image_size": self.data.image_size, "channels": self.data.channels}
        return HParams.from_params(size, self.hparams.params(), self.variants[variant].hparams.params())
