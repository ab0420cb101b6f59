"""Log-probabilities of tokens and sequences without a tensor of [B, T, V].

Only positions that have a target reach the head, ``chunk`` rows at a time, in float32. With gradients there are three
ways to the same values, of which the model and a limit choose:

- Nothing in the head learns, as beside adapters elsewhere: the gradient of the hidden states is made with the values,
  and of the logits nothing is kept. It is the fastest way too.
- The logits of the targets fit the limit: they are kept for the backward pass.
- Otherwise every chunk is computed again there.

The head is in
:mod:`paperhooks.logprobs.head`, divergences between two models in :mod:`paperhooks.logprobs.divergence`; both are
offered here too.

Letters: B batch entries, T tokens, D hidden width, V vocabulary, S sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError
from paperhooks.io.options import whole
from paperhooks.logprobs.chunked import in_chunks, rows_in_chunks, scatter_rows, target_rows
from paperhooks.logprobs.flattened import last_tokens, row_positions, sequence_numbers, without_full_mask
from paperhooks.logprobs.head import Head
from paperhooks.models.view import ModelView
from paperhooks.tokens.host import on_host

__all__ = ["LogProbs", "next_token_labels", "sequence_logprobs", "token_logprobs"]

#: Bytes of logits that one call may keep for the backward pass: those of 5,461 targets with 49,152 entries in float32,
#: a fraction of what the layers of a model with such batches keep.
_KEPT: Final = 2**30


@dataclass(frozen=True, eq=False)
class LogProbs:
    """Log-probabilities of a batch of sequences, natural logarithm.

    tokens
        float32 [B, T]: at position t the log-probability of token t + 1; zero where that is no target.
    sum, count
        float64 [S] (float32 on devices without it) and int64 [S]: over a sequence's targets. S is B, unless positions
        that begin anew tell of several sequences in a row: then all of them, in order.
    """

    tokens: Tensor
    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean per target [S]; zero for a sequence without targets."""
        return self.sum / self.count.clamp(min=1)


def token_logprobs(
    hidden: Tensor, head: Head, labels: Tensor, *, chunk: int = 512, ignore_index: int = -100, limit: int = _KEPT
) -> Tensor:
    """Log-probability of ``labels`` given the hidden states at the same positions (nothing is shifted here).

    :param hidden: [..., D], as :func:`last_hidden_state` returns them; gradients flow to them and to the head.
    :param labels: int64 [...] on any device; ``ignore_index`` where there is no target.
    :param chunk: positions that the head sees at once: 4 * chunk * V bytes of logits, or fewer
        (:meth:`Head.logprobs`).
    :param limit: bytes of logits, n V times those of a number, that this call may keep for the backward pass; with
        several calls in one graph, a share of what all may keep. The work on a chunk comes on top of it. Values and
        gradients do not depend on it, time does; 0 keeps none.
    :return: float32 [...]; zero at ignored positions. With gradient it can be differentiated once, as often as the
        graph is kept.
    :raises DataError: shapes that differ, or a label that the head has no logit for.
    :raises ValueError: a chunk or limit that cannot be meant.
    """
    limit = whole("limit", limit, at_least=0)
    if hidden.shape[:-1] != labels.shape:
        raise DataError(f"labels are {list(labels.shape)}, but hidden states {list(hidden.shape)}; expected [..., D]")
    known: Any = on_host(labels)[0]  # one wait for the device, or none
    rows = target_rows(known != ignore_index)
    targets = known.reshape(-1)[rows]
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < head.vocabulary:
        wrong = int(targets.min()) if int(targets.min()) < 0 else int(targets.max())
        raise DataError(f"label {wrong} is outside the {head.vocabulary} entries of the head's vocabulary")

    flat = hidden.reshape(-1, hidden.shape[-1])[rows.to(hidden.device, non_blocking=True)]
    targets = targets.to(hidden.device, non_blocking=True)
    return scatter_rows(_logprobs(head, chunk, limit, flat, targets), rows, labels.shape)


def _logprobs(head: Head, chunk: int, limit: int, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities float32 [n] by one of the three ways."""
    if not torch.is_grad_enabled() or head.takes_gradient(hidden):
        keep = len(hidden) * head.vocabulary * _number_size(head, hidden) <= limit
        return in_chunks(head.logprobs, chunk, hidden, targets, keep=keep)
    if hidden.requires_grad:
        return rows_in_chunks(head.logprobs, chunk, hidden, targets)
    with torch.no_grad():
        return in_chunks(head.logprobs, chunk, hidden, targets)


def _number_size(head: Head, hidden: Tensor) -> int:
    """Bytes of one number of what the output embeddings return, or more."""
    floating = [p.element_size() for p in head.module.parameters() if p.is_floating_point()]
    return max([hidden.element_size(), *floating])


def next_token_labels(view: ModelView, batch: Mapping[str, Any], *, ignore_index: int = -100) -> Tensor:
    """What each position is to predict: int64 [B, T], ``ignore_index`` where nothing is.

    ``shift_labels`` of the batch if there are any, else ``labels`` moved by one, else ``input_ids`` moved by one
    without padding and image tokens. A token that follows padding has no context and is no target, so that padding on
    the left gives the same sums as none; nor is one that begins a sequence in the middle of a row
    (:func:`sequence_numbers`), where there is no attention mask.

    :raises DataError: the batch has none of the three, or positions begin anew beside a mask of [B, T], with which the
        model would not keep the sequences apart.
    """
    if batch.get("shift_labels") is not None:
        return torch.as_tensor(batch["shift_labels"])
    ids, labels, mask = batch.get("input_ids"), batch.get("labels"), batch.get("attention_mask")
    if labels is None and isinstance(ids, Tensor):
        labels = ids.masked_fill(view.image_mask(ids), ignore_index)
    if not isinstance(labels, Tensor):
        raise DataError("the batch has neither input_ids nor labels nor shift_labels, so there is nothing to predict")
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        real = mask.bool()
        shifted = shifted.masked_fill(~(real & torch.nn.functional.pad(real[:, 1:], (0, 1))), ignore_index)
    ends = last_tokens(batch, len(labels))
    return shifted if ends is None else shifted.masked_fill(ends.to(shifted.device), ignore_index)


def sequence_logprobs(
    model: nn.Module | ModelView,
    batch: Mapping[str, Any],
    *,
    head: Head | None = None,
    chunk: int = 512,
    ignore_index: int = -100,
    limit: int = _KEPT,
) -> LogProbs:
    """Log-probabilities of the targets of a batch, see :func:`next_token_labels`.

    The caller decides on mode (``model.eval()``), gradient and autocast. A batch entry's values do not depend on the
    others or on the side of the padding, up to rounding. Rows that hold several sequences (``position_ids`` [B, T] that
    begin anew, without attention mask or with one full of ones, which is left out) have a sum for each of them.

    :param model: the model, a wrapped one, or a view.
    :param batch: inputs of the model: ``input_ids`` [B, T], ``attention_mask`` [B, T], pixel values, ...
    :param head: from :meth:`Head.from_model`; made anew when missing, which costs a forward of four tokens.
    :param chunk, limit: see :func:`token_logprobs`.
    :raises UnsupportedModel: a head that core cannot reproduce, or a model that does not keep sequences of one row
        apart. :raises DataError: labels that do not fit, or positions that begin anew beside padding.
    """
    head = head or Head.from_model(model)
    rows = _rows(batch)
    batch = without_full_mask(batch, rows)
    numbers = _numbers(model, head, batch, rows)
    labels = next_token_labels(head.view_of(model), batch, ignore_index=ignore_index)
    tokens = head.run(
        model, batch,
        lambda hidden, own: token_logprobs(
            hidden, own, labels, chunk=chunk, ignore_index=ignore_index, limit=limit
        ),
    )  # fmt: skip
    exact = torch.float32 if tokens.device.type == "mps" else torch.float64
    counted = (labels != ignore_index).to(tokens.device)
    if numbers is None:
        return LogProbs(tokens, tokens.to(exact).sum(-1), counted.sum(-1))
    return LogProbs(tokens, *(_by_sequence(each, numbers) for each in (tokens.to(exact), counted.long())))


def _rows(batch: Mapping[str, Any]) -> int:
    """B, the rows of a batch; 1 where it has none of what tells."""
    known = (batch.get(name) for name in ("input_ids", "inputs_embeds", "labels", "shift_labels"))
    return next((len(each) for each in known if isinstance(each, Tensor)), 1)


def _numbers(model: nn.Module | ModelView, head: Head, batch: Mapping[str, Any], rows: int) -> Tensor | None:
    """The sequence of every position, int64 [B, T] on the CPU, where a row holds several; None where none does."""
    positions = row_positions(batch, rows)
    if positions is None or isinstance(batch.get("attention_mask"), Tensor):
        return None
    known: Any = on_host(positions)[0]
    numbers = sequence_numbers(known)
    several = int(numbers[-1, -1]) >= rows
    # Where ranks call the model in step, each has batches of its own: what is tried cannot depend on them.
    if several or head.view_of(model).spread.in_step:
        head.check_kept_apart(model, rows)
    return numbers if several else None


def _by_sequence(values: Tensor, numbers: Tensor) -> Tensor:
    """Sums [S] of values [B, T]."""
    sums = values.new_zeros(int(numbers[-1, -1]) + 1)
    return sums.index_add(0, numbers.reshape(-1).to(values.device, non_blocking=True), values.reshape(-1))
