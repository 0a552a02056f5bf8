"""A score's protocol: everything that defines its meaning, the hash of that, and metric names."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from harness.gan.hparams import digest
from harness.spec.tables import ScoreSpec

INCEPTION, MOBILENET, VGG = "inception-v3", "mobilenet-v2", "vgg16"
_FAMILY = {INCEPTION: "inception", MOBILENET: "mnv2", VGG: "vgg16"}
RUNNING = "running statistics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Scores are comparable only where these are equal.

    ``latent``: z is drawn from the law that the generator was trained with, never truncated. The law itself is a
    hyperparameter, so that trials with different laws stay comparable. ``resize`` is the extractor's own.
    """

    extractor: str
    weights_sha256: str
    samples: int
    reference_images: int
    reference_fingerprint: str
    reference_split: str
    seed: int
    resize: str
    kid_subset_size: int
    batch_norm: str = RUNNING
    latent: str = "as trained, not truncated"
    precision: str = "float32"
    kid_subsets: int = 100
    isc_splits: int = 10
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def hash(self) -> str:
        return digest(asdict(self))

    def metric(self, name: str) -> str:
        """The full name of a metric: ``fid`` becomes ``fid10k``, or ``fid_mnv2_256`` with the small extractor."""
        return metric_name(name, self.extractor, self.samples, self.precision)


def metric_name(name: str, extractor: str, samples: int, precision: str | None = None) -> str:
    """``fid`` with Inception and 10,000 samples is ``fid10k``; extractors other than the published one are named."""
    count = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    usual = extractor == (VGG if name in ("precision", "recall") else INCEPTION)
    whole = f"{name}{count}" if usual else f"{name}_{_FAMILY[extractor]}_{count}"
    return whole if precision in (None, "float32") else f"{whole}_{precision}"


def objective_name(score: ScoreSpec) -> str:
    """The name of the metric that a protocol of a study file minimises."""
    return metric_name(score.metric, score.extractor, score.samples, score.precision)


def make_protocol(
    score: ScoreSpec, *, weights_sha256: str, fingerprint: str, split_rule: str, resize: str, versions: dict[str, str]
) -> Protocol:
    """The protocol of a study file's table, bound to weights, images and library versions."""
    return Protocol(
        extractor=score.extractor,
        weights_sha256=weights_sha256,
        samples=score.samples,
        reference_images=score.n_reference,
        reference_fingerprint=fingerprint,
        reference_split=f"{score.split or 'train'}: {split_rule}",
        seed=score.seed,
        resize=resize,
        precision=score.precision or "float32",
        kid_subset_size=min(1000, score.samples, score.n_reference),
        versions=tuple(sorted(versions.items())),
    )
