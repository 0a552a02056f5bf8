"""HParams: everything that defines one training run, and the one place where each hyperparameter is declared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.errors import StorageError

# The networks of this package, which hyperparameters describe.
DCGAN = "dcgan"
# Fields that were added when digests and stored configurations existed, with the value at which they are left out.
LATER: dict[str, str | float] = {
    "network": DCGAN, "optimizer": "adam", "loss_clip": 0.0, "diffaugment": "none", "update_order": "d_first",
}  # fmt: skip
# What z is drawn from, as ``latent`` names it, in words.
LAWS = {"normal": "N(0, 1)", "uniform": "U(-1, 1)", "truncated_normal": "N(0, 1) given that it lies within [-1, 1]"}
# One name that sets a parameter of both networks.
ALIASES: dict[str, tuple[str, ...]] = {
    "lr": ("lr_g", "lr_d"),
    "slope": ("slope_g", "slope_d"),
    "kernel_size": ("kernel_g", "kernel_d"),
    "conv_bias": ("conv_bias_g", "conv_bias_d"),
}

ImageSize = Literal[16, 32, 64, 128, 256]
Channels = Literal[1, 3]
Positive = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # from 0, always below 1
Kernel = Literal[3, 4, 5]
Activation = Literal["relu", "leaky_relu"]
Bias = Literal["auto", "never", "always"]
Precision = Literal["float32", "tf32", "bf16"]
WIDTHS_PATTERN = r"^(auto|[1-9][0-9]{0,3}(-[1-9][0-9]{0,3}){0,7})$"
# Subsets of Zhao et al.'s three, in their order and spelling.
DiffAugment = Literal[
    "none",
    "color",
    "translation",
    "cutout",
    "color,translation",
    "color,cutout",
    "translation,cutout",
    "color,translation,cutout",
]
STRIDES_PATTERN = r"^(auto|[124](-[124]){0,7})$"
Widths = Annotated[str, Field(pattern=WIDTHS_PATTERN)]


@dataclass(frozen=True, slots=True, kw_only=True)
class HParams:
    """One configuration. Defaults are the plain DCGAN of the PyTorch example at 32 px, with batches of 128.

    Recipe ``paper64`` is Radford et al. (2016): kernels of 5, z uniform, twice as wide, fresh noise for the generator.

    Each hyperparameter is declared here only: type, limits, meaning, default. Files are validated by it
    (:mod:`harness.spec.tables`), and ``harness schema`` prints it; an instance made in Python is not checked.

    >>> import harness
    >>> harness.HParams(image_size=32, batch_size=64, n_dis=2).images_per_step
    128
    """

    image_size: Annotated[ImageSize, "Side of the square images (px)."] = 32
    network: Annotated[str, "dcgan, or module:function of one's own networks."] = DCGAN
    channels: Annotated[Channels, "1 for grey, 3 for colour."] = 3
    z_dim: Annotated[int, Field(ge=1, le=4096), "Size of the latent vector z (elements)."] = 100
    latent: Annotated[
        Literal["normal", "uniform", "truncated_normal"],
        "Distribution of z. normal: N(0, 1); uniform: U(-1, 1); truncated_normal: N(0, 1) within [-1, 1].",
    ] = "normal"
    # Architecture
    ngf: Annotated[int, Field(ge=1, le=1024), "Width of the generator's last hidden layer (channels)."] = 64
    ndf: Annotated[int, Field(ge=1, le=1024), "Width of the discriminator's first layer (channels)."] = 64
    widths_g: Annotated[
        Widths,
        "Widths of the generator's projection and hidden layers, such as 512-256-128; auto: doubling towards z from "
        "ngf.",
    ] = "auto"
    widths_d: Annotated[Widths, "Widths of the discriminator's convolutions; auto: doubling from ndf."] = "auto"
    strides_d: Annotated[
        str, Field(pattern=STRIDES_PATTERN), "Strides of the discriminator's convolutions; auto: 2."
    ] = "auto"
    depth_d: Annotated[
        int, Field(ge=0, le=8), "Number of the discriminator's convolutions; 0: as many as lead to base_size."
    ] = 0
    base_size: Annotated[Literal[2, 4], "Side of the map that z is projected to (px)."] = 4
    ends: Annotated[
        Literal["conv", "linear"],
        "What projects z and what gives the logit: convolutions over the whole map, or linear layers.",
    ] = "conv"
    kernel_g: Annotated[Kernel, "Side of the generator's kernels (px)."] = 4
    kernel_d: Annotated[Kernel, "Side of the discriminator's kernels (px)."] = 4
    padding_d: Annotated[
        Literal["same", "valid"],
        "Padding of the discriminator's convolutions. same: stride 2 halves the map; valid: none.",
    ] = "same"
    bn: Annotated[
        Literal["none", "generator", "discriminator", "paper", "hidden", "input", "inner", "all"],
        "BatchNorm placement. paper: everywhere but the generator's output and the discriminator's first layer; "
        "generator, discriminator: only in that network; hidden: as paper, but not after the projection of z; input: "
        "as paper, and in the discriminator's first layer; inner: as paper, but not in the discriminator's last "
        "convolution; all: in every layer but the one that gives the logit.",
    ] = "paper"
    bn_momentum: Annotated[
        Positive, "Weight of the newest batch in BatchNorm's running statistics (PyTorch's sense)."
    ] = 0.1
    bn_momentum_projection: Annotated[
        float, Field(ge=0, le=1), "The same, of the BatchNorm after the projection of z; 0: as bn_momentum."
    ] = 0.0
    bn_eps: Annotated[float, Field(gt=0, le=0.1), "BatchNorm's epsilon."] = 1e-5
    activation_g: Annotated[Activation, "Hidden activation, generator."] = "relu"
    activation_d: Annotated[Activation, "Hidden activation, discriminator."] = "leaky_relu"
    slope_g: Annotated[Share, "Negative slope of the generator's leaky_relu."] = 0.2
    slope_d: Annotated[Share, "Negative slope of the discriminator's leaky_relu."] = 0.2
    projection_activation: Annotated[bool, "Whether the projection of z is activated."] = True
    act_before_bn: Annotated[
        int, Field(ge=0, le=8), "Activation comes before BatchNorm in this many of the generator's first doublings."
    ] = 0
    repeat_activation: Annotated[
        int, Field(ge=0, le=8), "Which doubling of the generator ends in a second activation; 1: the first; 0: none."
    ] = 0
    last_activation_d: Annotated[bool, "Whether the discriminator's last convolution is activated."] = True
    conv_bias_g: Annotated[Bias, "Biases of the generator's convolutions. auto: only where no BatchNorm follows."] = (
        "auto"
    )
    conv_bias_d: Annotated[
        Bias, "Biases of the discriminator's convolutions. Linear layers keep theirs with never."
    ] = "auto"
    init: Annotated[
        Literal["normal", "normal_weights", "default", "linear_fan_in", "glorot"],
        "Initial weights. normal: N(0, init_std), BatchNorm N(1, init_std); normal_weights: BatchNorm 1; default: "
        "PyTorch's own (Kaiming uniform); linear_fan_in: linear layers N(0, 1/sqrt(inputs)), convolutions default; "
        "glorot: Glorot uniform.",
    ] = "normal"
    init_std: Annotated[Positive, "Standard deviation of normal initial weights."] = 0.02
    bias_init: Annotated[
        Literal["zero", "default"], "Initial biases where init sets the weights: 0, or left as PyTorch draws them."
    ] = "zero"
    # Images
    real_range: Annotated[
        Literal["symmetric", "unit"],
        "Range that real images are scaled to. symmetric: [-1, 1], as tanh gives; unit: [0, 1].",
    ] = "symmetric"
    flip: Annotated[bool, "Flip real images left to right, each with probability 1/2."] = False
    diffaugment: Annotated[
        DiffAugment,
        "Differentiable augmentation of all that the discriminator sees, real and fake, for sets of few images. color: "
        "brightness, saturation and contrast; translation: by up to an eighth of the side; cutout: without a square of "
        "half the side; several joined by commas (Zhao et al. 2020).",
    ] = "none"
    reshuffle: Annotated[bool, "Whether each epoch has a new order."] = True
    last_batch: Annotated[
        Literal["drop", "match", "full"],
        "An epoch's last, smaller batch. drop: left out; match: used, with as many fakes; full: used, with a full "
        "batch of fakes. A rest of one image is left out.",
    ] = "drop"
    # Optimisation
    batch_size: Annotated[int, Field(ge=2, le=4096), "Real images per discriminator update."] = 128
    optimizer: Annotated[
        Literal["adam", "sgd", "rmsprop", "adagrad"],
        "Optimizer of both networks. sgd: with momentum beta1; rmsprop: with decay beta2 and adam_eps; adagrad: with "
        "adam_eps. CUDA graphs are for adam alone.",
    ] = "adam"
    lr_g: Annotated[Positive, "Learning rate, generator."] = 2e-4
    lr_d: Annotated[Positive, "Learning rate, discriminator."] = 2e-4
    beta1: Annotated[Share, "Adam's first-moment decay, both networks."] = 0.5
    beta2: Annotated[Share, "Adam's second-moment decay, both networks."] = 0.999
    adam_eps: Annotated[float, Field(gt=0, le=0.1), "Adam's epsilon, both networks."] = 1e-8
    weight_decay: Annotated[Share, "L2 penalty added to the gradients of every parameter, both networks."] = 0.0
    label_smoothing: Annotated[
        float, Field(ge=0, lt=0.5), "One-sided label smoothing: real images get the label 1 minus this."
    ] = 0.0
    d_loss_factor: Annotated[Positive, "Factor of the discriminator's loss; 0.5 is the mean of its two halves."] = 1.0
    loss_clip: Annotated[
        float,
        Field(ge=0, lt=0.5),
        "Every loss clips probabilities to [loss_clip, 1 - loss_clip], beyond which there is no gradient, as Keras "
        "does with 1e-7; 0: none.",
    ] = 0.0
    d_step: Annotated[
        Literal["joint", "split"],
        "The discriminator's update. joint: one on real and fake; split: one on real, then one on fake.",
    ] = "joint"
    d_fakes: Annotated[
        Literal["train", "inference"],
        "BatchNorm statistics of the generator when it makes the discriminator's fakes. train: those of the batch; "
        "inference: the running ones.",
    ] = "train"
    g_noise: Annotated[
        Literal["reuse", "fresh"], "z of the generator's update: that of the discriminator's fakes, or a new one."
    ] = "reuse"
    update_order: Annotated[
        Literal["d_first", "g_first"],
        "Which network a step updates first. g_first: the generator. The discriminator then sees the images that the "
        "generator was updated on; with g_noise fresh, new ones.",
    ] = "d_first"
    g_step_trains_d: Annotated[
        bool, "A bug: the generator's update, with its learning rate, also moves the discriminator."
    ] = False
    n_dis: Annotated[int, Field(ge=1, le=20), "Discriminator updates per generator update."] = 1
    ema: Annotated[Share, "Decay of the generator's moving average per step; 0 turns it off."] = 0.0
    precision: Annotated[
        Precision,
        "Arithmetic of training. bf16: convolutions and linear layers in bfloat16, all else in float32; tf32: CUDA's "
        "TF32. Default: tf32 on CUDA, float32 elsewhere.",
    ] = "float32"

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, in the order of the definition; those of :data:`LATER` only where they are in use."""
        content = dataclasses.asdict(self)
        for name, unused in LATER.items():
            if content[name] == unused:
                del content[name]
        return content

    @classmethod
    def from_params(cls, *layers: Mapping[str, Any]) -> HParams:
        """Merge layers of parameters, later ones winning; an alias such as ``lr`` sets both networks' values."""
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= expand(layer)
        return cls(**merged)

    @classmethod
    def from_stored(cls, params: Mapping[str, Any], where: str) -> HParams:
        """What :meth:`to_dict` gave, perhaps long ago; ``where`` names what it is of."""
        if unknown := sorted(set(params) - set(FIELDS)):
            raise StorageError(
                f"{where} was trained by another version of the harness, with what this one does not have: "
                f"{', '.join(unknown)}",
                "Install the version that the report names under Environment.",
            )
        return cls(**params)

    @property
    def images_per_step(self) -> int:
        """Real images shown for one generator update."""
        return self.batch_size * self.n_dis

    def updates(self, kimg: float) -> int:
        """Generator updates needed to show ``kimg`` thousand images."""
        return generator_updates(self.images_per_step, kimg)


def generator_updates(images_per_step: int, kimg: float) -> int:
    """Generator updates needed to show ``kimg`` thousand images, of which each update takes ``images_per_step``."""
    # Rounded first: epochs times their length must not become a step more by the last bit.
    return max(1, math.ceil(round(kimg * 1000 / images_per_step, 6)))


def expand(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with aliases replaced by the fields that they set; a field that is given itself wins."""
    expanded: dict[str, Any] = {}
    for name, value in params.items():
        if name in ALIASES:
            expanded |= {target: value for target in ALIASES[name] if target not in params}
        else:
            expanded[name] = value
    return expanded


def stored_value(stored: Mapping[str, Any], name: str) -> Any:
    """The value of a field or alias in what :meth:`HParams.to_dict` gave; None where there is none."""
    field = ALIASES.get(name, (name,))[0]
    return stored.get(field, LATER.get(field)) if stored else None


FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(HParams))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**31 that depends on every part, the same on every machine and in every process."""
    return int(digest(list(parts)), 16) % 2**31
