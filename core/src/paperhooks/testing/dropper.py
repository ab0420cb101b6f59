"""A small method that drops tokens: what another method has to live with that runs behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from paperhooks.errors import UnsupportedModel
from paperhooks.hooks.call import Call, Site
from paperhooks.hooks.inputs import LayerInputs
from paperhooks.hooks.specs import hookimpl
from paperhooks.info import Traits
from paperhooks.io.options import whole
from paperhooks.models.view import ModelView
from paperhooks.tokens.track import compact

__all__ = ["Dropper"]


@dataclass(eq=False)
class Dropper:
    """Goes on without some tokens of every prompt, text and images alike, from one layer on.

    Of the first ``within`` real tokens of a row every second one goes, of its image tokens every fourth, and padding;
    never the row's last token. Neither padding nor what is generated later changes what goes: a batch equals its rows,
    and cached decoding equals recomputation, where prompts have more than ``within`` tokens.

    layer
        At whose entry tokens are dropped; later in a model that adds image features behind its first layers.
    within
        How many tokens at a row's beginning are thinned out.

    :raises ValueError: an option that is no whole number in its range.
    """

    layer: int = 1
    within: int = 4

    traits: ClassVar[Traits] = Traits(writes=frozenset({"tokens"}), beams=True, training=True)

    def __post_init__(self) -> None:
        self.layer = whole("layer", self.layer, at_least=0)
        self.within = whole("within", self.within, at_least=2)

    @hookimpl
    def setup(self, view: ModelView) -> None:
        """Refuse a decoder whose caches cannot hold a selection of tokens, or one that is too shallow."""
        first = _first_layer(view, self.layer)
        kinds = view.layer_types
        odd = [i for i in range(first, len(kinds)) if not view.full_attention(i) and kinds[i] != "skipped"]
        if odd or first >= len(view.layers):
            raise UnsupportedModel(
                f"dropper needs full attention in every layer from {first} on; layer {odd[0] if odd else first} of "
                f"this {view.family} has none"
            )

    def selects_layer(self, site: Site) -> bool:
        """The one layer at whose entry tokens go."""
        return site.index == _first_layer(site.view, self.layer)

    @hookimpl
    def pre_attention(self, call: Call, inputs: LayerInputs) -> LayerInputs | None:
        """Go on with the tokens that stay; nothing is dropped while an answer is decoded."""
        if not call.is_prefill or call.query_length == 1:
            return None
        keep = self._kept(inputs)
        index, valid = compact(keep, int(keep.sum(1).max()))
        return inputs.select(index, None if bool(valid.all()) else valid)

    def _kept(self, inputs: LayerInputs) -> Tensor:
        """Which of the tokens alive stay, bool [B, T]."""
        hidden, real, image = inputs.hidden_states, inputs.padding_mask, inputs.image_mask
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if real is None else real
        number = real.long().cumsum(1)  # 1 for the first real token
        gone = (number % 2 == 0) & (number <= self.within)
        if image is not None:
            gone = gone | (image & (image.long().cumsum(1) % 4 == 0))
        return real & ~(gone & (number < real.sum(1, keepdim=True)))


def _first_layer(view: ModelView, layer: int) -> int:
    """Image features that are added behind the first layers fit sequences of full length only."""
    deepstack = getattr(getattr(view.config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    return max(layer, len(deepstack))
