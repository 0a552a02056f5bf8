"""What people run today, written from the descriptions of the published systems, to be measured beside ours."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from harness.gan.fast.layers import with_library_layers
from harness.gan.hparams import HParams
from harness.gan.networks import build

CPU = torch.device("cpu")


class Loop:
    """A training loop in the write-ups' style: float32, contiguous, a loss read back every step.

    Args:
        hp: sizes, widths, rates.
        style: ``write-up``: fakes are not detached in the discriminator's step, so that its backward pass runs through
            the generator, and the generator's step draws new noise. ``example``: as PyTorch's own example, which
            detaches the fakes and uses them again.
        device: where it trains.
    """

    def __init__(self, hp: HParams, style: str, device: torch.device = CPU) -> None:
        self.hp, self.style, self.device = hp, style, device
        self.generator, self.discriminator = (
            with_library_layers(n).to(memory_format=torch.contiguous_format) for n in build(hp, 0, device)
        )
        settings: dict[str, Any] = {"betas": (hp.beta1, hp.beta2)}
        self.opt_g = torch.optim.Adam(self.generator.parameters(), hp.lr_g, **settings)
        self.opt_d = torch.optim.Adam(self.discriminator.parameters(), hp.lr_d, **settings)
        self.bce = nn.BCEWithLogitsLoss()
        self.losses: list[tuple[float, float]] = []

    def noise(self, n: int) -> Tensor:
        return torch.randn(n, self.hp.z_dim, device=self.device)

    def step(self, real_NCHW: Tensor) -> None:
        """One update of each network on a batch in [-1, 1]."""
        n = len(real_NCHW)
        ones, zeros = torch.ones(n, device=self.device), torch.zeros(n, device=self.device)
        if self.style == "example":
            self.discriminator.zero_grad()
            loss_real = self.bce(self.discriminator(real_NCHW), ones)
            loss_real.backward()
            fake = self.generator(self.noise(n))
            loss_fake = self.bce(self.discriminator(fake.detach()), zeros)
            loss_fake.backward()
            loss_d = loss_real + loss_fake
            self.opt_d.step()
            self.generator.zero_grad()
        else:
            self.opt_d.zero_grad()
            fake = self.generator(self.noise(n))
            loss_d = self.bce(self.discriminator(real_NCHW), ones) + self.bce(self.discriminator(fake), zeros)
            loss_d.backward()
            self.opt_d.step()
            self.opt_g.zero_grad()
            fake = self.generator(self.noise(n))
        loss_g = self.bce(self.discriminator(fake), ones)
        loss_g.backward()
        self.opt_g.step()
        self.losses.append((loss_d.item(), loss_g.item()))


def image_files(folder: Path, size: int, batch: int, workers: int) -> DataLoader[Any]:
    """ImageFolder, Resize, CenterCrop, ToTensor and scaling, read by worker processes."""
    from torchvision import datasets, transforms

    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)])
    dataset = datasets.ImageFolder(str(folder), transform)
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0)


class Pixels(Dataset[Tensor]):
    """uint8 images (N, 3, H, W) as torch-fidelity reads datasets."""

    def __init__(self, images_NCHW: Tensor) -> None:
        self.images = images_NCHW

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class Bytes(nn.Module):
    """A generator whose images are uint8, three channels, as torch-fidelity expects them."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.generator(z).mul(127.5).add(127.5).clamp(0, 255).to(torch.uint8)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@contextmanager
def fidelity_call(
    generator: nn.Module, z_dim: int, real_NCHW: Tensor, state: dict[str, Tensor], *, cached: bool = True
) -> Iterator[Callable[[int], dict[str, float]]]:
    """``calculate_metrics`` as torch-fidelity's README calls it for a generator, the real side in its cache or not.

    Yields the call, which takes the number of generated images; weights and cache are in a temporary folder meanwhile.
    """
    import torch_fidelity

    generator = with_library_layers(copy.deepcopy(generator)).to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        weights = Path(name) / "inception.pth"
        torch.save(state, weights)
        cache = "real" if cached else None

        def call(samples: int) -> dict[str, float]:
            wrapped = torch_fidelity.GenerativeModelModuleWrapper(Bytes(generator), z_dim, "normal", 0)
            found: dict[str, float] = torch_fidelity.calculate_metrics(
                input1=wrapped, input1_model_num_samples=samples, input2=Pixels(real_NCHW), input2_cache_name=cache,
                cuda=False, fid=True, batch_size=64, verbose=False, cache_root=name, save_cpu_ram=True,
                feature_extractor_weights_path=str(weights),
            )  # fmt: skip
            return found

        yield call
