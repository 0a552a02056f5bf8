"""Feature extractors: torch-fidelity's Inception and torchvision's MobileNetV2, as fast as possible."""

from __future__ import annotations

import copy
import functools
import io
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from harness.gan.fast.precision import BF16, FLOAT32, tensor_cores
from harness.home import Home
from harness.scoring.protocol import INCEPTION, MOBILENET, VGG
from harness.scoring.reference import Features
from harness.scoring.weights import inception_weights, mobilenet_weights, vgg_weights

# Images per batch on a GPU; on a CPU the maps of a few images of 299 px stay in its cache.
ON_GPU = 256
# At most this many batches at a time on a CPU; each takes about 100 MB.
_AT_ONCE = 8
# Layers of pooled features and of logits, how images are resized (a part of protocols), and images per batch on a CPU.
_KINDS = {
    INCEPTION: ("2048", "logits_unbiased", "TensorFlow 1 bilinear to 299 px", 8),
    MOBILENET: ("1280", "logits", "none; logits: antialiased bilinear to 128 px", 50),
    VGG: ("fc2_relu", "", "TensorFlow 1 bilinear to 224 px", 8),
}


class _Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's Inception without weights: its constructor reads a file, which would be unpickled."""

    def __init__(self) -> None:
        buffer = io.BytesIO()
        torch.save({}, buffer)
        buffer.seek(0)
        with torch.device("meta"):  # drawing weights that are replaced takes seconds
            super().__init__(INCEPTION, ["2048"], feature_extractor_weights_path=buffer)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return None


class FoldedInception(_Unloaded):
    """torch-fidelity's Inception with BatchNorm folded into its convolutions, channels last: same values, faster."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        nn.Module.load_state_dict(self, state, assign=True)
        for module in self.modules():
            if isinstance(module, BasicConv2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.bn = nn.Identity()
        _with_fused_relu(self)
        self.to(memory_format=torch.channels_last)


class ConvReLU(nn.Module):
    """A convolution and its ReLU; on a CPU as one operation of oneDNN, whose weights are laid out once.

    The values are the same up to rounding. It is what ``torch.compile`` makes of the two, without a compiler.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self._packed: Tensor | None = None
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        in_bf16 = available and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._fuses = {torch.float32: available, torch.bfloat16: in_bf16}

    def forward(self, maps: Tensor) -> Tensor:
        conv = self.conv
        if maps.device.type != "cpu" or not self._fuses[maps.dtype]:
            return functional.relu(conv(maps), inplace=True)
        where = [list(pair) for pair in (conv.padding, conv.stride, conv.dilation)]
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *where, 1, list(maps.shape))
        both = torch.ops.mkldnn._convolution_pointwise
        fused: Tensor = both(maps, self._packed, conv.bias, *where, 1, "relu", [], "")
        return fused


def _with_fused_relu(module: nn.Module) -> None:
    """:class:`ConvReLU` wherever torch-fidelity has a convolution, BatchNorm (folded by now) and ReLU."""
    for name, child in module.named_children():
        if isinstance(child, BasicConv2d):
            setattr(module, name, ConvReLU(child.conv))
        else:
            _with_fused_relu(child)


class QuickInception(FoldedInception):
    """For rungs: the pooled features with bfloat16 convolutions; resizing and the last pooling are float32."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__(state)
        trunk = itertools.takewhile(lambda layer: layer is not self.AvgPool, self.children())
        self.trunk = nn.Sequential(*trunk).to(torch.bfloat16)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        rows, columns = (bilinear_weights(size, self.INPUT_IMAGE_SIZE).to(images.device) for size in images.shape[-2:])
        pixels = (rows @ images.float() @ columns.T - 128) / 128
        last_map = self.trunk(pixels.to(torch.bfloat16, memory_format=torch.channels_last))
        return (last_map.float().mean((2, 3)),)


@functools.cache
def bilinear_weights(size: int, wanted: int) -> Tensor:
    """TensorFlow 1's bilinear resize of one axis as a matrix (wanted, size): corners aligned, pixels not centred."""
    position = torch.arange(wanted, dtype=torch.float32) * (size / wanted)
    low = position.long()
    rows, part = torch.arange(wanted), position - low
    weights = torch.zeros(wanted, size)
    weights[rows, low] = 1 - part
    weights[rows, (low + 1).clamp(max=size - 1)] += part
    return weights


class MobileNetExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """torchvision's MobileNetV2: 1,280 pooled features and 1,000 ImageNet logits, for quick scores.

    Features are of the images at their own size: enlarged images rank DCGAN trainings worse at many times the cost
    (docs/decisions/0004-rungs-and-pruner.md). Logits are of images enlarged to 128 px, below which the classifier
    recognises almost nothing. Only the requested layers are computed.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__(MOBILENET, ["1280"])
        from torchvision.models import mobilenet_v2

        self.network = mobilenet_v2(weights=None)
        self.network.load_state_dict(state)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "1280", "logits"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        compute = {"1280": self._features, "logits": self._logits}
        return tuple(compute[name](images.float() / 255) for name in self.features_list)

    def _features(self, x: Tensor) -> Tensor:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self.network.features(x).mean((2, 3))
        return pooled

    def _logits(self, x: Tensor) -> Tensor:
        enlarged = functional.interpolate(x, (128, 128), mode="bilinear", antialias=True)
        logits: Tensor = self.network.classifier(self._features(enlarged))
        return logits


class VGGExtractor(FeatureExtractorVGG16):  # type: ignore[misc]
    """torch-fidelity's VGG16 from a state that was loaded safely: its own constructor unpickles a file."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        FeatureExtractorBase.__init__(self, VGG, ["fc2_relu"])
        from torchvision.models import vgg16

        with torch.device("meta"):
            network = vgg16(weights=None)
        network.load_state_dict(state, assign=True)
        network.classifier = network.classifier[:4]  # to the second hidden layer, before its ReLU
        self.model = network
        self.feature_extractor_internal_dtype = torch.float32
        self.requires_grad_(False)
        self.eval()


class Extractor:
    """A feature extractor with its weights, loaded once per worker, whose lanes share it.

    On a CPU each thread has batches of its own: sharing a batch, two threads would spend a fifth of their time waiting
    for each other. On CUDA lanes take turns, on one stream: a batch fills the device, and its memory serves the next.
    ``interrupt`` is called before every batch; it raises to abandon scoring.
    """

    def __init__(
        self,
        name: str,
        home: Home,
        device: torch.device,
        say: Callable[[str], None],
        interrupt: Callable[[], None] = lambda: None,
        precision: str = FLOAT32,
    ) -> None:
        self.device, self.interrupt = device, interrupt
        self.pooled, self.logits, self.resize, self.batch = _KINDS[name]
        if name == INCEPTION:
            self.weights = inception_weights(home, inception_shapes(), say)
            if precision == BF16 or not self.weights.has_head:
                self.logits = ""
        else:
            self.weights = vgg_weights(home) if name == VGG else mobilenet_weights(home, say)
        if device.type == "cuda":
            self.batch = ON_GPU
        # Images of a part of the work that is kept when it is done: batches for all threads.
        self.part = self.batch * _AT_ONCE
        self.module = _module(name, precision, self.weights.state, device)

    def __call__(self, images_BCHW: Tensor, *, logits: bool = False) -> Features:
        """Features of uint8 images, shape (N, 3, H, W); logits where they are requested and available."""
        module = copy.copy(self.module)  # with the same weights: other lanes may want other layers
        module.features_list = [self.pooled, self.logits] if logits and self.logits else [self.pooled]
        batches = torch.split(images_BCHW, self.batch)
        threads = torch.get_num_threads()
        at_once = min(len(batches), threads, _AT_ONCE) if self.device.type == "cpu" else 1
        outputs = []
        if at_once == 1:
            for batch in batches:
                self.interrupt()
                outputs.append(self._features(module, batch))
        else:
            pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
            try:
                for features in [pool.submit(self._features, module, batch) for batch in batches]:
                    self.interrupt()
                    outputs.append(features.result())
            finally:
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(threads)  # new threads start with the number that was set last, in any thread
        columns = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
        return Features(pooled=columns[0], logits=columns[1] if len(columns) > 1 else None)

    @torch.inference_mode()
    def _features(self, module: FeatureExtractorBase, batch: Tensor) -> tuple[Tensor, ...]:
        on_cuda = self.device.type == "cuda"
        stream = torch.cuda.stream(torch.cuda.default_stream(self.device)) if on_cuda else nullcontext()
        with tensor_cores(FLOAT32, self.device), stream:
            return tuple(f.float().cpu() for f in module(batch.to(self.device)))


def _module(name: str, precision: str, state: dict[str, Tensor], device: torch.device) -> FeatureExtractorBase:
    if name != INCEPTION:
        return (VGGExtractor if name == VGG else MobileNetExtractor)(state).to(device)
    if precision == BF16:
        return QuickInception(state).to(device)
    module = FoldedInception(state).to(device)
    if device.type == "cuda" and precision == FLOAT32:
        # cuDNN's float32 convolutions, without TF32, are a quarter faster this way (benchmarks/results, H100).
        module.to(memory_format=torch.contiguous_format)
    return module


def inception_shapes() -> dict[str, torch.Size]:
    return {name: value.shape for name, value in _Unloaded().state_dict().items()}


def untrained_module(name: str, precision: str, device: torch.device) -> FeatureExtractorBase:
    """An extractor with arbitrary weights, to measure how long scoring takes where none were downloaded."""
    if name == INCEPTION:
        state = {key: torch.full(shape, 1e-2) for key, shape in inception_shapes().items()}
    else:
        from torchvision.models import mobilenet_v2

        state = mobilenet_v2(weights=None).state_dict()
    return _module(name, precision, state, device)
