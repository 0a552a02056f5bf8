"""``best.toml``: one configuration that a study found, with all that is needed to train it again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.spec.images import DataSpec
from harness.spec.params import FixedParams, Scalar, Table
from harness.spec.scoring import ScoreSpec
from harness.spec.study import NAME_PATTERN


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


class BestConfirmed(Table):
    """How sure the configuration is: its mean over training seeds, and what could not be told from it.

    The interval allows for its having been picked as the best: it covers the true mean about as often as ``level``.
    """

    configuration: str
    metric: str
    mean: float
    level: float | None = None
    low: float | None = None
    high: float | None = None
    training_seeds: tuple[int, ...]
    samplings: int
    ties: tuple[str, ...] = ()
    protocol_hash: str


class BestConfig(Table):
    """A ``best.toml``: one configuration with all that is needed to train it again."""

    study: str = Field(pattern=NAME_PATTERN)
    trial: int
    hparams: BestParams
    data: BestData
    training: BestTraining
    scoring: ScoreSpec
    score: dict[str, Scalar]
    confirmed: BestConfirmed | None = None
