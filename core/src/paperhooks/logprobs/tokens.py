"""Log-probabilities of tokens and sequences without a tensor of [B, T, V].

Only positions that have a target reach the head, ``chunk`` rows at a time, in float32. With gradients every chunk is
recomputed in the backward pass, so that training memory is bounded as well. The head is in
:mod:`paperhooks.logprobs.head`, divergences between two models in :mod:`paperhooks.logprobs.divergence`; both are
offered here too.

Letters: B batch entries, T tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError
from paperhooks.logprobs.chunked import in_chunks, scatter_rows, target_rows
from paperhooks.logprobs.head import Head
from paperhooks.models.view import ModelView
from paperhooks.tokens.host import on_host

__all__ = ["LogProbs", "next_token_labels", "sequence_logprobs", "token_logprobs"]


@dataclass(frozen=True, eq=False)
class LogProbs:
    """Log-probabilities of a batch of sequences, natural logarithm.

    tokens
        float32 [B, T]: at position t the log-probability of token t + 1; zero where that is no target.
    sum, count
        float64 [B] (float32 on devices without it) and int64 [B]: over a sequence's targets.
    """

    tokens: Tensor
    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean per target [B]; zero for a sequence without targets."""
        return self.sum / self.count.clamp(min=1)


def token_logprobs(hidden: Tensor, head: Head, labels: Tensor, *, chunk: int = 512, ignore_index: int = -100) -> Tensor:
    """Log-probability of ``labels`` given the hidden states at the same positions (nothing is shifted here).

    :param hidden: [..., D], as :func:`last_hidden_state` returns them; gradients flow to them and to the head.
    :param labels: int64 [...] on any device; ``ignore_index`` where there is no target.
    :param chunk: positions that the head sees at once: 4 * chunk * V bytes of logits, or fewer
        (:meth:`Head.logprobs`).
    :return: float32 [...]; zero at ignored positions.
    :raises DataError: shapes that differ, or a label that the head has no logit for.
    """
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
    return scatter_rows(in_chunks(head.logprobs, chunk, flat, targets), rows, labels.shape)


def next_token_labels(view: ModelView, batch: Mapping[str, Any], *, ignore_index: int = -100) -> Tensor:
    """What each position is to predict: int64 [B, T], ``ignore_index`` where nothing is.

    ``shift_labels`` of the batch if there are any, else ``labels`` moved by one, else ``input_ids`` moved by one
    without padding and image tokens. A token that follows padding has no context and is no target, so that padding on
    the left gives the same sums as none. Raises DataError when the batch has none of the three.
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
    return shifted


def sequence_logprobs(
    model: nn.Module | ModelView,
    batch: Mapping[str, Any],
    *,
    head: Head | None = None,
    chunk: int = 512,
    ignore_index: int = -100,
) -> LogProbs:
    """Log-probabilities of the targets of a batch, see :func:`next_token_labels`.

    The caller decides on mode (``model.eval()``), gradient and autocast. A batch entry's values do not depend on the
    others or on the side of the padding, up to rounding.

    :param model: the model, a wrapped one, or a view.
    :param batch: inputs of the model: ``input_ids`` [B, T], ``attention_mask`` [B, T], pixel values, ...
    :param head: from :meth:`Head.from_model`; made anew when missing, which costs a forward of four tokens.
    :raises UnsupportedModel: a head that core cannot reproduce. :raises DataError: labels that do not fit.
    """
    head = head or Head.from_model(model)
    labels = next_token_labels(head.view_of(model), batch, ignore_index=ignore_index)
    tokens = head.run(
        model, batch, lambda hidden, own: token_logprobs(hidden, own, labels, chunk=chunk, ignore_index=ignore_index)
    )
    exact = torch.float32 if tokens.device.type == "mps" else torch.float64
    return LogProbs(tokens, tokens.to(exact).sum(-1), (labels != ignore_index).sum(-1).to(tokens.device))
