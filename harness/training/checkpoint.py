"""One file per snapshot that proves itself: a header with the sha256 of the payload, then the payload."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from harness import atomic
from harness.errors import CheckpointError
from harness.gan.hparams import HParams, canonical_json
from harness.gan.networks import make_networks
from harness.gan.plain import layer_lists
from harness.training.run_folder import RunFolder

_MAGIC = b"dcgan-harness checkpoint 1\n"


def save_checkpoint(path: Path, state: dict[str, Any]) -> str:
    """Write a snapshot's state and whatever else belongs to that moment, atomically; return its sha256.

    Args:
        path: the file; replaced in one step.
        state: tensors, numbers, strings and containers of them.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    sha256 = hashlib.sha256(payload).hexdigest()
    atomic.write_bytes(path, _MAGIC + sha256.encode() + b"\n" + payload)
    return sha256


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a file of :func:`save_checkpoint`; its content is checked before anything is unpickled.

    Raises:
        CheckpointError: not such a file, damaged, or holding anything but plain values and tensors.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not a checkpoint of this harness")
    start = len(_MAGIC)
    expected, payload = data[start : start + 64], data[start + 65 :]
    if data[start + 64 : start + 65] != b"\n" or hashlib.sha256(payload).hexdigest().encode() != expected:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in its header")
    try:
        # map_location leaves RNG states (CPU byte tensors) for the trainer to place.
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # its text advises to load the file unsafely
        raise CheckpointError(f"{path} cannot be loaded: it holds more than plain values and tensors") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint of this harness")
    return _to_device(state, device)


def _to_device(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    keep_on_cpu = ("epoch_rng", "noise_rng", "flip_rng")
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) and key not in keep_on_cpu else value
        for key, value in state.items()
    }


def publish(folder: Path, generator: nn.Module, discriminator: Mapping[str, Tensor], hp: HParams) -> None:
    """Publish the weights of both networks as safetensors, with the configuration in their headers and next to them.

    ``layers`` in the header lists a DCGAN's layers in PyTorch's own terms, so that they load without this package.
    The header has one entry, because safetensors writes several in a random order and equal weights make equal files.

    Args:
        folder: of the run.
        generator: the network that is sampled from.
        discriminator: a ``state_dict``.
        hp: the configuration.
    """
    run, hparams, layers = RunFolder(folder), hp.to_dict(), layer_lists(hp)
    for path, state in ((run.weights, generator.state_dict()), (run.discriminator, discriminator)):
        header = {"model": canonical_json({"hparams": hparams, "layers": layers[path.stem] if layers else None})}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        atomic.write_bytes(path, save(tensors, header))
    atomic.write_text(run.hparams, canonical_json(hparams) + "\n")


def import_generator(folder: Path, hp: HParams, device: torch.device) -> nn.Module:
    """The published generator of a folder, in evaluation mode.

    Raises:
        CheckpointError: there is none, or its weights do not fit ``hp``.
    """
    path = RunFolder(folder).weights
    if not path.is_file():
        raise CheckpointError(f"no published weights in {folder}", "Only finished trials and trainings have them.")
    generator, _ = make_networks(hp)
    try:
        generator.load_state_dict(load_file(path))
    except Exception as error:
        raise CheckpointError(f"{path} does not fit its configuration: {error}") from None
    return generator.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]
