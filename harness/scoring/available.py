"""Which weights of feature extractors are in use, and the Inception weights as a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from harness import atomic
from harness.errors import HarnessError
from harness.home import Home
from harness.scoring.extractors import inception_shapes
from harness.scoring.fidelity import NO_HEAD
from harness.scoring.weights import inception_weights, mobilenet_weights, vgg_file, vgg_weights


def weights_in_use(home: Home, say: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """(extractor, source and what it lacks), fetching what is not there yet."""
    try:
        weights = inception_weights(home, inception_shapes(), say)
        lacks = "" if weights.has_head else f"; Inception Score unavailable: {NO_HEAD.split(' (')[0]}"
        yield "Inception weights", f"{weights.source}{lacks}"
    except HarnessError as error:
        yield "Inception weights", f"error: {error}"
    try:
        yield "MobileNetV2 weights", mobilenet_weights(home, say).source
    except HarnessError as error:
        yield "MobileNetV2 weights", f"error: {error}"
    try:
        none = "none; precision and recall use the other extractors' features"
        yield "VGG16 weights", vgg_weights(home).source if vgg_file(home) else none
    except HarnessError as error:
        yield "VGG16 weights", f"error: {error}"


def export_weights(home: Home, out: Path, say: Callable[[str], None]) -> str:
    """Write the Inception weights in use in torch-fidelity's own format."""
    weights = inception_weights(home, inception_shapes(), say)
    buffer = io.BytesIO()
    torch.save(weights.state, buffer)
    atomic.write_bytes(out, buffer.getvalue())
    return f"{out} (from {weights.source})"
