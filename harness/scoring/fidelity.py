"""The one file that imports torch_fidelity: extractors, and FID, KID and Inception Score of a generator."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3
from torch_fidelity.generative_model_base import GenerativeModelBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from harness.gan.networks import Generator, from_uniform
from harness.home import Home
from harness.scoring.protocol import INCEPTION, MOBILENET, Protocol
from harness.scoring.reference import Features, Reference
from harness.scoring.sampling import BATCH, evaluating, generate, to_uint8
from harness.scoring.weights import inception_weights, mobilenet_weights
from harness.study.hparams import HParams

NO_HEAD = "the weights in use are Inception's trunk without its classifier head (see `harness weights`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Final numbers by full metric name; what could not be computed, with the reason.

    ``reason`` is non-empty where the generator has no valid score at all: every value is then NaN.
    """

    values: dict[str, float]
    unavailable: dict[str, str] = field(default_factory=dict)
    protocol_hash: str = ""
    reason: str = ""
    seconds: float = 0.0


class FoldedInception(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's Inception with BatchNorm folded into its convolutions, channels last: same figures, sooner."""

    def __init__(self, name: str, features_list: tuple[str, ...], state: dict[str, Tensor]) -> None:
        # The parent unpickles its weights file with weights_only=False: give it bytes of our own making.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        super().__init__(name, list(features_list), feature_extractor_weights_path=buffer)
        for module in self.modules():
            if isinstance(module, BasicConv2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.bn = nn.Identity()
        self.to(memory_format=torch.channels_last)


class MobileNetExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """torchvision's MobileNetV2: 1,280 pooled features and 1,000 ImageNet logits, for quick scores.

    Features are of the images at their own size: enlarged ones rank DCGAN trainings worse, at many times the cost
    (docs/decisions/0004-rungs-and-pruner.md). Logits are of images enlarged to 128 px, below which the classifier
    sees next to nothing. Only what is asked for is computed.
    """

    LOGITS_SIZE = 128

    def __init__(self, name: str, features_list: tuple[str, ...], state: dict[str, Tensor]) -> None:
        super().__init__(name, list(features_list))
        from torchvision.models import mobilenet_v2

        self.network = mobilenet_v2(weights=None)
        self.network.load_state_dict(state)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "1280", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits", "fid": "1280", "kid": "1280"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        compute = {"1280": self._features, "logits": self._logits}
        return tuple(compute[name](images.float() / 255) for name in self.features_list)

    def _features(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self.network.features(x).mean((2, 3))
        return pooled

    def _logits(self, x: Tensor) -> Tensor:
        size = (self.LOGITS_SIZE, self.LOGITS_SIZE)
        enlarged = functional.interpolate(x, size, mode="bilinear", antialias=True)
        logits: Tensor = self.network.classifier(self._features(enlarged))
        return logits


class LatentLawModel(GenerativeModelBase):  # type: ignore[misc]
    """Our generator as torch-fidelity's: any latent law, and uint8 images of shape (N, 3, H, W).

    Use it with torch-fidelity's own ``calculate_metrics``; with ``rng_seed`` equal to a protocol's seed it gives the
    images that :func:`score` scores.
    """

    def __init__(self, generator: Generator, hp: HParams) -> None:
        super().__init__()
        self.generator, self.hp = generator, hp

    @property
    def z_size(self) -> int:
        return self.hp.z_dim

    @property
    def z_type(self) -> str:
        return "normal" if self.hp.latent == "normal" else "uniform_0_1"

    @property
    def num_classes(self) -> int:
        return 0

    def forward(self, noise: Tensor) -> Tensor:
        z = noise if self.hp.latent == "normal" else from_uniform(noise, self.hp.latent)
        with evaluating(self.generator):
            return to_uint8(self.generator(z))


class Extractor:
    """A feature extractor with its weights, kept for a worker's life.

    Args:
        name: ``inception-v3`` or ``mobilenet-v2``.
        home: where weights are kept.
        device: where it runs.
        say: told when weights are fetched.
        interrupt: called before every batch; raises where scoring is to be given up.
    """

    def __init__(
        self,
        name: str,
        home: Home,
        device: torch.device,
        say: Callable[[str], None],
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.device, self.interrupt = name, device, interrupt
        if name == INCEPTION:
            self.weights = inception_weights(home, inception_shapes(), say)
            self.pooled, self.logits = "2048", "logits_unbiased" if self.weights.has_head else ""
            self.module: FeatureExtractorBase = FoldedInception(
                "inception-v3-compat", (self.pooled,), self.weights.state
            )
            self.resize = "TensorFlow 1 bilinear to 299 px"
        else:
            self.weights = mobilenet_weights(home, say)
            self.pooled, self.logits = "1280", "logits"
            self.module = MobileNetExtractor(MOBILENET, (self.pooled,), self.weights.state)
            self.resize = f"none; logits: antialiased bilinear to {MobileNetExtractor.LOGITS_SIZE} px"
        self.module.to(device)

    def __call__(self, batches: Iterable[Tensor], *, logits: bool = False) -> Features:
        """Features of uint8 images, shape (N, 3, H, W) a batch; logits where they are asked for and can be had."""
        wanted = [self.pooled, self.logits] if logits and self.logits else [self.pooled]
        self.module.features_list = wanted
        with torch.inference_mode():
            outputs = []
            for batch in batches:
                self.interrupt()
                outputs.append(tuple(f.float().cpu() for f in self.module(batch.to(self.device))))
        columns = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
        return Features(pooled=columns[0], logits=columns[1] if len(columns) > 1 else None)


def inception_shapes() -> dict[str, torch.Size]:
    """Names and shapes of torch-fidelity's Inception, without its weights."""
    with torch.device("meta"):
        skeleton = _InceptionSkeleton("skeleton", ["2048"])
    return {name: value.shape for name, value in skeleton.state_dict().items()}


def untrained_module(name: str) -> FeatureExtractorBase:
    """An extractor with arbitrary weights, to find out how long scoring takes where none were fetched."""
    if name == INCEPTION:
        state = {key: torch.full(shape, 1e-2) for key, shape in inception_shapes().items()}
        return FoldedInception("inception-v3-compat", ("2048",), state)
    from torchvision.models import mobilenet_v2

    return MobileNetExtractor(MOBILENET, ("1280",), mobilenet_v2(weights=None).state_dict())


class _InceptionSkeleton(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """The parent's constructor insists on loading weights; the shapes are known before they are fetched."""

    def __init__(self, name: str, features_list: list[str]) -> None:
        super().__init__(name, features_list, feature_extractor_weights_path=_empty_weights())

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return None


def _empty_weights() -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    return buffer


def versions() -> dict[str, str]:
    """Versions of the libraries that a score depends on."""
    import torch_fidelity

    return {"torch": torch.__version__.split("+")[0], "torch-fidelity": torch_fidelity.__version__}


def uint8_batches(images_BCHW: Tensor) -> Iterator[Tensor]:
    """Batches of the fixed scoring size."""
    yield from torch.split(images_BCHW, BATCH)


def score(
    generator: nn.Module,
    hp: HParams,
    reference: Reference,
    protocol: Protocol,
    extractor: Extractor,
    *,
    only: tuple[str, ...] = ("fid", "kid", "is"),
) -> Scores:
    """Score a generator: FID (Heusel et al. 2017), KID (Binkowski et al. 2018), Inception Score (Salimans et al. 2016).

    The maths is torch-fidelity's, on features of images that depend on the protocol's seed alone. A generator that
    gives non-finite or constant images gets NaN and a reason: cast to uint8 it would get a plausible number.
    """
    started = time.perf_counter()
    images = generate(generator, hp, protocol.samples, protocol.seed, extractor.device)
    reason = degenerate(images)
    if reason:
        values = {protocol.metric(name): math.nan for name in only}
        return Scores(values=values, protocol_hash=protocol.hash, reason=reason, seconds=time.perf_counter() - started)
    features = extractor(uint8_batches(to_uint8(images)), logits="is" in only)
    values, unavailable = metrics_of(features, reference, protocol, only)
    return Scores(
        values=values,
        unavailable=unavailable,
        protocol_hash=protocol.hash,
        reason="" if all(map(math.isfinite, values.values())) else "a score was not finite",
        seconds=time.perf_counter() - started,
    )


def degenerate(images_BCHW: Tensor) -> str:
    """Why these images must not be scored, or an empty string."""
    if not bool(torch.isfinite(images_BCHW).all()):
        return "the generator gives non-finite images"
    if bool((to_uint8(images_BCHW) == to_uint8(images_BCHW[:1])).all()):
        return "the generator gives one image whatever its input"
    return ""


def metrics_of(
    features: Features, reference: Reference, protocol: Protocol, only: tuple[str, ...] = ("fid", "kid", "is")
) -> tuple[dict[str, float], dict[str, str]]:
    """(values by full name, reasons of what is unavailable by full name)."""
    values: dict[str, float] = {}
    unavailable: dict[str, str] = {}
    if "fid" in only:
        values[protocol.metric("fid")] = frechet_distance(features.pooled, reference)
    if "kid" in only:
        kid = kid_features_to_metric(
            features.pooled,
            reference.features,
            kid_subsets=protocol.kid_subsets,
            kid_subset_size=protocol.kid_subset_size,
            rng_seed=protocol.seed,
            verbose=False,
        )
        values[protocol.metric("kid")] = kid["kernel_inception_distance_mean"]
    if "is" in only and features.logits is None:
        unavailable[protocol.metric("is")] = NO_HEAD
    elif "is" in only:
        isc = isc_features_to_metric(features.logits, protocol.isc_splits, True, protocol.seed)
        values[protocol.metric("is")] = isc["inception_score_mean"]
    return values, unavailable


def frechet_distance(pooled: Tensor, reference: Reference) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2))``, Heusel et al. (2017), equation 6.

    With fewer samples n than features, the non-zero eigenvalues of S1 S2 are those of the n x n matrix
    ``X S2 X^T / (n - 1)`` with the centred features X: the same value as torch-fidelity's, 10 times sooner.
    """
    n, width = pooled.shape
    if n >= width:
        statistics = fid_features_to_statistics(pooled)
        expected = {"mu": reference.mu, "sigma": reference.sigma}
        return float(fid_statistics_to_metric(statistics, expected, False)["frechet_inception_distance"])
    features = pooled.double().numpy()
    mu = features.mean(axis=0)
    centred = (features - mu) / math.sqrt(n - 1)
    eigenvalues = np.linalg.eigvalsh(centred @ reference.sigma @ centred.T)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = mu - reference.mu.astype(np.float64)
    own = float((centred**2).sum())
    return float(difference @ difference + own + np.trace(reference.sigma) - 2 * cross)
