"""Positions counted anew after every drop, as the official code does: 0, 1, 2, ... over the tokens alive."""

from __future__ import annotations

from typing import Any

from paperhooks import Call, LayerInputs, PluginIncompatible, Site, UnsupportedGeneration
from paperhooks.models import ModelView

__all__ = ["check_positions", "renumbered"]

#: Under which name a cache carries the mark that its positions were renumbered, and why it needs the method then.
_MARK = "pyramiddrop with renumbered positions"
_NEEDED = "every layer counts positions on from the tokens that it kept, where the plain model counts all"


def check_positions(view: ModelView) -> None:
    """:raises PluginIncompatible: a model whose positions are no plain rotary counts."""
    if view.rotary is None or view.multimodal_rotary:
        raise PluginIncompatible(
            f"positions='renumber' is not defined for {view.family}, whose positions are not plain rotary counts; "
            "use positions='preserve'"
        )


def renumbered(site: Site, call: Call, inputs: LayerInputs, first: int, state: dict[Any, Any]) -> LayerInputs:
    """The inputs of a layer with positions over the tokens alive; in decoding the length of this layer's cache.

    :param first: the first drop layer. :param state: of this forward; the tables are made once for all layers with the
        same tokens.
    :raises UnsupportedGeneration: the cache was filled by a selection whose positions were not renumbered.
    """
    marked = call.row_state(f"{_MARK} from layer {first} on", _NEEDED)
    lost = inputs.lost_tokens
    memo = state.get("rotary")
    if memo is None or memo[0] is not inputs.track or memo[1] is not lost:
        if not marked and inputs.cached_length != call.past_length:
            raise UnsupportedGeneration(
                f"layer {site.index}: this cache holds a selection of tokens whose positions were not renumbered "
                f"from layer {first} on (positions='preserve', or other stages), so they cannot be counted on; go "
                "on with the options it was filled with, or fill a new cache"
            )
        if inputs.track is not None and "marked" not in state:  # whoever dropped, from here on all is counted anew
            past = int(call.past_length)
            marked.note(past, past + call.query_length)
            state["marked"] = True
        rotary = site.view.rotary
        assert rotary is not None  # check_positions has refused models without
        tables = rotary(inputs.hidden_states, position_ids=inputs.compact_positions())
        memo = state["rotary"] = (inputs.track, lost, tables)
    return inputs.replace(position_embeddings=memo[2])
