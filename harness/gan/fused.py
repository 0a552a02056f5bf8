"""Several trainings at once as one: layers of the same shape side by side, as the groups of grouped convolutions.

Wang et al. (2021), "Horizontally Fused Training Array", section 3: convolutions become grouped ones, BatchNorm sees K
times the channels, Adam has K learning rates and betas, and the sum of the losses gives each member the gradients that
it has alone. An experiment: docs/decisions/0007-fused-trainings.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.gan.losses import fake_loss, generator_loss, real_loss
from harness.gan.precision import autocast, tensor_cores
from harness.gan.run import Run, Snapshot

# In what members may differ; beside these, seeds and with them weights, noise and data order.
OWN = ("lr_g", "lr_d", "beta1", "beta2")
# The loop that is fused: one update on both batches, whose fakes the generator's update uses again.
_LOOP = {
    "d_step": "joint", "d_fakes": "train", "g_noise": "reuse", "g_step_trains_d": False, "n_dis": 1, "ema": 0.0,
    "ends": "conv", "last_batch": "drop",
}  # fmt: skip


class FusedRuns:
    """K trainings that step together; what each has alone, it has here, up to rounding.

    Args:
        runs: the members, each with its own state, on one device. They draw images and noise as they would alone.

    Raises:
        UsageError: the members differ in more than :data:`OWN`, or use a loop that cannot be fused.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.hp, self.device = list(runs), runs[0].hp, runs[0].device
        _refuse(self.runs)
        self.generator = _side_by_side([run.generator.layers for run in runs])
        self.discriminator = _side_by_side([run.discriminator.layers for run in runs])
        self.adam_g = _Adam(self.generator, runs, "lr_g", "opt_g")
        self.adam_d = _Adam(self.discriminator, runs, "lr_d", "opt_d")

    def advance(self) -> None:
        """One update of every discriminator and of every generator. No value is read back to the host."""
        with tensor_cores(self.hp.precision, self.device):
            self._advance()

    def _advance(self) -> None:
        k = len(self.runs)
        for run in self.runs:
            run.step += 1
            run.window_steps += 1
            run.clock += 1
        real = torch.cat([run.draw_real() for run in self.runs], dim=1)
        z = torch.cat([run.draw_noise(self.hp.batch_size) for run in self.runs], dim=1)
        with autocast(self.hp.precision, self.device):
            fake = self.generator(z[:, :, None, None])
            real_logits, fake_logits = (self._judge(batch, k) for batch in (real, fake.detach()))
        losses_d = torch.stack([
            real_loss(real_logits[:, i], self.hp.label_smoothing) * self.hp.d_loss_factor
            + fake_loss(fake_logits[:, i]) * self.hp.d_loss_factor
            for i in range(k)
        ])  # fmt: skip
        norms_d = self.adam_d.update(losses_d.sum(), [run.bad_step["discriminator"] for run in self.runs], self.runs)
        self.discriminator.requires_grad_(False)
        with autocast(self.hp.precision, self.device):
            judged = self._judge(fake, k)
        losses_g = torch.stack([generator_loss(judged[:, i]) for i in range(k)])
        norms_g = self.adam_g.update(losses_g.sum(), [run.bad_step["generator"] for run in self.runs], self.runs)
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            means = torch.stack([losses_d, losses_g, real_logits.mean(0), fake_logits.mean(0), norms_d, norms_g], 1)
            for run, row in zip(self.runs, means.float(), strict=True):
                run.window += row

    def _judge(self, images: Tensor, k: int) -> Tensor:
        """Logits, shape (N, K)."""
        logits: Tensor = self.discriminator(images).reshape(len(images), k)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def snapshots(self, mark: float | None = None) -> list[Snapshot]:
        """A Snapshot of each member, with which it can go on alone.

        Raises:
            Diverged: of the first member that did.
        """
        self.split()
        return [run.snapshot(mark) for run in self.runs]

    def split(self) -> None:
        """Give the members their weights, statistics and Adam's moments back."""
        for fused, own in ((self.generator, "generator"), (self.discriminator, "discriminator")):
            for name, value in fused.state_dict().items():
                for run, part in zip(self.runs, _parts(value, len(self.runs)), strict=True):
                    getattr(run, own).layers.state_dict()[name].copy_(part)
        self.adam_g.split(self.runs, "opt_g")
        self.adam_d.split(self.runs, "opt_d")


def _parts(value: Tensor, k: int) -> list[Tensor]:
    """What of a fused tensor is each member's; a counter is everyone's."""
    return list(value.chunk(k)) if value.dim() else [value] * k


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


def _side_by_side(networks: Sequence[nn.Sequential]) -> nn.Sequential:
    """One network whose groups are the given ones: input and output have K times the channels."""
    k = len(networks)
    fused = nn.Sequential(*(_wider(layers[0], k) for layers in zip(*networks, strict=True)))
    states = [network.state_dict() for network in networks]
    with torch.no_grad():
        for name, value in fused.state_dict().items():
            of_each = [state[name] for state in states]
            value.copy_(torch.cat(of_each) if value.dim() else of_each[0])
    example = next(networks[0].parameters())
    fused.to(device=example.device, dtype=example.dtype)
    return fused.to(memory_format=torch.channels_last)


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


class _Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) with a learning rate, betas and a step count of each member's own.

    A member whose gradient is not finite keeps its weights and moments, as the optimizer of a training alone does.
    """

    def __init__(self, fused: nn.Module, runs: Sequence[Run], rate: str, optimizer: str) -> None:
        self.parameters = list(fused.parameters())
        k, device = len(runs), self.parameters[0].device
        settings = [dataclasses.asdict(run.hp) for run in runs]
        dtype = torch.promote_types(self.parameters[0].dtype, torch.float32)

        def column(name: str) -> Tensor:
            return torch.tensor([row[name] for row in settings], device=device, dtype=dtype)

        self.rate, self.beta1, self.beta2 = column(rate), column("beta1"), column("beta2")
        self.eps, self.decay = runs[0].hp.adam_eps, runs[0].hp.weight_decay
        self.steps = torch.zeros(k, device=device, dtype=dtype)
        self.first = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in self.parameters]
        self.second = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in self.parameters]
        for index, run in enumerate(runs):
            for number, parameter in enumerate(getattr(run, optimizer).param_groups[0]["params"]):
                state = getattr(run, optimizer).state.get(parameter)
                if state:
                    self.steps[index] = state["step"]
                    self.first[number].chunk(k)[index].copy_(state["exp_avg"])
                    self.second[number].chunk(k)[index].copy_(state["exp_avg_sq"])

    def update(self, loss: Tensor, bad_step: list[Tensor], runs: Sequence[Run]) -> Tensor:
        """Backward and step; the gradients' norms, shape (K,)."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        k = len(self.rate)
        gradients = [p.grad for p in self.parameters]
        assert all(gradient is not None for gradient in gradients)
        with torch.no_grad():
            squares = [torch.stack([part.square().sum() for part in g.chunk(k)]) for g in gradients if g is not None]
            norms = torch.stack(squares).sum(0).sqrt()
            good = torch.isfinite(norms)
            for flag, fine, run in zip(bad_step, good, runs, strict=True):
                flag.copy_(torch.where(~fine & (flag == 0), run.clock, flag))
            self.steps += good
            scale = self.rate / (1 - self.beta1**self.steps)
            root = (1 - self.beta2**self.steps).sqrt()
            for p, g, first, second in zip(self.parameters, gradients, self.first, self.second, strict=True):
                assert g is not None

                def each(value: Tensor, p: Tensor = p) -> Tensor:
                    """Per member, to be multiplied with this parameter."""
                    return value.repeat_interleave(p.shape[0] // k).view(-1, *[1] * (p.dim() - 1))

                fine = each(good)
                gradient = torch.where(fine, g if self.decay == 0 else g + self.decay * p, torch.zeros_like(g))
                beta1, beta2 = each(self.beta1), each(self.beta2)
                first.copy_(torch.where(fine, first * beta1 + gradient * (1 - beta1), first))
                second.copy_(torch.where(fine, second * beta2 + gradient.square() * (1 - beta2), second))
                step = each(scale) * first / (second.sqrt() / each(root) + self.eps)
                p.sub_(torch.where(fine, step, torch.zeros_like(step)))
        return norms

    def split(self, runs: Sequence[Run], optimizer: str) -> None:
        """Write moments and step counts into the members' optimizers."""
        k = len(runs)
        for index, run in enumerate(runs):
            own = getattr(run, optimizer)
            for number, parameter in enumerate(own.param_groups[0]["params"]):
                own.state[parameter] = {
                    "step": self.steps[index].float().clone(),
                    "exp_avg": self.first[number].chunk(k)[index].clone(),
                    "exp_avg_sq": self.second[number].chunk(k)[index].clone(),
                }
