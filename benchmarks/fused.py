"""Several trainings at once as one: layers of the same shape side by side, as the groups of grouped convolutions.

Wang et al. (2021), "Horizontally Fused Training Array", section 3: convolutions become grouped ones, BatchNorm sees K
times the channels, Adam has K learning rates and betas, and the sum of the losses gives each member the gradients that
it has alone. An experiment: docs/decisions/0007-fused-trainings.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.gan.fast.precision import autocast, tensor_cores
from harness.gan.losses import fake_loss, generator_loss, real_loss
from harness.gan.run import CURVE_NAMES, Run

# In what members may differ; beside these, seeds and with them weights, noise and data order.
OWN = ("lr_g", "lr_d", "beta1", "beta2")
# The loop that is fused: one update on both batches, whose fakes the generator's update uses again.
_LOOP = {
    "d_step": "joint", "d_fakes": "train", "g_noise": "reuse", "g_step_trains_d": False, "n_dis": 1, "ema": 0.0,
    "ends": "conv", "last_batch": "drop",
}  # fmt: skip


class FusedRuns:
    """K trainings that step together; what each has alone, it has here, up to rounding.

    A member's weights, statistics and flags are parts of the fused ones: it can be scored, saved and loaded at any
    time, and it must not step by itself while it is a member.

    Args:
        runs: the members, each with its own state, on one device and the same images. They draw their images and noise
            as they would alone.

    Raises:
        UsageError: the members differ in more than :data:`OWN`, or use a loop that cannot be fused.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.members, self.hp, self.device = list(runs), runs[0].hp, runs[0].device
        _refuse(self.members)
        self.networks = {
            "generator": _side_by_side([run.generator.layers for run in runs]),
            "discriminator": _side_by_side([run.discriminator.layers for run in runs]),
        }
        self.clocks = _joined([run.clock for run in runs])
        self.bad_steps = {name: _joined([run.bad_step[name] for run in runs]) for name in self.networks}
        self.windows = _joined([run.window for run in runs]).view(len(runs), len(CURVE_NAMES))
        self.play: Callable[[], None] = self.play_eagerly

    def advance(self) -> None:
        """One update of every discriminator and of every generator. No value is read back to the host."""
        for run in self.members:
            run.step += 1
            run.window_steps += 1
        self.play()

    def play_eagerly(self) -> None:
        """The step with the members' next batches, operation by operation."""
        with tensor_cores(self.hp.precision, self.device):
            self._play()

    def _play(self) -> None:
        self.clocks += 1
        real = self._real()
        z = torch.cat([run.draw_noise(self.hp.batch_size) for run in self.members], dim=1)
        with autocast(self.hp.precision, self.device):
            fake = self.networks["generator"](z[:, :, None, None])
        real_logits, fake_logits = self._judge(real), self._judge(fake.detach())
        factor = self.hp.d_loss_factor
        losses_d = real_loss(real_logits, self.hp.label_smoothing) * factor + fake_loss(fake_logits) * factor
        norms_d = self._update("discriminator", losses_d)
        self.networks["discriminator"].requires_grad_(False)
        losses_g = generator_loss(self._judge(fake))
        norms_g = self._update("generator", losses_g)
        self.networks["discriminator"].requires_grad_(True)
        with torch.no_grad():
            means = [losses_d, losses_g, real_logits.mean(0), fake_logits.mean(0), norms_d, norms_g]
            self.windows += torch.stack(means, 1).float()

    def _real(self) -> Tensor:
        """The members' next images, shape (N, K C, H, W)."""
        drawn = [run.next_batch() for run in self.members]
        index = torch.cat([index for index, _ in drawn])
        flips = [flipped for _, flipped in drawn if flipped is not None]
        images = self.members[0].pixels(index, torch.cat(flips) if flips else None)
        apart = images.view(len(drawn), -1, *images.shape[1:]).transpose(0, 1)
        return apart.flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def _judge(self, images: Tensor) -> Tensor:
        """Logits, shape (N, K), never of half precision."""
        with autocast(self.hp.precision, self.device):
            logits: Tensor = self.networks["discriminator"](images).reshape(len(images), len(self.members))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _update(self, name: str, losses: Tensor) -> Tensor:
        """Backward, and each member's own Adam on its part; the gradients' norms, shape (K,)."""
        k, network = len(self.members), self.networks[name]
        for parameter in network.parameters():
            parameter.grad = None
        losses.sum().backward()  # type: ignore[no-untyped-call]
        parts = [parameter.grad.chunk(k) for parameter in network.parameters() if parameter.grad is not None]
        gradients = list(zip(*parts, strict=True))
        of_each = torch._foreach_norm([part for member in gradients for part in member])
        norms: Tensor = torch.linalg.vector_norm(torch.stack(of_each).view(k, -1), dim=1)
        bad = ~torch.isfinite(norms)
        first = self.bad_steps[name]
        first.copy_(torch.where(bad & (first == 0), self.clocks, first))
        for run, own, skip in zip(self.members, gradients, bad.float(), strict=True):
            for parameter, gradient in zip(getattr(run, name).parameters(), own, strict=True):
                parameter.grad = gradient
            optimizer = run.opt_g if name == "generator" else run.opt_d
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
        return norms


def _refuse(runs: Sequence[Run]) -> None:
    first = runs[0].hp.to_dict()
    for name, wanted in _LOOP.items():
        if first[name] != wanted:
            raise UsageError(f"{name} = {first[name]!r} cannot be fused", f"Fused trainings need {name} = {wanted!r}.")
    for run in runs:
        others = [name for name, value in run.hp.to_dict().items() if value != first[name] and name not in OWN]
        if others:
            raise UsageError(
                f"fused trainings differ in {', '.join(others)}",
                f"They may differ in {', '.join(OWN)} and in the seed.",
            )
        if run.images is not runs[0].images:
            raise UsageError("fused trainings have images of their own", "Give all of them the same tensor.")


def _joined(of_each: Sequence[Tensor]) -> Tensor:
    """One tensor, shape (K ...), of which each of these becomes a part."""
    joined = torch.cat([value.detach().reshape(-1, *value.shape[1:]) for value in of_each])
    for value, part in zip(of_each, joined.chunk(len(of_each)), strict=True):
        value.data = part.view(value.shape)
    return joined


def _side_by_side(networks: Sequence[nn.Sequential]) -> nn.Sequential:
    """One network whose groups are the given ones, which become its parts: K times the channels in and out."""
    k = len(networks)
    fused = nn.Sequential(*(_wider(layers[0], k) for layers in zip(*networks, strict=True)))
    example = next(networks[0].parameters())
    fused.to(example.device, example.dtype).to(memory_format=torch.channels_last)
    states = [network.state_dict() for network in networks]
    for name, value in fused.state_dict().items():
        # A counter is everyone's.
        for state, part in zip(states, value.chunk(k) if value.dim() else [value] * k, strict=True):
            part.copy_(state[name])
    live: list[dict[str, Tensor]] = [dict([*n.named_parameters(), *n.named_buffers()]) for n in networks]
    for name, value in [*fused.named_parameters(), *fused.named_buffers()]:
        for own, part in zip(live, value.detach().chunk(k) if value.dim() else [value] * k, strict=True):
            own[name].data = part
    return fused


def _wider(layer: nn.Module, k: int) -> nn.Module:
    like = next(iter(layer.parameters()), None)
    if like is None:
        return layer
    place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(layer.num_features * k, layer.eps, layer.momentum, **place)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    shape = (layer.in_channels * k, layer.out_channels * k, layer.kernel_size, layer.stride, layer.padding)
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(*shape, groups=k, bias=bias, **place)  # type: ignore[arg-type]
    return nn.ConvTranspose2d(*shape, layer.output_padding, groups=k, bias=bias, **place)  # type: ignore[arg-type]
