"""The state of one training and its step: batches, updates, statistics, snapshots."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import DataError, Diverged
from harness.gan.augment import augmented
from harness.gan.fast.layers import Adam
from harness.gan.fast.precision import autocast, tensor_cores
from harness.gan.hparams import HParams, derive_seed
from harness.gan.networks import build, clipped, fake_loss, generator_loss, latent_noise, real_loss

# The columns of the statistics window, each a mean over the window's steps.
CURVE_NAMES = ("loss_d", "loss_g", "logit_real", "logit_fake", "grad_norm_d", "grad_norm_g")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that is needed to continue bit for bit, and the generator to sample from.

    ``mark`` is the entry of ``Budget.snapshots_kimg`` that was reached, the budget's end, or None where the snapshot
    was asked for. ``state`` holds tensors, numbers and strings only, so that it loads with ``weights_only=True``.
    ``generator`` is live: score it before iterating on. It is the moving average where ``ema`` is on.
    """

    step: int
    kimg: float
    mark: float | None
    generator: nn.Module
    state: dict[str, Any] = field(repr=False)


def smallest_batch(hp: HParams) -> int:
    """The smallest last batch that is used: BatchNorm cannot normalise a single image of one pixel."""
    return hp.batch_size if hp.last_batch == "drop" else 2


class ShuffledBatches:
    """Epochs in an order from one stream of ``seed``, mirrored by another."""

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
        """(indices of the images, which of them are mirrored), on the images' device and on the training's."""
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
        return {"epoch_rng": self.epoch_rng_state, "position": self.position, "flip_rng": self.flip_rng.get_state()}

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


class Run:
    """The state of one training, and one step of it. Arguments are those of :func:`harness.gan.trainer.train`."""

    def __init__(self, hp: HParams, images_NHWC: Tensor, seed: int, device: torch.device) -> None:
        if len(images_NHWC) < hp.batch_size:
            raise DataError(
                f"{len(images_NHWC)} images do not fill one batch of {hp.batch_size}",
                "Lower batch_size or give more images.",
            )
        self.hp, self.images, self.device, self.seed = hp, images_NHWC, device, seed
        self.generator, self.discriminator = build(hp, derive_seed(seed, "weights"), device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False) if hp.ema else None
        of_g, of_d = list(self.generator.parameters()), list(self.discriminator.parameters())
        moved = [*of_g, *of_d] if hp.g_step_trains_d else of_g
        self.opt_g = _optimizer(hp, moved, hp.lr_g, device)
        self.opt_d = _optimizer(hp, of_d, hp.lr_d, device)
        self.noise_rng = torch.Generator(device).manual_seed(derive_seed(seed, "noise"))
        self.shuffled = ShuffledBatches(hp, len(images_NHWC), seed, images_device=images_NHWC.device, device=device)
        # A CUDA graph's step reads its batches from buffers that are filled from the shuffled ones.
        self.next_batch = self.shuffled.next_batch
        self.step = 0
        self.window = torch.zeros(len(CURVE_NAMES), device=device)
        self.window_steps = 0
        # The step, on the device; and per network, the first step with a non-finite gradient, 0 while there is none.
        self.clock = torch.zeros((), device=device)
        self.bad_step = {name: torch.zeros((), device=device) for name in ("discriminator", "generator")}
        self.replay: Callable[[], None] | None = None  # of a CUDA graph

    @property
    def kimg(self) -> float:
        return self.step * self.hp.images_per_step / 1000

    def advance(self) -> None:
        """One generator update with its ``n_dis`` discriminator updates. Adam reads nothing back to the host."""
        self.step += 1
        self.window_steps += 1
        if self.replay is not None:
            self.replay()
        else:
            self.play_eagerly()

    def play_eagerly(self) -> None:
        """The step with the next batch, operation by operation."""
        with tensor_cores(self.hp.precision, self.device):
            self._play()

    def _play(self) -> None:
        hp = self.hp
        self.clock += 1
        # Both networks' updates can use the same images, unless they are to be made in another way.
        shares = hp.g_noise == "reuse" and hp.d_fakes == "train"
        if hp.update_order == "g_first":
            real = self.draw_real()
            z = self.draw_noise(len(real))
            fake = self._fake(z, with_grad=True)
            loss_g, norm_g = self._train_generator(fake)
        for update in range(hp.n_dis):
            if hp.update_order == "d_first":
                real = self.draw_real()
                z = self.draw_noise(len(real))
                fake = self._fake(z, with_grad=shares and update == hp.n_dis - 1)
            elif update or not shares:
                real = self.draw_real() if update else real
                z = self.draw_noise(len(real)) if update or hp.g_noise == "fresh" else z
                fake = self._fake(z, with_grad=False)
            loss_d, logit_real, logit_fake, norm_d = self._train_discriminator(real, fake.detach())
        if hp.update_order == "d_first":
            if not shares:
                z = z if hp.g_noise == "reuse" else self.draw_noise(len(real))
                fake = self._fake(z, with_grad=True)
            loss_g, norm_g = self._train_generator(fake)
        with torch.no_grad():
            if self.average is not None:
                torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - hp.ema)
                for mine, theirs in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                    mine.copy_(theirs)
            means = (loss_d, loss_g, logit_real, logit_fake, norm_d, norm_g)
            self.window += torch.stack([value.detach().float() for value in means])

    def _train_generator(self, fake: Tensor) -> tuple[Tensor, Tensor]:
        """One update on images with gradients; (loss, gradient norm)."""
        hp = self.hp
        # D's own gradients are not needed here (unless the bug is asked for): only the path through it to the fakes.
        self.discriminator.requires_grad_(hp.g_step_trains_d)
        (fake_logits,) = self._judge(fake)
        loss_g = generator_loss(clipped(fake_logits, hp.loss_clip))
        norm_g = self._update("generator", self.opt_g, loss_g)
        self.discriminator.requires_grad_(True)
        return loss_g, norm_g

    def _train_discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One update on both, or one on each; (loss, mean real logit, mean fake logit, gradient norm)."""
        hp, factor = self.hp, self.hp.d_loss_factor

        def loss_real(logits: Tensor) -> Tensor:
            return real_loss(clipped(logits, hp.loss_clip), hp.label_smoothing) * factor

        def loss_fake(logits: Tensor) -> Tensor:
            return fake_loss(clipped(logits, hp.loss_clip)) * factor

        if hp.d_step == "joint":
            real_logits, fake_logits = self._judge(real, fake)
            loss = loss_real(real_logits) + loss_fake(fake_logits)
            return loss, real_logits.mean(), fake_logits.mean(), self._update("discriminator", self.opt_d, loss)
        (real_logits,) = self._judge(real)
        on_real = loss_real(real_logits)
        norm_real = self._update("discriminator", self.opt_d, on_real)
        (fake_logits,) = self._judge(fake)
        on_fake = loss_fake(fake_logits)
        norm = torch.maximum(self._update("discriminator", self.opt_d, on_fake), norm_real)
        return on_real.detach() + on_fake, real_logits.mean(), fake_logits.mean(), norm

    def _judge(self, *batches: Tensor) -> list[Tensor]:
        """Logits of each batch, augmented, never of half precision; BatchNorm sees each batch on its own."""
        batches = tuple(augmented(batch, self.hp.diffaugment, self.noise_rng) for batch in batches)
        with autocast(self.hp.precision, self.device):
            logits = [self.discriminator(batch) for batch in batches]
        return [each.to(torch.promote_types(each.dtype, torch.float32)) for each in logits]

    def draw_noise(self, n_real: int) -> Tensor:
        """The next z, shape (N, z_dim), for a step on ``n_real`` real images."""
        n = n_real if self.hp.last_batch == "match" else self.hp.batch_size
        return latent_noise((n, self.hp.z_dim), self.hp.latent, self.noise_rng)

    def _fake(self, z: Tensor, *, with_grad: bool) -> Tensor:
        """Images for the generator's update (with gradients), or for the discriminator's alone."""
        self.generator.train(with_grad or self.hp.d_fakes == "train")
        with torch.set_grad_enabled(with_grad), autocast(self.hp.precision, self.device):
            fake: Tensor = self.generator(z)
        return fake

    def draw_real(self) -> Tensor:
        """The next real batch, shape (N, C, H, W), scaled, on the device."""
        index, flipped = self.next_batch()
        batch_NHWC = self.images[index].to(self.device, non_blocking=True)
        if flipped is not None:
            batch_NHWC = torch.where(flipped[:, None, None, None], batch_NHWC.flip(2), batch_NHWC)
        pixels = batch_NHWC.permute(0, 3, 1, 2).float()
        return pixels.div_(255) if self.hp.real_range == "unit" else pixels.div_(127.5).sub_(1)

    def _update(self, name: str, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        bad = ~torch.isfinite(norm)
        first = self.bad_step[name]
        first.copy_(torch.where(bad & (first == 0), self.clock, first))
        if isinstance(optimizer, Adam):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            optimizer.step()
        elif not bad:  # the others cannot skip a step themselves
            optimizer.step()
        return norm

    def check(self) -> None:
        """Read the divergence flags back; Diverged is raised with the step and the network that came first."""
        steps = torch.stack(list(self.bad_step.values())).tolist()
        if diverged := [(int(step), name) for step, name in zip(steps, self.bad_step, strict=True) if step]:
            raise Diverged(*min(diverged))

    def read_window(self) -> dict[str, float]:
        """The window's means; a new window begins."""
        self.check()
        means = (self.window / max(1, self.window_steps)).tolist()
        self.window.zero_()
        self.window_steps = 0
        return dict(zip(CURVE_NAMES, means, strict=True))

    def snapshot(self, mark: float | None) -> Snapshot:
        self.check()
        state: dict[str, Any] = {
            "hparams": self.hp.to_dict(),
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "opt_g": self.opt_g.state_dict(),
            "opt_d": self.opt_d.state_dict(),
            **self.shuffled.state(),
            "noise_rng": self.noise_rng.get_state(),
            "window": self.window,
            "window_steps": self.window_steps,
        }
        sampled = self.average if self.average is not None else self.generator
        return Snapshot(step=self.step, kimg=self.kimg, mark=mark, generator=sampled, state=_copied(state))

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a Snapshot's state. Tensors are filled, not replaced: a CUDA graph holds on to them."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        _load_optimizer(self.opt_g, state["opt_g"])
        _load_optimizer(self.opt_d, state["opt_d"])
        self.shuffled.load(state)
        noise = state["noise_rng"].cpu()
        if len(noise) == len(self.noise_rng.get_state()):
            self.noise_rng.set_state(noise)
        else:  # that of another kind of device, which cannot continue here: this device's, from the same seed
            self.noise_rng.manual_seed(derive_seed(self.seed, "noise", state["step"]))
        self.step = state["step"]
        self.clock.fill_(self.step)
        for flag in self.bad_step.values():
            flag.zero_()
        self.window.copy_(state["window"])
        self.window_steps = state["window_steps"]


def _copied(value: Any) -> Any:
    """A deep copy; a tensor's memory beyond what it shows stays behind."""
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def _optimizer(hp: HParams, parameters: list[nn.Parameter], lr: float, device: torch.device) -> torch.optim.Optimizer:
    decay = hp.weight_decay
    if hp.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=hp.beta1, weight_decay=decay)
    if hp.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, alpha=hp.beta2, eps=hp.adam_eps, weight_decay=decay)
    if hp.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr, eps=hp.adam_eps, weight_decay=decay)
    # fused: one pass over all parameters, and the only Adam that can skip a step without a host round trip. capturable:
    # its step count is on the device, for CUDA graphs.
    on_cuda = device.type == "cuda"
    betas = hp.beta1, hp.beta2
    return Adam(parameters, lr, betas=betas, eps=hp.adam_eps, weight_decay=decay, fused=True, capturable=on_cuda)


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """``load_state_dict``, into the tensors that are there where there are any."""
    if not optimizer.state:
        capturable = [group.get("capturable") for group in optimizer.param_groups]
        optimizer.load_state_dict(_copied(saved))  # it would share the tensors
        for group, own in zip(optimizer.param_groups, capturable, strict=True):
            if own is not None:
                group["capturable"] = own  # not that of the device which saved it
        return
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for name, value in optimizer.state[parameter].items():
            if number in saved["state"]:
                value.copy_(saved["state"][number][name])
            else:
                value.zero_()
