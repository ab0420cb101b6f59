"""Calibration text as a search reads it: sequences of token ids that the model can read, long texts divided."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any, Final

from paperhooks import CompressionRequest, ModelView
from paperhooks.errors import counted
from paperhooks.logprobs import longest_readable
from torch import Tensor

__all__ = ["CalibrationWarning", "sequences"]

#: Families whose tokenizers put a token before every text, and whose models predict badly without it.
_BEGIN_WITH_BOS: Final = ("gemma",)
#: Fewer tokens predict nothing.
_LEAST: Final = 2


class CalibrationWarning(UserWarning):
    """The calibration text is not what the model is used to."""


def sequences(view: ModelView, request: CompressionRequest, max_length: int) -> list[Tensor]:
    """Token ids of all calibration texts, int64 [T] each.

    Texts longer than ``max_length``, or than the model reads, are divided. Where such a text begins with the model's
    BOS, its later parts do too; a rest of one token is left out.

    :raises DataError: no data, or data that are neither texts, ids nor batches.
    """
    longest = longest_readable(view)
    most = max_length if longest is None else min(max_length, longest)
    texts = []
    for batch in request.batches(max_length=sys.maxsize):
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        texts += [own if mask is None else own[mask[row].bool()] for row, own in enumerate(ids)]
    _check_begins(view, request.tokenizer, texts)
    bos = getattr(view.text_config, "bos_token_id", None)
    return [part for text in texts for part in _divided(text, most, bos)]


def _divided(text: Tensor, most: int, bos: int | None) -> list[Tensor]:
    if len(text) <= most:
        return [text]
    begins = bos is not None and int(text[0]) == bos and most > _LEAST
    head, rest = text[:1] if begins else text[:0], text[1:] if begins else text
    parts = [part for part in rest.split(most - len(head)) if len(head) + len(part) >= _LEAST]
    return [head.new_tensor([*head.tolist(), *part.tolist()]) for part in parts]


def _check_begins(view: ModelView, tokenizer: Any, texts: Sequence[Tensor]) -> None:
    """Warn of texts without the token that this model's texts begin with."""
    bos = _begin(view, tokenizer)
    lacking = sum(len(text) > 0 and int(text[0]) != bos for text in texts)
    if bos is not None and lacking:
        warnings.warn(
            f"{lacking} of {counted(len(texts), 'calibration text')} do not begin with the token {bos} (BOS), which "
            f"the tokenizer of {type(view.model).__name__} puts before every text; such models predict badly without "
            "it: put it before the ids, or give texts and the tokenizer",
            CalibrationWarning,
            stacklevel=3,
        )


def _begin(view: ModelView, tokenizer: Any) -> int | None:
    """The token that this model's texts begin with: what its tokenizer puts there, or its family is known for."""
    if tokenizer is not None:
        bos = getattr(tokenizer, "bos_token_id", None)
        return bos if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else None
    if str(view.text_config.model_type).startswith(_BEGIN_WITH_BOS):
        return getattr(view.text_config, "bos_token_id", None)
    return None
