"""Rows back into documents and text."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["split_documents", "text_of"]


def split_documents(ids: np.ndarray[Any, Any], eos: int) -> list[list[int]]:
    """The parts of a row between end-of-sequence tokens, one more than there are of these."""
    parts = np.split(ids, np.flatnonzero(ids == eos))
    return [part[min(number, 1) :].tolist() for number, part in enumerate(parts)]


def text_of(ids: np.ndarray[Any, Any], tokenizer: Any) -> str:
    """The text of a row, with the end token's own text between documents."""
    if tokenizer.eos_token_id is None:
        return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
    parts = split_documents(ids, tokenizer.eos_token_id)
    return str(tokenizer.eos_token).join(tokenizer.decode(part, skip_special_tokens=True) for part in parts)
