"""Numbers as people write them in Japanese and English: 2,000,000円, 200万, 64分の1, 四つ, 28.6%, 1.2×10^5, -$3.

Texts are expected as :func:`~.plain.plain` gives them, so that digits are ASCII.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["Amount", "amounts", "in_digits", "superscripts"]

_SUPERSCRIPT: Final = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_TO_PLAIN: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")

_UNITS: Final = {"十": 1e1, "百": 1e2, "千": 1e3, "万": 1e4, "億": 1e8, "兆": 1e12}
_DIGITS: Final = {digit: n for n, digit in enumerate("〇一二三四五六七八九")} | {"零": 0}
_ENGLISH: Final = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}

_PLAIN: Final = r"(?<![\d.])\d[\d,]{0,20}+(?:\.\d{1,20}+)?"
#: 200万, 3億2000万, 2千万: digits with units of their own.
_WITH_UNITS: Final = re.compile(_PLAIN + r"\s?[十百千万億兆](?:\d[\d,]{0,20}+(?:\.\d{1,20}+)?|[百千万億兆])*+")
#: 四つ, 三百六十: not inside a word such as 三角形, 一般 or 統一.
_KANJI: Final = re.compile(
    r"(?<![一-龥々ァ-ヶー])[〇零一二三四五六七八九十百千万億兆]{1,20}"
    r"(?=分の|つ|[個度円人年匹台倍本枚回種点通組杯歳秒時%]|[^\w]|です|である|$)"
)
_PIECE: Final = re.compile(r"\d[\d,]*(?:\.\d+)?|\S")

#: A minus is no hyphen, no dash between two numbers and no long vowel.
_MINUS: Final = r"(?:(?<![A-Za-z0-9)\]}.])[-−–▲△]|(?<!\w)ー|マイナス|\bminus )\s?[¥$€£]?\s?"
_VALUE: Final = r"(?:\d{1,3}(?:,\d{2,3}){0,8},\d{3}(?![\d,])|\d++)(?:\.\d++)?|\.\d++"
_NUMBER: Final = re.compile(
    rf"(?P<minus>{_MINUS})?[¥$€£]?(?<![A-Za-z_\d])(?<!\d[.,])(?<![A-Za-z]-)(?:"
    r"\\[dt]?frac\s?\{(?P<top>[\d.]{1,15})\}\s?\{(?P<bottom>[\d.]{1,15})\}|"
    r"(?P<below>\d{1,15})分の(?P<above>\d{1,15})|"
    r"(?P<over>\d{1,15}(?:\.\d{1,15})?)\s?[/⁄]\s?(?P<under>\d{1,15}(?:\.\d{1,15})?)(?![\d/⁄])|"
    rf"(?P<value>{_VALUE})(?![_\d]|x\d|-[A-Za-z])"
    r"(?:\s?(?:[×x*·]|\\times|\\cdot)\s?10\s?(?:\^\s?\{?|(?=[+-]))(?P<power>[+-]?\d{1,4})\}?|e(?P<exponent>[+-]?\d{1,4})(?!\w)|"
    r"\s?(?P<english>thousand|million|billion|trillion))?"
    r")(?P<percent>\s?(?:%|パーセント|percent))?",
    re.IGNORECASE,
)


class Amount(NamedTuple):
    """A number in a text.

    :param value: what it is; a percentage as a fraction of one.
    :param unit: the value of its last digit; 0 for a fraction, which is exact.
    :param percent: whether it was a percentage.
    """

    value: float
    unit: float
    percent: bool
    start: int
    end: int


def superscripts(text: str) -> str:
    """The text with ``^6`` for ⁶, which NFKC would make a digit of the number before it.

    >>> superscripts("2×10⁻⁶")
    '2×10^-6'
    """
    return _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_TO_PLAIN), text)


def amounts(text: str) -> Iterator[Amount]:
    """The numbers of a text, from left to right; places count in the text as :func:`in_digits` gives it.

    >>> [each.value for each in amounts("64分の1、200万円、四つ、-1.5")]
    [0.015625, 2000000.0, 4.0, -1.5]
    """
    for found in _NUMBER.finditer(in_digits(text)):
        size, unit = _size(found)
        if math.isfinite(size):
            share = 0.01 if found["percent"] else 1.0
            sign = -1.0 if found["minus"] else 1.0
            yield Amount(sign * size * share, unit * share, bool(found["percent"]), *found.span())


def in_digits(text: str) -> str:
    """The text with digits in place of Japanese numerals and units."""
    for pattern in (_WITH_UNITS, _KANJI):
        text = pattern.sub(lambda found: f"{_japanese(found[0]):.15g}", text)
    return text


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


def _size(found: re.Match[str]) -> tuple[float, float]:
    """The value without sign, and that of its last digit."""
    for above, below in (("top", "bottom"), ("above", "below"), ("over", "under")):
        if found[above]:
            try:
                return float(found[above]) / float(found[below]), 0.0
            except (ValueError, ZeroDivisionError):
                return math.nan, 0.0
    digits = found["value"].replace(",", "")
    _, _, decimals = digits.partition(".")
    power = int(found["power"] or found["exponent"] or 0)
    scale = _ENGLISH.get((found["english"] or "").lower(), 1.0)
    # Python reads 1e400 as infinite, which is no answer.
    return float(f"{digits}e{power}") * scale, float(f"1e{power - len(decimals)}") * scale
