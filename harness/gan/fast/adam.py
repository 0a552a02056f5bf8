"""Adam (Kingma and Ba, 2015), fused: one pass over all parameters."""

from __future__ import annotations

from typing import Any

import torch


class Adam(torch.optim.Adam):
    """PyTorch's, bit for bit, without its copies of convolutions' gradients on a CPU.

    Its kernel there wants contiguous tensors. In channels-last memory format they are, with their channels named last.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        parameters, *tensors, _ = lists
        last = [p.device.type == "cpu" and p.dim() == 4 and not p.is_contiguous() for p in parameters]
        for each in (parameters, *tensors):  # one of them is empty
            each[:] = [t.permute(0, 2, 3, 1) if so else t for t, so in zip(each, last, strict=False)]
        return has_complex
