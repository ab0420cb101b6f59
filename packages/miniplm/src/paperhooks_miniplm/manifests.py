"""Manifests of scoring folders: what scores were made with, and what keeps two of them from being compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError

__all__ = ["differing_field", "incomparable", "read_manifest"]

#: What must agree for the difference of two scores to mean something.
_COMPARABLE: Final = ("rows", "corpus", "tokenizer", "end", "max_length", "over_long")
#: The same for scores per byte of text, where tokenizers may differ.
_COMPARABLE_TEXT: Final = ("rows", "over_long")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a scoring folder; raises DataError where there is none or it is damaged."""
    file = folder / "manifest.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        _ = found["run"], found["rows"], found["unit_rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no scoring folder: {file.name} cannot be used ({error})") from error
    return dict(found)


def differing_field(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first field that determines scores and differs."""
    return _first(one, other, [key for key in {**one, **other} if key not in ("about", "run")])


def incomparable(one: Mapping[str, Any], other: Mapping[str, Any], *, text: bool = False) -> str | None:
    """The first field for which the scores of two folders must not be subtracted; ``text`` for scores per byte."""
    return _first(one, other, _COMPARABLE_TEXT if text else _COMPARABLE)


def _first(one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if one.get(key) != other.get(key)), None)
