"""The evaluation tasks: JMMMU, JMMMU-verified, JMMMU-Pro's vision setting, and the English counterpart.

A mode is a parser with a fallback, such as ``official-per-question``. All eight are scored from the same replies; the
options ``parser`` and ``fallback`` name the one whose score stands first. An open question has no fallback.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks.generation import Request
from paperhooks_evaluation import Document, DocumentList, Parsed, Record, Summary, Task

from paperhooks_jmmmu.algorithm import FALLBACKS, check_fallback, drawn_letters, expected_credit, question_letter
from paperhooks_jmmmu.answers import (
    LetterChoice,
    capped,
    choice_once,
    judge_open,
    judge_open_robust,
    letters_of,
    parse_choice,
    parse_choice_lmms_mmmu,
    parse_choice_pro,
    parse_open,
    parse_open_mmmu,
    parse_open_robust,
)
from paperhooks_jmmmu.controls import blank, check_pictures, rotated, shuffled
from paperhooks_jmmmu.data import CHOICE, ENGLISH, JAPANESE, VERIFIED, VISION, Edition, read_questions
from paperhooks_jmmmu.leaderboard import leaderboard_row
from paperhooks_jmmmu.prompts import (
    JMMMU,
    MMMU,
    PRO_COT,
    PRO_DIRECT,
    VISION_COT,
    VISION_DIRECT,
    Wording,
    exam_request,
    vision_request,
)
from paperhooks_jmmmu.summary import summarise

__all__ = ["PARSERS", "Exam", "Jmmmu", "JmmmuPro", "JmmmuVerified", "MmmuPaired"]

#: Ways of reading a reply: as the published scores do, and as a human does.
PARSERS: Final = ("official", "robust")
#: What lmms-eval adds to every task that names no stop string; some of its models obey it, and others do not.
_STOPS: Final[Mapping[str, tuple[str, ...]]] = {"": (), "lmms-eval": ("\n\n",)}
_ANSWERS: Final = ("direct", "cot")
#: The rule of a letter that stands in for one that could not be read.
_EXPECTED: Final = "expected"


@dataclass(frozen=True)
class Exam(Task):
    """What the tasks share.

    :param max_new_tokens: where replies are cut.
    :param stop: ``""`` for no stop string, or ``"lmms-eval"`` for the one that this harness adds (a blank line).
    :param revision: of the data on the hub, to pin it.
    :param skip_bad: leave rows with faults out instead of refusing the data.
    :param rotation: by how many places options move up (see :mod:`paperhooks_jmmmu.controls`).
    :param pictures: ``"own"``, or the controls ``"blank"`` and ``"shuffled"``.
    :param parser, fallback: of the mode whose score stands first.
    :param seed: of drawn letters.
    """

    max_new_tokens: int = 1024
    stop: str = ""
    revision: str = ""
    skip_bad: bool = False
    rotation: int = 0
    pictures: str = "own"
    parser: str = "official"
    fallback: str = "per-question"
    seed: int = 0

    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "jmmmu_acc"
    scoring_options: ClassVar[tuple[str, ...]] = ("parser", "fallback", "seed")
    edition: ClassVar[Edition] = JAPANESE
    wording: ClassVar[Wording] = JMMMU

    def __post_init__(self) -> None:
        check_fallback(self.fallback)
        check_pictures(self.pictures)
        for name, value, known in (("parser", self.parser, PARSERS), ("stop", self.stop, tuple(_STOPS))):
            if value not in known:
                raise DataError(f"{name} = {value!r} is none of {', '.join(map(repr, known))}")
        if not isinstance(self.revision, str):
            raise DataError(f"revision is {self.revision!r}; expected the name of a branch, tag or commit")
        if not isinstance(self.skip_bad, bool):
            raise DataError(f"skip_bad is {self.skip_bad!r}; expected true or false")
        for name, least in (("max_new_tokens", 1), ("rotation", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"{name} is {value!r}; expected a whole number of at least {least}")
        if self.rotation and self.edition.vision:
            raise DataError("rotation moves options, which stand inside the pictures of this task")

    @property
    def modes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Every parser with every fallback; that of the options first."""
        every = [f"{parser}-{fallback}" for parser in PARSERS for fallback in FALLBACKS]
        first = f"{self.parser}-{self.fallback}"
        return (first, *(mode for mode in every if mode != first))

    def scoring(self, mode: str) -> dict[str, Any]:
        """The seed, of modes that draw letters; parser and fallback are in the mode's name."""
        return {"seed": self.seed} if _fallback(mode) in ("per-question", "lmms-eval") else {}

    def documents(self, source: str) -> Sequence[Document]:
        """The questions, by subject; raises DataError listing all faults of the data."""
        read = read_questions(source, self.edition, revision=self.revision, skip_bad=self.skip_bad)
        found = shuffled(read.documents) if self.pictures == "shuffled" else read.documents
        return DocumentList(rotated(found, self.rotation), read.notes(), read.revision)

    def request(self, document: Document) -> Request:
        """The question with its options, its pictures, the instruction."""
        made = self._asked(document)
        if self.pictures == "blank":
            made = dataclasses.replace(made, images=[blank(image) for image in made.images])
        return made

    def _asked(self, document: Document) -> Request:
        stop = _STOPS[self.stop]
        return exam_request(document, self.wording, max_new_tokens=self.max_new_tokens, stop=stop)

    # -- scores --------------------------------------------------------------------------------------------------------

    def official_choice(self, response: str, options: Sequence[str]) -> LetterChoice:
        """The letter of a reply as the published scores read it."""
        return parse_choice(response, options)

    def official_open(self, response: str) -> list[Any]:
        """What the reply to an open question means, as the published scores read it."""
        return parse_open(response)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        """A letter, or what the reply to an open question means; ``rule`` is what found it, or the fallback."""
        parser, reply = _parser(mode), capped(response)
        if document.data["question_type"] != CHOICE:
            found = self.official_open(reply) if parser == "official" else parse_open_robust(reply)
            return Parsed(found, parser, fallback=set(found) <= {""})  # the published code reads no reply as ""
        options = document.data["options"]
        once = choice_once(reply, tuple(options)) if parser == "robust" else self.official_choice(reply, options)
        letter, rule = once
        if letter is not None:
            return Parsed(letter, rule)
        fallback = _fallback(mode)
        guess = question_letter(self.seed, document.id, letters_of(options)) if fallback == "per-question" else None
        return Parsed(guess, fallback, fallback=True)

    def score(self, document: Document, parsed: Parsed) -> float:
        """1 for the right answer, else 0; 1 / k for a letter of k that counts as expected."""
        answer = document.data["answer"]
        if document.data["question_type"] != CHOICE:
            judge = judge_open if parsed.rule == "official" else judge_open_robust
            return float(judge(parsed.value, answer))
        if parsed.fallback and parsed.rule == _EXPECTED:
            return expected_credit(len(document.data["options"]))
        return float(parsed.value in answer if isinstance(answer, list) else parsed.value == answer)

    def settle(self, records: Sequence[Record], mode: str) -> Sequence[Record]:
        """Under the fallback ``lmms-eval``, one generator's letters for all replies without one, in their order."""
        if _fallback(mode) != "lmms-eval":
            return records
        open_ones = [r for r in records if r.parsed.fallback and r.document.data["question_type"] == CHOICE]
        letters = iter(drawn_letters([letters_of(r.document.data["options"]) for r in open_ones], self.seed))
        waiting = set(map(id, open_ones))
        return [self._drawn(record, next(letters)) if id(record) in waiting else record for record in records]

    def _drawn(self, record: Record, letter: str) -> Record:
        parsed = dataclasses.replace(record.parsed, value=letter)
        return dataclasses.replace(record, parsed=parsed, score=self.score(record.document, parsed))

    def unit(self, document: Document) -> str:
        """The first picture: questions about one picture are drawn together."""
        pictures = document.data["pictures"]
        return next(iter(pictures.values())) if pictures else document.id

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        """The published figures to the digit, and what stands behind them (see :mod:`paperhooks_jmmmu.summary`)."""
        return summarise(records, self.metric, self.edition, official=_parser(mode) == "official")

    def leaderboard(self, summary: Summary) -> Mapping[str, Any] | None:
        """The row of JMMMU's table; None of a control, which asks something else."""
        control = self.rotation or self.pictures != "own"
        return None if control else leaderboard_row(summary, self.metric, self.edition)


@dataclass(frozen=True)
class Jmmmu(Exam):
    """JMMMU: 1,320 questions in Japanese, 50 of them open (see :class:`Exam` for the options)."""

    name: ClassVar[str] = "jmmmu"


@dataclass(frozen=True)
class _Pro(Exam):
    """JMMMU-Pro reads replies by its own parser, and knows no letter that stands in for one.

    :param answer: ``"direct"``, or ``"cot"`` for a chain of thought.
    """

    max_new_tokens: int = 0
    fallback: str = "wrong"
    answer: str = "direct"

    def __post_init__(self) -> None:
        if self.answer not in _ANSWERS:
            raise DataError(f"answer = {self.answer!r} is no way to answer; {did_you_mean(self.answer, _ANSWERS)}")
        if self.max_new_tokens == 0:
            object.__setattr__(self, "max_new_tokens", 256 if self.answer == "direct" else 4096)
        super().__post_init__()

    def official_choice(self, response: str, options: Sequence[str]) -> LetterChoice:
        """The letter of a reply as JMMMU-Pro's scores read it."""
        return parse_choice_pro(response, options)


@dataclass(frozen=True)
class JmmmuVerified(_Pro):
    """JMMMU-verified-2025-12, the standard setting of JMMMU-Pro: all questions multiple choice.

    :param max_new_tokens: 0 for the published limits: 256, and 4,096 for a chain of thought.
    """

    name: ClassVar[str] = "jmmmu-verified"
    edition: ClassVar[Edition] = VERIFIED

    def _asked(self, document: Document) -> Request:
        wording = PRO_DIRECT if self.answer == "direct" else PRO_COT
        return exam_request(document, wording, max_new_tokens=self.max_new_tokens, stop=_STOPS[self.stop])


@dataclass(frozen=True)
class JmmmuPro(_Pro):
    """JMMMU-Pro's vision setting: question, options and picture are one image.

    :param max_new_tokens: 0 for the published limits: 256, and 4,096 for a chain of thought.
    """

    name: ClassVar[str] = "jmmmu-pro"
    edition: ClassVar[Edition] = VISION

    def _asked(self, document: Document) -> Request:
        text = VISION_DIRECT if self.answer == "direct" else VISION_COT
        return vision_request(document, text, max_new_tokens=self.max_new_tokens, stop=_STOPS[self.stop])


@dataclass(frozen=True)
class MmmuPaired(Exam):
    """The 720 questions of MMMU's validation split whose ids JMMMU shares, in English, to be paired by id.

    The official parser is that of lmms-eval's English task; options and pictures are laid out as for JMMMU.
    """

    name: ClassVar[str] = "mmmu-paired"
    edition: ClassVar[Edition] = ENGLISH
    wording: ClassVar[Wording] = MMMU

    def official_choice(self, response: str, options: Sequence[str]) -> LetterChoice:
        """The letter of a reply as lmms-eval's English task reads it."""
        return parse_choice_lmms_mmmu(response, options)

    def official_open(self, response: str) -> list[Any]:
        """What the reply to an open question means, as MMMU's own code reads it."""
        return parse_open_mmmu(response)

    def leaderboard(self, summary: Summary) -> Mapping[str, Any] | None:
        """The one column of JMMMU's table that is about the English questions."""
        row = super().leaderboard(summary)
        return None if row is None else {"CA (EN)": row["CA"], **{k: row[k] for k in ("Partial",) if k in row}}


def _parser(mode: str) -> str:
    return mode.partition("-")[0]


def _fallback(mode: str) -> str:
    return mode.partition("-")[2]
