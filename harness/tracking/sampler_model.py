"""A generator as an MLflow model. MLflow keeps this file with the model and runs it: it needs nothing of this package.

``predict(z)`` takes float32 of shape (n, z_dim) and returns uint8 of shape (n, height, width, channels). With
``params={"seed": 3}`` the values of z are ignored, and its n rows are drawn as ``harness generate --seed 3`` does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

_BATCH = 50


class Sampler(PythonModel):
    def load_context(self, context: Any) -> None:
        self.generator = torch.export.load(context.artifacts["generator"]).module()
        self.latent = context.model_config["latent"]

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        z = torch.as_tensor(model_input["z"] if isinstance(model_input, dict) else model_input)
        if (seed := (params or {}).get("seed")) is not None:
            z = _drawn(z.shape, self.latent, seed)
        with torch.inference_mode():
            images = torch.cat([self.generator(part) for part in torch.split(z, _BATCH)])
        return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _drawn(shape: tuple[int, ...], law: str, seed: int) -> torch.Tensor:
    rng = np.random.RandomState(seed)
    if law == "normal":
        return torch.from_numpy(rng.randn(*shape)).float()
    u = torch.from_numpy(rng.rand(*shape)) * 2 - 1
    if law == "truncated_normal":
        u = math.sqrt(2) * torch.erfinv(u * math.erf(1 / math.sqrt(2)))
    return u.float()


set_model(Sampler())
