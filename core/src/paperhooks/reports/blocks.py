"""The blocks that reports are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Block", "Code", "Columns", "Figure", "Heading", "Image", "Paragraph", "Table"]


@dataclass(frozen=True, slots=True)
class Heading:
    """A section heading; ``level`` 2 to 4 (1 is the report's title)."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of plain text; ``kind`` "text", or "note" for a highlighted box."""

    text: str
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """Header and rows; numbers are right-aligned, floats shown with four significant digits."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure saved by :meth:`RunFolder.figure`, named without ending; ``alt`` says in words what it shows."""

    name: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """A PNG, JPEG or SVG file inside the run folder."""

    file: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Preformatted text: a command, an answer, a log."""

    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Runs of blocks side by side, where the page is wide enough; one after another in Markdown."""

    columns: Sequence[Sequence[Block]]


Block: TypeAlias = "Heading | Paragraph | Table | Figure | Image | Code | Columns"
