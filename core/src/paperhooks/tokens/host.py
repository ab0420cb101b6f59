"""Counts and positions that the host must know, brought to it at the price of one wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["on_host"]


def on_host(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors of whole numbers or bool on the CPU, all in one copy: the host of an accelerator waits once.

    :param tensors: of any shapes and devices; None stays None, and what is on the CPU is given back as it is.
    :return: the same values, shapes and dtypes.

    >>> on_host(torch.tensor([[3, 4]]), None)
    [tensor([[3, 4]]), None]
    """
    away = [tensor for tensor in tensors if tensor is not None and tensor.device.type != "cpu"]
    if not away:
        return list(tensors)
    narrow = all(tensor.dtype == torch.bool for tensor in away)
    flat = [t.detach().to(away[0].device, torch.uint8 if narrow else torch.int64).reshape(-1) for t in away]
    pieces = iter(torch.cat(flat).cpu().split([t.numel() for t in away]))
    return [t if t is None or t.device.type == "cpu" else next(pieces).view(t.shape).to(t.dtype) for t in tensors]
