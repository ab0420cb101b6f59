"""Counts and positions that the host must know, brought to it at the price of one wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["on_host"]


def on_host(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors on the CPU, all in one copy: the host of an accelerator waits once.

    :param tensors: of any shapes and devices, all of one dtype, or of whole numbers and bool; None stays None, and what
        is on the CPU is given back as it is.
    :return: the same values, shapes and dtypes, without gradient. :raises TypeError: several floating-point dtypes.

    >>> on_host(torch.tensor([[3, 4]]), None)
    [tensor([[3, 4]]), None]
    """
    away = [tensor for tensor in tensors if tensor is not None and tensor.device.type != "cpu"]
    if not away:
        return list(tensors)
    dtypes = {tensor.dtype for tensor in away}
    if len(dtypes) > 1 and any(dtype.is_floating_point or dtype.is_complex for dtype in dtypes):
        raise TypeError(f"tensors of {sorted(map(str, dtypes))} do not go into one copy; fetch each dtype by itself")
    dtype = next(iter(dtypes)) if len(dtypes) == 1 else torch.int64
    flat = [t.detach().to(away[0].device, dtype).reshape(-1) for t in away]
    pieces = iter(torch.cat(flat).cpu().split([t.numel() for t in away]))
    return [t if t is None or t.device.type == "cpu" else next(pieces).view(t.shape).to(t.dtype) for t in tensors]
