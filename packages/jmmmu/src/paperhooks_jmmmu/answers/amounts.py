"""Numbers as people write them in Japanese and English: 2,000,000円, 200万, 四つ, 1/64, 28.6%, 1.2×10^5, 2√3, -$3, 5kΩ.

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
_MINUS: Final = r"(?:(?<![A-Za-z0-9)\]}.])[-−–▲△]|(?<!\w)ー|マイナス|零下|氷点下|\bminus )\s?[¥$€£]?\s?"
_VALUE: Final = r"(?:\d{1,3}(?:,\d{2,3}){0,8},\d{3}(?![\d,])|\d++)(?:\.\d++)?+|\.\d++"
#: Not before a number: a letter, a number, a hyphen; what makes it a power (cm^2), or a part of a root or a fraction.
_NOT_BEFORE: Final = (
    r"(?<![A-Za-z_\d√^])(?<!\d[.,])(?<![A-Za-z]-)(?<!\^[-+{(−])(?<!\^[{(][-−])(?<!sqrt[{(])(?<!frac\{)(?<!\}\{)"
)
#: 2√3, π, 2π/3; not πr.
_SURD: Final = (
    rf"(?P<times>{_VALUE})?\s?(?:(?:√\s?|\\sqrt\s?)[{{(]?(?P<root>\d{{1,9}}(?:\.\d{{1,9}})?)[)}}]?|"
    r"(?P<pi>π|\\pi)(?![A-Za-z一-龥ァ-ヶ]))(?:\s?/\s?(?P<by>\d{1,9}))?"
)
#: 1/2, 2分の1, 2 1/2, 2と2分の1.
_FRACTION: Final = (
    r"(?:(?P<whole>\d{1,6})(?:\s|と\s?|\sand\s))?(?:(?P<below>\d{1,15})分の(?P<above>\d{1,15})|"
    r"(?P<over>\d{1,15}(?:\.\d{1,15})?)\s?[/⁄]\s?(?P<under>\d{1,15}(?:\.\d{1,15})?)(?![\d/⁄]))"
)
#: Behind a value: what it is multiplied by, or raised to.
_POWER: Final = (
    r"\s?(?:[×x*·]|\\times|\\cdot)\s?10\s?(?:\^\s?\{?|(?=[+-]))(?P<power>[+-]?\d{1,4})\}?|"
    r"e(?P<exponent>[+-]?\d{1,4})(?!\w)|(?:\s?\^\s?[{(]?|\sto the power (?:of )?)(?P<raised>[+-]?\d{1,3})(?!\d)[)}]?|"
    r"の(?P<nth>[+-]?\d{1,3})乗|"
    r"\s?(?P<english>hundred|thousand|million|billion|trillion)"
)
_NUMBER: Final = re.compile(
    rf"(?P<minus>{_MINUS})?[¥$€£]?{_NOT_BEFORE}(?:{_SURD}|"
    r"\\[dt]?frac\s?\{(?P<top>[\d.]{1,15})\}\s?\{(?P<bottom>[\d.]{1,15})\}|"
    rf"{_FRACTION}|(?P<value>{_VALUE})(?![_\d]|\.\d|x\d|-[A-Za-z]|\s?[√π]|\^[{{(]?[A-Za-z])(?:{_POWER})?)"
    r"(?P<percent>\s?(?:%|パーセント|percent|(?P<tenth>割)(?![合引りる当増減])(?:\s?(?P<hundredth>\d)\s?分(?!の))?))?"
    rf"(?-i:(?=\s?(?P<prefix>[{''.join(_PREFIXES)}])(?:{_SCALED})(?![A-Za-z]))|)",
    re.IGNORECASE,
)


class Amount(NamedTuple):
    """A number in a text.

    :param value: what it is; a percentage as a fraction of one.
    :param unit: the value of its last digit; 0 for a fraction, which is exact.
    :param percent: whether it was a percentage, or in tenths (2割5分).
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
            share = (0.1 if found["tenth"] else 0.01) if found["percent"] else 1.0
            size += 0.1 * int(found["hundredth"] or 0)
            scale = _PREFIXES.get(found["prefix"] or "", 1.0)
            sign = -1.0 if found["minus"] else 1.0
            yield Amount(sign * size * share, unit * share, bool(found["percent"]), *found.span(), scale)


def _size(found: re.Match[str]) -> tuple[float, float]:
    """The value without sign, and that of its last digit."""
    try:
        if found["root"] or found["pi"]:
            return _surd(found), 0.0
        for above, below in (("top", "bottom"), ("above", "below"), ("over", "under")):
            if found[above]:
                part = float(found[above]) / float(found[below])
                # "2 3/2" is no number.
                return (float(found["whole"]) + part if part < 1 else math.nan) if found["whole"] else part, 0.0
        if raised := found["raised"] or found["nth"]:
            return float(found["value"].replace(",", "")) ** int(raised), 0.0
    except (ValueError, ArithmeticError):
        return math.nan, 0.0
    digits = found["value"].replace(",", "")
    _, _, decimals = digits.partition(".")
    power = int(found["power"] or found["exponent"] or 0)
    scale = _ENGLISH.get((found["english"] or "").lower(), 1.0)
    # Python reads 1e400 as infinite, which is no answer.
    return float(f"{digits}e{power}") * scale, float(f"1e{power - len(decimals)}") * scale


def _surd(found: re.Match[str]) -> float:
    times = float((found["times"] or "1").replace(",", ""))
    return times * (math.sqrt(float(found["root"])) if found["root"] else math.pi) / float(found["by"] or 1)
