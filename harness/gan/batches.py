"""Which images of a training come next."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from harness.gan.hparams import HParams, derive_seed


class BatchSource(Protocol):
    """Gives one batch after the other."""

    def next_batch(self) -> tuple[Tensor, Tensor | None]:
        """(indices of the images, which of them are mirrored), on the images' device and on the training's."""


def smallest_batch(hp: HParams) -> int:
    """The smallest last batch that is used: BatchNorm cannot normalise a single image of one pixel."""
    return hp.batch_size if hp.last_batch == "drop" else 2


class ShuffledBatches:
    """Epochs in an order from one stream of ``seed``, mirrored by another.

    Args:
        hp: batch size, and what becomes of an epoch's last batch.
        n_images: how many there are.
        seed: of the training.
        images_device: where the images are; indices go there.
        device: where the training is.
    """

    def __init__(
        self, hp: HParams, n_images: int, seed: int, *, images_device: torch.device, device: torch.device
    ) -> None:
        self.hp, self.n_images, self.images_device, self.device = hp, n_images, images_device, device
        self.order_rng = torch.Generator().manual_seed(derive_seed(seed, "order"))
        self.flip_rng = torch.Generator().manual_seed(derive_seed(seed, "flip"))
        self.epoch_rng_state = self.order_rng.get_state()
        self.order = self._shuffled()
        self.position = 0

    def next_batch(self) -> tuple[Tensor, Tensor | None]:
        if self.position + smallest_batch(self.hp) > len(self.order):
            if self.hp.reshuffle:
                self.epoch_rng_state = self.order_rng.get_state()
                self.order = self._shuffled()
            self.position = 0
        index = self.order[self.position : self.position + self.hp.batch_size]
        self.position += len(index)
        if not self.hp.flip:
            return index, None
        return index, _to_device(torch.rand(len(index), generator=self.flip_rng) < 0.5, self.device)

    def state(self) -> dict[str, Any]:
        return {
            "epoch_rng": self.epoch_rng_state,
            "position": self.position,
            "flip_rng": self.flip_rng.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.order_rng.set_state(state["epoch_rng"])
        self.epoch_rng_state = state["epoch_rng"]
        self.order = self._shuffled()
        self.position = state["position"]
        self.flip_rng.set_state(state["flip_rng"].cpu())

    def _shuffled(self) -> Tensor:
        # Drawn on the CPU, so that a seed means one order on every device; moved once an epoch.
        return _to_device(torch.randperm(self.n_images, generator=self.order_rng), self.images_device)


def _to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Without waiting for the device: only pinned memory is copied while other work runs."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn
