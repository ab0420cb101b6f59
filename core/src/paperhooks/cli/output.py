"""What commands print: text of others cannot steer the terminal, and errors speak of options as they are typed.

An error is one line, or one with a list below it: what paperhooks puts into lines of their own, with two blanks in
front, is printed so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import typer
from rich.markup import escape

from paperhooks.errors import PaperhooksError, counted
from paperhooks.io.harmless import error_text, printable, redacted

__all__ = ["error_line", "say", "say_json", "shown", "typed", "usage_line"]

_LONGEST: Final = 4000
#: Lines of an error that are printed; a list of faults has some dozens.
_MOST: Final = 400
#: Where a list in a text begins its lines.
_ITEM: Final = "\n  "


def say(text: object, *, err: bool = False) -> None:
    """Print lines of text; what is neither a character nor a line break is written as an escape."""
    typer.echo(printable(text, lines=True), err=err)


def say_json(value: Any) -> None:
    """Print indented JSON."""
    typer.echo(json.dumps(value, indent=2))


def shown(text: object) -> str:
    """Text of others for the markup of rich."""
    return escape(printable(text, lines=True))


def error_line(error: BaseException, options: Mapping[str, str]) -> str:
    """An error on one line, with the list in it below: without keys, controls, tracebacks, options as they are typed.

    Line breaks of others become blanks; of very many lines the last ones are counted only.
    """
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()) if "\n" not in str(note).strip())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, PaperhooksError):
        return _lines(str(error), notes, options)
    elif isinstance(error, ValueError):
        text = error_text(error).removeprefix(f"{type(error).__name__}: ")
    else:
        text = error_text(error)
    return _line(text + notes, options)


def usage_line(error: Any, options: Mapping[str, str]) -> str:
    """An error of usage, as typer raises it, on one line that ends with where to look."""
    context = getattr(error, "ctx", None)
    see = f" (see: {context.command_path} --help)" if context is not None else ""
    said = error.format_message().replace(": Value error, ", ": ", 1)  # pydantic's word for a value that none may be
    return _line(said, options) + see


def _lines(text: str, notes: str, options: Mapping[str, str]) -> str:
    """The lines of a list below the first one, which ends with the notes; of very many the last are only counted."""
    first, *rest = redacted(text).split(_ITEM)
    lines = [_line(first + notes, options), *(f"  {_line(line, options)}" for line in rest if line.strip())]
    more = len(lines) - _MOST
    return "\n".join([*lines[:_MOST], *([f"  ... and {counted(more, 'more line')}"] if more > 0 else [])])


def _line(text: str, options: Mapping[str, str]) -> str:
    text = typed(printable(redacted(" ".join(text.split()))), options)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def typed(text: str, options: Mapping[str, str]) -> str:
    """``text`` with the names of Python's parameters as the command line has them.

    >>> options = {"max_length": "--max-length", "truncate": "--truncate"}
    >>> typed("max_length is 0; give max_length=512 or truncate=True", options)
    '--max-length is 0; give --max-length 512 or --truncate'
    """
    for name, option in options.items():
        free = rf"(?<![\w./'\"-]){re.escape(name)}"
        text = re.sub(rf"{free}=(?:True\b|(?=[\s,;:.)]|$))", option, text)
        text = re.sub(rf"{free}=", f"{option} ", text)
        text = re.sub(rf"{free}(?= is )", option, text)
        if "_" in name:
            text = re.sub(rf"{free}(?![\w./'\"-])", option, text)
    return text
