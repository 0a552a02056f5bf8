"""``best.toml``: one configuration that a study found, with all that is needed to train it again."""

from __future__ import annotations

from pydantic import Field

from harness.gan.hparams import DCGAN, Channels, ImageSize
from harness.spec.images import DataSpec
from harness.spec.params import NAME_PATTERN, FixedParams, Int, Kimg, Scalar, Table
from harness.spec.scoring import ScoreSpec


class BestParams(FixedParams):
    """The hyperparameters of one configuration, image size and channels included."""

    network: str = DCGAN
    image_size: ImageSize
    channels: Channels


class BestData(DataSpec):
    """The images that a configuration was found on."""

    fingerprint: str


class BestTraining(Table):
    """How a configuration was trained."""

    seed: Int = Field(ge=0)
    kimg: Kimg


class BestConfirmed(Table):
    """The configuration's mean score over training seeds, and the configurations that tie with it.

    The interval is widened because the configuration was picked as the best of several: it covers the true mean with
    probability ``level``.
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


class BestWeights(Table):
    """The published weights of the generator: their file, from the home folder on, and its sha256."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


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
    weights: BestWeights | None = None
