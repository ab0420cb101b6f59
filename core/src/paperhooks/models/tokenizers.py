"""Tokenizers: the one that belongs to a model, and which one it is."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from paperhooks.compat import origin
from paperhooks.errors import DataError
from paperhooks.io.hashing import hash_json

__all__ = ["check_ids", "find_tokenizer", "tokenizer_digest", "vocabulary_digest"]


def find_tokenizer(model: Any) -> Any:
    """The tokenizer at the name or folder that ``model`` was loaded from; raises DataError where there is none."""
    from transformers import AutoTokenizer

    source = origin(model.config)
    if not source:
        raise DataError(
            "the calibration data is text, but the model has no name to find a tokenizer by; pass tokenizer="
        )
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer was found at {source}: {error}; pass tokenizer=...") from error


def tokenizer_digest(tokenizer: Any) -> str | None:
    """SHA-256 of how a tokenizer cuts texts: all its rules where it can tell them, its vocabulary otherwise.

    None without a tokenizer, and for a function in place of one, which tells nothing.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules: str = backend.to_str()
        # These two change with every call that pads or cuts. The rest is taken as text: reading it takes half a second.
        for key in ('"truncation":', '"padding":'):
            start = rules.index(key) + len(key)
            _, end = json.JSONDecoder().raw_decode(rules, start)
            rules = rules[:start] + rules[end:]
        return hashlib.sha256(rules.encode()).hexdigest()
    vocabulary = getattr(tokenizer, "get_vocab", None)
    return None if vocabulary is None else hash_json([type(tokenizer).__name__, vocabulary()])


def vocabulary_digest(tokenizer: Any) -> str | None:
    """SHA-256 of what the ids of a tokenizer mean, whatever its rules for cutting texts; None where it cannot tell."""
    vocabulary = getattr(tokenizer, "get_vocab", None)
    return None if vocabulary is None else hash_json(vocabulary())


def check_ids(where: str, ids: Any, size: int | None, whose: str = "the model") -> None:
    """Raise DataError for a token id below 0 or not below ``size``: without it a GPU fails late and without a name.

    :param where: what holds the ids, such as ``"row 7"``. :param ids: integers of any shape, as array, tensor or list.
    :param size: how many ids there are; None checks nothing. :param whose: what has so many.
    """
    import numpy as np

    found = np.asarray(ids)
    if size is not None and found.size and not 0 <= int(found.min()) <= int(found.max()) < size:
        wrong = found[(found < 0) | (found >= size)].flat[0]
        raise DataError(f"{where} has the id {wrong}; {whose} has 0 to {size - 1}: was it made with another tokenizer?")
