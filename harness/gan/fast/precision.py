"""The arithmetic of a training: float32, CUDA's TF32, or bfloat16, which may be faster and changes nothing else.

Weights, BatchNorm's statistics, losses and Adam are float32 in each: only convolutions and linear layers, and what
flows between them, are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import RLock
from typing import Final

import torch

from harness.gan.hparams import Precision

FLOAT32: Final = "float32"
TF32: Final = "tf32"
BF16: Final = "bf16"

_TURN = RLock()


def usual(device: torch.device) -> Precision:
    """Of trainings where nobody named one: on CUDA that is TF32 (docs/decisions/0010-tf32-on-cuda.md)."""
    return TF32 if device.type == "cuda" else FLOAT32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """For a forward pass: bfloat16 inside, if that is the precision. The backward pass follows automatically."""
    if precision != BF16:
        return nullcontext()
    # On CUDA without the cache of cast weights, which a captured graph must not share with other work.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cuda")


@cache
def has_amx() -> bool:
    """Whether the processor has Intel's matrix unit, for which bfloat16's products are the quickest by far."""
    return bool(torch.cpu._is_amx_tile_supported())


@contextmanager
def tensor_cores(precision: str, device: torch.device) -> Iterator[None]:
    """For whole steps and batches: float32 operands are rounded to TF32 inside, where that is the precision, else not.

    That is a setting of the whole process, and only one graph may be captured at a time: on CUDA, threads take turns
    in here. Replaying a graph needs no turn.
    """
    if device.type != "cuda":
        yield
        return
    with _TURN:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == TF32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
