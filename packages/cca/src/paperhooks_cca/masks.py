"""The attention mask of one forward: the rule on positions over the whole key axis, in the form its kernel takes."""

from __future__ import annotations

from typing import Any

import torch
from paperhooks import Call, DataError, DecoderInputs, ModelView, UnsupportedModel
from paperhooks.compat import block_mask, key_count, preallocated
from torch import Tensor

from paperhooks_cca.checks import check_window

__all__ = ["KERNELS", "attention_mask", "check_kernel", "forward_mask", "key_order"]

#: Attention kernels that take a mask of any shape. Flex is experimental.
KERNELS = ("eager", "sdpa", "flex_attention")

_CACHED = -1  # every key of an earlier forward comes before all of this one
_UNUSED = torch.iinfo(torch.int64).max


def check_kernel(kernel: str) -> None:
    """:raises UnsupportedModel: a kernel that would ignore the mask, such as flash attention."""
    if kernel not in KERNELS:
        raise UnsupportedModel(
            f"cca needs an attention kernel that takes a mask; {kernel!r} ignores it, and takes falling positions for "
            "packed sequences. Load the model with attn_implementation='sdpa' or 'eager', or call "
            "model.set_attn_implementation('sdpa')"
        )


def forward_mask(
    view: ModelView, call: Call, inputs: DecoderInputs, order: Tensor, real: Tensor, real_past: Tensor | None, past: int
) -> Any:
    """The mask of a forward whose tokens stand in ``order``, over all keys that its kernel will see.

    :param order: int64 [B, T]. :param real: bool [B, T], False for padding. :param real_past: bool [B, P] for the
        cached tokens, or None (all are real). :param past: P, cached entries.
    :raises DataError: packed rows with a cache that holds tokens. :raises UnsupportedModel: see :func:`check_window`.
    """
    held = past + order.shape[1]
    check_window(view, held)
    total = key_count(call.cache, call.query_length) if preallocated(call.cache) else held
    keep = None
    if call.padding_mask is not None:
        keep = torch.ones(order.shape[0], total, dtype=torch.bool, device=order.device)
        keep[:, past:held] = real
        if real_past is not None:
            keep[:, :past] = real_past
    documents = call.inputs.get("document_ids")
    if documents is not None and past:
        raise DataError("document_ids pack whole rows; they cannot be used with a cache that holds tokens")
    dtype: Any = inputs.inputs_embeds.dtype if inputs.inputs_embeds is not None else view.model.dtype
    keys = key_order(order, past, total)
    return attention_mask(order, keys, real=keep, documents=documents, kernel=view.attention_kernel, dtype=dtype)


def key_order(order: Tensor, past: int, total: int) -> Tensor:
    """Order of every key: cached ones first, then this forward's, and slots of a preallocated cache not used yet last.

    :param order: int64 [B, T], the order of this forward's tokens. :param past: cached entries before it.
    :param total: entries the kernel will see.
    :return: int64 [B, total].
    """
    if total == order.shape[1]:
        return order
    keys = order.new_full((order.shape[0], total), _UNUSED)
    keys[:, :past] = _CACHED
    keys[:, past : past + order.shape[1]] = order
    return keys


def attention_mask(
    order: Tensor,
    keys: Tensor,
    *,
    real: Tensor | None,
    documents: Tensor | None = None,
    kernel: str,
    dtype: torch.dtype,
) -> Any:
    """The mask for ``kernel``: bool [B, 1, T, S] (sdpa), float added to the scores (eager), or a BlockMask (flex).

    :param order: int64 [B, T] of the queries. :param keys: int64 [B, S], from :func:`key_order`.
    :param real: bool [B, S], False for padding keys, or None.
    :param documents: document number of every token [B, T], for packed rows; S is T then.
    :raises DataError: document numbers of another shape.
    """
    if documents is not None and not documents.shape == order.shape == keys.shape:
        raise DataError(
            f"document_ids is {list(documents.shape)}; expected the document number of every token, {list(order.shape)}"
        )
    if kernel == "flex_attention":
        return _block_mask(order, keys, real, documents)
    if kernel == "sdpa":
        return _closed(keys[:, None, :] <= order[:, :, None], real, documents, False)[:, None]
    # float32 holds these whole numbers exactly; compared as floats into floats, the mask is made in one go.
    first, then = keys.to(torch.float32)[:, None, :], order.to(torch.float32)[:, :, None]
    blocked = torch.gt(first, then, out=torch.empty(*order.shape, keys.shape[1], dtype=dtype, device=order.device))
    # The smallest number instead of -inf: added to a score it cannot become NaN.
    return _closed(blocked, real, documents, True).mul_(torch.finfo(dtype).min)[:, None]


def _closed(mask: Tensor, real: Tensor | None, documents: Tensor | None, no: bool) -> Tensor:
    """Close ``mask`` [B, T, S] (``no`` where it is closed) to padding and to other documents."""
    if real is not None:
        mask.masked_fill_(~real[:, None, :], no)
    if documents is not None:
        mask.masked_fill_(documents[:, None, :] != documents[:, :, None], no)
        # Padding outside all documents may see everything: a row without keys has no softmax.
        mask.masked_fill_((mask == no).all(-1, keepdim=True), not no)
    return mask


def _block_mask(order: Tensor, keys: Tensor, real: Tensor | None, documents: Tensor | None) -> Any:
    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = keys[batch, key] <= order[batch, query]
        if real is not None:
            allowed = allowed & real[batch, key]
        if documents is not None:
            allowed = allowed & (documents[batch, key] == documents[batch, query])
        return allowed

    return block_mask(rule, order.shape[0], order.shape[1], keys.shape[1], order.device)
