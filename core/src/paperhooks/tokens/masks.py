"""Masks of a shortened sequence, gathered from the mask of the full one and never built anew.

So every pattern survives: causal, padded, prefix, several turns. Letters: B rows, T tokens of a forward, S entries of a
layer's cache, n and m tokens that are left of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperhooks.errors import HookError

__all__ = ["gather_mask", "take_rows"]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Gather dim 1 of ``x`` [B or 1, T, ...] by ``index`` int64 [B, K]: [B, K, ...]. Differentiable."""
    if index.shape[0] == 1:
        return x.index_select(1, index[0].to(x.device))
    index = index.to(x.device)
    flat = index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return x.expand(index.shape[0], *x.shape[1:]).gather(1, flat)


def gather_mask(
    mask: Any,
    rows: Tensor,
    columns: Tensor,
    *,
    row_valid: Tensor | None = None,
    column_valid: Tensor | None = None,
    offset: int | None = None,
    flash: bool = False,
    causal: bool = True,
) -> Any:
    """The attention mask of a shortened sequence, gathered from the mask of the full one.

    :param mask: None, bool or float [B or 1, 1 or H, T, S+T], or [B, S+T] for flash attention.
    :param rows: int64 [B, n], query rows of ``mask``.
    :param columns: int64 [B, m], key columns of ``mask``.
    :param row_valid: bool [B, n]; an empty slot may attend everywhere, so that its softmax stays finite.
    :param column_valid: bool [B, m]; nobody attends to an empty slot.
    :param offset: column of query row 0, used to write out the causal mask that None stands for (default m - n, right
        when ``columns`` counts the entries themselves).
    :param flash: the kernel takes 2-D masks. :param causal: what None stands for; False: every token sees every other.
    :return: the same form as ``mask``; None where None says the same.
    :raises HookError: for a mask of any other form, such as flex attention's BlockMask.
    """
    n, m = rows.shape[1], columns.shape[1]
    if mask is None:
        if column_valid is None and (n == 1 or n == m):
            return None
        if flash:
            return column_valid
        if not causal:
            rows = torch.full_like(rows, torch.iinfo(rows.dtype).max // 2)
        reach = rows + (m - n if offset is None else offset)
        gathered = (columns[:, None, None, :] <= reach[:, None, :, None]).expand(columns.shape[0], 1, n, m)
    elif isinstance(mask, Tensor) and mask.ndim == 2:
        gathered = take_rows(mask, columns)
        return gathered & column_valid.to(gathered.dtype) if column_valid is not None else gathered
    elif isinstance(mask, Tensor) and mask.ndim == 4:
        gathered = _gather_4d(mask, rows, columns)
    else:
        raise HookError(
            f"token selection cannot follow a {type(mask).__name__} mask; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    return _clear(gathered, row_valid, column_valid)


def _gather_4d(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if rows.shape[0] == 1 and mask.shape[0] == 1:
        return mask.index_select(2, rows[0].to(mask.device)).index_select(3, columns[0].to(mask.device))
    rows, columns = rows.to(mask.device), columns.to(mask.device)
    batch, heads = rows.shape[0], mask.shape[1]
    mask = mask.expand(batch, *mask.shape[1:])
    picked = mask.gather(2, rows[:, None, :, None].expand(batch, heads, rows.shape[1], mask.shape[3]))
    return picked.gather(3, columns[:, None, None, :].expand(batch, heads, rows.shape[1], columns.shape[1]))


def _clear(mask: Tensor, row_valid: Tensor | None, column_valid: Tensor | None) -> Tensor:
    yes, no = (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
    if column_valid is not None:
        mask = mask.masked_fill(~column_valid.to(mask.device)[:, None, None, :], no)
    if row_valid is not None:
        mask = mask.masked_fill(~row_valid.to(mask.device)[:, None, :, None], yes)
    return mask
