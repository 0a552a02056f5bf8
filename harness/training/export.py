"""A finished training's networks as files: safetensors and ONNX, in PyTorch's own layers."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from harness import atomic
from harness.errors import CheckpointError
from harness.gan.fast.layers import with_library_layers
from harness.gan.hparams import DCGAN, LAWS, HParams, canonical_json
from harness.gan.networks import Discriminator, Generator, make_networks
from harness.machine.imports import require
from harness.training.run_folder import RunFolder

OPSET = 18
# PyTorch's modules of what follows a layer.
_FOLLOWING = tuple(f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "instancenorm", "normalization"))
# The arguments that recreate each kind of layer.
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ConvTranspose2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum"),
    nn.LeakyReLU: ("negative_slope",),
    nn.ReLU: (),
    nn.Tanh: (),
    nn.Unflatten: ("dim", "unflattened_size"),
    nn.Flatten: (),
}


def publish(folder: Path, generator: nn.Module, discriminator: Mapping[str, Tensor], hp: HParams) -> None:
    """Publish the weights of both networks as safetensors, with the configuration in their headers and next to them.

    ``layers`` in the header lists a DCGAN's layers in PyTorch's terms, so that they load without this package. The
    header has one entry: safetensors writes several in random order, and equal weights should give equal files.
    """
    run, hparams, layers = RunFolder(folder), hp.to_dict(), {}
    if hp.network == DCGAN:
        with torch.device("meta"):
            layers = {run.weights: layer_list(Generator(hp)), run.discriminator: layer_list(Discriminator(hp))}
    for path, state in ((run.weights, generator.state_dict()), (run.discriminator, discriminator)):
        header = {"model": canonical_json({"hparams": hparams, "layers": layers.get(path)})}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        atomic.write_bytes(path, save(tensors, header))
    atomic.write_text(run.hparams, canonical_json(hparams) + "\n")


def import_generator(folder: Path, hp: HParams, device: torch.device) -> nn.Module:
    path = RunFolder(folder).weights
    if not path.is_file():
        raise CheckpointError(f"no published weights in {folder}", "Only finished trials and trainings have them.")
    generator, _ = make_networks(hp)
    try:
        state = load_file(path)
        generator.load_state_dict(state)
    except Exception as error:
        raise CheckpointError(f"{path} does not fit its configuration: {error}") from None
    if broken := [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(f"{path} is damaged: {broken[0]} has values that are not finite", "Train it again.")
    return generator.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def layer_rows(hp: HParams) -> dict[str, list[dict[str, Any]]]:
    """Each network's layers in the order of use: kind, shape of the output without the batch, parameters, followers.

    BatchNorm and activations, and their parameters, belong to the layer that they follow. A user's networks are listed
    by their modules; what their code computes in between is not seen.
    """
    with torch.random.fork_rng(devices=[]):
        generator, discriminator = (with_library_layers(network).eval() for network in make_networks(hp))
        z, images = torch.zeros(2, hp.z_dim), torch.zeros(2, hp.channels, hp.image_size, hp.image_size)
        return {"generator": _rows(generator, z), "discriminator": _rows(discriminator, images)}


def _rows(network: nn.Module, inputs: Tensor) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    counted: set[int] = set()

    def called(module: nn.Module, _: Any, output: Any) -> None:
        new = {id(parameter): parameter.numel() for parameter in module.parameters() if id(parameter) not in counted}
        counted.update(new)
        plain = type_before_parametrizations(module)
        kind, family = plain.__name__, plain.__module__
        if isinstance(module, nn.LeakyReLU):
            kind += f" {module.negative_slope:.3g}"
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            kind += f" {'x'.join(map(str, module.kernel_size))}, stride {module.stride[0]}"
        if rows and family.startswith(_FOLLOWING):
            rows[-1]["followed_by"].append(kind)
            rows[-1]["parameters"] += sum(new.values())
        else:
            shape = list(output.shape[1:]) if isinstance(output, Tensor) else []
            rows.append({"kind": kind, "shape": shape, "parameters": sum(new.values()), "followed_by": []})

    for module in _layers(network):
        module.register_forward_hook(called)
    with torch.no_grad():
        network(inputs)
    return rows


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Its innermost modules; parametrizations of weights, such as spectral norms, do not count."""
    inside = [child for name, child in module.named_children() if name != "parametrizations"]
    for child in inside:
        yield from _layers(child)
    if not inside:
        yield module


def layer_list(network: Generator | Discriminator) -> list[tuple[str, dict[str, Any]]]:
    """(class of ``torch.nn``, its arguments) for each layer, as plain values."""
    listed = []
    copied = copy.deepcopy(network)
    with_library_layers(copied)
    for module in copied.layers:
        arguments = {name: getattr(module, name) for name in _ARGUMENTS[type(module)]}
        if isinstance(module, nn.ConvTranspose2d | nn.Conv2d | nn.Linear):
            arguments["bias"] = module.bias is not None
        listed.append((type(module).__name__, arguments))
    return listed


def with_plain_layers(generator: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode, with PyTorch's own layers only, for other programs."""
    network = copy.deepcopy(generator)
    if isinstance(network, Generator):
        with_library_layers(network)
    return network.to("cpu").eval()


def export_onnx(generator: nn.Module, hp: HParams, path: Path) -> None:
    """Write ``z`` (float32, (n, z_dim)) to ``images`` (float32, (n, channels, size, size), in [-1, 1]) as an ONNX file.

    Its metadata hold the law of z, the range of the images, and the hyperparameters as JSON.
    """
    require("onnxscript", "writing ONNX", "export")  # torch.onnx imports it
    before = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own deprecated calls
            program = torch.onnx.export(
                with_plain_layers(generator),
                (torch.zeros(2, hp.z_dim),),
                dynamo=True,
                input_names=["z"],
                output_names=["images"],
                dynamic_shapes={"z": {0: torch.export.Dim("n")}},
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(before)
    assert program is not None
    program.model.metadata_props.update(
        {
            "z": f"{LAWS[hp.latent]}, {hp.z_dim} independent elements",
            "images": "[-1, 1], channels first",
            "hparams": canonical_json(hp.to_dict()),
        }
    )
    atomic.write_bytes(path, program.model_proto.SerializeToString())
