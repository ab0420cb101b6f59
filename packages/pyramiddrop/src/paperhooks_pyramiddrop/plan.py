"""The bookkeeping of one forward: who ranks, who is protected, how many stay. One device read a forward.

All [B, T] tensors are in the coordinates of this forward's tokens; ``alive`` brings them to the tokens a layer still
has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from paperhooks import Call, DataError, LayerInputs
from paperhooks.selection import TokenTrack
from torch import Tensor

__all__ = ["Alive", "Plan", "Query", "make_plan"]

Query: TypeAlias = Literal["auto", "last"] | Callable[[Call], Tensor]
Counts: TypeAlias = list[list[int]]
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Alive:
    """A layer's tokens: int64 ``index`` [B, n] and ``segments`` [B, n], bool ``real``, ``protected`` [B, n], and the
    ranking rows int64 ``query_rows`` [B, m] with bool ``query_valid`` [B, m]."""

    index: Tensor
    real: Tensor
    segments: Tensor
    protected: Tensor
    query_rows: Tensor
    query_valid: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """What a forward's drops need to know; see :func:`make_plan`.

    real, queries, protected: bool [B, T]. segments: int64 [B, T], 0 for text. On the host: ``text_counts`` (real text
    tokens a row), ``segment_counts`` (tokens of every segment a row, entry 0 unused), ``protected_counts`` (likewise),
    ``ranked`` (rows that have a query), ``max_queries`` and ``align``.
    """

    real: Tensor
    queries: Tensor
    protected: Tensor
    segments: Tensor
    text_counts: list[int]
    segment_counts: Counts
    protected_counts: Counts
    ranked: list[bool]
    max_queries: int
    align: str

    @property
    def length(self) -> int:
        """T, the tokens of this forward."""
        return self.real.shape[1]

    def keep_counts(self, ratio: float, minimum: int) -> Counts:
        """``int(N0 * ratio)`` tokens of each segment, at least ``minimum``; rows without a query keep all."""
        return [
            [min(n, max(int(n * ratio), minimum)) for n in row] if ranked else list(row)
            for row, ranked in zip(self.segment_counts, self.ranked, strict=True)
        ]

    def alive_counts(self, counts: Counts) -> list[int]:
        """Tokens alive in each row after keeping ``counts``."""
        rows = zip(self.text_counts, counts, self.protected_counts, strict=True)
        return [text + sum(max(k, p) for k, p in zip(keep, must, strict=True)) for text, keep, must in rows]

    def alive(self, track: TokenTrack | None, hidden_states: Tensor) -> Alive:
        """This plan for the tokens that a layer still has."""
        device, batch = hidden_states.device, hidden_states.shape[0]
        if track is None:
            index = torch.arange(self.length, device=device).expand(batch, -1)
            valid = torch.ones_like(index, dtype=torch.bool)
        else:
            index = track.index.to(device)
            valid = torch.ones_like(index, dtype=torch.bool) if track.valid is None else track.valid.to(device)

        def bring(x: Tensor) -> Tensor:
            return x.to(device).gather(1, index)

        queries = bring(self.queries) & valid
        rows = queries.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : self.max_queries]
        return Alive(
            index=index,
            real=bring(self.real) & valid,
            segments=bring(self.segments) * valid,
            protected=bring(self.protected) & valid,
            query_rows=rows,
            query_valid=queries.gather(1, rows),
        )


def make_plan(call: Call, inputs: LayerInputs, visual: Tensor, query: Query, scope: str, protect: bool) -> Plan | None:
    """Read off a forward what its drops need. None when none of its tokens is ``visual`` (bool [B, T]).

    :raises DataError: positions restart inside a row (several samples packed into one).
    """
    batch, length = inputs.hidden_states.shape[0], call.query_length
    device = visual.device
    real = torch.ones(batch, length, dtype=torch.bool, device=device)
    if call.padding_mask is not None:
        real = call.padding_mask[:, -length:].to(device, torch.bool)
    visual = visual.to(torch.bool).expand(batch, -1) & real
    labels = call.labels.to(device) if call.labels is not None else None
    prompt = real & (torch.arange(length, device=device) < length - call.draft_length)
    queries, predicts = _query_rows(prompt, labels if query == "auto" else None, labels)
    if callable(query):
        queries = query(call).to(device, torch.bool) & prompt
    protected = (queries | predicts) & visual if protect else torch.zeros_like(visual)
    segments = visual.long() if scope == "sample" else _runs(visual)
    host = _read(real, visual, queries, protected, segments, _restarts(call, real), scope)
    if host["packed"]:
        raise DataError(
            "pyramiddrop: position_ids restart inside a row, so several samples are packed into one; give each sample "
            "a row of its own"
        )
    if not any(map(sum, host["segments"])):
        return None
    return Plan(
        real=real,
        queries=queries,
        protected=protected,
        segments=segments,
        text_counts=[r - v for r, v in zip(host["real"], map(sum, host["segments"]), strict=True)],
        segment_counts=host["segments"],
        protected_counts=host["protected"],
        ranked=[q > 0 for q in host["queries"]],
        max_queries=max(1, *host["queries"]),
        align="left" if host["right_padded"] else "right",
    )


def _query_rows(real: Tensor, ranking_labels: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows that rank, and rows that predict a label; both bool [B, T].

    With labels: every position whose label is ignored and whose next token has one (the end of an instruction, paper
    section 3.2). Without: the last real token.
    """
    nothing = torch.zeros_like(real)
    predicts = nothing
    if labels is not None:
        predicts = torch.nn.functional.pad(labels[:, 1:] != IGNORE, (0, 1), value=False)
    if ranking_labels is not None:
        return predicts & (ranking_labels == IGNORE) & real, predicts
    position = torch.arange(1, real.shape[1] + 1, device=real.device) * real
    last = position.argmax(dim=1, keepdim=True)
    return nothing.scatter(1, last, True) & real, predicts


def _runs(visual: Tensor) -> Tensor:
    """Number the contiguous runs of True in each row from 1; 0 elsewhere. int64 [B, T]."""
    starts = visual & ~torch.nn.functional.pad(visual[:, :-1], (1, 0), value=False)
    return starts.long().cumsum(1) * visual


def _restarts(call: Call, real: Tensor) -> Tensor | None:
    positions = call.inputs.get("position_ids")
    if positions is None or positions.ndim != 2:
        return None
    both = real[:, 1:] & real[:, :-1]
    return ((positions.to(real.device).diff(dim=1) < 0) & both).any()


def _read(
    real: Tensor,
    visual: Tensor,
    queries: Tensor,
    protected: Tensor,
    segments: Tensor,
    packed: Tensor | None,
    scope: str,
) -> dict[str, Any]:
    """Everything the host must know, in one transfer (two with ``scope="segment"``, to learn how many there are)."""
    columns = 2 if scope == "sample" else int(segments.max()) + 1
    zeros = torch.zeros(real.shape[0], columns, dtype=torch.int64, device=real.device)
    per_segment = zeros.scatter_add(1, segments, visual.long())
    per_protected = zeros.scatter_add(1, segments, protected.long())
    last_real = real[:, -1].long() if real.shape[1] else real.sum(1)
    flags = torch.stack([real.sum(1), queries.sum(1), real[:, 0].long() - last_real], dim=1)
    packed_flag = zeros[:, :1] if packed is None else zeros[:, :1] + packed.long()
    rows = torch.cat([flags, packed_flag, per_segment, per_protected], dim=1).tolist()
    return {
        "real": [r[0] for r in rows],
        "queries": [r[1] for r in rows],
        "right_padded": any(r[2] > 0 for r in rows),
        "packed": any(r[3] > 0 for r in rows),
        "segments": [[0, *r[5 : 4 + columns]] for r in rows],
        "protected": [[0, *r[5 + columns :]] for r in rows],
    }
