"""Published generators without the harness: as ONNX, and in PyTorch's own layers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from harness.gan.networks import build
from harness.training.export import OPSET, export_onnx, layer_list
from tests.conftest import CPU

SYSTEMS = [
    {},
    {"ends": "linear", "latent": "uniform"},
    {"kernel_g": 5, "kernel_d": 5, "activation_g": "leaky_relu", "bn": "all", "channels": 3},
    {"image_size": 32, "bn": "none", "conv_bias_g": "always", "latent": "truncated_normal"},
]


def trained(hp):
    """A generator whose running statistics are not those of a new one."""
    generator, discriminator = build(hp, 3, CPU)
    with torch.no_grad():
        generator(torch.randn(16, hp.z_dim, generator=torch.Generator().manual_seed(1)))
    return generator.eval(), discriminator.eval()


@pytest.mark.parametrize("change", SYSTEMS)
def test_onnx_gives_what_pytorch_gives_for_any_number_of_images(hp, tmp_path, change):
    hp = dataclasses.replace(hp, **change)
    generator, _ = trained(hp)
    export_onnx(generator, hp, tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        z = torch.randn(n, hp.z_dim, generator=torch.Generator().manual_seed(n))
        (images,) = session.run(["images"], {"z": z.numpy()})
        assert images.shape == (n, hp.channels, hp.image_size, hp.image_size)
        np.testing.assert_allclose(images, generator(z).detach().numpy(), atol=1e-5)


def test_the_file_says_what_z_is(hp, tmp_path):
    hp = dataclasses.replace(hp, latent="uniform")
    export_onnx(trained(hp)[0], hp, tmp_path / "g.onnx")
    model = onnx.load(tmp_path / "g.onnx")
    onnx.checker.check_model(model)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["z"] == "U(-1, 1), 8 independent elements"
    assert json.loads(metadata["hparams"]) == hp.to_dict()
    assert [entry.version for entry in model.opset_import if not entry.domain] == [OPSET] and OPSET >= 17


@pytest.mark.parametrize("change", SYSTEMS)
def test_listed_layers_are_the_networks(hp, change):
    hp = dataclasses.replace(hp, **change)
    z = torch.randn(4, hp.z_dim)
    for network, x in zip(trained(hp), (z, torch.rand(4, hp.channels, hp.image_size, hp.image_size)), strict=True):
        made = torch.nn.Sequential(*(getattr(torch.nn, kind)(**of) for kind, of in layer_list(network))).eval()
        made.load_state_dict(network.layers.state_dict())
        own = x[:, :, None, None] if x is z and hp.ends == "conv" else x
        torch.testing.assert_close(made(own).reshape(network(x).shape), network(x), rtol=1e-4, atol=1e-5)
