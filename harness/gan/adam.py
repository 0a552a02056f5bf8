"""Adam (Kingma and Ba, 2015), fused: one pass over all parameters."""

from __future__ import annotations

from typing import Any

import torch


class Adam(torch.optim.Adam):
    """PyTorch's, bit for bit, without its copies of convolutions' gradients on a CPU.

    Its kernel there makes each tensor contiguous, and one in channels-last memory format is not. With its channels
    named last it is.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)
        *tensors, _ = lists
        for each in tensors:
            each[:] = [t.permute(0, 2, 3, 1) if t.dim() == 4 and t.device.type == "cpu" else t for t in each]
        return has_complex
