"""Which networks a configuration means: the layers of this package's, as plain values, and names of people's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.gan.hparams import DCGAN, HParams
from harness.text import did_you_mean

# What each placement of BatchNorm normalises, in addition to the hidden layers of the network it names.
_IN_G = ("generator", "paper", "hidden", "input", "inner", "all")
_IN_D = ("discriminator", "paper", "hidden", "input", "inner", "all")
# Names that this process gave to functions of its own.
_registered: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution (or the generator's projection of z) with what follows it.

    ``size`` is the side of the map that comes out (px). ``order`` lists what follows: ``bn`` and ``act``.
    """

    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int
    padding: int
    output_padding: int
    bias: bool
    order: tuple[str, ...]


def generator_layers(hp: HParams) -> list[Layer]:
    """The projection of z, then one layer a doubling, without the last tanh; ValueError where no such can be built."""
    steps = _halvings(hp)
    widths = _numbers(hp.widths_g) or [hp.ngf * 2**step for step in reversed(range(steps))]
    if len(widths) != steps:
        raise ValueError(
            f"widths_g has {len(widths)} widths, but {steps} are needed from {hp.base_size} px to {hp.image_size} px"
        )
    for name in ("act_before_bn", "repeat_activation"):
        if getattr(hp, name) >= steps:
            raise ValueError(f"{name} is {getattr(hp, name)}, but only {steps - 1} doublings have an activation")
    inside = hp.bn in _IN_G
    projected = inside and hp.bn != "hidden"
    order = (*("bn",) * projected, *("act",) * hp.projection_activation)
    bias = {"auto": not projected, "never": hp.ends == "linear", "always": True}[hp.conv_bias_g]
    layers = [
        Layer(
            inputs=hp.z_dim, outputs=widths[0], size=hp.base_size, kernel=hp.base_size, stride=1, padding=0,
            output_padding=0, bias=bias, order=order,
        )
    ]  # fmt: skip
    padding, output_padding = {3: (1, 1), 4: (1, 0), 5: (2, 1)}[hp.kernel_g]
    for step, (width, wider) in enumerate(zip([*widths[1:], hp.channels], widths, strict=True), start=1):
        last = step == steps
        normalised = hp.bn == "all" if last else inside
        order = ("bn",) * normalised
        if not last:
            order = ("act", *order) if step <= hp.act_before_bn else (*order, "act")
            order += ("act",) * (step == hp.repeat_activation)
        layers.append(
            Layer(
                inputs=wider, outputs=width, size=hp.base_size * 2**step, kernel=hp.kernel_g, stride=2,
                padding=padding, output_padding=output_padding, order=order,
                bias={"auto": not normalised, "never": False, "always": True}[hp.conv_bias_g],
            )
        )  # fmt: skip
    return layers


def discriminator_layers(hp: HParams) -> list[Layer]:
    """The convolutions; the last map goes into one logit. ValueError where no such can be built."""
    widths, strides = _numbers(hp.widths_d), _numbers(hp.strides_d)
    depth = hp.depth_d or len(widths) or len(strides) or _halvings(hp)
    widths = widths or [hp.ndf * 2**step for step in range(depth)]
    strides = strides or [2] * depth
    for name, found in (("widths_d", widths), ("strides_d", strides)):
        if len(found) != depth:
            raise ValueError(f"{name} has {len(found)} entries for a discriminator of {depth} convolutions")
    padding = 0 if hp.padding_d == "valid" else {3: 1, 4: 1, 5: 2}[hp.kernel_d]
    layers: list[Layer] = []
    size: int = hp.image_size
    narrower: int = hp.channels
    for step, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
        size = (size + 2 * padding - hp.kernel_d) // stride + 1
        if size < 1:
            raise ValueError(f"the discriminator's convolution {step} of {depth} has no pixels left to see")
        first, last = step == 1, step == depth
        normalised = hp.bn in ("input", "all") if first else hp.bn in _IN_D and not (last and hp.bn == "inner")
        layers.append(
            Layer(
                inputs=narrower, outputs=width, size=size, kernel=hp.kernel_d, stride=stride, padding=padding,
                output_padding=0, bias={"auto": not normalised, "never": False, "always": True}[hp.conv_bias_d],
                order=(*("bn",) * normalised, *("act",) * (hp.last_activation_d or not last)),
            )
        )  # fmt: skip
        narrower = width
    return layers


def parameter_counts(hp: HParams) -> tuple[int, int]:
    up, down = generator_layers(hp), discriminator_layers(hp)
    generator, discriminator = sum(map(_count, up)), sum(map(_count, down))
    first, last = up[0], down[-1]
    if hp.ends == "linear" and first.bias:  # a bias for each unit of the projection, not for each map
        generator += first.outputs * (first.size**2 - 1)
    discriminator += last.outputs * last.size**2 + (hp.ends == "linear" or hp.conv_bias_d != "never")
    return generator, discriminator


def _count(layer: Layer) -> int:
    weights = layer.inputs * layer.outputs * layer.kernel**2
    return weights + layer.outputs * (layer.bias + 2 * layer.order.count("bn"))


def problems(hp: HParams) -> list[str]:
    """Why no network can be built, one sentence each; empty where both can."""
    if hp.network != DCGAN:
        return []
    found = []
    for layers in (generator_layers, discriminator_layers):
        try:
            layers(hp)
        except ValueError as error:
            found.append(str(error))
    return found


def _halvings(hp: HParams) -> int:
    """Stride-2 steps between the image and the smallest map."""
    return int(math.log2(hp.image_size // hp.base_size))


def _numbers(text: str) -> list[int]:
    """``512-256`` as [512, 256]; ``auto`` as nothing."""
    return [] if text == "auto" else [int(part) for part in text.split("-")]


def register_network(name: str, function: Callable[..., Any]) -> None:
    """Let studies of this process say ``network = name`` for a function of a module.

    Args:
        name: any but ``dcgan``.
        function: takes :class:`HParams` and the shape of an image (channels, height, width); returns generator and
            discriminator. Worker processes import it, so it must stand in a module, not in a script or notebook.

    Raises:
        UsageError: the function is not one of a module, or the name is taken.

    >>> import harness
    >>> from examples.residual import networks
    >>> harness.register_network("residual", networks)
    """
    module, qualified = function.__module__, function.__qualname__
    if module == "__main__" or not qualified.isidentifier():
        raise UsageError(
            f"{module}.{qualified} cannot be imported by worker processes",
            "Move the function into a module of its own, at its top level.",
        )
    path = f"{module}:{qualified}"
    if name == DCGAN or _registered.get(name, path) != path:
        raise UsageError(f"the name {name!r} is taken", "Choose another one.")
    _registered[name] = path


def network_path(name: str) -> str:
    """``module:function`` of a registered name; a name with a colon is one already. ValueError where there is none."""
    if ":" in name or name == DCGAN:
        return name
    if name not in _registered:
        raise ValueError(f"found {name!r}; must be module:function{did_you_mean(name, _registered)}")
    return _registered[name]
