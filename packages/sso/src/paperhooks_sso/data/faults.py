"""Why the answers to a prompt make no pairs: empty, cut, alike, or telling of their principle (sections 4.1 and 7)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from paperhooks_sso.data.principles import Principle

__all__ = ["FAULTS", "Answer", "Fault", "fault_of", "leaks", "writable"]

Fault: TypeAlias = Literal["missing", "empty", "cut", "same", "leak"]

#: Why prompts are dropped: an answer was not given or cannot be written down as text, has no text, was cut at the
#: limit of tokens, is that of another role, or speaks of its principle.
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
#: In front of an answer, for comparing only: it is stored as it came.
_LABEL: Final = re.compile(
    r"^\W*(?:(?:a|the|my|your)\s+)?(?:good|bad|better|worse|ideal|poor)?\s*(?:response|answer|reply)\s*:\s*",
    re.IGNORECASE,
)
#: How answers speak of what they were told.
_TELLTALE: Final = re.compile(
    r"\b(?:(?:the|these|my|your|above|following|given)\s+guidelines?\b|system (?:message|prompt)|"
    r"as (?:instructed|requested by the (?:system|guidelines?)))",
    re.IGNORECASE,
)
#: As many words in a row that stand in a principle too are taken from it.
_COPIED: Final = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer.

    :param text: without special tokens. :param ids: as they were sampled, without the end of the turn.
    :param finish: ``"eos"``, ``"stop"`` or ``"length"`` (cut). :param error: why there is none.
    """

    text: str
    ids: tuple[int, ...] = ()
    finish: str = "eos"
    error: str = ""


def fault_of(
    answers: Sequence[Answer | None], principles: Iterable[Principle] = (), *, keep_cut: bool = False
) -> Fault | None:
    """The first reason to drop a prompt, or None.

    :param answers: y+, y- and perhaps yo; None where there should be one and is none.
    :param principles: those that y+ and y- were asked to follow, to look for leaks; none are looked for without.
    :param keep_cut: keep answers that were cut at the limit of tokens.
    """
    there = [answer for answer in answers if answer is not None and not answer.error]
    if len(there) < len(answers) or not all(writable(answer.text) for answer in there):
        return "missing"
    if any(not answer.text.strip() for answer in there):
        return "empty"
    if not keep_cut and any(answer.finish == "length" for answer in there):
        return "cut"
    if len({_compared(answer.text) for answer in there}) < len(there):
        return "same"
    principles = list(principles)
    if any(leaks(answer.text, principles) for answer in there[:2]):
        return "leak"
    return None


def writable(text: str) -> bool:
    """Whether a text can be encoded: half of an emoji that was cut in two cannot, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def leaks(text: str, principles: Iterable[Principle]) -> bool:
    """Whether an answer speaks of the principles that it was asked to follow, or copies from them."""
    principles = list(principles)
    if not principles:
        return False
    words = [word for each in principles for word in each.adjectives]
    named = re.compile(rf"\bas an?\s+(?:{'|'.join(map(re.escape, words))})\s+\w+", re.IGNORECASE)
    if _TELLTALE.search(text) or named.search(text):
        return True
    told = {run for each in principles for part in (each.good, each.bad) for run in _runs(part)}
    return any(run in told for run in _runs(text))


def _runs(text: str) -> set[tuple[str, ...]]:
    """All runs of so many words."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[at : at + _COPIED]) for at in range(len(words) - _COPIED + 1)}


def _compared(text: str) -> str:
    """An answer as it is compared: without a label in front and with single blanks."""
    return " ".join(_LABEL.sub("", text.strip()).split())
