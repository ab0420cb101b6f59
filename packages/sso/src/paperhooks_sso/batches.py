"""Sums of log-probabilities of a batch's answers, whatever its layout (:mod:`paperhooks_sso.data.collator`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from paperhooks import DataError, ModelView, UnsupportedModel
from paperhooks.logprobs import (
    Head,
    Reference,
    next_token_labels,
    scatter_rows,
    sequence_logprobs,
    target_rows,
    token_logprobs,
)
from paperhooks.models import evaluation_mode, last_hidden_state
from torch import Tensor, nn

from paperhooks_sso.algorithm import GROUPS, Group
from paperhooks_sso.base_losses import PairSums

__all__ = ["BatchPart", "check_shared", "examples_of", "pair_sums", "parts_of", "sums_of"]

#: What of a batch is no input of the model.
_COLUMNS = ("ids", "lengths", "parts", "reference_logprobs")
#: Share of the largest log-probability by which rows that share a prompt may differ from rows of their own.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_LOW_PRECISION_TOLERANCE = 5e-2
#: Share by which they may change with the other answer in the row: what is summed is the same but for zeros.
_LEAK = 1e-6


@dataclass(frozen=True, eq=False)
class BatchPart:
    """What one forward takes, and the rows that it gives: of each group in order, B chosen and then B rejected.

    columns
        As the collator made them.
    groups
        Whose rows they are.
    """

    columns: Mapping[str, Any]
    groups: tuple[Group, ...]

    @property
    def shared(self) -> bool:
        """Whether a row holds a prompt and both its answers."""
        return "parts" in self.columns

    @property
    def rows(self) -> int:
        """Answers, R."""
        if self.shared:
            return 2 * len(self.columns["parts"])
        return len(self.columns.get("lengths", self.columns["input_ids"]))

    @property
    def reference(self) -> Tensor | None:
        """Sums of a reference that travel with the batch, [R]."""
        found: Tensor | None = self.columns.get("reference_logprobs")
        return found

    def only(self, groups: Sequence[Group]) -> BatchPart:
        """Without the rows of other groups, where they are rows of a padded batch."""
        if set(self.groups) == set(groups) or "lengths" in self.columns:
            return self
        each = self.rows // len(self.groups)
        wanted = [group for group in self.groups if group in groups]
        at = torch.cat([torch.arange(each) + each * self.groups.index(group) for group in wanted])
        columns = {
            name: value[at.to(value.device)] if isinstance(value, Tensor) and len(value) == self.rows else value
            for name, value in self.columns.items()
        }
        return BatchPart(columns, tuple(wanted))

    def sums(self, model: nn.Module | ModelView, head: Head) -> tuple[Tensor, Tensor]:
        """S float64 [R] with whatever gradient is asked for, and |y| int64 [R]."""
        found = sequence_logprobs(model, self.inputs(head.view_of(model)), head=head)
        return self._by_answer(found.tokens) if self.shared else (found.sum, found.count)

    def reference_sums(self, reference: Reference, trained: nn.Module | ModelView) -> Tensor:
        """R float64 [R] of a reference of ``trained``, without gradient."""
        if not self.shared:
            return reference.sums(trained, self.inputs(None))
        head = reference.head(trained)
        inputs = self.inputs(head.view_of(trained))
        labels = inputs["shift_labels"]
        with torch.no_grad():
            tokens = reference.run(trained, inputs, lambda hidden, own: token_logprobs(hidden, own, labels))
        return self._by_answer(tokens)[0]

    def inputs(self, view: ModelView | None) -> dict[str, Any]:
        """What the model is given; where rows share a prompt, with the mask that its attention takes."""
        inputs = {name: value for name, value in self.columns.items() if name not in _COLUMNS}
        if view is not None and self.shared:
            inputs["attention_mask"] = _shared_mask(self.columns["parts"], view)
        return inputs

    def reduced(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """S [R] and |y| [R] of log-probabilities [B, T] of ``labels`` [B, T], of a part that is not flat."""
        if self.shared:
            return self._by_answer(tokens)
        return _exact(tokens).sum(1), (labels != -100).sum(1).to(tokens.device)

    def _by_answer(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and counts of both answers of each row, chosen ones first, from log-probabilities [B, T]."""
        parts = self.columns["parts"].to(tokens.device)
        targets = self.columns["shift_labels"].to(tokens.device) != -100
        own = [(parts == answer) & targets for answer in (1, 2)]
        sums = [_exact(torch.where(where, tokens, 0.0)).sum(1) for where in own]
        return torch.cat(sums), torch.cat([where.sum(1) for where in own])

    def split(self, values: Tensor) -> Iterator[tuple[Group, Tensor, Tensor]]:
        """Group, values of its chosen and of its rejected rows, [B] each."""
        pieces = values.chunk(2 * len(self.groups))
        for at, group in enumerate(self.groups):
            yield group, pieces[2 * at], pieces[2 * at + 1]


def sums_of(parts: Sequence[BatchPart], model: nn.Module | ModelView, head: Head) -> list[tuple[Tensor, Tensor]]:
    """S [R] and |y| [R] of every part.

    The answers of several parts go through the head together, so that the gradient of its weights, as large as they
    are, stands in memory once.
    """
    view = head.view_of(model)
    if len(parts) < 2:
        return [part.sums(model, head) for part in parts]
    inputs = [part.inputs(view) for part in parts]
    labels = [next_token_labels(view, each) for each in inputs]
    rows = [target_rows(each != -100) for each in labels]
    states = [last_hidden_state(model, each, view=view) for each in inputs]
    picked = torch.cat([s.reshape(-1, s.shape[-1])[at.to(s.device)] for s, at in zip(states, rows, strict=True)])
    targets = torch.cat([each.reshape(-1)[at] for each, at in zip(labels, rows, strict=True)])
    values = token_logprobs(picked, head, targets).split([len(at) for at in rows])
    return [
        part.reduced(scatter_rows(own, at, known.shape), known)
        for part, own, at, known in zip(parts, values, rows, labels, strict=True)
    ]


def parts_of(batch: Mapping[str, Any], groups: Sequence[Group]) -> list[BatchPart]:
    """The forwards of a batch that make the rows of ``groups``.

    :raises DataError: columns of another form, or rows that are no multiple of the groups.
    """
    return [part.only(groups) for part in _whole_parts(batch, groups)]


def _whole_parts(batch: Mapping[str, Any], groups: Sequence[Group]) -> list[BatchPart]:
    """The same with the rows of other groups, of which nothing is copied."""
    there = [group for group in GROUPS if isinstance(batch.get(group), Mapping)]
    if there:
        missing = [group for group in groups if group not in there]
        if missing:
            raise DataError(
                f"the batch has the groups {', '.join(there)}, and the objective needs {missing[0]!r}; give the "
                "collator the objective: PairCollator(groups=objective)"
            )
        return [BatchPart(batch[group], (group,)) for group in groups]
    if not isinstance(batch.get("input_ids"), Tensor):
        raise DataError(
            f"the batch has the columns {', '.join(map(str, batch)) or 'none'}, and none that SSO can read; collate it "
            "with paperhooks_sso.data.PairCollator, and keep its columns: remove_unused_columns=False"
        )
    whole = BatchPart(batch, tuple(groups))
    held = _held(whole.rows, batch.get("ids"), groups)
    return [BatchPart(batch, held)]


def examples_of(batch: Mapping[str, Any], groups: Sequence[Group]) -> int:
    """Prompts of a batch, B."""
    part = _whole_parts(batch, groups)[0]
    return part.rows // (2 * len(part.groups))


def _held(rows: int, ids: Any, groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups whose rows a batch holds: those of the objective, or all three."""
    for held in (tuple(groups), GROUPS):
        if rows == 2 * len(held) * len(ids) if ids is not None else held == GROUPS and rows % (2 * len(held)) == 0:
            return held
    known = "" if ids is None else f" for {len(ids)} prompts"
    raise DataError(
        f"the batch has {rows} rows{known}; expected two for each prompt and group ({', '.join(groups)}), as "
        "paperhooks_sso.data.PairCollator makes them"
    )


def pair_sums(
    parts: Sequence[BatchPart], sums: Sequence[tuple[Tensor, Tensor]], references: Sequence[Tensor | None]
) -> dict[Group, PairSums]:
    """The pairs of every group.

    :param sums: of each part, S [R] and |y| [R]. :param references: of each part, R [R], or None.
    """
    found: dict[Group, PairSums] = {}
    for part, (values, counts), reference in zip(parts, sums, references, strict=True):
        counted = {group: pair for group, *pair in part.split(counts.to(values.device))}
        others = {} if reference is None else {g: pair for g, *pair in part.split(reference.to(values.device))}
        for group, chosen, rejected in part.split(values):
            found[group] = PairSums(chosen, rejected, *counted[group], *others.get(group, ()))
    return found


def check_shared(model: nn.Module | ModelView, head: Head, width: int) -> None:
    """Try that answers which share a prompt get what they get in rows of their own. Costs four forwards of few tokens.

    :param model: what is called. :param width: of the rows that are to come.
    :raises UnsupportedModel: they do not, or the model's attention takes no mask that says who sees whom.
    """
    view = head.view_of(model)
    name, advice = type(view.model).__name__, "use another layout: PairCollator(layout='group')"
    window = view.sliding_window
    if view.attention_kernel not in ("eager", "sdpa"):
        raise UnsupportedModel(f"attention {view.attention_kernel!r} of {name} takes no mask of its own; {advice}")
    if getattr(view.text_config, "output_router_logits", False):
        raise UnsupportedModel(f"the balance loss of {name}'s experts takes no mask that says who sees whom; {advice}")
    if window is not None and window < width:
        raise UnsupportedModel(f"layers of {name} see {window} tokens, and rows have {width}; {advice}")
    device: Any = getattr(view.model, "device", torch.device("cpu"))
    on = "cpu" if device.type == "meta" else device
    first = [token for token in range(64) if token not in view.image_token_ids][-7:]
    a, b, c, d, e, f, g = (token % view.text_config.vocab_size for token in first)
    shared = {
        "input_ids": [[a, b, c, d, e, c, f, g]],
        "parts": [[0, 0, 1, 1, 1, 2, 2, 2]],
        "position_ids": [[0, 1, 2, 3, 4, 2, 3, 4]],
        "shift_labels": [[-100, -100, d, e, -100, f, g, -100]],
    }
    apart = {"input_ids": [[a, b, c, d, e], [a, b, c, f, g]], "labels": [[-100] * 3 + [d, e], [-100] * 3 + [f, g]]}
    # The second answer alone, behind another first one: a part of the model that is no attention may let it through.
    other = {**shared, "input_ids": [[a, b, g, f, a, c, f, g]], "shift_labels": [[-100] * 5 + [f, g, -100]]}
    alone = {**shared, "shift_labels": other["shift_labels"]}
    with torch.no_grad(), evaluation_mode(view.model):
        found, wanted, own, behind = (
            BatchPart({n: torch.tensor(v, device=on) for n, v in columns.items()}, ("plain",)).sums(model, head)[0]
            for columns in (shared, apart, alone, other)
        )
    if not (leak := float((own - behind).abs().max())) <= _LEAK * float(wanted.abs().max()):
        raise UnsupportedModel(
            f"in {name} an answer that shares a prompt in one row with another sees it: log-probabilities change by "
            f"{leak:.3g} with the other answer; {advice}"
        )
    allowed = _TOLERANCE.get(_dtype(view), _LOW_PRECISION_TOLERANCE) * float(wanted.abs().max())
    if not (error := float((found - wanted).abs().max())) <= allowed:
        raise UnsupportedModel(
            f"{name} does not keep answers apart that share a prompt in one row: their log-probabilities differ by "
            f"{error:.3g}, allowed are {allowed:.3g}; {advice}"
        )


def _shared_mask(parts: Tensor, view: ModelView) -> Tensor:
    """Who sees whom, [B, 1, T, T]: the prompt and what comes before in the same answer. As the attention takes it."""
    width = parts.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=parts.device).tril()
    keys, queries = parts[:, None, None, :], parts[:, None, :, None]
    seen = before & (keys == queries) | before & (keys == 0) & (queries >= 0)
    if view.attention_kernel == "sdpa":
        return seen
    # Eager attention adds the mask to its scores.
    dtype = _dtype(view)
    return torch.zeros(seen.shape, dtype=dtype, device=parts.device).masked_fill(~seen, torch.finfo(dtype).min)


def _exact(values: Tensor) -> Tensor:
    """In float64, where the device has it: what sums over an answer are made in."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def _dtype(view: ModelView) -> torch.dtype:
    model: Any = view.model
    dtype: torch.dtype = model.dtype
    return dtype
