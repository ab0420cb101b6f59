"""How MMMU's own evaluation and lmms-eval's English task read replies: what English scores are published with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from paperhooks_jmmmu.answers.choices import LetterChoice, Rule, bracket, dot, first_rule, space
from paperhooks_jmmmu.answers.opens import Answers, find_numbers, gather, tails

__all__ = ["extract_numbers_mmmu", "parse_choice_lmms_mmmu", "parse_choice_mmmu", "parse_open_mmmu"]

_MARKS: Final = ",.!?;:'"
_CUES: Final = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS: Final = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)(?![eE][+-]?\d)(?![,\d])"),
)


def spaces(text: str, letters: str) -> list[str]:
    """Letters between two spaces."""
    return [x for x in letters if f" {x} " in text]


_OFFICIAL: Final[tuple[Rule, ...]] = (bracket, spaces)
_LMMS: Final[tuple[Rule, ...]] = (bracket, space, dot)


def parse_choice_mmmu(response: str, options: Sequence[str]) -> LetterChoice:
    """The letter as MMMU's own evaluation reads it, by ``bracket``, ``spaces``, ``option_text`` or ``fallback``.

    >>> parse_choice_mmmu("The answer is B.", ["red", "blue"])
    LetterChoice(letter='B', rule='spaces')
    """
    return first_rule(response, options, _MARKS, _OFFICIAL)


def parse_choice_lmms_mmmu(response: str, options: Sequence[str]) -> LetterChoice:
    """The letter as lmms-eval's English task reads it, by ``bracket``, ``space``, ``dot``, ``option_text`` or
    ``fallback``."""
    return first_rule(response, options, _MARKS, _LMMS)


def parse_open_mmmu(response: str) -> Answers:
    """What a reply to an open question means in MMMU's own evaluation; :func:`~.opens.judge_open` judges it.

    Lower-cased before it is split at full stops in front of capitals, it is split at line breaks alone.

    >>> parse_open_mmmu("So the answer is 1.06.")
    [1.06]
    """
    response = response.strip().strip(".").lower()
    keys = tails(response.split("\n"), _CUES, ("=",), _MARKS) or [response]
    return gather([*keys, *(number for key in keys for number in extract_numbers_mmmu(key))])


def extract_numbers_mmmu(text: str) -> list[str]:
    """Numbers as they are written: with commas, with an exponent, and plain ones with no letter or kana behind them."""
    return find_numbers(text, _NUMBERS)
