"""Scorers: a protocol with weights and reference statistics loaded, to score many generators; the weights in use."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness import atomic
from harness.data.store import ImageStore
from harness.errors import HarnessError
from harness.gan.fast.precision import FLOAT32
from harness.gan.hparams import HParams
from harness.home import Home
from harness.scoring.extractors import Extractor, inception_shapes
from harness.scoring.fidelity import ALL, Scores, score, versions
from harness.scoring.protocol import INCEPTION, MOBILENET, VGG, Protocol, make_protocol
from harness.scoring.reference import (
    Reference,
    load_reference,
    prepare_reference,
    reference_path,
    refuse_equal,
    split_images,
)
from harness.scoring.sampling import BATCH, generate, to_uint8
from harness.scoring.weights import NO_HEAD, VGG_URL, inception_weights, mobilenet_weights, vgg_file, vgg_weights
from harness.spec.tables import ScoreSpec

# Features of this many images take a few seconds at most.
_QUIET = 100
_PUBLISHED_PRC = ("precision", "recall")


@dataclass(slots=True)
class Scorers:
    """Makes scorers for one set of images, which share extractors; ``interrupt`` may raise between batches."""

    home: Home
    store: ImageStore
    device: torch.device
    say: Callable[[str], None]
    interrupt: Callable[[], None] = lambda: None
    _extractors: dict[tuple[str, str], Extractor] = field(init=False, default_factory=dict)

    def extractor(self, name: str, precision: str = FLOAT32) -> Extractor:
        if (name, precision) not in self._extractors:
            extractor = Extractor(name, self.home, self.device, self.say, self.interrupt, precision)
            self._extractors[name, precision] = extractor
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
        return self.reference_of(self.protocol(spec), self.extractor(spec.extractor, spec.precision or FLOAT32), spec)

    def reference_of(self, protocol: Protocol, extractor: Extractor, spec: ScoreSpec) -> Reference:
        """Features of the real images, computed once; a message says so for many, which may take a minute."""
        images = split_images(self.store, spec)
        begins = self._begins(protocol)
        return load_reference(self.home, images, protocol, extractor, part=extractor.part, begins=begins)

    def prepare(self, protocol: Protocol, extractor: Extractor, spec: ScoreSpec) -> bool:
        """Compute a part of these features before they are needed; False if no part is left to begin."""
        images = split_images(self.store, spec)
        begins = self._begins(protocol)
        return prepare_reference(self.home, images, protocol, extractor, part=extractor.part, begins=begins)

    def _begins(self, protocol: Protocol) -> Callable[[], None] | None:
        n = protocol.reference_images
        text = f"computing {protocol.extractor} features of {n:,} real images"
        return functools.partial(self.say, text) if n > _QUIET else None

    def scorer(self, spec: ScoreSpec) -> Scorer:
        return Scorer(self, spec)


class Scorer:
    """Scores generators under one protocol. The reference is computed with the first score.

    Without Inception's classifier head, MobileNetV2's Inception Score is given under its own name. Precision and recall
    use the protocol's features; with Inception, also VGG16's features where its weights are available.
    """

    def __init__(self, scorers: Scorers, spec: ScoreSpec) -> None:
        """A DataError refuses real images that are all the same."""
        self.spec, self.scorers = spec, scorers
        self.protocol = scorers.protocol(spec)
        self.extractor = scorers.extractor(spec.extractor, self.protocol.precision)
        self.additional: dict[tuple[str, ...], tuple[Protocol, Extractor]] = {}
        self.lacking: dict[str, str] = {}
        self._references: dict[str, Reference] = {}  # by extractor; copies share it
        refuse_equal(split_images(scorers.store, spec), self.protocol)
        if spec.extractor == INCEPTION and self.protocol.precision == FLOAT32:
            self._add_others(scorers)

    def _add_others(self, scorers: Scorers) -> None:
        if not self.extractor.weights.has_head:
            named = dataclasses.replace(self.protocol, extractor=MOBILENET)
            self.additional["is",] = (named, scorers.extractor(MOBILENET))
        named = dataclasses.replace(self.protocol, extractor=VGG)
        if vgg_file(scorers.home) is None:
            why = f"VGG16's weights are not available; download {VGG_URL} and set HARNESS_VGG16_WEIGHTS to its path"
            self.lacking = {named.metric(name): why for name in _PUBLISHED_PRC}
            return
        extractor = scorers.extractor(VGG)
        named = dataclasses.replace(named, weights_sha256=extractor.weights.sha256, resize=extractor.resize)
        self.additional[_PUBLISHED_PRC] = (named, extractor)

    def _reference(self, protocol: Protocol, extractor: Extractor) -> Reference:
        if protocol.extractor not in self._references:
            self._references[protocol.extractor] = self.scorers.reference_of(protocol, extractor, self.spec)
        return self._references[protocol.extractor]

    def prepare(self) -> bool:
        """Compute a part of the references that scores will need; False if no part is left to begin."""
        others = [both for names, both in self.additional.items() if names != ("is",)]
        return any(self.scorers.prepare(*both, self.spec) for both in [(self.protocol, self.extractor), *others])

    @property
    def objective(self) -> str:
        """The full name of the metric that is minimised."""
        return self.protocol.metric(self.spec.metric)

    def seconds(self, generator: nn.Module, hp: HParams) -> float:
        """About how long a score with all metrics takes (s), measured on a few images."""
        started = time.perf_counter()
        images = to_uint8(generate(generator, hp, BATCH, self.protocol.seed, self.extractor.device))
        total = self.protocol.samples * (time.perf_counter() - started)
        for names, (protocol, extractor) in {(): (self.protocol, self.extractor), **self.additional}.items():
            extractor(images[:2])  # warms up
            started = time.perf_counter()
            extractor(images, logits=names == ("is",))
            cached = names == ("is",) or reference_path(self.scorers.home, protocol).is_file()
            n = protocol.samples + (0 if cached else protocol.reference_images)
            total += n * (time.perf_counter() - started)
        return total / BATCH

    def with_protocol(self, **changes: Any) -> Scorer:
        """The same with another seed, or another ``batch_norm``."""
        other = copy.copy(self)
        other.protocol = dataclasses.replace(self.protocol, **changes)
        return other

    def __call__(self, generator: nn.Module, hp: HParams, *, all_metrics: bool) -> Scores:
        """All metrics of the protocol, or only the one that is minimised."""
        only = ALL if all_metrics else (self.spec.metric,)
        reference = self._reference(self.protocol, self.extractor)
        scores = score(generator, hp, reference, self.protocol, self.extractor, only=only, quick=not all_metrics)
        if not all_metrics or scores.reason:
            return scores
        values, seconds = dict(scores.values), scores.seconds
        for names, (named, extractor) in self.additional.items():
            # The classifier's score compares with nothing.
            reference = reference if names == ("is",) else self._reference(named, extractor)
            protocol = dataclasses.replace(named, seed=self.protocol.seed, batch_norm=self.protocol.batch_norm)
            more = score(generator, hp, reference, protocol, extractor, only=names)
            values |= more.values
            seconds += more.seconds
        unavailable = {**scores.unavailable, **self.lacking}
        return dataclasses.replace(scores, values=values, unavailable=unavailable, seconds=seconds)


def weights_in_use(home: Home, say: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """(extractor, source and what it lacks), fetching what is not there yet."""

    def inception() -> str:
        weights = inception_weights(home, inception_shapes(), say)
        lacks = "" if weights.has_head else f"; Inception Score unavailable: {NO_HEAD.split(' (')[0]}"
        return f"{weights.source}{lacks}"

    def vgg() -> str:
        none = "none; precision and recall use the other extractors' features"
        return vgg_weights(home).source if vgg_file(home) else none

    sources = {"Inception": inception, "MobileNetV2": lambda: mobilenet_weights(home, say).source, "VGG16": vgg}
    for name, source in sources.items():
        try:
            yield f"{name} weights", source()
        except HarnessError as error:
            yield f"{name} weights", f"error: {error}"


def export_weights(home: Home, out: Path, say: Callable[[str], None]) -> str:
    """Write the Inception weights in use in torch-fidelity's own format."""
    weights = inception_weights(home, inception_shapes(), say)
    buffer = io.BytesIO()
    torch.save(weights.state, buffer)
    atomic.write_bytes(out, buffer.getvalue())
    return f"{out} (from {weights.source})"
