"""Generator, discriminator and losses of Radford et al. (2016), and of what people made of them, for 16 to 256 px.

``z`` becomes a small map, and stride-2 transposed convolutions double it up to the image (section 3 and figure 1); the
discriminator mirrors it. What each layer is follows from the configuration: :mod:`harness.gan.architecture`.

The losses are binary cross-entropy on logits. Goodfellow et al. (2014), section 3: the discriminator ascends ``log D(x)
+ log(1 - D(G(z)))``, the generator ascends ``log D(G(z))``. Here both descend, with ``D = sigmoid(logits)``.
"""

from __future__ import annotations

import copy
import math
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import HarnessError, UsageError
from harness.gan.architecture import Layer, discriminator_layers, generator_layers
from harness.gan.fast.layers import Down, FromImage, FromMaps, Projection, ToImage, ToLogit, ToMaps, Up
from harness.gan.hparams import DCGAN, HParams
from harness.machine.imports import load_function

# Held while torch's default generator, which all threads share, is seeded and restored.
_DEFAULT_GENERATOR = Lock()


def latent_noise(shape: tuple[int, ...], law: str, generator: torch.Generator) -> Tensor:
    """Draw z of a law (:attr:`HParams.latent`) on the generator's device."""
    if law == "normal":
        return torch.randn(shape, generator=generator, device=generator.device)
    return from_uniform(torch.rand(shape, generator=generator, device=generator.device), law)


def from_uniform(u: Tensor, law: str) -> Tensor:
    """Map U(0, 1) to z of a law that is defined by it: ``uniform``, or ``truncated_normal``."""
    if law == "uniform":
        return u * 2 - 1
    return math.sqrt(2) * torch.erfinv((u * 2 - 1) * math.erf(1 / math.sqrt(2)))


def _following(layer: Layer, activation: str, slope: float, eps: float, momentum: float) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for kind in layer.order:
        if kind == "bn":
            modules.append(nn.BatchNorm2d(layer.outputs, eps=eps, momentum=momentum))
        else:
            # In place, but not over the output of another activation, which that one's gradient needs.
            inplace = not isinstance(modules[-1] if modules else None, nn.LeakyReLU | nn.ReLU)
            leaky = activation == "leaky_relu"
            modules.append(nn.LeakyReLU(slope, inplace) if leaky else nn.ReLU(inplace))
    return modules


class Generator(nn.Module):
    """``z`` of shape (N, z_dim) to images of shape (N, channels, image_size, image_size) in [-1, 1]."""

    def __init__(self, hp: HParams) -> None:
        super().__init__()
        first, *upsampling = generator_layers(hp)
        self.linear = hp.ends == "linear"
        layers: list[nn.Module] = []
        if self.linear:
            layers.append(nn.Linear(hp.z_dim, first.outputs * first.size**2, bias=first.bias))
            layers.append(ToMaps(1, (first.outputs, first.size, first.size)))
        else:
            layers.append(Projection(hp.z_dim, first.outputs, first.kernel, bias=first.bias))
        act, slope = hp.activation_g, hp.slope_g
        layers += _following(first, act, slope, hp.bn_eps, hp.bn_momentum_projection or hp.bn_momentum)
        for up in upsampling:
            kind = ToImage if up is upsampling[-1] and up.kernel == 4 else Up
            layers.append(
                kind(up.inputs, up.outputs, up.kernel, up.stride, up.padding, up.output_padding, bias=up.bias)
            )
            layers += _following(up, act, slope, hp.bn_eps, hp.bn_momentum)
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z if self.linear else z[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """Images of shape (N, channels, image_size, image_size) in [-1, 1] to logits of shape (N,)."""

    def __init__(self, hp: HParams) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for down in discriminator_layers(hp):
            kind = FromImage if not layers and (down.kernel, down.stride, down.padding) == (4, 2, 1) else Down
            layers.append(kind(down.inputs, down.outputs, down.kernel, down.stride, down.padding, bias=down.bias))
            layers += _following(down, hp.activation_d, hp.slope_d, hp.bn_eps, hp.bn_momentum)
        if hp.ends == "linear":
            layers += [FromMaps(), nn.Linear(down.outputs * down.size**2, 1)]
        else:
            layers.append(ToLogit(down.outputs, 1, down.size, bias=hp.conv_bias_d != "never"))
        self.layers = nn.Sequential(*layers)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.layers(images_BCHW)
        return logits.flatten()


def initialise(network: nn.Module, hp: HParams, generator: torch.Generator) -> None:
    """Fill all weights in place, from ``generator`` alone.

    ``normal``: convolutions and linear layers N(0, init_std), BatchNorm scales N(1, init_std), every bias 0 (Radford
    et al., section 4). ``normal_weights``: the same, but BatchNorm starts at scale 1. ``default``: PyTorch's own law,
    Kaiming uniform with a = sqrt(5). ``linear_fan_in``: linear layers N(0, 1/sqrt(inputs)) with bias 0, all else
    default. ``glorot``: Glorot and Bengio (2010) uniform, every bias 0. With ``bias_init="default"`` biases are drawn
    as PyTorch does.
    """
    for module in network.modules():  # torch.nn.init records no gradients
        if isinstance(module, nn.BatchNorm2d) and hp.init == "normal":
            nn.init.normal_(module.weight, 1.0, hp.init_std, generator=generator)
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        spread = 1 / math.sqrt(module.weight[0].numel())
        default = hp.init == "default" or (hp.init == "linear_fan_in" and not isinstance(module, nn.Linear))
        if default:
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
        elif hp.init == "glorot":
            nn.init.xavier_uniform_(module.weight, generator=generator)
        else:
            std = spread if hp.init == "linear_fan_in" else hp.init_std
            nn.init.normal_(module.weight, 0.0, std, generator=generator)
        if module.bias is not None:
            bound = spread if default or hp.bias_init == "default" else 0.0
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def make_networks(hp: HParams) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator, with the weights that their constructors draw; UsageError where one's own fail."""
    if hp.network == DCGAN:
        return Generator(hp), Discriminator(hp)
    try:
        generator, discriminator = load_function(hp.network).call(hp, (hp.channels, hp.image_size, hp.image_size))
    except HarnessError:
        raise
    except Exception as error:  # of somebody's own code
        raise UsageError(
            f"network {hp.network}: {type(error).__name__}: {error}",
            "It is called with HParams and the shape of an image, and returns generator and discriminator.",
        ) from error
    if not isinstance(generator, nn.Module) or not isinstance(discriminator, nn.Module):
        raise UsageError(f"network {hp.network}: it must return two torch.nn.Module", "Generator, then discriminator.")
    return generator, discriminator


def build(hp: HParams, seed: int, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Both networks, channels last. Weights are drawn on the CPU: a seed gives the same start on every device."""
    rng = torch.Generator().manual_seed(seed)
    with _DEFAULT_GENERATOR, torch.random.fork_rng(devices=[]):
        if hp.network != DCGAN:
            torch.manual_seed(seed)  # its constructors draw the weights that it starts with
        networks = make_networks(hp)
        if hp.network != DCGAN:
            _refuse_other_shapes(hp, *copy.deepcopy(networks))
    for network in networks:
        if hp.network == DCGAN:
            initialise(network, hp, rng)
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return networks


def _refuse_other_shapes(hp: HParams, generator: nn.Module, discriminator: nn.Module) -> None:
    wanted = {"images": (2, hp.channels, hp.image_size, hp.image_size), "logits": (2,)}
    with torch.no_grad():
        images = generator(torch.randn(2, hp.z_dim))
        shapes = {"images": tuple(images.shape), "logits": tuple(discriminator(images).shape)}
    for name, shape in shapes.items():
        if shape != wanted[name]:
            raise UsageError(
                f"network {hp.network}: two z of {hp.z_dim} elements give {name} of shape {shape}, not {wanted[name]}",
                "Images are (N, channels, size, size) in [-1, 1], logits (N,).",
            )


def real_loss(real_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``mean BCE(real, 1 - label_smoothing)`` of logits (N,): a scalar. Salimans et al. (2016), section 3.4."""
    # softplus(-x) = -log sigmoid(x). BCE is linear in its label, so smoothing adds a multiple of the logit.
    loss = F.softplus(-real_logits).mean(0)
    return loss + label_smoothing * real_logits.mean(0) if label_smoothing else loss


def fake_loss(fake_logits: Tensor) -> Tensor:
    """``mean BCE(fake, 0)`` over D's logits of N generated images, shape (N,): a scalar."""
    return F.softplus(fake_logits).mean(0)


def clipped(logits: Tensor, share: float) -> Tensor:
    """Logits (N,) of probabilities within [share, 1 - share]; no gradient comes from beyond. A share of 0 clips none.

    Keras' binary cross-entropy on a sigmoid clips with a share of 1e-7: at logits of -16.1 and 16.1.
    """
    if not share:
        return logits
    bound = math.log((1 - share) / share)
    return logits.clamp(-bound, bound)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """``mean BCE(fake, 1)``, the non-saturating loss, over D's logits of N generated images, shape (N,): a scalar."""
    return F.softplus(-fake_logits).mean(0)
