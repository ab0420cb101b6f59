"""A layer's queries and keys, computed from its hidden states, for methods that rank tokens before the layer runs.

Modules are called, weights are never read: adapters, quantised layers and sharded weights all work. Ranking is float32
whatever surrounds it: autocast is switched off inside. Under tensor parallelism a process has some of the heads;
:func:`~paperhooks.models.mean_over_heads` takes those of the others in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.errors import UnsupportedModel
from paperhooks.models.heads import mean_over_heads
from paperhooks.models.storage import compute_dtype, device_of
from paperhooks.models.view import ModelView

__all__ = [
    "AttentionParts",
    "attention_parts",
    "attention_rows",
    "causal_attention",
    "full_precision",
    "queries_and_keys",
]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast on ``device``: what is ranked inside is ranked in the dtypes that are written down."""
    if not torch.amp.autocast_mode.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def causal_attention(
    view: ModelView,
    index: int,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None,
    rows: Tensor,
    real: Tensor | None,
) -> Tensor:
    """:func:`attention_from` without its checks, from what layer ``index`` will receive: float32 [B, m, n].

    Averaged over all heads, and alike on all processes of a tensor-parallel model, each of which has to call it.

    :param hidden_states: [B, n, D]. :param position_embeddings: (cos, sin) [B or 1, n, h] for these rows, or None.
    :param rows: int64 [B, m]. :param real: bool [B, n], False where nobody looks; None: all are real.
    """
    q, k = queries_and_keys(view, index, hidden_states, position_embeddings, rows)
    allowed = torch.arange(k.shape[2], device=k.device) <= rows.to(k.device)[..., None]
    if real is not None:
        allowed = allowed & real.to(k.device)[:, None, :]
    parts = attention_parts(view, index)
    return mean_over_heads(view, attention_rows(q, k, parts.scaling, allowed), parts.query_heads)


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """What a decoder layer computes its attention scores with; ``query_heads`` and ``key_heads`` count those of all
    processes of a tensor-parallel model."""

    norm: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    rotate: Callable[..., Any] | None
    head_dim: int
    scaling: float
    query_heads: int
    key_heads: int


def attention_parts(view: ModelView, index: int) -> AttentionParts:
    """The input norm and the query and key projections of layer ``index``.

    :raises UnsupportedModel: the layer keeps them in another form (fused projections, no input norm), or another
        process has other tokens of the sequence (context or sequence parallelism).
    """
    if "cp" in view.spread.kinds:
        raise UnsupportedModel(
            f"this {view.family} is {view.spread}: every process has other tokens, so none can rank them; use tensor "
            "parallelism, or FSDP2"
        )
    layer, attention = view.layers[index], view.attention(index)
    found: dict[str, Any] = {"input_layernorm": getattr(layer, "input_layernorm", None)}
    found |= {name: getattr(attention, name, None) for name in ("q_proj", "k_proj", "head_dim", "scaling")}
    if attention is None and view.layer_types[index] == "skipped":
        raise UnsupportedModel(
            f"the attention of layer {index} is skipped in this {view.family}, so nothing can be ranked by it; choose "
            "a layer that has its attention"
        )
    missing = [name for name, value in found.items() if value is None]
    if attention is None or missing:
        raise UnsupportedModel(
            f"layer {index} of {view.family} ({type(layer).__name__}) has no {', '.join(missing)}; ranking by "
            "attention needs separate query and key projections behind an input norm, as in llama-like decoders"
        )
    config, head_dim = view.text_config, int(found["head_dim"])
    return AttentionParts(
        norm=found["input_layernorm"],
        q_proj=found["q_proj"],
        k_proj=found["k_proj"],
        q_norm=getattr(attention, "q_norm", None),
        k_norm=getattr(attention, "k_norm", None),
        rotate=_rotation(attention),
        head_dim=head_dim,
        scaling=float(found["scaling"]),
        query_heads=_head_count(found["q_proj"], head_dim, config.num_attention_heads),
        key_heads=_head_count(found["k_proj"], head_dim, config.num_key_value_heads),
    )


def _rotation(attention: nn.Module) -> Any:
    """The function that rotates queries and keys: it stands beside the class of the attention, or one it comes from."""
    modules = (sys.modules[base.__module__] for base in type(attention).__mro__)
    return next((found for m in modules if (found := getattr(m, "apply_rotary_pos_emb", None)) is not None), None)


def _head_count(projection: nn.Module, head_dim: int, default: int) -> int:
    """Heads of a projection, with those that other processes hold: a linear layer's declared width tells."""
    width = getattr(projection, "out_features", None)
    return default if width is None else int(width) // head_dim


def queries_and_keys(
    view: ModelView,
    index: int,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None,
    query_rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rotated queries of some rows and keys of all rows, as layer ``index`` is about to compute them.

    :param hidden_states: [B, n, D], what the layer will receive.
    :param position_embeddings: (cos, sin) [B or 1, n, h] for these rows, or None without rotary positions.
    :param query_rows: int64 [B, m].
    :return: q [B, Hq, m, h] and k [B, Hk, n, h], float32, of the heads that this process holds: all of them but for a
        tensor-parallel model. Only m rows pass through the query projection.
    :raises UnsupportedModel: as :func:`attention_parts`; or tensor parallelism splits a head.
    """
    parts = attention_parts(view, index)
    attention = view.attention(index)
    assert attention is not None  # attention_parts has raised otherwise
    device = device_of(parts.k_proj, hidden_states.device)
    with view.onloaded(parts.norm), view.onloaded(attention), full_precision(device):
        normed = parts.norm(hidden_states.to(device))
        rows = query_rows.to(device)[..., None].expand(-1, -1, normed.shape[-1])
        q = _heads(_project(parts.q_proj, normed.gather(1, rows)), parts.head_dim, parts.q_norm)
        k = _heads(_project(parts.k_proj, normed), parts.head_dim, parts.k_norm)
        return _rotated(parts, q.float(), k.float(), position_embeddings, query_rows.to(device))


def _project(projection: nn.Module, x: Tensor) -> Tensor:
    """``projection(x)`` in the projection's own dtype: without autocast nothing else brings the two together."""
    dtype = compute_dtype(projection)
    projected: Tensor = projection(x if dtype is None else x.to(dtype))
    return projected


def _rotated(
    parts: AttentionParts, q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor] | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotated in float32, before softmax, so that ties and rounding do not depend on the model's dtype."""
    if tables is None:
        return q, k
    if parts.rotate is None:
        raise UnsupportedModel(
            "the decoder has rotary positions, but its attention's module has no apply_rotary_pos_emb, so queries and "
            "keys cannot be made as the layer makes them; rank by something else"
        )
    cos, sin = (t.to(k.device).float().expand(k.shape[0], -1, -1) for t in tables)
    picked = rows[..., None].expand(-1, -1, cos.shape[-1])
    # The models' function rotates a pair; no heads in the other place means no work for it.
    rotated: Tensor = parts.rotate(q, k[:, :0, :1], cos.gather(1, picked), sin.gather(1, picked))[0]
    return rotated, parts.rotate(q[:, :0, :1], k, cos, sin)[1]


def _heads(projected: Tensor, head_dim: int, norm: nn.Module | None) -> Tensor:
    if projected.shape[-1] % head_dim:
        raise UnsupportedModel(
            f"a projection gives {projected.shape[-1]} features here, which are no whole heads of {head_dim}; spread "
            "the model over a number of processes that its heads, keys and values too, can be divided by"
        )
    split: Tensor = projected.unflatten(-1, (-1, head_dim))  # [B, n, H, h]
    normed: Tensor = norm(split) if norm is not None else split
    return normed.transpose(1, 2)


def attention_rows(q: Tensor, k: Tensor, scaling: float, allowed: Tensor) -> Tensor:
    """Softmax attention of some queries, of every head given.

    :param q: [B, Hq, m, h] float32. :param k: [B, Hk, n, h] float32; Hq a multiple of Hk.
    :param allowed: bool [B, m, n].
    :return: float32 [B, Hq, m, n].
    """
    groups = q.shape[1] // k.shape[1]
    with full_precision(q.device):
        grouped: Tensor = q.unflatten(1, (k.shape[1], groups))  # [B, Hk, g, m, h]
        scores = (grouped @ k[:, :, None].transpose(-1, -2)).flatten(1, 2) * scaling
        scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1)
