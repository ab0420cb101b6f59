"""Concentric Causal Attention (arXiv 2410.15926): image patches placed by rings, in positions and in the mask.

At the decoder's entry the tokens of every image get new rotary positions, level by level of the scheme (section 4.1),
and a mask under which a patch sees its own and earlier levels (section 4.2; :mod:`paperhooks_cca.algorithm`). The text
after an image goes on behind its last level. What a later forward over the same cache needs, one number a row, lies on
the cache.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from paperhooks import Call, DecoderInputs, ModelView, Traits, hookimpl
from paperhooks.io import flag, function_or_choice, optional
from paperhooks.tokens import on_host
from torch import Tensor, nn

from paperhooks_cca.algorithm import Grid, ImageGroup, token_order
from paperhooks_cca.checkpoint import mark, read_mark, weights_of
from paperhooks_cca.checks import (
    check_labels,
    check_model,
    check_order,
    check_positions,
    padding_of,
    parted,
    tokens_of,
)
from paperhooks_cca.images import Resolver, find_images, grid_option, grouped
from paperhooks_cca.known import Known, known_of
from paperhooks_cca.masks import check_kernel, forward_mask
from paperhooks_cca.schemes import SCHEMES, Scheme, levels, scheme_name

__all__ = ["CCA"]

log = logging.getLogger("paperhooks.cca")

#: Under which name the state of a sequence lies on its cache, and why a cache that has one needs the method.
_STATE = "cca"
_NEEDED = "text behind its images goes on at positions that count rings, where the plain model counts patches"


@dataclass(eq=False)
class CCA:
    """Give image tokens concentric positions and a concentric causal mask.

    The paper has no hyperparameter: ``CCA()`` is the method.

    scheme
        ``"concentric"`` (the paper's) or ``"reverse"`` (its pilot study, section 3); beyond the paper ``"raster"``
        (what stock models do, as a control), ``"manhattan"`` (MCA-LLaVA), or a function (H, W) -> int64 [H, W] of
        levels.

    Beyond the paper:

    apply_positions, apply_mask
        Both True is the method; one alone is the ablation that the paper lacks.
    grid
        (H, W) patches of every image; or a function (view, call) -> image spans; or None: what core knows about the
        model's family.
    tiles
        Accept models that cut an image into several grids, and give each grid rings of its own.
    strict
        Refuse ``position_ids`` of the caller's own. False: they are used for the rotary embedding as they are.

    The model must be trained with the method to gain from it: attaching it to another one changes positions and mask
    under its feet, and warns once. While attached, ``model.config`` carries the settings, so that a checkpoint saved in
    training says how it was trained; a model that was trained keeps them when the session closes.

    :raises ValueError: an option that cannot be meant (names it, its value and what is expected), or neither positions
        nor mask to apply.
    """

    scheme: str | Scheme = "concentric"
    apply_positions: bool = True
    apply_mask: bool = True
    grid: Grid | Resolver | None = None
    tiles: bool = False
    strict: bool = True

    traits: ClassVar[Traits] = Traits(
        layers="attention",
        writes=frozenset({"positions"}),
        static_cache=True,
        beams=True,
        assisted=True,
        training=True,
        devices=("cpu", "cuda", "emulated"),
        dtypes=("float32", "bfloat16", "float16"),
        parallel=("ddp", "fsdp2", "tp", "offload"),
    )

    def __post_init__(self) -> None:
        self.scheme = function_or_choice("scheme", self.scheme, tuple(SCHEMES))
        for name in ("apply_positions", "apply_mask", "tiles", "strict"):
            setattr(self, name, flag(name, getattr(self, name)))
        if not (self.apply_positions or self.apply_mask):
            raise ValueError("apply_positions=False and apply_mask=False leave nothing to do; use scheme='raster'")
        self.grid = optional(grid_option, "grid", self.grid)
        self._foreign = False  # attached to a model that does not say it was trained this way
        self._training: set[int] = set()  # views of models that were called in training, with gradient and images
        self._warned: set[str] = set()

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint's config says about its training."""
        grid = list(self.grid) if isinstance(self.grid, tuple) else None
        return {
            "scheme": scheme_name(self.scheme),
            "apply_positions": self.apply_positions,
            "apply_mask": self.apply_mask,
            "grid": grid,
            "tiles": self.tiles,
        }

    # -- attaching -------------------------------------------------------------------------------------------------

    @hookimpl
    def setup(self, view: ModelView) -> None:
        """Check that the method is defined for this model, and mark its config."""
        check_kernel(view.attention_kernel)
        check_model(view, self.grid, self.tiles, self.apply_positions, self.apply_mask)
        trained = read_mark(view.model)
        self._foreign = trained is None
        if trained is not None and trained != self.settings:
            self._warn("settings", f"this model was trained with cca {trained}, and is attached with {self.settings}")
        view.defer(partial(self._leave, view, mark(view.model, self.settings), weights_of(view.model)))
        log.info("%s", self._described(view))

    def _leave(self, view: ModelView, undo: Callable[[], None], before: object) -> None:
        """Take the mark back, unless the model was trained and its weights are others now."""
        trained = id(view) in self._training
        self._training.discard(id(view))
        if not (trained and weights_of(view.model) != before):
            undo()

    def describe(self, model: nn.Module) -> str:
        """What the method does to ``model``: grid, levels, positions saved, and the attention kernel in force."""
        return self._described(ModelView.from_model(model))

    def _described(self, view: ModelView) -> str:
        what = " and ".join(n for n, on in (("positions", self.apply_positions), ("mask", self.apply_mask)) if on)
        text = f"cca: {scheme_name(self.scheme)} {what} on {view.family}, attention kernel {view.attention_kernel}"
        grid = self.grid if isinstance(self.grid, tuple) else None
        side = view.image_side if self.grid is None else None
        grid = (side, side) if side else grid
        if grid is None:
            return f"{text}; the grid is read off each image"
        taken = levels(self.scheme, *grid)
        return f"{text}; {grid[0]} x {grid[1]} patches take {taken} positions instead of {grid[0] * grid[1]}"

    # -- every forward ---------------------------------------------------------------------------------------------

    @hookimpl
    def pre_decoder(self, view: ModelView, call: Call, inputs: DecoderInputs) -> DecoderInputs | None:
        """Section 4: positions and mask of a forward that holds images; positions of text that follows one."""
        if call.query_length == 1:
            return self._text(call, inputs)
        check_kernel(view.attention_kernel)
        known = known_of(view, call, inputs, self.grid, self.apply_positions)
        images = find_images(view, call, self.grid, known)
        if images is None:
            self._warn_blind(view, call)
        past = known.past
        if not images:
            if past == 0:
                call.cache_state(_STATE)["text"] = True
            return self._text(call, inputs)
        self._warn_about_use(call)
        return self._place(view, call, inputs, images, known)

    def _text(self, call: Call, inputs: DecoderInputs) -> DecoderInputs | None:
        """Text behind an image: the next positions. Nothing is read from the device."""
        if not self.apply_positions:
            return None
        past: Any = call.past_length
        state = call.row_state(_STATE, _NEEDED).at(past, call.rows)
        if state is None:
            if isinstance(past, int) and past == 0:
                call.cache_state(_STATE)["text"] = True
            elif isinstance(past, int) and "text" not in call.cache_state(_STATE):
                self._warn(
                    "foreign cache",
                    "this cache was not filled in the session (or its tensors were taken into a new one), so text goes "
                    "on at the model's own positions; images that it holds need the cache they were read into",
                )
            return None
        offset = state["offset"].to(tokens_of(inputs).device)
        if call.query_length == 1:
            return inputs.replace(position_ids=(offset + past)[:, None])
        ahead = torch.arange(call.query_length, device=offset.device)
        return inputs.replace(position_ids=(offset + past)[:, None] + ahead)

    def _place(
        self, view: ModelView, call: Call, inputs: DecoderInputs, images: list[tuple[int, int, Grid]], known: Known
    ) -> DecoderInputs:
        """Positions by level, the mask by the same order, and what later forwards need."""
        tokens, past = tokens_of(inputs), known.past
        length = tokens.shape[1]
        real_past, real = padding_of(call, inputs, past)
        groups = grouped(images, self.scheme, tokens.device)
        start = self._start(call, real_past, past)
        order, following = token_order(groups, real, start)
        placed = inputs.position_ids
        here = groups if order.device.type == "cpu" else grouped(images, self.scheme, torch.device("cpu"))
        if self._replaces(call, here, known, (real_past, real), order, start):
            placed = order  # a caller who counts goes on counting
            first = past + min(column for _, column, _ in images)
            stop = past + max(column + grid[0] * grid[1] for _, column, grid in images)
            call.row_state(_STATE, _NEEDED).note(first, stop, offset=following - (past + length))
        if not self.apply_mask:  # by columns, but in full: the model takes jumps in positions for packed sequences
            order = torch.arange(length, device=order.device).expand(order.shape)
        mask = forward_mask(view, call, inputs, order, real, real_past, past)
        return inputs.replace(position_ids=placed, attention_mask=mask)

    def _replaces(
        self,
        call: Call,
        groups: list[ImageGroup],
        known: Known,
        masks: tuple[Tensor | None, Tensor],
        order: Tensor,
        start: Tensor | int,
    ) -> bool:
        """Whether the method's positions take the place of the caller's; what the caller gave is checked on the host.

        On a CPU the masks and the order are those of the forward; elsewhere the order is made anew where it is needed.

        :param groups: on the CPU.
        """
        host = order.device.type == "cpu"
        if not host and known.padding is not None:
            masks = parted(known.padding.bool(), known.past, order.shape[1])
        elif not host:
            masks = None, torch.ones(order.shape, dtype=torch.bool)
        check_order(groups, masks[1])
        check_labels(known.labels, groups, self._warn)

        def placed() -> Tensor:
            if host:
                return order
            begin: Any = on_host(start)[0] if isinstance(start, Tensor) else start
            return token_order(groups, masks[1], begin)[0]

        packed = call.inputs.get("document_ids") is not None
        return self.apply_positions and not check_positions(
            known.positions, placed, masks[1], masks[0], known.past, self.strict, packed
        )

    def _start(self, call: Call, real_past: Tensor | None, past: int) -> Tensor | int:
        """The position of the first token: behind what the cache holds."""
        state = call.row_state(_STATE, _NEEDED).at(past, call.rows) if self.apply_positions else None
        if past == 0:
            return 0
        if state is not None:
            return state["offset"] + past
        if "text" not in call.cache_state(_STATE):
            self._warn(
                "cache",
                "cca was attached after this cache was filled: what it holds keeps raster positions, and new images "
                "start behind it",
            )
        return past if real_past is None else real_past.sum(1)

    # -- saying things once ----------------------------------------------------------------------------------------

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"cca: {message}", stacklevel=2)

    def _warn_about_use(self, call: Call) -> None:
        if call.training:
            self._foreign = False  # it is being trained with the method now
            if torch.is_grad_enabled():
                self._training.add(id(call.view))
        elif self._foreign:
            self._warn(
                "foreign",
                "this model was not trained with CCA (its config carries no mark), so positions and mask differ from "
                "those it learnt; train it with the method attached",
            )

    def _warn_blind(self, view: ModelView, call: Call) -> None:
        if not call.row_state(_STATE, _NEEDED) and (view.image_token_ids or self.grid is not None):
            self._warn(
                "blind",
                "called with inputs_embeds and no input_ids, so it is not known which tokens are visual and nothing "
                "changes; pass visual_mask (bool [B, T]) to the model call",
            )
