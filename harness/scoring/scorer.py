"""A protocol with all it needs, ready to score generator after generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.data.store import ImageStore
from harness.home import Home
from harness.scoring.fidelity import Extractor, Scores, metrics_of, score, uint8_batches, versions
from harness.scoring.protocol import INCEPTION, MOBILENET, Protocol, make_protocol
from harness.scoring.reference import Reference, load_reference
from harness.scoring.sampling import generate, to_uint8
from harness.study.hparams import HParams
from harness.study.spec import ScoreSpec


class Scorers:
    """Makes scorers for one set of images; extractors are loaded once and shared.

    Args:
        home: where weights and reference statistics are kept.
        store: the real images, those held out included.
        device: where features are computed.
        say: told what takes long.
        interrupt: called between batches; raises where scoring is to be given up.
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
        self._extractors: dict[str, Extractor] = {}

    def extractor(self, name: str) -> Extractor:
        if name not in self._extractors:
            self._extractors[name] = Extractor(name, self.home, self.device, self.say, self.interrupt)
        return self._extractors[name]

    def protocol(self, spec: ScoreSpec) -> Protocol:
        extractor = self.extractor(spec.extractor)
        return make_protocol(
            spec,
            weights_sha256=extractor.weights.sha256,
            fingerprint=self.store.fingerprint,
            split_rule=self.store.split_rule,
            resize=extractor.resize,
            versions=versions(),
        )

    def reference(self, spec: ScoreSpec) -> Reference:
        extractor = self.extractor(spec.extractor)
        images = split_images(self.store, spec)
        return load_reference(self.home, images, self.protocol(spec), lambda batch: extractor(uint8_batches(batch)))

    def scorer(self, spec: ScoreSpec) -> Scorer:
        """Load weights and reference statistics of a protocol."""
        return Scorer(self, spec)


def split_images(store: ImageStore, spec: ScoreSpec) -> Tensor:
    """The real images that a protocol compares with, uint8, shape (N, H, W, C)."""
    return store.held_out() if spec.split == "held_out" else store.tensor()


class Scorer:
    """Scores generators under one protocol.

    Where Inception's classifier head is not at hand, MobileNetV2's Inception Score stands in under its own name.
    """

    def __init__(self, scorers: Scorers, spec: ScoreSpec) -> None:
        self.spec = spec
        self.protocol = scorers.protocol(spec)
        self.extractor = scorers.extractor(spec.extractor)
        self.reference = scorers.reference(spec)
        headless = spec.extractor == INCEPTION and not self.extractor.weights.has_head
        self.stand_in = scorers.extractor(MOBILENET) if headless else None

    @property
    def objective(self) -> str:
        """The full name of the metric that is minimised."""
        return self.protocol.metric(self.spec.metric)

    def __call__(self, generator: nn.Module, hp: HParams, *, all_metrics: bool) -> Scores:
        """All metrics of the protocol, or only the one that is minimised."""
        only = ("fid", "kid", "is") if all_metrics else (self.spec.metric,)
        scores = score(generator, hp, self.reference, self.protocol, self.extractor, only=only)
        if self.stand_in is None or "is" not in only or scores.reason:
            return scores
        images = generate(generator, hp, self.protocol.samples, self.protocol.seed, self.extractor.device)
        features = self.stand_in(uint8_batches(to_uint8(images)), logits=True)
        own_name = dataclasses.replace(self.protocol, extractor=MOBILENET)
        values, _ = metrics_of(features, self.reference, own_name, only=("is",))
        return dataclasses.replace(scores, values={**scores.values, **values})
