"""Parquet files that say what they are: plain data in their metadata, under one key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from paperhooks.errors import require

__all__ = ["about_of", "arrow", "metadata", "parquet"]

_KEY: Final = b"paperhooks"


def arrow() -> Any:
    """``pyarrow``; raises MissingExtra without it."""
    return require("pyarrow", "paperhooks-miniplm[data]", "for a corpus in parts")


def parquet() -> Any:
    """``pyarrow.parquet``; raises MissingExtra without it."""
    return require("pyarrow.parquet", "paperhooks-miniplm[data]", "for a corpus in parts")


def metadata(about: Mapping[str, Any]) -> dict[bytes, str]:
    """What a schema is given, so that its file says this; equal data give equal bytes."""
    return {_KEY: json.dumps(about, sort_keys=True)}


def about_of(file: Any) -> dict[str, Any]:
    """What a ``ParquetFile`` says of itself; nothing where it is of others. Raises ValueError for what is no JSON."""
    found: dict[str, Any] = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"{}"))
    return found
