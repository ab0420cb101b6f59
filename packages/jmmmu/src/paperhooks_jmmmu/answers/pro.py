"""How JMMMU-Pro's published scores read a reply: no random letter; what is not read is wrong.

A kana is a word character to it, so that ``答えはBです。`` is not read, and ``B。`` passes for a line of the options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Final

from paperhooks_jmmmu.answers.choices import LetterChoice, letters_of

__all__ = ["parse_choice_pro"]

_TO_ASCII: Final = str.maketrans({chr(0xFF21 + n): letter for n, letter in enumerate(ascii_uppercase)})
_OPTION_LINE: Final = re.compile(r"(?:[-*・>•]\s*+)?[A-ZＡ-Ｚ][.)、。：:]", re.IGNORECASE)
#: A cue word and the letter behind it. Repetitions give nothing back: what follows cannot be in them.
_STATED: Final = re.compile(
    r"(?:answer|final|correct|solution|ans|正解は?|答えは?|解答は?)\s*+(?:[:：]\s*+)?+[【】\[(*_-]*+([A-Z])_*+\b",
    re.IGNORECASE,
)
#: A letter at the end of a word. Case is ignored as by the published code, which takes "ſ" and "ı" for letters too.
_LAST_OF_WORD: Final = re.compile(r"[A-Z]\b", re.IGNORECASE)


def parse_choice_pro(response: str, options: Sequence[str]) -> LetterChoice:
    """The letter by ``first_line`` or ``stated`` (behind a cue word there, or anywhere) or ``last_letter``.

    The last letter of a word counts, on lines that do not look like an option, if no cue word has one. ``outside``: the
    letter is of no option; ``none``: there is no letter.

    >>> parse_choice_pro("理由…\\n答え: B", ["能面", "浮世絵"])
    LetterChoice(letter='B', rule='stated')
    """
    letter, rule = _read(response.translate(_TO_ASCII))
    return LetterChoice(None, "outside") if letter and letter not in letters_of(options) else LetterChoice(letter, rule)


def _read(text: str) -> LetterChoice:
    lines = [line for each in text.splitlines() if (line := each.strip())]
    for where, rule in ((lines[0] if lines else "", "first_line"), (text, "stated")):
        if found := _STATED.search(where):
            return LetterChoice(found[1].upper(), rule)
    for line in reversed(lines):
        if not _OPTION_LINE.match(line) and (words := _LAST_OF_WORD.findall(line)):
            return LetterChoice(words[-1].upper(), "last_letter")
    return LetterChoice(None, "none")
