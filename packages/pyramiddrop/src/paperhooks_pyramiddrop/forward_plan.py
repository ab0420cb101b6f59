"""The bookkeeping of one forward: who ranks, who is protected, how many stay.

All [B, T] tensors are in the coordinates of this forward's tokens; :meth:`ForwardPlan.alive` brings them to the tokens
that a layer still has. What the host must know is read from the device once a forward, and again at a stage only where
rows that rank, or tokens that another method dropped, may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from paperhooks import Call, DataError, LayerInputs
from paperhooks.tokens import TokenTrack
from torch import Tensor

from paperhooks_pyramiddrop.algorithm import instruction_ends, kept_tokens, last_of, preceding, stand_ins

__all__ = ["Alive", "Census", "ForwardPlan", "Query", "make_plan"]

Query: TypeAlias = Literal["auto", "last"] | Callable[[Call], Tensor]
Counts: TypeAlias = list[list[int]]


@dataclass(frozen=True, slots=True)
class Census:
    """How many there are in every row, on the host.

    ``text`` tokens; ``queries``, rows that rank; ``segments`` and ``protected``, the visual tokens and the protected
    ones of every segment (entry 0 is unused).
    """

    text: list[int]
    queries: list[int]
    segments: Counts
    protected: Counts

    def trimmed(self) -> Census:
        """Without the numbers of segments behind the last that there is."""
        used = max((i for row in self.segments for i, count in enumerate(row) if count), default=1) + 1
        segments, protected = ([row[: max(2, used)] for row in rows] for rows in (self.segments, self.protected))
        return Census(self.text, self.queries, segments, protected)

    def alive_counts(self, keep: Counts) -> list[int]:
        """Tokens alive in each row after keeping ``keep`` of each segment, and all that are protected."""
        rows = zip(self.text, keep, self.protected, strict=True)
        return [text + sum(max(k, p) for k, p in zip(kept, must, strict=True)) for text, kept, must in rows]


@dataclass(frozen=True, slots=True)
class Alive:
    """A layer's tokens: int64 ``index`` and ``segments`` [B, n], bool ``real`` and ``protected`` [B, n], the rows that
    rank as int64 ``query_rows`` [B, m] with bool ``query_valid`` [B, m], and the ``census`` of all that."""

    index: Tensor
    real: Tensor
    segments: Tensor
    protected: Tensor
    query_rows: Tensor
    query_valid: Tensor
    census: Census


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """What a forward's drops need to know; see :func:`make_plan`.

    real, protected
        bool [B, T].
    segments
        int64 [B, T], 0 for text.
    prompt
        bool [B, T]: real tokens that are no drafts; only they rank.
    marked
        bool [B, T]: the rows that rank while all tokens are alive.
    targets
        bool [B, T]: the tokens that a training loss asks for, where the rows that rank follow from them, else None.
    moving
        Some of the rows that rank may be dropped, or (with labels on visual tokens) come to rank by a drop.
    exposed
        Some of the rows whose outputs are used may be dropped.
    """

    real: Tensor
    segments: Tensor
    protected: Tensor
    prompt: Tensor
    marked: Tensor
    targets: Tensor | None
    census: Census
    moving: bool
    exposed: bool
    align: str

    @property
    def length(self) -> int:
        """T, the tokens of this forward."""
        return self.real.shape[1]

    def keep_counts(self, ratio: float, minimum: int, now: Census) -> Counts:
        """The share ``ratio`` of each segment, at least ``minimum`` tokens; a row in which nothing ranks keeps all."""
        share = [[max(kept_tokens(n, ratio), minimum) for n in row] for row in self.census.segments]
        rows = zip(share, now.segments, now.queries, strict=True)
        return [list(map(min, wanted, left)) if ranks else left for wanted, left, ranks in rows]

    def alive(self, track: TokenTrack | None, hidden_states: Tensor, alone: bool = True) -> Alive:
        """This plan for the tokens that a layer still has.

        :param alone: no other method has dropped any of those that are missing.
        """
        device, batch = hidden_states.device, hidden_states.shape[0]
        if track is None:
            index = torch.arange(self.length, device=device).expand(batch, -1)
            valid = torch.ones_like(index, dtype=torch.bool)
        else:
            index = track.index.to(device)
            valid = torch.ones_like(index, dtype=torch.bool) if track.valid is None else track.valid.to(device)

        def bring(x: Tensor) -> Tensor:
            return x.to(device).gather(1, index)

        known = track is None or (alone and not self.moving)
        queries = bring(self.marked if known else self._looked_up(index, valid)) & valid
        real, segments, protected = (
            bring(self.real) & valid,
            bring(self.segments) * valid,
            bring(self.protected) & valid,
        )
        census = self.census
        if not known:
            census, _ = _counted(real, queries, protected, segments, len(self.census.segments[0]))
        rows = queries.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : max(1, *census.queries)]
        return Alive(index, real, segments, protected, rows, queries.gather(1, rows), census)

    def _looked_up(self, index: Tensor, valid: Tensor) -> Tensor:
        """The rows that rank among the tokens alive, bool [B, T]: by the targets alive, or in place of those marked."""
        slots = index.masked_fill(~valid, self.length).to(self.real.device)
        alive = torch.zeros_like(self.real).new_zeros(len(slots), self.length + 1).scatter(1, slots, True)[:, :-1]
        if self.targets is None:
            return stand_ins(self.marked, alive & self.prompt)
        return instruction_ends(self.targets & alive, alive & self.prompt)


def make_plan(
    call: Call, inputs: LayerInputs, visual: Tensor, query: Query, scope: str, protect: bool
) -> ForwardPlan | None:
    """Read off a forward what its drops need. None when none of its tokens is ``visual`` (bool [B, T]).

    :raises DataError: positions restart inside a row (several samples packed into one), a ``query`` function that gives
        no bool [B, T], or training in which nothing says where the answers begin.
    """
    batch, length = inputs.hidden_states.shape[0], call.query_length
    device = visual.device
    real = torch.ones(batch, length, dtype=torch.bool, device=device)
    if call.padding_mask is not None:
        real = call.padding_mask[:, -length:].to(device, torch.bool)
    visual = visual.to(torch.bool).expand(batch, -1) & real
    prompt = real & (torch.arange(length, device=device) < length - call.draft_length)
    targets = call.target_mask
    targets = None if targets is None else targets.to(device)
    ranking = targets if query == "auto" else None
    marked = _marked(call, prompt, ranking, query)
    predicts = last_of(prompt) if targets is None else preceding(targets)
    protected = (marked | preceding(targets) if targets is not None else marked) & visual & protect
    segments = visual.long() if scope == "sample" else _runs(visual)
    columns = 2 if scope == "sample" else _columns(segments)
    moves = marked & visual & ~protected if ranking is None else (marked & ~protected | ranking) & visual
    flags = (
        _restarts(call, real),
        moves.any(1),
        (predicts & visual & ~protected).any(1),
        real[:, :1].any(1) & ~real[:, -1:].any(1),
    )
    census, (packed, moving, exposed, right_padded) = _counted(real, marked, protected, segments, columns, *flags)
    census = census.trimmed()
    if packed:
        raise DataError(
            "pyramiddrop: position_ids restart inside a row, so several samples are packed into one; give each sample "
            "a row of its own"
        )
    if not any(map(sum, census.segments)):
        return None
    _check_training(call, query)
    align = "left" if right_padded else "right"
    return ForwardPlan(real, segments, protected, prompt, marked, ranking, census, moving, exposed, align)


def _marked(call: Call, prompt: Tensor, targets: Tensor | None, query: Query) -> Tensor:
    """The rows that rank, bool [B, T]: with targets the ends of all instructions, without the last real token."""
    if callable(query):
        return _asked(query, call, prompt) & prompt
    return last_of(prompt) if targets is None else instruction_ends(targets, prompt)


def _asked(query: Callable[[Call], Tensor], call: Call, prompt: Tensor) -> Tensor:
    rows: Any = query(call)
    if isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.shape == prompt.shape:
        return rows.to(prompt.device)
    tensor = isinstance(rows, Tensor)
    found = f"{str(rows.dtype).removeprefix('torch.')} {list(rows.shape)}" if tensor else type(rows).__name__
    raise DataError(
        f"pyramiddrop: the query function returned {found}; expected bool {list(prompt.shape)}, True for the rows of "
        "this forward that rank"
    )


def _check_training(call: Call, query: Query) -> None:
    if query == "auto" and call.target_mask is None and call.training and torch.is_grad_enabled():
        raise DataError(
            "pyramiddrop: trained without labels, so query='auto' cannot see where the answers begin, and ranking by "
            "the last token would look at the answer. A Trainer with label smoothing, and losses on a completion mask, "
            "take the labels away before the call: pass target_mask= (bool [B, T], the tokens that the loss asks for) "
            "to the model call, train with paperhooks.HooksTrainerMixin, or choose query='last'"
        )


def _runs(visual: Tensor) -> Tensor:
    """Number the contiguous runs of True in each row from 1; 0 elsewhere. int64 [B, T]."""
    starts = visual & ~torch.nn.functional.pad(visual[:, :-1], (1, 0), value=False)
    return starts.long().cumsum(1) * visual


def _columns(segments: Tensor) -> int:
    """How many numbers of segments there are, with 0; at most so many, where the host would have to wait for it."""
    return int(segments.max()) + 1 if segments.device.type == "cpu" else (segments.shape[1] + 1) // 2 + 1


def _restarts(call: Call, real: Tensor) -> Tensor:
    """Rows whose positions fall, bool [B]."""
    positions = call.inputs.get("position_ids")
    if positions is None or positions.ndim != 2:
        return real.new_zeros(len(real))
    both = real[:, 1:] & real[:, :-1]
    return ((positions.to(real.device).diff(dim=1) < 0) & both).any(1)


def _counted(
    real: Tensor, queries: Tensor, protected: Tensor, segments: Tensor, columns: int, *flags: Tensor
) -> tuple[Census, list[bool]]:
    """Everything the host must know, in one transfer: the census, and which of ``flags`` (bool [B]) any row sets."""
    visual = segments > 0
    zeros = torch.zeros(real.shape[0], columns, dtype=torch.int64, device=real.device)
    per_segment = zeros.scatter_add(1, segments, visual.long())
    per_protected = zeros.scatter_add(1, segments, (protected & visual).long())
    heads = torch.stack([(real & ~visual).sum(1), queries.sum(1), *(flag.long() for flag in flags)], dim=1)
    rows = torch.cat([heads, per_segment, per_protected], dim=1).tolist()
    start = 2 + len(flags)
    census = Census(
        text=[row[0] for row in rows],
        queries=[row[1] for row in rows],
        segments=[row[start : start + columns] for row in rows],
        protected=[row[start + columns :] for row in rows],
    )
    return census, [any(row[2 + i] for row in rows) for i in range(len(flags))]
