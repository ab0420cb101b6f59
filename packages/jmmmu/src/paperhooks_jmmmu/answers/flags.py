"""What a reply is beside its answer: empty, a refusal, too long, going round in circles. Each check is cheap."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from paperhooks_jmmmu.answers.phrases import REFUSAL
from paperhooks_jmmmu.answers.plain import plain
from paperhooks_jmmmu.answers.robust_choices import OUTSIDE, SEVERAL, parse_choice_robust

__all__ = [
    "LIMIT",
    "capped",
    "is_empty",
    "is_looping",
    "is_outside",
    "is_refusal",
    "is_several",
    "is_too_long",
    "reply_flags",
]

#: Characters of a reply that are kept.
LIMIT: Final = 20_000

#: A refusal, an apology, or a word of not knowing.
_REFUSAL: Final = re.compile(
    rf"{REFUSAL}|申し訳(?:あり|ござい|な)|すみませんが|(?:わか|分か)(?:りません|りかねます|らない)|"
    r"\b(?:i'?m|i am) (?:sorry|unable|afraid|not (?:able|sure))|\bi don't know\b|"
    r"\bi (?:can(?:no|')t|cannot|can not|could not|couldn't) (?:tell|see|view|access)|"
    r"\b(?:cannot|can't|impossible to|unable to) (?:be determined|determine|answer)",
    re.IGNORECASE,
)
#: A refusal says so at its beginning; an answer follows an apology soon, if any does.
_BEGINNING: Final = 300
#: Repetitions at the end of a reply that make it a loop, and how long each may be.
_TIMES: Final = 6
_LONGEST_PERIOD: Final = 400
#: What a loop repeats fills at least this many characters.
_LOOP: Final = 60


def is_empty(reply: str) -> bool:
    """Whether a reply has nothing to see: white space, invisible characters and nothing else."""
    return not reply.strip() or not plain(reply[:LIMIT]).strip()


def is_refusal(reply: str) -> bool:
    """Whether a reply begins by saying that there is no answer, in Japanese or English.

    >>> is_refusal("申し訳ありませんが、画像を認識できません。"), is_refusal("I can't help with that."), is_refusal("B")
    (True, True, False)
    """
    return _REFUSAL.search(reply[:_BEGINNING].replace("’", "'")) is not None


def is_several(reply: str, options: Sequence[str]) -> bool:
    """Whether a reply names more than one letter as its answer, or letters and none as its answer."""
    return parse_choice_robust(reply, options).rule == SEVERAL


def is_outside(reply: str, options: Sequence[str]) -> bool:
    """Whether the letter of a reply belongs to no option."""
    return parse_choice_robust(reply, options).rule == OUTSIDE


def is_looping(reply: str) -> bool:
    """Whether a reply ends in one text of up to 400 characters, over and over: six times, 60 characters at least.

    >>> is_looping("図を見ると形が特徴的です。" * 8), is_looping("B" * 100), is_looping("AAA")
    (True, True, False)
    """
    text = reply.rstrip()[-_TIMES * _LONGEST_PERIOD :]
    return any(_repeats(text, period) for period in range(1, min(_LONGEST_PERIOD, len(text) // _TIMES) + 1))


def _repeats(text: str, period: int) -> bool:
    # A generation may stop anywhere, so the repetition is looked for in the end as it is.
    span = max(_TIMES * period, _LOOP)
    # Most periods fail at the last character.
    return span <= len(text) and text[-1] == text[-1 - period] and text[-span:-period] == text[period - span :]


def is_too_long(reply: str) -> bool:
    """Whether a reply has more characters than are kept."""
    return len(reply) > LIMIT


def capped(reply: str) -> str:
    """The reply up to the limit of 20,000 characters."""
    return reply[:LIMIT]


def reply_flags(reply: str) -> tuple[str, ...]:
    """Of ``empty``, ``refusal``, ``looping`` and ``too_long`` those that a reply deserves."""
    if is_empty(reply):
        return ("empty",)
    checks = {"refusal": is_refusal, "looping": is_looping, "too_long": is_too_long}
    return tuple(name for name, check in checks.items() if check(reply))
