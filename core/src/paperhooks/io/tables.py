"""Tables as text: rows of CSV and TSV files, and lists inside of cells."""

from __future__ import annotations

import ast
import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, counted
from paperhooks.io.files import parse_json
from paperhooks.io.record_paths import decoded

__all__ = ["list_cell", "table_rows"]


def table_rows(raw: bytes, file: Path, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table, each with its place, as objects of text; the first line names the columns.

    :raises DataError: no UTF-8, a row with more or fewer cells than the header, or two columns of one name.
    """
    reader = csv.reader(io.StringIO(decoded(raw, file, 1), newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            with _long_cells():
                cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file}:{start}: is no row of a table: {error}") from error
        if cells is None:
            return
        if not cells:
            continue
        if names is None:
            names = cells
            twins = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twins:
                raise DataError(f"{file}:{start}: has several columns {twins[0]!r}; give each a name of its own")
        elif len(cells) != len(names):
            raise DataError(
                f"{file}:{start}: has {counted(len(cells), 'cell')}, the header has {len(names)}; quote cells with "
                f"{delimiter!r}"
            )
        else:
            yield f"{file}:{start}", dict(zip(names, cells, strict=True))


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells as long as they are: the limit of the csv module belongs to the whole process and is put back."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def list_cell(cell: Any) -> list[Any] | None:
    """The list that a cell of a table holds as text: JSON, a Python list, or numpy's without commas.

    None where it is no list. A list stays what it is.

    >>> list_cell("['apple' 'brick']"), list_cell('["a", "b"]'), list_cell("apple")
    (['apple', 'brick'], ['a', 'b'], None)
    """
    if isinstance(cell, list | tuple):
        return list(cell)
    if hasattr(cell, "tolist"):
        return list_cell(cell.tolist())
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if _NUMPY_LIST.fullmatch(text):
        # Read as Python this would be one word: it joins strings that stand side by side.
        return [ast.literal_eval(word) for word in _QUOTED.findall(text)]
    for read in (parse_json,) if _SIDE_BY_SIDE.search(text) else (parse_json, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else None
    return None


_QUOTED: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.S)
_SIDE_BY_SIDE: Final = re.compile(rf"[\[,\s](?:{_QUOTED.pattern})\s*['\"]", re.S)
_NUMPY_LIST: Final = re.compile(rf"\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))+\s*\]", re.S)
