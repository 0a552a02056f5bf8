"""Scorers: a protocol with weights and reference statistics loaded, to score many generators."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.data.store import ImageStore
from harness.gan.fast.precision import FLOAT32
from harness.gan.hparams import HParams
from harness.home import Home
from harness.scoring.extractors import Extractor
from harness.scoring.fidelity import ALL, Scores, score, versions
from harness.scoring.protocol import INCEPTION, MOBILENET, VGG, Protocol, make_protocol
from harness.scoring.reference import Reference, load_reference
from harness.scoring.sampling import BATCH
from harness.scoring.weights import VGG_URL, vgg_file
from harness.spec.tables import ScoreSpec

_PUBLISHED_PRC = ("precision", "recall")


class Scorers:
    """Makes scorers for one set of images; extractors are loaded once and shared.

    Args:
        home: where weights and reference statistics are kept.
        store: the real images, those held out included.
        device: where features are computed.
        say: called before slow steps.
        interrupt: called between batches; raises to abandon scoring.
    """

    def __init__(
        self,
        home: Home,
        store: ImageStore,
        device: torch.device,
        say: Callable[[str], None],
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.home, self.store, self.device, self.say = home, store, device, say
        self.interrupt = interrupt
        self._extractors: dict[tuple[str, str], Extractor] = {}

    def extractor(self, name: str, precision: str = FLOAT32) -> Extractor:
        if (name, precision) not in self._extractors:
            made = Extractor(name, self.home, self.device, self.say, self.interrupt, precision)
            self._extractors[name, precision] = made
        return self._extractors[name, precision]

    def protocol(self, spec: ScoreSpec) -> Protocol:
        extractor = self.extractor(spec.extractor, spec.precision or FLOAT32)
        return make_protocol(
            spec,
            weights_sha256=extractor.weights.sha256,
            fingerprint=self.store.fingerprint,
            split_rule=self.store.split_rule,
            resize=extractor.resize,
            versions=versions(),
        )

    def reference(self, spec: ScoreSpec) -> Reference:
        extractor = self.extractor(spec.extractor, spec.precision or FLOAT32)
        images = split_images(self.store, spec)
        return load_reference(self.home, images, self.protocol(spec), extractor)

    def scorer(self, spec: ScoreSpec) -> Scorer:
        """Load weights and reference statistics of a protocol."""
        return Scorer(self, spec)


def split_images(store: ImageStore, spec: ScoreSpec) -> Tensor:
    """The real images that a protocol compares with, uint8, shape (N, H, W, C)."""
    return store.held_out() if spec.split == "held_out" else store.tensor()


class Scorer:
    """Scores generators under one protocol.

    Without Inception's classifier head, MobileNetV2's Inception Score is given under its own name. Precision and recall
    use the protocol's features; with Inception, also VGG16's features where its weights are available.
    """

    def __init__(self, scorers: Scorers, spec: ScoreSpec) -> None:
        self.spec = spec
        self.protocol = scorers.protocol(spec)
        self.extractor = scorers.extractor(spec.extractor, self.protocol.precision)
        self.reference = scorers.reference(spec)
        self.additional: dict[tuple[str, ...], tuple[Protocol, Extractor, Reference]] = {}
        self.lacking: dict[str, str] = {}
        if spec.extractor == INCEPTION and self.protocol.precision == FLOAT32:
            self._add_others(scorers)

    def _add_others(self, scorers: Scorers) -> None:
        if not self.extractor.weights.has_head:
            named = dataclasses.replace(self.protocol, extractor=MOBILENET)
            self.additional["is",] = (named, scorers.extractor(MOBILENET), self.reference)
        named = dataclasses.replace(self.protocol, extractor=VGG)
        if vgg_file(scorers.home) is None:
            why = f"VGG16 is not at hand; set HARNESS_VGG16_WEIGHTS to {VGG_URL}"
            self.lacking = {named.metric(name): why for name in _PUBLISHED_PRC}
            return
        extractor = scorers.extractor(VGG)
        named = dataclasses.replace(named, weights_sha256=extractor.weights.sha256, resize=extractor.resize)
        reference = load_reference(scorers.home, split_images(scorers.store, self.spec), named, extractor)
        self.additional[_PUBLISHED_PRC] = (named, extractor, reference)

    @property
    def objective(self) -> str:
        """The full name of the metric that is minimised."""
        return self.protocol.metric(self.spec.metric)

    def with_seed(self, seed: int) -> Scorer:
        """The same protocol, sampled with another seed."""
        other = copy.copy(self)
        other.protocol = dataclasses.replace(self.protocol, seed=seed)
        return other

    def with_batch_statistics(self) -> Scorer:
        """The same protocol for generators whose BatchNorm uses the statistics of each batch."""
        other = copy.copy(self)
        other.protocol = dataclasses.replace(self.protocol, batch_norm=f"statistics of batches of {BATCH}")
        return other

    def __call__(self, generator: nn.Module, hp: HParams, *, all_metrics: bool) -> Scores:
        """All metrics of the protocol, or only the one that is minimised."""
        only = ALL if all_metrics else (self.spec.metric,)
        scores = score(generator, hp, self.reference, self.protocol, self.extractor, only=only, quick=not all_metrics)
        if not all_metrics or scores.reason:
            return scores
        values, seconds = dict(scores.values), scores.seconds
        for names, (named, extractor, reference) in self.additional.items():
            protocol = dataclasses.replace(named, seed=self.protocol.seed, batch_norm=self.protocol.batch_norm)
            more = score(generator, hp, reference, protocol, extractor, only=names)
            values |= more.values
            seconds += more.seconds
        unavailable = {**scores.unavailable, **self.lacking}
        return dataclasses.replace(scores, values=values, unavailable=unavailable, seconds=seconds)
