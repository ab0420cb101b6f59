"""The state of a forward: what hooks see as ``call`` and ``site``, and the frozen chains that run them.

The state of a forward is a :class:`Call` that rides the keyword arguments which transformers hands down; nothing is
stored on modules, globally or per thread. The classes hold no closures, so an attached model can be copied and pickled.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperhooks.compat import attends
from paperhooks.errors import DataError
from paperhooks.tokens.row_state import Attendance, Ending, RowState, attend, cache_states, noted_states, row_states

if TYPE_CHECKING:
    from paperhooks.models.view import ModelView
    from paperhooks.tokens.track import TokenTrack

__all__ = ["CALL", "GENERATE", "OWN_ARGUMENTS", "Call", "Site"]

#: The keyword under which the state of a forward travels.
CALL = "paperhooks_call"

#: Under which name the maker of 4-D masks leaves the 2-D mask on a cache, for :class:`Call`.
GENERATE = "generate"

#: Arguments of a model call that are for methods and that the model itself does not know.
OWN_ARGUMENTS = ("visual_mask", "target_mask")

#: Arguments of a model call that bring images.
_IMAGES = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")


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
    _looked: list[bool] = field(default_factory=list, repr=False)

    def looks_at(self, index: Tensor) -> bool:
        """Whether the values of a selection are checked now: always on the CPU, elsewhere at the first one."""
        if torch.compiler.is_compiling():
            return False
        if index.device.type == "cpu":
            return True
        first = not self._looked
        self._looked[:] = [True]
        return first

    @property
    def attends(self) -> bool:
        """Whether the layer has self-attention."""
        return attends(self.kind)


class Call:
    """One forward of the attached model. Never shared between forwards.

    input_ids, labels
        int64 [B, T] as the model received them, or None.
    padding_mask
        The 2-D attention mask [B, P+T] (1: token, 0: padding), or None when the caller gave none or another form.
    rows, query_length, past_length
        B, T and P: the rows, the tokens of this forward and those before it. With a preallocated cache P is a tensor of
        no dimensions on the cache's device: reading it as a number waits for the device.
    mask_prepared
        The 4-D attention mask of this forward was made by ``generate`` out of ``padding_mask``, not by the caller.
    training
        Whether the model is in training mode.
    inputs
        The keyword arguments of the model call.
    cache
        The transformers Cache, or None; known from the decoder's or the first layer's call on.

    All masks here count the tokens that the model received (original coordinates). What a layer still has of them is
    told by the inputs of its hook (:class:`paperhooks.LayerInputs`).
    """

    __slots__ = (
        "_cacheless",
        "_image_mask",
        "_notes",
        "_row_states",
        "_states",
        "attendance",
        "cache",
        "graded",
        "input_ids",
        "inputs",
        "labels",
        "mask_memo",
        "mask_prepared",
        "padding_mask",
        "past_length",
        "query_length",
        "remembered",
        "rope_memo",
        "rows",
        "track",
        "training",
        "view",
    )

    def __init__(
        self,
        view: ModelView,
        inputs: dict[str, Any],
        training: bool,
        notes: dict[str, Any] | None = None,
        session: Ending | None = None,
    ) -> None:
        self.view = view
        self._notes = {} if notes is None else notes
        self.inputs = inputs
        self.training = training
        self.input_ids: Tensor | None = inputs.get("input_ids")
        self.labels: Tensor | None = inputs.get("labels")
        mask = inputs.get("attention_mask")
        self.padding_mask: Tensor | None = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.cache: Any = None
        self.rows = 0
        self.query_length = 0
        self.past_length: Any = 0
        self.track: TokenTrack | None = None
        self.mask_memo: Any = None
        self.rope_memo: Any = None
        self.attendance = Attendance(session)
        #: Whether there may be a backward pass, and what hooks made in layers that are computed again in it.
        self.graded = torch.is_grad_enabled()
        self.remembered: dict[Hashable, Any] = {}
        self._image_mask: Tensor | None = None
        self.mask_prepared = False
        self._states: dict[object, dict[str, Any]] = {}
        self._cacheless: dict[str, dict[str, Any]] = {}
        self._row_states: dict[str, RowState] = {}

    def enter(self, tokens: Tensor, cache: Any, past: Any) -> None:
        """The decoder begins: ``tokens`` [B, T] or [B, T, D] on top of ``past`` cached ones.

        :raises DataError: ``visual_mask`` or ``target_mask`` are not bool [B, T].
        """
        self.cache = cache
        self.rows, self.query_length = tokens.shape[:2]
        # A preallocated cache hands out the very tensor that it counts on in.
        self.past_length = past.clone() if isinstance(past, Tensor) else past
        for name in OWN_ARGUMENTS:
            if self.inputs.get(name) is not None:
                check_token_mask(name, self.inputs[name], self.rows, self.query_length)
        if (given := self.inputs.get("completion_mask")) is not None:  # whole numbers, where it comes from TRL
            check_token_mask("completion_mask", given.bool(), self.rows, self.query_length)
        self._notes = fitting_notes(self._notes, self)
        if cache is not None:
            attend(cache, self.attendance)
            if self.padding_mask is None:
                self._take_prepared_mask()

    @property
    def is_prefill(self) -> bool:
        """Nothing was cached before this forward."""
        return bool(self.past_length == 0)

    @property
    def is_decode(self) -> bool:
        """One new token on top of a cache."""
        return bool(self.past_length > 0 and self.query_length == 1)

    @property
    def draft_length(self) -> int:
        """How many tokens at the end of this forward are behind the prompt of ``generate``: what assisted decoding only
        proposes, or, without a cache, what was generated so far. 0 elsewhere."""
        prompt = self._notes.get("prompt_length")
        if prompt is None or not self._notes.get("drafts"):
            return 0
        ahead = self.past_length + self.query_length - prompt - self._notes["offset"]
        return int(max(0, min(self.query_length, ahead)))

    @property
    def image_mask(self) -> Tensor | None:
        """bool [B, T]: which tokens of this forward stand for image features; None when that is not known.

        It is the ``visual_mask`` argument of the model call (or of ``generate``, for the prompt) if there is one, else
        read off ``input_ids``, else off ``inputs_embeds`` that still hold the embedding of the image token, where
        images come with them.
        """
        if self._image_mask is None:
            self._image_mask = self._find_image_mask()
        return self._image_mask

    @property
    def visual_mask(self) -> Tensor | None:
        """bool [B, T]: the ``visual_mask`` that the caller gave to the model or to ``generate``, or None."""
        given: Tensor | None = self.inputs.get("visual_mask")
        return self._generates_mask() if given is None else given

    def _find_image_mask(self) -> Tensor | None:
        given = self.visual_mask
        if given is not None or not self.view.image_token_ids:
            return given
        if self.input_ids is not None:
            return self.view.image_mask(self.input_ids)
        embeds = self.inputs.get("inputs_embeds")
        images = any(self.inputs.get(name) is not None for name in _IMAGES)
        return self.view.image_mask_of_embeddings(embeds) if embeds is not None and images else None

    @property
    def target_mask(self) -> Tensor | None:
        """bool [B, T]: which tokens the training loss asks for; None when that is not known.

        Read off ``labels`` (or ``shift_labels``), else the ``target_mask`` or ``completion_mask`` argument of the model
        call, for losses that are computed outside of the model from its logits.
        """
        if self.labels is not None:
            return self.labels != -100
        shifted: Tensor | None = self.inputs.get("shift_labels")
        if shifted is not None:
            return torch.nn.functional.pad(shifted[:, :-1] != -100, (1, 0), value=False)
        found = (self.inputs.get(name) for name in ("target_mask", "completion_mask"))
        mask: Tensor | None = next((m for m in found if m is not None), None)
        return None if mask is None else mask.bool()

    @property
    def image_layout(self) -> dict[str, Any]:
        """What says the grids of this forward's images: ``image_sizes`` or ``image_grid_thw``, one row an image.

        From the model call, or noted by ``generate``, which uses them up before the first forward. For beams they are
        repeated where every prompt has one image, and left out where it has several.
        """
        notes, found = self._notes, dict[str, Any]()
        prompts = notes.get("prompt_rows") or self.rows
        for name, value in notes.get("layout", {}).items():
            if self.rows == prompts:
                found[name] = value
            elif len(value) == prompts and self.rows % prompts == 0:
                found[name] = torch.as_tensor(value).repeat_interleave(self.rows // prompts, dim=0)
        return found | {n: self.inputs[n] for n in ("image_sizes", "image_grid_thw") if self.inputs.get(n) is not None}

    def _generates_mask(self) -> Tensor | None:
        """The part of the ``visual_mask`` given to ``generate`` that is read now, for beams and with drafts."""
        mask: Tensor | None = self._notes.get("visual_mask")
        if mask is None or not isinstance(self.past_length, int):
            return None
        mask = torch.nn.functional.pad(mask, (self._notes["offset"], 0), value=False)
        if self.past_length >= mask.shape[1]:
            return None
        if self.rows % mask.shape[0]:
            raise DataError(
                f"visual_mask was given to generate with {mask.shape[0]} rows, and the model is called with {self.rows}"
            )
        mask = mask.repeat_interleave(self.rows // mask.shape[0], dim=0)
        part = mask[:, self.past_length : self.past_length + self.query_length]
        return torch.nn.functional.pad(part, (0, self.query_length - part.shape[1]), value=False)

    @property
    def kept(self) -> tuple[Tensor, Tensor | None] | None:
        """Original row [B, n] of every token alive and which slots are valid; None while nothing was dropped."""
        return (self.track.index, self.track.valid) if self.track is not None else None

    def state(self, owner: object) -> dict[str, Any]:
        """A dict of ``owner``'s own that lives as long as this forward."""
        return self._states.setdefault(owner, {})

    def cache_state(self, owner: str) -> dict[str, Any]:
        """A dict of ``owner``'s own that lives on the cache: copied with it, freed with it.

        For what holds for the whole sequence. Tensors with a row for every row of the cache belong into
        :meth:`row_state`, which follows when rows are reordered. Without a cache the dict lives as long as this
        forward, and goes over to the cache that the decoder may return.
        """
        if self.cache is None:
            return self._cacheless.setdefault(owner, {})
        self.settle(self.cache)
        return cache_states(self.cache).setdefault(owner, {})

    def row_state(self, owner: str, needed: str = "") -> RowState:
        """Tensors of ``owner``'s own with a row for every row of the cache, which follow its rows and its length.

        :param needed: what goes wrong when the cache is used without the method, as the end of a sentence. While the
            state holds anything, a forward over this cache that does not ask for it is refused with these words. Ask in
            every forward.
        """
        self.attendance.served.add(owner)
        if self.cache is None:
            return self._row_states.setdefault(owner, RowState(owner, needed))
        self.settle(self.cache)
        state = row_states(self.cache).setdefault(owner, RowState(owner, needed))
        attend(self.cache, self.attendance)
        return state

    def settle(self, cache: Any) -> None:
        """Move what was noted before there was a cache to ``cache``."""
        if self._cacheless:
            for owner, state in self._cacheless.items():
                cache_states(cache).setdefault(owner, {}).update(state)
            self._cacheless = {}
        if self._row_states:
            row_states(cache).update(self._row_states)
            self._row_states = {}
            attend(cache, self.attendance)

    def _take_prepared_mask(self) -> None:
        """Learn from ``generate`` the 2-D mask out of which it made a 4-D one for a preallocated cache."""
        notes = noted_states(self.cache).get(GENERATE, {})
        if "padding_mask" in notes:
            self.padding_mask = notes.pop("padding_mask")
            self.mask_prepared = True


def fitting_notes(notes: dict[str, Any], call: Call) -> dict[str, Any]:
    """The notes of ``generate`` if ``call`` is a forward of its own, else none.

    Others run inside: a processor of logits may call the model on another prompt. ``generate``'s own first forward
    comes before all others, and its later ones go on over the same cache or, without one, by one token. The first also
    shows how many tokens stand before the prompt that ``generate`` was given: virtual tokens of an adapter, or what a
    cache holds where only new embeddings were given.
    """
    if "prompt_length" not in notes:
        return notes
    if "last" not in notes:
        held = call.past_length if isinstance(call.past_length, int) else 0
        drafts = notes["assisted"]
        notes["offset"] = 0 if drafts else max(0, held + call.query_length - notes["prompt_length"])
    elif notes["last"][0] is not call.cache or (call.cache is None and notes["last"][1] + 1 != call.query_length):
        return {}
    notes["last"] = (call.cache, call.query_length)
    return notes


def check_token_mask(name: str, mask: Any, rows: int, length: int) -> None:
    """Refuse a mask that does not say yes or no to every token of a call.

    :raises DataError: ``mask`` is not bool [rows, length]; names what was found and what was expected.
    """
    found = f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (rows, length):
        raise DataError(
            f"{name} is {found}; expected bool [{rows}, {length}], one entry for every token that the model is called "
            "with (the prompt as it is after image placeholders were expanded, every row of the batch)"
        )
