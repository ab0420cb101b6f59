"""How the published JMMMU scores read a multiple-choice reply (specification of lmms-eval's task, 2024-09 to 0.7.3).

Exact to the letter, with what it gets wrong: ``Bです。`` is not read, ``USA is`` is A, ``B is right, not C.`` is C.
``robust_choices`` reads what a human reads. The rules stand here for the parsers of MMMU as well, which use other ones
of the same kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Final, NamedTuple

from paperhooks.errors import DataError

__all__ = [
    "FALLBACK",
    "MARKS",
    "LetterChoice",
    "Rule",
    "between_japanese",
    "bracket",
    "dot",
    "first_rule",
    "letters_of",
    "parse_choice",
    "space",
]

#: Stripped from both ends of a reply, one after another in this order, each once.
MARKS: Final = ",.!?;:'、。！？；："
#: The rule of a reply that no other rule reads.
FALLBACK: Final = "fallback"
#: Hiragana, katakana and the common kanji; neither 々 nor half-width kana nor any punctuation.
_JAPANESE: Final = "\u3040-\u30ff\u4e00-\u9fff"
_BETWEEN: Final = re.compile(f"(?<=[{_JAPANESE}])[A-Z](?=[{_JAPANESE}])")
_SPACED: Final = {x: f"{x} " for x in ascii_uppercase}
#: An option's own words count only in a reply of more tokens than this.
_FEW_TOKENS: Final = 5


class LetterChoice(NamedTuple):
    """A letter, or None if the reply has none, and the name of the rule that gave it."""

    letter: str | None
    rule: str


#: From a text and the letters in question to those of them that it names.
Rule = Callable[[str, str], list[str]]


def letters_of(options: Sequence[str]) -> str:
    """``"ABCD"`` for four options.

    :raises DataError: more options than letters.
    """
    if len(options) > len(ascii_uppercase):
        raise DataError(f"There are {len(options)} options, and letters for {len(ascii_uppercase)}: leave some out.")
    return ascii_uppercase[: len(options)]


def bracket(text: str, letters: str) -> list[str]:
    """Letters in ASCII brackets."""
    return [x for x in letters if f"({x})" in text] if "(" in text else []


def space(text: str, letters: str) -> list[str]:
    """Letters with a space behind them, at the end of a word too."""
    return [x for x in letters if _SPACED[x] in text]


def between_japanese(text: str, letters: str) -> list[str]:
    """Letters between two Japanese characters."""
    found = set(_BETWEEN.findall(text))
    return [x for x in letters if x in found] if found else []


def dot(text: str, letters: str) -> list[str]:
    """Letters with an ASCII full stop behind them."""
    return [x for x in letters if f"{x}." in text] if "." in text else []


_RULES: Final[tuple[Rule, ...]] = (bracket, space, between_japanese, dot)


def parse_choice(response: str, options: Sequence[str]) -> LetterChoice:
    """The letter of a reply as JMMMU's published scores have it; None where these take a random letter.

    The first rule that finds a letter decides: ``bracket``, ``space``, ``between_japanese``, ``dot``, and in more than
    five tokens ``option_text``. Of several letters the right-most counts (``+last`` behind the rule's name).

    >>> parse_choice("答えはBです。", ["能面", "浮世絵"])
    LetterChoice(letter='B', rule='between_japanese')
    >>> parse_choice("Bです。", ["能面", "浮世絵"])
    LetterChoice(letter=None, rule='fallback')
    """
    letters = letters_of(options)
    if len(response) == 1 and response in letters:
        return LetterChoice(response, space.__name__)  # what the rules come to, for the most common reply
    return first_rule(response, options, MARKS, _RULES)


def first_rule(response: str, options: Sequence[str], marks: str, rules: Sequence[Rule]) -> LetterChoice:
    """What the first of ``rules`` that finds anything finds, after ``marks`` were stripped; then the options' words.

    Of several letters the one whose needle stands furthest right: ``(X)`` for ``bracket``, ``X`` between two spaces for
    other rules; a needle that is not there counts as before the beginning, and the earliest letter wins a tie.
    """
    if response[:1] in marks or response[-1:] in marks:
        for mark in marks:
            response = response.strip(mark)
    text = f" {response} "
    letters = letters_of(options)
    for rule in rules:
        if found := rule(text, letters):
            left, right = "()" if rule is bracket else "  "
            return _last(found, rule.__name__, text, {x: f"{left}{x}{right}" for x in found})
    if len(response.split(maxsplit=_FEW_TOKENS)) > _FEW_TOKENS:
        text, words = text.lower(), {x: option.lower() for x, option in zip(letters, options, strict=True)}
        if found := [x for x in letters if words[x] in text]:
            return _last(found, "option_text", text, words)
    return LetterChoice(None, FALLBACK)


def _last(found: list[str], rule: str, text: str, needles: Mapping[str, str]) -> LetterChoice:
    if len(found) == 1:
        return LetterChoice(found[0], rule)
    return LetterChoice(max(found, key=lambda x: text.rfind(needles[x])), f"{rule}+last")
