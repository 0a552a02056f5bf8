"""HParams: everything that defines one training run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import StorageError

# One name that sets a parameter of both networks.
ALIASES: dict[str, tuple[str, ...]] = {
    "lr": ("lr_g", "lr_d"),
    "slope": ("slope_g", "slope_d"),
    "kernel_size": ("kernel_g", "kernel_d"),
    "conv_bias": ("conv_bias_g", "conv_bias_d"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HParams:
    """One configuration. Defaults are the plain DCGAN of the PyTorch example at 32 px, with batches of 128.

    Recipe ``paper64`` is Radford et al. (2016): kernels of 5, z uniform, twice as wide, fresh noise for the generator.

    Allowed values and units are those of :class:`harness.spec.study.FixedParams`, which validates files.
    """

    image_size: int = 32
    channels: int = 3
    z_dim: int = 100
    latent: str = "normal"
    # Architecture
    ngf: int = 64
    ndf: int = 64
    widths_g: str = "auto"
    widths_d: str = "auto"
    strides_d: str = "auto"
    depth_d: int = 0
    base_size: int = 4
    ends: str = "conv"
    kernel_g: int = 4
    kernel_d: int = 4
    padding_d: str = "same"
    bn: str = "paper"
    bn_momentum: float = 0.1
    bn_momentum_projection: float = 0.0
    bn_eps: float = 1e-5
    activation_g: str = "relu"
    activation_d: str = "leaky_relu"
    slope_g: float = 0.2
    slope_d: float = 0.2
    projection_activation: bool = True
    act_before_bn: int = 0
    repeat_activation: int = 0
    last_activation_d: bool = True
    conv_bias_g: str = "auto"
    conv_bias_d: str = "auto"
    init: str = "normal"
    init_std: float = 0.02
    bias_init: str = "zero"
    # Images
    real_range: str = "symmetric"
    flip: bool = False
    reshuffle: bool = True
    last_batch: str = "drop"
    # Optimisation
    batch_size: int = 128
    lr_g: float = 2e-4
    lr_d: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    d_loss_factor: float = 1.0
    d_step: str = "joint"
    d_fakes: str = "train"
    g_noise: str = "reuse"
    g_step_trains_d: bool = False
    n_dis: int = 1
    ema: float = 0.0
    precision: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, in the order of the definition."""
        return dataclasses.asdict(self)

    @classmethod
    def from_params(cls, *layers: Mapping[str, Any]) -> HParams:
        """Merge layers of parameters, later ones winning; an alias such as ``lr`` sets both networks' values.

        Raises:
            TypeError: for a name that is neither a field nor an alias.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= expand(layer)
        return cls(**merged)

    @classmethod
    def from_stored(cls, params: Mapping[str, Any], where: str) -> HParams:
        """What :meth:`to_dict` gave, perhaps long ago.

        Raises:
            StorageError: a harness that has other parameters wrote it; ``where`` names what it is of.
        """
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


def expand(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with aliases replaced by the fields that they set; a field that is given itself wins."""
    expanded: dict[str, Any] = {}
    for name, value in params.items():
        if name in ALIASES:
            expanded |= {target: value for target in ALIASES[name] if target not in params}
        else:
            expanded[name] = value
    return expanded


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
