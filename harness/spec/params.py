"""Hyperparameters as a person may write them: names, types, limits and what they mean."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from harness.gan.hparams import ALIASES, FIELDS, expand

Scalar = bool | int | float | str
# Widths or strides: numbers joined by hyphens.
_NUMBERS = r"^(auto|[1-9][0-9]{0,3}(-[1-9][0-9]{0,3}){0,7})$"


class Table(BaseModel):
    """A TOML table: immutable, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FixedParams(Table):
    """Hyperparameters that every trial of the study shares; what is absent keeps the default of ``HParams``."""

    model_config = ConfigDict(strict=True)  # "8" and 8.0 are no batch size, true is no width

    precision: Literal["float32", "tf32", "bf16"] | None = Field(
        None,
        description="Arithmetic of training. bf16: convolutions and linear layers in bfloat16, all else in float32; "
        "tf32: CUDA's TF32. Unless given it is tf32 on CUDA, else float32.",
    )
    z_dim: int | None = Field(None, ge=1, le=4096, description="Size of the latent vector z (elements).")
    latent: Literal["normal", "uniform", "truncated_normal"] | None = Field(
        None,
        description="Law of z. normal: N(0, 1); uniform: U(-1, 1); truncated_normal: N(0, 1) within [-1, 1].",
    )
    ngf: int | None = Field(None, ge=1, le=1024, description="Width of the generator's last hidden layer (channels).")
    ndf: int | None = Field(None, ge=1, le=1024, description="Width of the discriminator's first layer (channels).")
    widths_g: str | None = Field(
        None,
        pattern=_NUMBERS,
        description="Widths of the generator's projection and hidden layers, such as 512-256-128; "
        "auto: doubling towards z from ngf.",
    )
    widths_d: str | None = Field(
        None, pattern=_NUMBERS, description="Widths of the discriminator's convolutions; auto: doubling from ndf."
    )
    strides_d: str | None = Field(
        None, pattern=r"^(auto|[12](-[12]){0,7})$", description="Strides of the discriminator's convolutions; auto: 2."
    )
    depth_d: int | None = Field(
        None, ge=0, le=8, description="The discriminator's convolutions; 0: as many as reach base_size."
    )
    base_size: Literal[2, 4] | None = Field(None, description="Side of the map that z is projected to (px).")
    ends: Literal["conv", "linear"] | None = Field(
        None, description="What projects z and what gives the logit: convolutions over the whole map, or linear layers."
    )
    kernel_g: Literal[3, 4, 5] | None = Field(None, description="Side of the generator's kernels (px).")
    kernel_d: Literal[3, 4, 5] | None = Field(None, description="Side of the discriminator's kernels (px).")
    kernel_size: Literal[3, 4, 5] | None = Field(None, description="kernel_g and kernel_d.")
    padding_d: Literal["same", "valid"] | None = Field(
        None, description="Padding of the discriminator's convolutions. same: stride 2 halves the map; valid: none."
    )
    bn: Literal["none", "generator", "discriminator", "paper", "hidden", "input", "inner", "all"] | None = Field(
        None,
        description="BatchNorm placement. paper: everywhere but the generator's output and the discriminator's first "
        "layer; generator, discriminator: only in that network; hidden: as paper, but not after the projection of z; "
        "input: as paper, and in the discriminator's first layer; inner: as paper, but not in the discriminator's last "
        "convolution; all: everywhere, output and first layer included.",
    )
    bn_momentum: float | None = Field(
        None, gt=0, le=1, description="Weight of the newest batch in BatchNorm's running statistics (PyTorch's sense)."
    )
    bn_momentum_projection: float | None = Field(
        None, ge=0, le=1, description="The same, of the BatchNorm after the projection of z; 0: as bn_momentum."
    )
    bn_eps: float | None = Field(None, gt=0, le=0.1, description="BatchNorm's epsilon.")
    activation_g: Literal["relu", "leaky_relu"] | None = Field(None, description="Hidden activation, generator.")
    activation_d: Literal["relu", "leaky_relu"] | None = Field(None, description="Hidden activation, discriminator.")
    slope_g: float | None = Field(None, ge=0, lt=1, description="Negative slope of the generator's leaky_relu.")
    slope_d: float | None = Field(None, ge=0, lt=1, description="Negative slope of the discriminator's leaky_relu.")
    slope: float | None = Field(None, ge=0, lt=1, description="slope_g and slope_d.")
    projection_activation: bool | None = Field(None, description="Whether the projection of z is activated.")
    act_before_bn: int | None = Field(
        None,
        ge=0,
        le=8,
        description="In this many first doublings of the generator, activation comes before BatchNorm.",
    )
    repeat_activation: int | None = Field(
        None,
        ge=0,
        le=8,
        description="The generator's doubling (1 is the first) that ends in a second activation; 0: none.",
    )
    last_activation_d: bool | None = Field(
        None, description="Whether the discriminator's last convolution is activated."
    )
    conv_bias_g: Literal["auto", "never", "always"] | None = Field(
        None, description="Biases of the generator's convolutions. auto: only where no BatchNorm follows."
    )
    conv_bias_d: Literal["auto", "never", "always"] | None = Field(
        None, description="Biases of the discriminator's convolutions. Linear layers keep theirs with never."
    )
    conv_bias: Literal["auto", "never", "always"] | None = Field(None, description="conv_bias_g and conv_bias_d.")
    init: Literal["normal", "normal_weights", "default", "linear_fan_in", "glorot"] | None = Field(
        None,
        description="Initial weights. normal: N(0, init_std), BatchNorm N(1, init_std); normal_weights: BatchNorm 1; "
        "default: PyTorch's own (Kaiming uniform); linear_fan_in: linear layers N(0, 1/sqrt(inputs)), convolutions "
        "default; glorot: Glorot uniform.",
    )
    init_std: float | None = Field(None, gt=0, le=1, description="Standard deviation of normal initial weights.")
    bias_init: Literal["zero", "default"] | None = Field(
        None, description="Initial biases where init sets the weights: 0, or left as PyTorch draws them."
    )
    real_range: Literal["symmetric", "unit"] | None = Field(
        None, description="Range that real images are scaled to. symmetric: [-1, 1], as tanh gives; unit: [0, 1]."
    )
    flip: bool | None = Field(None, description="Flip real images left to right, each with probability 1/2.")
    reshuffle: bool | None = Field(None, description="Whether each epoch has an order of its own.")
    last_batch: Literal["drop", "match", "full"] | None = Field(
        None,
        description="An epoch's last, smaller batch. drop: left out; match: used, with as many fakes; "
        "full: used, with a full batch of fakes. A rest of one image is left out.",
    )
    batch_size: int | None = Field(None, ge=2, le=4096, description="Real images per discriminator update.")
    lr_g: float | None = Field(None, gt=0, le=1, description="Adam's learning rate, generator.")
    lr_d: float | None = Field(None, gt=0, le=1, description="Adam's learning rate, discriminator.")
    lr: float | None = Field(None, gt=0, le=1, description="lr_g and lr_d.")
    beta1: float | None = Field(None, ge=0, lt=1, description="Adam's first-moment decay, both networks.")
    beta2: float | None = Field(None, ge=0, lt=1, description="Adam's second-moment decay, both networks.")
    adam_eps: float | None = Field(None, gt=0, le=0.1, description="Adam's epsilon, both networks.")
    weight_decay: float | None = Field(
        None, ge=0, lt=1, description="L2 penalty added to the gradients of every parameter, both networks."
    )
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="One-sided label smoothing: real images get the label 1 minus this."
    )
    d_loss_factor: float | None = Field(
        None, gt=0, le=1, description="Factor of the discriminator's loss; 0.5 is the mean of its two halves."
    )
    d_step: Literal["joint", "split"] | None = Field(
        None,
        description="The discriminator's update. joint: one on real and fake; split: one on real, then one on fake.",
    )
    d_fakes: Literal["train", "inference"] | None = Field(
        None,
        description="BatchNorm of the generator when it makes the discriminator's fakes: of the batch, or running.",
    )
    g_noise: Literal["reuse", "fresh"] | None = Field(
        None, description="z of the generator's update: that of the discriminator's fakes, or a new one."
    )
    g_step_trains_d: bool | None = Field(
        None, description="A bug: the generator's update, with its learning rate, also moves the discriminator."
    )
    n_dis: int | None = Field(None, ge=1, le=20, description="Discriminator updates per generator update.")
    ema: float | None = Field(
        None, ge=0, lt=1, description="Decay of the generator's moving average per step; 0 turns it off."
    )

    def params(self) -> dict[str, Any]:
        """What is set, by field of HParams."""
        return expand(self.model_dump(exclude_none=True))


def param_types(name: str) -> tuple[str, ...]:
    """The types that a searched parameter may have: as its field, or as a choice of values."""
    field = FixedParams.model_fields[ALIASES.get(name, (name,))[0]]
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    own = {int: ("int",), float: ("float",)}.get(kinds[0], ())
    return (*own, "categorical")


def meaning(name: str) -> str:
    """What a hyperparameter is, in a sentence or more."""
    return FixedParams.model_fields[name].description or ""


def label(name: str) -> str:
    """A hyperparameter in words, for an axis: the first sentence on it, and its name."""
    return f"{meaning(name).split('. ')[0].removesuffix('.')} ({name})"


SEARCHABLE: tuple[str, ...] = (*(name for name in FIELDS if name in FixedParams.model_fields), *ALIASES)
