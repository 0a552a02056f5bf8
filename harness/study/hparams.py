"""HParams: everything that defines one training run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# One name in a search space that sets a parameter of both networks.
ALIASES: dict[str, tuple[str, ...]] = {"lr": ("lr_g", "lr_d"), "slope": ("slope_g", "slope_d")}


@dataclass(frozen=True, slots=True, kw_only=True)
class HParams:
    """One configuration. Defaults are those of Radford et al. (2016), sections 3 and 4.

    Allowed values and units are those of :class:`harness.study.spec.FixedParams`, which validates files.
    """

    image_size: int = 32
    channels: int = 3
    z_dim: int = 100
    latent: str = "normal"
    ngf: int = 64
    ndf: int = 64
    kernel_size: int = 4
    bn: str = "paper"
    activation_g: str = "relu"
    activation_d: str = "leaky_relu"
    slope_g: float = 0.2
    slope_d: float = 0.2
    conv_bias: str = "auto"
    init: str = "normal"
    init_std: float = 0.02
    batch_size: int = 128
    lr_g: float = 2e-4
    lr_d: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    label_smoothing: float = 0.0
    n_dis: int = 1
    ema: float = 0.0

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
            for name, value in layer.items():
                for target in ALIASES.get(name, (name,)):
                    merged[target] = value
        return cls(**merged)

    @property
    def images_per_step(self) -> int:
        """Real images shown for one generator update."""
        return self.batch_size * self.n_dis


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
