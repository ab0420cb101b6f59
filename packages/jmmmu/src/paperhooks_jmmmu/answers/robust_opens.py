"""Replies to open questions as a human judges them, in Japanese and English, without a model as judge.

A reply counts by what it gives as its answer: the box or ``<answer>``, else the text behind the last words that
announce one (答えは, "the answer is"), else behind the last よって, "so" or "=", else the whole of a short reply, or
the last line of a long one.

A number x is right for a gold number g if ``abs(x - g) <= min(0.01 * abs(g), u / 2)``, where u is the value of the
last digit of g: within one per cent, and equal to g once it is rounded to as many digits. So 1.064 is 1.06 and 2/7 is
0.286, but 1 is not 0.9965, 4.3 is not 4, and nothing but 0 is 0. A fraction as gold has no last digit: one per cent
alone counts. A percentage, in the reply or as gold, is its figure and its share of one; 5kΩ is 5 and 5000. Numbers that
stand in a row ("3, 4, 5", "4~5") or make one quantity (8時30分) must all be right; 第3 and 図3 name things.
What a reply denies (12ではなく, "not 12 but", 12以外) is no answer of its.

A text is right if it is the gold answer after NFKC, case, spaces and ``$`` aside, or has it in a few words as words of
their own; a gold letter is right where the reply answers that letter.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Final

from paperhooks_jmmmu.answers.amounts import Amount, amounts, superscripts
from paperhooks_jmmmu.answers.numerals import in_digits
from paperhooks_jmmmu.answers.plain import boxed, plain, without_markup, without_thought
from paperhooks_jmmmu.answers.robust_choices import parse_choice_robust
from paperhooks_jmmmu.answers.turns import CONCEDED, withdrawn

__all__ = ["golds_of", "judge_open_robust", "parse_open_robust"]

_CONNECTOR: Final = (
    r"(?:\s*(?:は|が|として|以下の(?:通り|とおり)(?:です|である)?|(?:is|are|was|were)(?![a-z])|would be|will be|"
    r"[:=、。]))*\s*"
)
#: Words that announce an answer, and those that conclude with one.
_ANNOUNCED: Final = re.compile(
    rf"(?:答え|解答|回答|正解|正答|結論|(?<![一-龥])答(?=[:は])|いや、|訂正|正しくは|\b(?:answers?|ans|result)\b){_CONNECTOR}",
    re.IGNORECASE,
)
_CONCLUDED: Final = re.compile(
    r"(?:よって|したがって|従って|ゆえに|故に|最終的に|以上より|つまり|すなわち|その結果|[=≈≒]|"
    r"\b(?:so|thus|therefore|hence|is|equals)\b)[\s、,:]*",
    re.IGNORECASE,
)
_EQUALS: Final = re.compile(r"[=≈≒]|\b(?:is|equals)\b", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(r"[。\n!?]|\.(?=\s|$)")
_COPULA: Final = re.compile(
    r"(?:です|である|でした|であり|だ|とな(?:る|ります)|にな(?:る|ります)|でしょう|と(?:考え|思|言え|いえ)[^、。\d]{0,12})?"
    r"[ねよ、,。.]{0,3}$"
)
_LEFT: Final = " \t\n\"'“‘「『【<:、。,…~*"
_RIGHT: Final = " \t\n\"'”’」』】>:、。,.;!?…~*"
_BRACKETS: Final = ("()", "[]", "{}")
#: So many cues are looked at, from the last on.
_MOST: Final = 50
#: No answer is longer.
_LONG: Final = 500
#: A reply without any cue counts whole if it is as short as this.
_SHORT: Final = 80

_ASIDE: Final = re.compile(r"\(([^()]{1,60})\)|[「『\"“]([^「」『』\"“”]{1,60})[」』\"”]")
_IGNORED: Final = re.compile(r"[\s$「」『』\"'“”‘’*`\\{}]+")
_DASHES: Final = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))
#: Before a number that stands in place of another.
_RATHER: Final = (
    r"(?:より)?(?:(?:正確|厳密)に(?:は|言えば|言うと)?|(?:more|to be) (?:precise|exact)(?:ly)?|precisely|"
    r"exactly|or rather)[、,:]?"
)
#: What is denied, with the words that deny it: up to what is said in its place, or as far as the clause goes.
_DENIED: Final = re.compile(
    r"[^、。,;\n()]{1,60}?(?:で\s?は\s?なくて?|じゃなくて?|でなくて?)[、,]?|"
    rf"[^、。;\n()]{{1,60}}?{CONCEDED}|[^。;\n()]{{1,60}}?[、,(]\s?{_RATHER}|"
    r"[^、。,;\n()]{1,60}? (?:(?:is|was|can|could)n't|(?:is|was|can) not|cannot)"
    r"(?= (?:be )?(?:right|correct|the|it\b|true))|"
    r"[^、。,;\n()]{1,60}?(?:で\s?は\s?(?:な[いかけ](?!か|でしょう|だろう)|あり(?:ま|え)|ござい)|じゃな|でもな|以外|"
    r"とは?(?:異な|違[いう])|とは(?:言え|限)|は(?:誤り|不正解|間違い(?!な|あり|で(?:は|も)?\s?(?:な|あり))))[^、。,;\n]{0,60}|"
    r"\b(?:(?:not|cannot|\w{2,6}n't)(?! (?:only|just|less|more|fewer|exceed\w*)\b)|neither|unlike|rather than|"
    r"instead of|other than|except)\b[^,;\n]{0,60}?(?:\bbut\b|(?=[,;\n]|\.\s|$))",
    re.IGNORECASE,
)
#: Without any of these nothing is denied or put more precisely.
_MAY_DENY: Final = re.compile(
    r"確に|密に|precise|exact|rather|が|けれど|けど|のに|しかし|な[いくかけ]|ありま|ありえ|ござい|以外|異な|違|とは|誤|不正解|not|n't|neither|unlike|than|instead|except",
    re.IGNORECASE,
)
#: What makes a longer word of a word when it stands beside it.
_JOINED: Final = "[A-Za-z0-9一-龥ァ-ヶー々]"
#: Between numbers that are named in a row, units included, and in one quantity of several units: 8時30分, 5m30cm, 2対1.
_ROW: Final = re.compile(
    r"\s?[^\W\d]{0,3}\s?(?:[,、]\s?(?:あるいは|もしくは|または|か|or)|,|、|~|〜|-|–|と|か|から|ないし|/|\bor\b|\band\b|\bto\b|\bthrough\b|または)\s?[¥$]?|[一-龥A-Za-zヶか]{1,3}|:",
    re.IGNORECASE,
)
#: Before a number that is a name, and behind one that is more than itself: 第3四半期, 図3, 8時半, 5m30cm.
_NAME: Final = re.compile(r"[第図表式問]\s?$")
_GOES_ON: Final = re.compile(r"[一-龥]{1,2}半(?!分)|[A-Za-z]{1,3}\d")
#: What a gold number may have beside its digits.
_UNIT: Final = re.compile(r"[\s$¥€£,%]*(?:[つ個度円人年匹台倍本枚回種点]|[A-Za-zΩμ°/]{1,6})?[\s$.]*")
_ANY_LETTER: Final = ("",) * 26


def parse_open_robust(response: str) -> list[str]:
    """What a reply gives as its answer; nothing if it gives none.

    >>> parse_open_robust("計算すると 2×0.53 なので、答えは1.06です。"), parse_open_robust(" ")
    (['1.06'], [])
    """
    text = without_thought(plain(superscripts(response))).replace("’", "'")
    box = boxed(text)
    key = _trimmed(without_markup(box)) if box else ""
    if not key:
        text = without_markup(text).strip()
        key = _key(text[withdrawn(text) :])
    return [key[:_LONG]] if key else []


def judge_open_robust(parsed: Sequence[str], gold: str | Sequence[str]) -> bool:
    """Whether an answer is right, as the module says.

    :param parsed: what :func:`parse_open_robust` gives.
    :param gold: an answer, or a list of which any will do; a list may be written out as text.

    >>> judge_open_robust(["約200万円"], "2,000,000"), judge_open_robust(["the cat"], "C")
    (True, False)
    """
    golds = golds_of(gold)
    numbers = [number for each in golds for number in _number_of(each)]
    texts = [each for each in golds if not _number_of(each)]
    return any(_has_number(key, numbers) or any(_has_text(key, text) for text in texts) for key in parsed)


def golds_of(gold: str | Sequence[str]) -> list[str]:
    """The answers that will do, of one, of a list, or of a list that is written out; an empty one never will.

    >>> golds_of("['24/7', '3.429']"), golds_of("0.5"), golds_of("")
    (['24/7', '3.429'], ['0.5'], [])
    """
    if isinstance(gold, str):
        gold = _written_out(gold) if gold.strip()[:1] in ("[", "(") else [gold]
    cleaned = (without_markup(plain(superscripts(each))).strip() for each in gold)
    return [each for each in cleaned if each]


def _written_out(gold: str) -> list[str]:
    try:
        value = ast.literal_eval(gold.strip())
    except (ValueError, SyntaxError):
        return [gold]
    return [str(each) for each in value] if isinstance(value, list | tuple) else [gold]


def _key(text: str) -> str:
    """The text behind the last cue that has any behind it."""
    for cue in (_ANNOUNCED, _CONCLUDED):
        for found in reversed(list(cue.finditer(text))[-_MOST:]):
            if key := _told(text[found.end() :]):
                return key
    return _trimmed(text if len(text) <= _SHORT else text.rpartition("\n")[2])


def _told(text: str) -> str:
    """The first sentence, or the second if the first only denies: 答えは12ではありません。13です。"""
    first, *rest = (_trimmed(each) for each in _SENTENCE_END.split(text.lstrip(), maxsplit=2)[:2])
    if rest and rest[0] and first and not _affirmed(first):
        return rest[0]
    return first


def _affirmed(text: str) -> str:
    """The text without what it denies.

    >>> _affirmed("12ではなく13"), _affirmed("not 12 but 13"), _affirmed("12以外")
    ('13', '13', '')
    """
    return _DENIED.sub(" ", text).strip(_LEFT + _RIGHT) if _MAY_DENY.search(text) else text


def _trimmed(text: str) -> str:
    """A text without equation, copula, quotes, brackets and marks around it."""
    text = _EQUALS.split(text)[-1]
    for _ in range(2):
        text = _COPULA.sub("", text.lstrip(_LEFT).rstrip(_RIGHT)).rstrip(_RIGHT)
        if text[:1] + text[-1:] in _BRACKETS:
            text = text[1:-1]
    return text.lstrip(_LEFT).rstrip(_RIGHT)


def _number_of(gold: str) -> list[Amount]:
    """The number that a gold answer is, with its unit at most; nothing of a text."""
    text = in_digits(gold)
    found = list(amounts(text))
    rest = text[: found[0].start] + text[found[0].end :] if len(found) == 1 else None
    return found if rest is not None and _UNIT.fullmatch(rest) else []


def _has_number(key: str, golds: Sequence[Amount]) -> bool:
    """Whether a number of the text is right, or all of those that stand in a row."""
    if not golds:
        return False
    text = in_digits(_affirmed(key))
    rows: list[list[Amount]] = []
    for each in amounts(text):
        if _NAME.search(text, max(0, each.start - 2), each.start) or _GOES_ON.match(text, each.end):
            continue
        if rows and _ROW.fullmatch(text, rows[-1][-1].end, each.start):
            rows[-1].append(each)
        else:
            rows.append([each])
    return any(all(any(_equal(each, gold) for gold in golds) for each in row) for row in rows)


def _equal(answer: Amount, gold: Amount) -> bool:
    # A percentage may be given, and be asked for, as its figure or as its share of one; a unit with its prefix or not.
    if answer.scale != 1.0 and gold.scale != 1.0:
        return _close(answer.value * answer.scale, gold.value * gold.scale, gold.unit * gold.scale)
    return any(
        _close(x, y, unit)
        for x in _readings(answer.value, answer)
        for y, unit in zip(_readings(gold.value, gold), _readings(gold.unit, gold), strict=True)
    )


def _readings(value: float, amount: Amount) -> list[float]:
    return [value, *([value * 100] if amount.percent else []), *([value * amount.scale] if amount.scale != 1.0 else [])]


def _close(answer: float, gold: float, unit: float) -> bool:
    within = 0.01 * abs(gold)
    # Half a unit and a hair, since 1.065 has no exact form.
    return abs(answer - gold) <= (min(within, unit / 2) if unit else within) * (1 + 1e-9) + 1e-12 * abs(gold)


def _has_text(key: str, gold: str) -> bool:
    """Whether a text is the gold answer, or has it as words of their own among a few."""
    if len(gold) == 1 and gold.isascii() and gold.isalpha():
        return parse_choice_robust(_affirmed(key), _ANY_LETTER).letter == gold.upper()
    right = _same(gold)
    if right in {_same(each) for each in (key, _ASIDE.sub("", key), *_asides(key))}:
        return True
    told = key if _affirmed(gold) != gold else _affirmed(key)
    if right == _same(told):
        return True
    near = len(gold) > 1 and len(told) <= len(gold) + 20
    pattern = rf"(?<!{_JOINED}){re.escape(gold.casefold())}(?!{_JOINED})"
    return near and re.search(pattern, told.casefold()) is not None


def _same(text: str) -> str:
    return _IGNORED.sub("", text.translate(_DASHES)).casefold()


def _asides(text: str) -> Iterator[str]:
    yield from (found[1] or found[2] for found in _ASIDE.finditer(text))
