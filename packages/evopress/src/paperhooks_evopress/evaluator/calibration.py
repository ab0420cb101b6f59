"""Calibration text as a search reads it: sequences of token ids that the model can read, long texts divided."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any, Final

import torch
from paperhooks import CompressionRequest, DataError, ModelView, UnsupportedModel
from paperhooks.errors import counted
from paperhooks.logprobs import longest_readable
from paperhooks.models import check_ids, evaluation_mode, last_hidden_state
from torch import Tensor

__all__ = ["CalibrationWarning", "check_causal", "sequences", "usable_sequences"]

#: Families whose tokenizers put a token before every text, and whose models predict badly without it.
_BEGIN_WITH_BOS: Final = ("gemma",)
#: Tokens on which it is seen that positions do not depend on later ones, and how far they may differ by rounding.
_SEEN: Final = 16
_ROUNDING: Final = 0.02
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


def check_causal(view: ModelView, sequence: Tensor) -> None:
    """Refuse a model of which a position sees the tokens after it: what it predicts there says nothing.

    PaliGemma reads a text so, of which it is not told where the answer begins.

    :param sequence: int64 [T], two tokens or more; one of another last token is read beside it.
    :raises UnsupportedModel: positions before the last one differ.
    """
    ids = sequence[:_SEEN].tolist()
    other = next((each for each in sequence.tolist() if each != ids[-1]), None)
    if other is None:
        return  # the text is one token over and over
    device: Any = getattr(view.model, "device", torch.device("cpu"))
    device = torch.device("cpu") if device.type == "meta" else device
    found = []
    with evaluation_mode(view.model), torch.no_grad():
        for last in (ids[-1], other):
            batch = {"input_ids": torch.tensor([[*ids[:-1], last]], device=device)}
            found.append(last_hidden_state(view, batch)[0, :-1].float())
    apart, size = float((found[0] - found[1]).abs().max()), float(found[0].abs().max())
    if apart > _ROUNDING * size:
        raise UnsupportedModel(
            f"{type(view.model).__name__} lets positions of a text see the tokens after them, so that its predictions "
            "of these cannot be compared; models that read text from left to right can be searched"
        )


def usable_sequences(view: ModelView, sequences: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The sequences that can be scored, int64 [T] on the CPU, without those of fewer than 2 tokens; warns of them.

    :raises DataError: one that the model cannot read, by its number, or none that is left.
    """
    embeddings: Any = view.model.get_input_embeddings()  # type: ignore[operator]
    limit, found = longest_readable(view), []
    for number, ids in enumerate(sequences):
        name = f"calibration sequence {number}"
        if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.is_floating_point():
            what = f"{list(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
            raise DataError(f"{name} is {what}; expected token ids, int64 [T]")
        if len(ids) < 2:
            continue
        if limit is not None and len(ids) > limit:
            raise DataError(f"{name} has {len(ids)} tokens, and the model reads at most {limit}; split it")
        check_ids(name, ids.cpu().numpy(), int(embeddings.weight.shape[0]))
        if bool(view.image_mask(ids).any()):
            raise DataError(f"{name} holds image tokens, whose images are not there; give text alone")
        found.append(ids.detach().to("cpu", torch.int64))
    if not found:
        raise DataError(
            f"none of {counted(len(sequences), 'calibration sequence')} has 2 tokens or more, so that there is nothing "
            "to predict; give longer texts"
        )
    if len(found) < len(sequences):
        warnings.warn(
            f"{len(sequences) - len(found)} of {counted(len(sequences), 'calibration sequence')} have fewer than 2 "
            "tokens, predict nothing and are left out",
            CalibrationWarning,
            stacklevel=3,
        )
    return tuple(found)
