"""POPE (Li et al. 2023, arXiv 2305.10355): yes-or-no questions about objects; how responses are read and counted.

Two ways of reading. ``official`` is that of the published script, which CCA and LLaVA use: whatever does not say "no"
counts as "yes". ``strict`` is that of the common harnesses: exactly "yes" or "no", everything else is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from paperhooks.errors import DataError

from paperhooks_hallucination.checks import check_mode, check_same_ids, check_same_length

__all__ = [
    "PopeScores",
    "parse_official",
    "parse_strict",
    "plain_answer",
    "pope_scores",
    "read_label",
    "read_response",
]

_NO: Final = frozenset({"No", "no", "not"})
#: Yes or no as the first word, with nothing behind it but a mark, a line break, or the verb that it goes with.
_PLAIN: Final = re.compile(
    r"[\s\"'*_\u201c\u2018]*(yes|no)(?=[.,!;:)\"'*_\u2026\u2014\u201d\u2019\u3002\uff0c]|\s*$|\s*[\r\n]|\s+(?:there|it)\b)",
    re.I,
)


def parse_official(response: str) -> str:
    """``"no"`` if the first sentence has one of the words No, no and not; else ``"yes"``, whatever it says.

    The sentence ends at the first full stop, commas are dropped, words are parted by single blanks and by nothing else.
    So "NO", "Nope", "" and a "No" in front of a line break all count as yes.

    >>> [parse_official(response) for response in ("No, there is not.", "I cannot see one", "NO", "Yes. No.")]
    ['no', 'yes', 'yes', 'yes']
    """
    sentence = response.partition(".")[0].replace(",", "")
    return "no" if _NO.intersection(sentence.split(" ")) else "yes"


def parse_strict(response: str) -> str | None:
    """``"yes"`` or ``"no"`` if the response is exactly that, up to case and surrounding blanks; else None.

    >>> [parse_strict(response) for response in (" Yes", "no.", "NO")]
    ['yes', None, 'no']
    """
    word = response.lower().strip()
    return word if word in ("yes", "no") else None


def plain_answer(response: str) -> str | None:
    """``"yes"`` or ``"no"`` if the response begins with that word as an answer of its own; else None.

    >>> [plain_answer(response) for response in ("Yes, there is.", "**No**", "no idea", "I am not sure")]
    ['yes', 'no', None, None]
    """
    found = _PLAIN.match(response)
    return found[1].lower() if found else None


def read_response(response: str, mode: str = "official") -> str | None:
    """The answer in a response, read as ``mode`` reads it; None if it has none.

    :raises DataError: an unknown mode.
    """
    check_mode("POPE", mode)
    return parse_official(response) if mode == "official" else parse_strict(response)


def read_label(label: str) -> str:
    """``"yes"`` or ``"no"`` of a label in any case; raises DataError for anything else."""
    word = label.strip().lower() if isinstance(label, str) else ""
    if word not in ("yes", "no"):
        raise DataError(f"the label {label!r} is neither 'yes' nor 'no'; correct the data")
    return word


@dataclass(frozen=True, slots=True)
class PopeScores:
    """Counts with "yes" as the positive answer, and what follows from them; every quotient by zero is 0.

    :param tp, fp, tn, fn: responses that could be read, by answer and label.
    :param unparsable: responses that could not (in the mode ``strict`` only). They are wrong for the accuracy and, as
        in the common harnesses, no part of precision, recall and F1: look at their number before comparing those.
    """

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    unparsable: int = 0

    @property
    def n(self) -> int:
        """Questions."""
        return self.tp + self.fp + self.tn + self.fn + self.unparsable

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return _share(self.tp + self.tn, self.n)

    @property
    def precision(self) -> float:
        """Share of objects that are there among those the model says are there, 0 to 1."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of objects the model says are there among those that are, 0 to 1."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        precision, recall = self.precision, self.recall
        return _share(2 * precision * recall, precision + recall)

    @property
    def yes_ratio(self) -> float:
        """Share of questions that the model answers with yes, 0 to 1."""
        return _share(self.tp + self.fp, self.n)

    def __add__(self, other: PopeScores) -> PopeScores:
        mine, others = self.counts, other.counts
        return PopeScores(*(a + b for a, b in zip(mine, others, strict=True)))

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """tp, fp, tn, fn, unparsable."""
        return self.tp, self.fp, self.tn, self.fn, self.unparsable

    @classmethod
    def of(cls, answer: str | None, label: str) -> PopeScores:
        """The scores of one answer (None: unparsable) to a question with a label "yes" or "no"."""
        if answer is None:
            return cls(unparsable=1)
        if answer == "yes":
            return cls(tp=1) if label == "yes" else cls(fp=1)
        return cls(tn=1) if label == "no" else cls(fn=1)

    @classmethod
    def total(cls, parts: Iterable[PopeScores]) -> PopeScores:
        """The scores of all parts taken together."""
        columns = [part.counts for part in parts]
        return cls(*map(sum, zip(*columns, strict=True))) if columns else cls()


def pope_scores(
    responses: Sequence[str],
    labels: Sequence[str],
    *,
    mode: str = "official",
    response_ids: Sequence[object] | None = None,
    label_ids: Sequence[object] | None = None,
) -> PopeScores:
    """Scores of responses to questions with labels "yes" or "no".

    ``response_ids`` and ``label_ids``, given together, say which question a response and a label belong to; both must
    be in the same order.

    :raises DataError: another number of responses than labels, ids that differ (the first difference is named), a label
        that is neither yes nor no, or an unknown mode.
    """
    check_same_length("responses", responses, "labels", labels)
    check_same_ids("responses", response_ids, "labels", label_ids, n=len(labels))
    answers = [read_response(response, mode) for response in responses]
    truth = [read_label(label) for label in labels]
    return PopeScores.total(PopeScores.of(answer, label) for answer, label in zip(answers, truth, strict=True))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
