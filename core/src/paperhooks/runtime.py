"""The state of a forward: what hooks see as ``call`` and ``site``, and the frozen chains that run them.

The state of a forward is a :class:`Call` that rides the keyword arguments which transformers hands down; nothing is
stored on modules, globally or per thread. The classes hold no closures, so an attached model can be copied and pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from paperhooks.modelview import ModelView
    from paperhooks.selection import TokenTrack

__all__ = ["CALL", "GENERATE", "Call", "Chain", "Flags", "Hook", "Site", "cache_states"]

#: The keyword under which the state of a forward travels.
CALL = "paperhooks_call"

#: Under which name ``generate`` leaves notes for :class:`Call` on the cache.
GENERATE = "generate"

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One decoder layer: its ``index``, the ``layer`` itself, ``n_layers`` in all, its ``kind`` and the ``view``."""

    index: int
    layer: nn.Module
    n_layers: int
    kind: str
    view: ModelView
    #: Some attached method may drop tokens at or before this layer.
    selects: bool = False
    #: What the attention kernel takes a missing mask to mean: causal, or (prefix language models) no mask at all.
    causal: bool = True


class Call:
    """One forward of the attached model. Never shared between forwards.

    input_ids, labels
        int64 [B, T] as the model received them, or None.
    padding_mask
        The 2-D attention mask [B, P+T] (1: token, 0: padding), or None when the caller gave none or another form.
    query_length, past_length
        T and P, the tokens of this forward and before it. With a preallocated cache P is a tensor of no dimensions on
        the cache's device: reading it as a number waits for the device.
    mask_prepared
        The 4-D attention mask of this forward was made by ``generate`` out of ``padding_mask``, not by the caller.
    training
        Whether the model is in training mode.
    inputs
        The keyword arguments of the model call.
    cache
        The transformers Cache, or None; known from the decoder's or the first layer's call on.
    """

    __slots__ = (
        "_cacheless",
        "_image_mask",
        "_states",
        "cache",
        "input_ids",
        "inputs",
        "labels",
        "mask_memo",
        "mask_prepared",
        "padding_mask",
        "past_length",
        "query_length",
        "rope_memo",
        "track",
        "training",
        "view",
    )

    def __init__(self, view: ModelView, inputs: dict[str, Any], training: bool) -> None:
        self.view = view
        self.inputs = inputs
        self.training = training
        self.input_ids: Tensor | None = inputs.get("input_ids")
        self.labels: Tensor | None = inputs.get("labels")
        mask = inputs.get("attention_mask")
        self.padding_mask: Tensor | None = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.cache: Any = None
        self.query_length = 0
        self.past_length = 0
        self.track: TokenTrack | None = None
        self.mask_memo: Any = None
        self.rope_memo: Any = None
        self._image_mask: Tensor | None = inputs.get("visual_mask")
        self.mask_prepared = False
        self._states: dict[object, dict[str, Any]] = {}
        self._cacheless: dict[str, dict[str, Any]] = {}

    @property
    def is_prefill(self) -> bool:
        """Nothing was cached before this forward."""
        return self.past_length == 0

    @property
    def is_decode(self) -> bool:
        """One new token on top of a cache."""
        return self.past_length > 0 and self.query_length == 1

    @property
    def draft_length(self) -> int:
        """How many tokens at the end of this forward assisted decoding only proposes (0 without it)."""
        prompt = self._notes().get("prompt_length")
        return 0 if prompt is None else max(0, min(self.query_length, self.past_length + self.query_length - prompt))

    @property
    def image_mask(self) -> Tensor | None:
        """bool [B, T]: which tokens of this forward stand for image features; None when that is not known.

        It is the ``visual_mask`` argument of the model call (or of ``generate``, for the prompt) if there is one, else
        read off ``input_ids``.
        """
        if self._image_mask is None and self.cache is not None and self.past_length == 0:
            self._image_mask = self._generates_mask()
        if self._image_mask is None and self.input_ids is not None and self.view.image_token_ids:
            self._image_mask = self.view.image_mask(self.input_ids)
        return self._image_mask

    @property
    def image_layout(self) -> dict[str, Any]:
        """What says the grids of this forward's images: ``image_sizes`` or ``image_grid_thw``, one row an image.

        From the model call, or noted by ``generate``, which uses them up before the first forward. For beams they are
        repeated where every prompt has one image, and left out where it has several.
        """
        notes = self._notes()
        found: dict[str, Any] = {}
        rows = self.input_ids.shape[0] if self.input_ids is not None else 0
        prompts = notes.get("prompt_rows") or rows
        for name, value in notes.get("layout", {}).items():
            if rows == prompts:
                found[name] = value
            elif len(value) == prompts and rows % prompts == 0:
                found[name] = torch.as_tensor(value).repeat_interleave(rows // prompts, dim=0)
        return found | {n: self.inputs[n] for n in ("image_sizes", "image_grid_thw") if self.inputs.get(n) is not None}

    def _notes(self) -> dict[str, Any]:
        """What ``generate`` left on the cache for this forward."""
        states: dict[str, dict[str, Any]] = getattr(self.cache, "paperhooks_state", None) or {}
        return states.get(GENERATE, {})

    def _generates_mask(self) -> Tensor | None:
        """The ``visual_mask`` given to ``generate``, fitted to beams and drafts."""
        mask: Tensor | None = self._notes().get("visual_mask")
        if mask is None or self.query_length < mask.shape[1]:
            return None
        rows = self.input_ids.shape[0] if self.input_ids is not None else mask.shape[0]
        mask = mask.repeat_interleave(max(1, rows // mask.shape[0]), dim=0)
        return torch.nn.functional.pad(mask, (0, self.query_length - mask.shape[1]), value=False)

    @property
    def kept(self) -> tuple[Tensor, Tensor | None] | None:
        """Original row [B, n] of every token alive and which slots are valid; None while nothing was dropped."""
        return (self.track.index, self.track.valid) if self.track is not None else None

    def state(self, owner: object) -> dict[str, Any]:
        """A dict of ``owner``'s own that lives as long as this forward."""
        return self._states.setdefault(owner, {})

    def cache_state(self, owner: str) -> dict[str, Any]:
        """A dict of ``owner``'s own that lives on the cache: copied with it, freed with it.

        Without a cache it lives as long as this forward, and goes over to the cache that the decoder may return.
        """
        if self.cache is None:
            return self._cacheless.setdefault(owner, {})
        self.settle(self.cache)
        return cache_states(self.cache).setdefault(owner, {})

    def settle(self, cache: Any) -> None:
        """Move what was noted before there was a cache to ``cache``."""
        if self._cacheless:
            for owner, state in self._cacheless.items():
                cache_states(cache).setdefault(owner, {}).update(state)
            self._cacheless = {}

    def take_prepared_mask(self) -> None:
        """Learn from ``generate`` the 2-D mask out of which it made a 4-D one for a preallocated cache."""
        notes = self._notes()
        if "padding_mask" in notes:
            self.padding_mask = notes.pop("padding_mask")
            self.mask_prepared = True


def cache_states(cache: Any) -> dict[str, dict[str, Any]]:
    """What methods and core keep on a cache object, by owner; put there empty at the first use."""
    states: dict[str, dict[str, Any]] | None = getattr(cache, "paperhooks_state", None)
    if states is None:
        states = cache.paperhooks_state = {}
    return states


class Chain:
    """The frozen implementations of one chained hook at one place: a fold over plain functions."""

    __slots__ = ("functions", "hook", "names")

    def __init__(self, hook: str, names: tuple[str, ...], functions: tuple[Function, ...]) -> None:
        self.hook = hook
        self.names = names
        self.functions = functions

    def __bool__(self) -> bool:
        return bool(self.functions)

    def blame(self, exc: Exception, done: int, where: str) -> None:
        """Say in a note which hook of which method raised at which place."""
        exc.add_note(f"paperhooks: raised in {self.hook} of {self.names[done]!r} {where}")


class Flags:
    """What a session's hooks tell it.

    fired, arrived
        Whether any hook inside the forward ran, and whether state reached a layer.
    trained, asked
        Whether the model was called in training mode with gradient, and whether loss hooks were ever asked.
    """

    __slots__ = ("arrived", "asked", "fired", "trained")

    def __init__(self) -> None:
        self.fired = False
        self.arrived = False
        self.trained = False
        self.asked = False


class Hook:
    """Base of every torch hook that paperhooks registers; ``strip`` finds them by this class."""
