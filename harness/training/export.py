"""A published generator as ONNX: z to images, for programs without PyTorch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from harness import atomic
from harness.errors import UsageError
from harness.gan.hparams import HParams, canonical_json
from harness.gan.networks import Generator
from harness.gan.plain import PlainGenerator

OPSET = 18
# What z is drawn from, as ``hp.latent`` names it.
_LAWS = {
    "normal": "N(0, 1)",
    "uniform": "U(-1, 1)",
    "truncated_normal": "N(0, 1) given that it lies within [-1, 1]",
}


def export_onnx(generator: nn.Module, hp: HParams, path: Path) -> None:
    """Write ``z`` (float32, (n, z_dim)) to ``images`` (float32, (n, channels, size, size), in [-1, 1]) as an ONNX file.

    Its metadata hold the law of z, the range of the images, and the hyperparameters as JSON.

    Raises:
        UsageError: the packages that write ONNX are not installed.
    """
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError:
        raise UsageError(
            "writing ONNX needs the packages onnx and onnxscript, which are not installed",
            "`.venv/bin/pip install -c constraints.txt -e '.[export]'`",
        ) from None
    # Networks of this package have layers of their own, which ONNX does not know.
    network = PlainGenerator(generator) if isinstance(generator, Generator) else generator
    before = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecated calls
            program = torch.onnx.export(
                network.to("cpu").eval(),
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
            "z": f"{_LAWS[hp.latent]}, {hp.z_dim} independent elements",
            "images": "[-1, 1], channels first",
            "hparams": canonical_json(hp.to_dict()),
        }
    )
    atomic.write_bytes(path, program.model_proto.SerializeToString())
