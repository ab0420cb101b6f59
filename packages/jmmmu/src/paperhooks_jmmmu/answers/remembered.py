"""Readings of replies that all modes of a run ask for again: each is made once."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from paperhooks_jmmmu.answers.choices import LetterChoice
from paperhooks_jmmmu.answers.flags import reply_flags
from paperhooks_jmmmu.answers.robust_choices import parse_choice_robust

__all__ = ["choice_once", "flags_once"]

#: Replies that are remembered; more than a run of JMMMU has, since modes are scored one after the other.
_REPLIES: Final = 4096


@lru_cache(maxsize=_REPLIES)
def choice_once(response: str, options: tuple[str, ...]) -> LetterChoice:
    """What :func:`parse_choice_robust` gives."""
    return parse_choice_robust(response, options)


@lru_cache(maxsize=_REPLIES)
def flags_once(reply: str) -> tuple[str, ...]:
    """What :func:`reply_flags` gives."""
    return reply_flags(reply)
