"""Options and answers as rows hold them: lists as texts, read as literals and never run."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Final

from paperhooks.errors import DataError

__all__ = ["LETTERS", "parse_answer", "parse_options"]

#: The letters that options can have.
LETTERS: Final = ascii_uppercase


def parse_options(value: Any) -> list[str]:
    """The options in a row's entry: a list or tuple, or one as Python or JSON writes it; each as text.

    :raises DataError: anything else, or more options than letters.

    >>> parse_options("['a', 2.5, None]")
    ['a', '2.5', 'None']
    """
    found = _literal(value) if isinstance(value, str) else value
    if not _is_list(found):
        raise DataError(f"the options are {value!r:.200}; expected a list, as such or as Python or JSON writes it")
    if len(found) > len(LETTERS):
        raise DataError(f"there are {len(found)} options; expected {len(LETTERS)} at most, one a letter")
    return [str(option) for option in found]


def parse_answer(value: Any, *, letters: bool) -> str | list[str]:
    """A right answer, or several of which any is right.

    :param letters: whether it is a letter: a list that stands there as a text is then read as one, too. Of an open
        question such a text is kept as it is, since published code takes it for the answer itself.
    :raises DataError: none.
    """
    listed = _literal(value) if letters and isinstance(value, str) and value.lstrip()[:1] in ("[", "(") else value
    several = _is_list(listed)
    answers = [_text(one) for one in (listed if several else [value])]
    if not answers or not all(one.strip() for one in answers):
        raise DataError(f"the answer is {value!r:.200}; expected {'a letter' if letters else 'a text or number'}")
    return answers if several else answers[0]


def _text(value: Any) -> str:
    """A text or finite number as text; ``""`` for anything else: NaN is how tables say that there is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if isinstance(value, str) or number else ""


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _literal(text: str) -> Any:
    """What a text says as a literal of Python, or as JSON; None for what is neither."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None
