"""Once tokens are missing: what a decoder made for the full sequence, fitted to the tokens that a layer still gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperhooks.hooks.call import Call, Site
from paperhooks.hooks.inputs import LayerInputs
from paperhooks.tokens.cache import SelectedLayer, concat_valid, held_layer
from paperhooks.tokens.masks import gather_mask, take_rows
from paperhooks.tokens.track import TokenTrack

__all__ = ["follow"]


def follow(inputs: LayerInputs, call: Call, site: Site) -> LayerInputs:
    """Fit what the decoder hands to a layer (made for the full sequence) to the tokens alive and the layer's cache."""
    track = call.track
    layer = held_layer(inputs.cache, site.index)
    if layer is not None:
        layer.announce(call.attendance)
    held = layer if layer is not None and layer.total else None
    if track is None and (held is None or (inputs.attention_mask is None and held.prefix_valid is None)):
        return inputs
    fitted = inputs.replace(attention_mask=_followed_mask(inputs, call, track, held, site))
    if track is None:
        return fitted
    fitted.follow(track)
    if inputs.position_ids is not None:
        fitted.position_ids = take_rows(inputs.position_ids, track.index)
    if inputs.position_embeddings is not None:
        fitted.position_embeddings = _followed_rope(inputs.position_embeddings, call, track)
    return fitted


def _followed_rope(tables: tuple[Tensor, Tensor], call: Call, track: TokenTrack) -> tuple[Tensor, Tensor]:
    memo = call.rope_memo
    if memo is None or memo[0] is not tables[0] or memo[1] is not track:
        cos, sin = (take_rows(table, track.index) for table in tables)
        memo = call.rope_memo = (tables[0], track, (cos, sin))
    result: tuple[Tensor, Tensor] = memo[2]
    return result


def _followed_mask(
    inputs: LayerInputs, call: Call, track: TokenTrack | None, held: SelectedLayer | None, site: Site
) -> Any:
    """Gather the mask once for all layers of a stage: they share the mask, the track and the cached columns."""
    mask, prefix, total = inputs.attention_mask, held.prefix if held else None, held.total if held else 0
    memo = call.mask_memo
    if memo is not None and memo[0] is mask and memo[1] is track and memo[2] is prefix and memo[3] == total:
        return memo[4]
    now = track or TokenTrack.whole(inputs.hidden_states, call.past_length)
    batch, device = inputs.hidden_states.shape[0], now.index.device
    before = held or SelectedLayer(total=call.past_length)
    columns, valid = before.columns(batch, device)
    gathered = gather_mask(
        mask,
        rows=now.index,
        columns=torch.cat([columns, now.columns], dim=1) if columns.shape[1] else now.columns,
        row_valid=now.valid,
        column_valid=concat_valid(valid, columns, now),
        offset=call.past_length,
        flash=site.view.flash,
        causal=site.causal,
    )
    call.mask_memo = (mask, track, prefix, total, gathered)
    return gathered
