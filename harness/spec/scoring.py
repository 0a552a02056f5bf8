"""The scoring of a study file: what finished trials and rungs are scored with."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.gan.hparams import derive_seed
from harness.spec.params import Int, Table


class ScoreSpec(Table):
    """One scoring protocol."""

    metric: Literal["fid", "kid"] = Field("fid", description="What is minimised.")
    extractor: Literal["inception-v3", "mobilenet-v2"] = Field(
        "inception-v3",
        description="Feature extractor. inception-v3 gives the published FID; mobilenet-v2 is quick, "
        "and its scores carry mnv2 in their names.",
    )
    samples: Int = Field(ge=20, le=1_000_000, description="Generated images.")
    reference: Int = Field(ge=20, le=1_000_000, description="Real images compared with; the first of a fixed shuffle.")
    split: Literal["train", "held_out"] | None = Field(
        None, description="Which real images it compares with: those trained on (unless given), or those held out."
    )
    seed: Int = Field(2020, ge=0, lt=2**32, description="Seed of the noise that is sampled from.")
    precision: Literal["float32", "bf16"] | None = Field(
        None,
        description="Arithmetic of Inception's convolutions. bf16 is for rungs, where it is chosen once, when the "
        "study is started, unless given; float32 everywhere else.",
    )

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
        "is the mean of their scores. One unless given; `harness confirm` has its own number.",
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
