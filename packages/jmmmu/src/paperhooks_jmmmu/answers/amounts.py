"""Numbers as people write them in Japanese and English: 2,000,000円, 200万, 64分の1, 四つ, 28.6%, 1.2×10^5, -$3, 5kΩ.

Texts are expected as :func:`~.plain.plain` gives them, so that digits are ASCII.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from paperhooks_jmmmu.answers.numerals import in_digits

__all__ = ["Amount", "amounts", "superscripts"]

_SUPERSCRIPT: Final = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_TO_PLAIN: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")

_ENGLISH: Final = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
#: Prefixes of units, and the units that have them.
_PREFIXES: Final = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "c": 1e-2, "m": 1e-3, "μ": 1e-6, "n": 1e-9, "p": 1e-12}
_SCALED: Final = "Ω|ohm|Hz|Wh|W|V|A|N|J|Pa|F|H|eV|mol|cal|bit|B|g|m|L|l|s"

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
    r"\s?(?P<english>hundred|thousand|million|billion|trillion))?"
    r")(?P<percent>\s?(?:%|パーセント|percent))?"
    rf"(?-i:(?=\s?(?P<prefix>[{''.join(_PREFIXES)}])(?:{_SCALED})(?![A-Za-z]))|)",
    re.IGNORECASE,
)


class Amount(NamedTuple):
    """A number in a text.

    :param value: what it is; a percentage as a fraction of one.
    :param unit: the value of its last digit; 0 for a fraction, which is exact.
    :param percent: whether it was a percentage.
    :param scale: of the prefix of its unit: 1000 for 5kΩ, whose value is 5.
    """

    value: float
    unit: float
    percent: bool
    start: int
    end: int
    scale: float = 1.0


def superscripts(text: str) -> str:
    """The text with ``^6`` for ⁶, which NFKC would make a digit of the number before it.

    >>> superscripts("2×10⁻⁶")
    '2×10^-6'
    """
    return _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_TO_PLAIN), text)


def amounts(text: str) -> Iterator[Amount]:
    """The numbers of a text, from left to right; places count in the text as :func:`~.numerals.in_digits` gives it.

    >>> [each.value for each in amounts("64分の1、200万円、四つ、-1.5")]
    [0.015625, 2000000.0, 4.0, -1.5]
    """
    for found in _NUMBER.finditer(in_digits(text)):
        size, unit = _size(found)
        if math.isfinite(size):
            share = 0.01 if found["percent"] else 1.0
            scale = _PREFIXES.get(found["prefix"] or "", 1.0)
            sign = -1.0 if found["minus"] else 1.0
            yield Amount(sign * size * share, unit * share, bool(found["percent"]), *found.span(), scale)


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
