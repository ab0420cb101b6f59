"""Tokenizers: the one that belongs to a model, and which one it is."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from paperhooks.compat import origin
from paperhooks.errors import DataError
from paperhooks.io.hashing import hash_json

__all__ = ["find_tokenizer", "tokenizer_digest", "vocabulary_digest"]


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
