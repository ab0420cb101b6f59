"""How the published JMMMU scores read and judge the reply to an open question.

Exact to the digit, with what it gets wrong: ``答えは1.06です。`` is cut at its full stop and read as 1, and an empty
gold answer is in every reply. ``robust_opens`` reads what a human reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from paperhooks_jmmmu.answers.choices import MARKS

__all__ = [
    "Answers",
    "extract_numbers",
    "find_numbers",
    "gather",
    "is_number",
    "judge_open",
    "key_parts",
    "normalize",
    "parse_open",
    "tails",
]

#: What a reply may mean: strings in lower case, and numbers rounded to two decimals. Each once, in the order found.
Answers = list[str | float]

_BREAK: Final = re.compile(r"[。！？.]\s*|\n")
#: 解答は、 and a plain 回答は are no cues: the published list lacks a comma between the two.
_CUES: Final = (
    "よって",
    "よって、",
    "答えは",
    "答えは、",
    "最終的に",
    "最終的に、",
    "解答は",
    "解答は、回答は",
    "回答は、",
)
_EQUATION: Final = ("＝", "=")

# Runs of digits are entered at their first digit alone and taken whole, which changes no result and keeps 20,000 digits
# in a row from being tried 20,000 times.
_COMMAS: Final = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC: Final = re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d+")
_SIMPLE: Final = re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++)(?![eE][+-]?\d)(?![,\d])")
_COUNTED: Final = re.compile(r"(?<!\d)\d++(?=[つ個度円人年匹台%])")
_NUMBERS: Final = (_COMMAS, _SCIENTIFIC, _SIMPLE, _COUNTED)


def parse_open(response: str) -> Answers:
    """What a reply means: its key parts and the numbers in them, normalised.

    >>> parse_open("よって、答えは4個。")
    ['4個', 4.0]
    """
    keys = key_parts(response)
    return gather([*keys, *(number for key in keys for number in extract_numbers(key))])


def judge_open(parsed: Iterable[str | float], gold: str | Sequence[str]) -> bool:
    """Whether a string of the reply contains a string of the gold answer, or a number of it equals one of them.

    :param gold: an answer, or a list of which any will do.

    >>> judge_open([1.06], "1.06"), judge_open(["the cat"], "C")
    (True, True)
    """
    right = [each for answer in ([gold] if isinstance(gold, str) else gold) for each in normalize(answer)]
    strings = [each for each in right if isinstance(each, str)]
    numbers = [each for each in right if not isinstance(each, str)]
    return any(
        any(each in answer for each in strings) if isinstance(answer, str) else answer in numbers for answer in parsed
    )


def key_parts(response: str) -> list[str]:
    """The text behind the cue words of each sentence, the shortest of each; the whole reply if there is none."""
    response = response.strip().strip("。")
    return tails(_BREAK.split(response), _CUES, _EQUATION, MARKS) or [response]


def tails(parts: Sequence[str], cues: Sequence[str], equation: Sequence[str], marks: str) -> list[str]:
    """Of each part the shortest text behind the last occurrence of a cue, unless it is empty or one of ``marks``.

    :param equation: cues of the last part only, after the others.
    """
    found = []
    for number, part in enumerate(parts, 1):
        shortest = ""
        for cue in (*cues, *equation) if number == len(parts) else cues:
            _, there, tail = part.rpartition(cue)
            tail = tail.strip()
            # An empty text is replaced by whatever comes later.
            if there and (not shortest or len(tail) < len(shortest)):
                shortest = tail
        if shortest and not (len(shortest) == 1 and shortest in marks):
            found.append(shortest)
    return found


def extract_numbers(text: str) -> list[str]:
    """Numbers as they are written: with commas, with an exponent, plain, and counted (4個); one may come twice.

    >>> extract_numbers("2,000,000円と4個")
    ['2,000', '000', '4', '000', '4']
    """
    return find_numbers(text, _NUMBERS)


def find_numbers(text: str, patterns: Iterable[re.Pattern[str]]) -> list[str]:
    """All that ``patterns`` find, in their order."""
    return [number for pattern in patterns for number in pattern.findall(text)]


def is_number(text: str) -> bool:
    """Whether Python reads a text as a number once its commas are gone: ``nan`` and ``1_000`` too."""
    return _number(text) is not None


def normalize(text: str) -> Answers:
    """A number rounded to two decimals, or the text in lower case; of one character with a space before and behind.

    >>> normalize(" 2,000.456 "), normalize("MgS"), normalize("C")
    ([2000.46], ['mgs'], [' c', 'c '])
    """
    text = text.strip()
    number = _number(text)
    if number is not None:
        return [round(number, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def gather(texts: Iterable[str]) -> Answers:
    """All texts normalised, each answer once."""
    return list(dict.fromkeys(each for text in texts for each in normalize(text)))


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
