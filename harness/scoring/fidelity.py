"""FID, KID, Inception Score, precision and recall of a generator, by torch-fidelity."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from harness.gan.hparams import HParams
from harness.scoring.diversity import total_variance
from harness.scoring.extractors import Extractor
from harness.scoring.protocol import RUNNING, Protocol
from harness.scoring.reference import Reference, frechet_distance
from harness.scoring.sampling import samples, with_batch_statistics
from harness.scoring.weights import NO_HEAD

_KEYS = {
    "fid": torch_fidelity.KEY_METRIC_FID,
    "kid": torch_fidelity.KEY_METRIC_KID_MEAN,
    "is": torch_fidelity.KEY_METRIC_ISC_MEAN,
    "precision": torch_fidelity.KEY_METRIC_PRECISION,
    "recall": torch_fidelity.KEY_METRIC_RECALL,
}
ALL = tuple(_KEYS)
# Images per block where each image is compared with all others.
_PRC_BATCH = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores by full metric name; what could not be computed, with the reason.

    A non-empty ``reason`` means that the generator has no valid score: every value is then NaN. ``spread`` is the
    total variance of the samples' features as a share of the real ones', where the score is a quick one.
    """

    values: dict[str, float]
    unavailable: dict[str, str] = field(default_factory=dict)
    protocol_hash: str = ""
    reason: str = ""
    seconds: float = 0.0
    spread: float = math.nan


def versions() -> dict[str, str]:
    return {"torch": torch.__version__.split("+")[0], "torch-fidelity": torch_fidelity.__version__}


def score(
    generator: nn.Module,
    hp: HParams,
    reference: Reference,
    protocol: Protocol,
    extractor: Extractor,
    *,
    only: tuple[str, ...] = ALL,
    quick: bool = False,
) -> Scores:
    """Score a generator: FID (Heusel et al. 2017), KID (Binkowski et al. 2018), Inception Score (Salimans et al. 2016).

    Precision and recall are those of Kynkäänniemi et al. (2019, section 2), up to the third neighbour. The values are
    torch-fidelity's, on images that depend on the protocol's seed alone; with ``quick``, FID is our own form of the
    same distance. A generator of non-finite or constant images gets NaN and a reason: cast to uint8, such images would
    get a plausible score.
    """
    started = time.perf_counter()
    if protocol.batch_norm != RUNNING:
        generator = with_batch_statistics(generator)
    images, reason = samples(generator, hp, protocol.samples, protocol.seed, extractor.device)
    if reason:
        values = {protocol.metric(name): math.nan for name in only}
        return Scores(values=values, protocol_hash=protocol.hash, reason=reason, seconds=time.perf_counter() - started)
    possible = tuple(name for name in only if name != "is" or extractor.logits)
    spread = math.nan
    if quick:
        images = extractor(images).pooled
        spread = total_variance(images) / total_variance(reference.features)
    if quick and possible == ("fid",):
        values = {protocol.metric("fid"): frechet_distance(images, reference, extractor.device)}
    else:
        values = calculated(images, reference, protocol, extractor, possible) if possible else {}
    return Scores(
        values=values,
        unavailable={protocol.metric(name): NO_HEAD for name in only if name not in possible},
        protocol_hash=protocol.hash,
        reason="" if all(map(math.isfinite, values.values())) else "a score was not finite",
        seconds=time.perf_counter() - started,
        spread=spread,
    )


def calculated(
    images: Tensor, reference: Reference, protocol: Protocol, extractor: Extractor, only: tuple[str, ...]
) -> dict[str, float]:
    """torch-fidelity's ``calculate_metrics`` by full metric name, of uint8 images, or of features where these do."""
    prc = bool({"precision", "recall"} & set(only))
    metrics = torch_fidelity.calculate_metrics(
        input1=_Rows(images),
        input2=_Rows(reference.features) if prc or {"fid", "kid"} & set(only) else None,
        fid="fid" in only,
        kid="kid" in only,
        isc="is" in only,
        prc=prc,
        feature_extractor=_RESIDENT,
        feature_extractor_weights_path=extractor,
        feature_layer_fid=extractor.pooled,
        feature_layer_kid=extractor.pooled,
        feature_layer_isc=extractor.logits,
        feature_layer_prc=extractor.pooled,
        kid_subsets=protocol.kid_subsets,
        kid_subset_size=protocol.kid_subset_size,
        isc_splits=protocol.isc_splits,
        prc_neighborhood=3,
        prc_batch_size=_PRC_BATCH,
        rng_seed=protocol.seed,
        batch_size=extractor.batch,
        cuda=False,  # batches are brought to the device by the extractor
        cache=False,
        save_cpu_ram=True,  # no loader processes for what is in memory
        verbose=False,
    )
    return {protocol.metric(name): float(metrics[key]) for name, key in _KEYS.items() if name in only}


class _Rows(TensorDataset):
    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.tensors[0][index]


class _Resident(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]
    """An :class:`Extractor`, passed as the path of its weights: ``calculate_metrics`` would make one at each call.

    Inputs of type float32 are features already.
    """

    def __init__(
        self, name: str, features_list: list[str], *, feature_extractor_weights_path: Extractor, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.extractor = feature_extractor_weights_path

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "1280", "2048", "fc2_relu", "logits", "logits_unbiased"

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        if batch.dtype != torch.uint8:
            return tuple(batch for _ in self.features_list)
        features = self.extractor(batch, logits=self.extractor.logits in self.features_list)
        by_name = {self.extractor.pooled: features.pooled}
        if features.logits is not None:
            by_name[self.extractor.logits] = features.logits
        return tuple(by_name[name] for name in self.features_list)


_RESIDENT = "harness-resident"
torch_fidelity.register_feature_extractor(_RESIDENT, _Resident)
