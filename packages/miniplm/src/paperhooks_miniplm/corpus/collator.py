"""Rows of token ids as batches for scoring and training, with the official loss mask (section 2.4).

A row of n ids has n - 1 inputs, all but the last, and n - 1 labels, all but the first. Batches are padded on the right.
The official mask leaves out every prediction that is made *from* the end-of-sequence token: what begins the next
document cannot be known. Predicting the end itself counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from paperhooks import DataError
from paperhooks.models import check_ids
from torch import Tensor

from paperhooks_miniplm.algorithm import Array, counted_inputs
from paperhooks_miniplm.corpus.rows import token_ids

__all__ = ["collate", "loss_mask"]


def loss_mask(
    ids: Tensor | Array, eos_id: int | None, pad_id: int | None = None, mask_after_eos: bool = True
) -> Tensor:
    """Which inputs have a prediction that counts, by what they are: float32, 1 or 0, in the shape of ``ids``.

    Padding in a batch is a matter of lengths and not of ids; multiply by the attention mask.

    :param ids: inputs, integers of any shape [...].
    :param eos_id: the end-of-sequence token, or None where there is none.
    :param pad_id: the padding token; as an input it predicts nothing, unless it is also the end and that one counts.
    :param mask_after_eos: the official rule: nothing is predicted from the end of a document.
    """
    found = torch.as_tensor(ids)
    left_out = [eos_id] if mask_after_eos else []
    if mask_after_eos or pad_id != eos_id:
        left_out.append(pad_id)
    return counted_inputs(found, [token for token in left_out if token is not None]).float()


def collate(
    rows: Sequence[Array],
    *,
    max_length: int,
    pad_id: int,
    eos_id: int | None = None,
    pad_to: int | None = None,
    mask_after_eos: bool = True,
    positions: bool = False,
    vocabulary: int | None = None,
) -> dict[str, Tensor]:
    """A batch of rows, right-padded; rows longer than ``max_length`` + 1 ids are cut.

    :param rows: B integer arrays [n]; a row of one id or none has no input, so its mask is all zero.
    :param max_length: most inputs of a row, L.
    :param pad_id: the token to pad inputs and labels with.
    :param eos_id: the end-of-sequence token; ``pad_id`` by default, as in all models that the paper trains.
    :param pad_to: width T of the batch; the longest row's inputs (at least 1) by default.
    :param mask_after_eos: see :func:`loss_mask`.
    :param positions: also give ``position_ids``, for models with absolute positions.
    :param vocabulary: of the model; ids must be below it.
    :return: ``input_ids``, ``attention_mask``, ``label`` int64 [B, T], ``loss_mask`` float32 [B, T], and
        ``position_ids`` int64 [B, T] if asked for. ``label`` is what the same position predicts: nothing is to shift.
    :raises DataError: no rows, a row that is no list of integers, one that does not fit into ``pad_to``, or an id that
        is not in the vocabulary.
    """
    cut = [token_ids(f"row {number} of the batch", row)[: max_length + 1] for number, row in enumerate(rows)]
    for number, row in enumerate(cut):
        check_ids(f"row {number} of the batch", row, vocabulary)
    width = _width(cut, max_length, pad_to)
    ids, label = (np.full((len(cut), width), pad_id, dtype=np.int64) for _ in range(2))
    real = np.zeros((len(cut), width), dtype=np.int64)
    for number, row in enumerate(cut):
        n = max(len(row) - 1, 0)
        ids[number, :n], label[number, :n], real[number, :n] = row[:n], row[1:], 1
    batch = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(real),
        "label": torch.from_numpy(label),
    }
    end = pad_id if eos_id is None else eos_id
    batch["loss_mask"] = loss_mask(ids, end, pad_id, mask_after_eos) * batch["attention_mask"]
    if positions:
        batch["position_ids"] = torch.arange(width) * batch["attention_mask"]
    return batch


def _width(rows: Sequence[Array], max_length: int, pad_to: int | None) -> int:
    if max_length < 1:
        raise DataError(f"max_length is {max_length}; a model must read at least one token")
    if not rows:
        raise DataError("there are no rows to make a batch of")
    longest = max(len(row) - 1 for row in rows)
    if pad_to is None:
        return max(longest, 1)
    if longest > pad_to:
        raise DataError(f"a row has {longest} inputs, more than pad_to={pad_to}; raise it, or lower max_length")
    return pad_to
