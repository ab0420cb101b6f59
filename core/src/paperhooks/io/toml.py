"""Strict checking of small TOML files: every problem with file, line and value, unknown keys with a did-you-mean."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import did_you_mean
from paperhooks.io.options import shown

__all__ = ["Field", "Problem", "check_table", "line_of", "read_toml"]

#: Keys of a table to what they must hold.
Schema = Mapping[str, "Field"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a file. ``line`` is 1-based; 0 where no line can be named."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True, slots=True)
class Field:
    """What a key must hold.

    kind
        ``str``, ``int``, ``float`` (integers pass), ``bool``, ``date`` , ``strings`` (a list of strings), ``table`` or
        ``tables``.
    required, choices, pattern, longest
        Presence, allowed values, a regular expression for the whole value (of a list, for each), and the length limit
        of a string.
    """

    kind: str
    required: bool = True
    choices: tuple[Any, ...] = ()
    pattern: str = ""
    longest: int = 0


_CHECKS: Final = {
    "str": lambda value: isinstance(value, str) and bool(value.strip()),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "date": lambda value: isinstance(value, datetime.date) and not isinstance(value, datetime.datetime),
    "strings": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "table": lambda value: isinstance(value, dict),
    "tables": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
}

_EXPECTED: Final = {
    "str": "a non-empty string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "date": "a date such as 2026-01-31",
    "strings": "a list of strings",
    "table": "a table",
    "tables": "an array of tables",
}


def read_toml(path: Path) -> tuple[dict[str, Any], str, list[Problem]]:
    """Parsed data, text and problems of a file; the data is empty when it cannot be parsed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text), text, []
    except OSError as error:
        return {}, "", [Problem(str(path), 0, f"cannot be read: {error.strerror or error}")]
    except UnicodeDecodeError as error:
        return {}, "", [Problem(str(path), 0, f"is not UTF-8 text: {error}")]
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        return {}, "", [Problem(str(path), int(line.group(1)) if line else 0, f"is not valid TOML: {error}")]
    except ValueError as error:  # a number of more digits than Python reads
        return {}, "", [Problem(str(path), 0, f"is not valid TOML: {error}")]
    except RecursionError:
        return {}, "", [Problem(str(path), 0, "is not valid TOML: it is nested too deep")]


def check_table(table: Mapping[str, Any], schema: Schema, where: str) -> list[tuple[str, str]]:
    """``(key, message)`` for every unknown, missing or malformed key of one table called ``where``."""
    faults = [
        (key, f"{where} has the unknown key {key!r}; {did_you_mean(key, schema)}") for key in table if key not in schema
    ]
    for key, field in schema.items():
        if key in table:
            faults += [
                (key, f"{where}: {key} = {shown(table[key])} {fault}") for fault in _value_faults(table[key], field)
            ]
        elif field.required:
            faults.append(("", f"{where} lacks {key!r} ({_EXPECTED[field.kind]})"))
    return faults


def _value_faults(value: Any, field: Field) -> list[str]:
    if not _CHECKS[field.kind](value):
        return [f"must be {_EXPECTED[field.kind]}"]
    if field.choices and value not in field.choices:
        return [f"must be one of {', '.join(map(str, field.choices))}"]
    words = value if isinstance(value, list) else [value]
    if field.pattern and not all(re.fullmatch(field.pattern, word) for word in words):
        return [f"does not have the form {field.pattern}"]
    if field.longest and len(value) > field.longest:
        return [f"has {len(value)} characters; at most {field.longest} are allowed"]
    return []


def line_of(text: str, array: str, index: int, key: str = "", table: str = "") -> int:
    """1-based line of a key in the ``index``-th ``[[array]]`` of a TOML text; of its header when the key is not found.

    ``table`` looks inside ``[array.table]``. tomllib keeps no positions, so this scans the text.
    """
    lines = text.splitlines()
    headers = [n for n, line in enumerate(lines) if re.match(rf"\s*\[\[\s*{re.escape(array)}\s*\]\]", line)]
    if index >= len(headers):
        return 0
    start, end = headers[index], (headers[index + 1] if index + 1 < len(headers) else len(lines))
    for number in range(start, end):
        if table and re.match(rf"\s*\[+\s*{re.escape(array)}\.{re.escape(table)}\s*\]", lines[number]):
            start = number
            break
    for number in range(start, end):
        if key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", lines[number]):
            return number + 1
    return start + 1
