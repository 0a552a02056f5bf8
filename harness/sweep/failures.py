"""Why a trial failed, read from the exception that ended it."""

from __future__ import annotations

import errno

import torch

from harness.errors import without_secrets

DISK_FULL = "the disk is full"


def in_words(error: Exception) -> str:
    """The first line of what an exception says, without secrets."""
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0]) if lines else type(error).__name__


def is_disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_device_lost(error: Exception) -> bool:
    """Whether the device will do nothing more for this process: another process must continue the trial."""
    return isinstance(error, torch.AcceleratorError) and not is_oom(error)


def is_oom(error: Exception) -> bool:
    """Whether memory ran out, the machine's or a GPU's."""
    # Of CUDA, and of cuBLAS and cuDNN.
    said = ("out of memory", "ALLOC_FAILED")
    return (
        is_oom_of_host(error)
        or isinstance(error, torch.OutOfMemoryError)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in said))
    )


def is_oom_of_host(error: Exception) -> bool:
    """Whether the machine's memory ran out, which all of its workers share."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
