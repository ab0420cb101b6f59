"""Numbers in words as digits: 200万, 四つ, ゼロ, 半分, twelve, twenty-five, two hundred, one half.

Texts are expected as :func:`~.plain.plain` gives them, so that digits are ASCII.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["NUMBER", "in_digits"]

#: Digits that do not go on a number, with thousands and decimals.
NUMBER: Final = r"(?<![\d.])\d[\d,]{0,20}+(?:\.\d{1,20}+)?"

_UNITS: Final = {"十": 1e1, "百": 1e2, "千": 1e3, "万": 1e4, "億": 1e8, "兆": 1e12}
_DIGITS: Final = {digit: n for n, digit in enumerate("〇一二三四五六七八九")} | {"零": 0}
#: 200万, 3億2000万, 2千万: digits with units of their own.
_WITH_UNITS: Final = re.compile(NUMBER + r"\s?[十百千万億兆](?:\d[\d,]{0,20}+(?:\.\d{1,20}+)?|[百千万億兆])*+")
#: 四つ, 三百六十: not inside a word such as 三角形, 一般 or 統一.
_KANJI: Final = re.compile(
    r"(?<![一-龥々ァ-ヶー])[〇零一二三四五六七八九十百千万億兆]{1,20}"
    r"(?=分の|つ|[割個度円人年匹台倍本枚回種点通組杯歳秒時%]|[^\w]|です|である|$)"
)
_PIECE: Final = re.compile(r"\d[\d,]*(?:\.\d+)?|\S")
#: Words that are numbers, where they go on no other word: サブゼロ, 半分以下.
_WORDS: Final = {"ゼロ": "0", "半分": "0.5"}
_WORD: Final = re.compile(r"(?<![ァ-ヶー])ゼロ(?![ァ-ヶー])|半分(?!以|未|程|ほど|くらい)")

_ONES: Final = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS: Final = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_PARTS: Final = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "tenth": 10}
_VALUES: Final = (
    {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)} | {"a": 1, "": 0}
)
#: A word that is no part of a longer one: not two-dimensional.
_OWN: Final = r"(?<![a-z-])(?:{})(?![a-z]|-[a-z])"
#: "twelve", "twenty-five". "One" is a number where it is all there is, or counts a unit: not in "no one".
_ENGLISH: Final = re.compile(
    _OWN.format(
        rf"(?P<tens>{'|'.join(_TENS)})(?:[- ](?P<ones>{'|'.join(_ONES[1:10])}))?|"
        rf"(?P<word>{'|'.join(word for word in reversed(_ONES) if word != 'one')}|^one(?=\W*$)|"
        r"one(?= (?:hundred|thousand|million|billion)\b))"
    ),
    re.IGNORECASE,
)
#: "one half", "two-thirds", "a quarter"; "half" where it is all there is.
_ENGLISH_PART: Final = re.compile(
    _OWN.format(rf"(?P<count>a|{'|'.join(_ONES[1:10])})[- ](?P<part>{'|'.join(_PARTS)})s?|^half(?=\W*$)"), re.IGNORECASE
)
#: Every English numeral has one of these in it.
_MAY_BE_ENGLISH: Final = re.compile(
    r"one|two|th|four|five|fif|six|seven|eigh|nine|t[ew]|zero|half|quarter", re.IGNORECASE
)


def in_digits(text: str) -> str:
    """The text with digits in place of Japanese and English numerals and units.

    >>> in_digits("四つ、約200万円"), in_digits("twenty-five"), in_digits("two thirds"), in_digits("no one")
    ('4つ、約2000000円', '25', '2/3', 'no one')
    """
    for pattern in (_WITH_UNITS, _KANJI):
        text = pattern.sub(lambda found: f"{_japanese(found[0]):.15g}", text)
    text = _WORD.sub(lambda found: _WORDS[found[0]], text)
    if not _MAY_BE_ENGLISH.search(text):
        return text
    return _ENGLISH.sub(_english, _ENGLISH_PART.sub(_english_part, text))


def _japanese(text: str) -> float:
    total = section = current = 0.0
    fresh = True
    for piece in _PIECE.findall(text):
        unit = _UNITS.get(piece)
        if unit is None:
            current = current * 10 + _DIGITS[piece] if piece in _DIGITS else float(piece.replace(",", ""))
            fresh = False
        elif unit < 1e4:
            section += (1.0 if fresh else current) * unit
            current, fresh = 0.0, True
        else:
            total += (section + current or 1.0) * unit
            section, current, fresh = 0.0, 0.0, True
    return total + section + current


def _english(found: re.Match[str]) -> str:
    words = (found["tens"], found["ones"], found["word"])
    return str(sum(_VALUES[(word or "").lower()] for word in words))


def _english_part(found: re.Match[str]) -> str:
    if not found["count"]:
        return "1/2"
    return f"{_VALUES[found['count'].lower()]}/{_PARTS[found['part'].lower()]}"
