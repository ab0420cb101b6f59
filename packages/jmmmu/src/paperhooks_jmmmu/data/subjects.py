"""The 28 subjects of JMMMU: domains, subsets, and how many questions of which kind the whole set has.

Culture-agnostic subjects (CA) are those of MMMU's validation split, translated: 30 questions each. Culture-specific
ones (CS) are about Japanese culture, or as taught in Japan: 150 questions each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from paperhooks.errors import DataError

__all__ = ["DOMAINS", "MMMU_ONLY", "SUBJECTS", "Subject", "subject_of"]

#: Open questions, then "number of options: questions", of the subjects of each domain.
_AGNOSTIC: Final[dict[str, dict[str, str]]] = {
    "Art and Psychology": {
        "Design": "0 4:30",
        "Music": "0 2:5 4:25",
        "Psychology": "1 4:17 5:11 6:1",
    },
    "Business": {
        "Accounting": "0 2:2 3:10 4:18",
        "Economics": "1 3:13 4:15 5:1",
        "Finance": "8 4:22",
        "Manage": "6 2:4 4:17 5:3",
        "Marketing": "1 2:2 3:3 4:24",
    },
    "Science": {
        "Biology": "1 2:1 3:2 4:11 5:11 7:2 9:2",
        "Chemistry": "7 3:2 4:16 5:4 9:1",
        "Math": "1 2:3 3:2 4:21 5:3",
        "Physics": "1 4:26 5:3",
    },
    "Health and Medicine": {
        "Basic_Medical_Science": "2 2:4 3:8 4:11 5:5",
        "Clinical_Medicine": "0 4:20 5:6 6:4",
        "Diagnostics_and_Laboratory_Medicine": "0 2:1 4:20 5:9",
        "Pharmacy": "3 2:3 3:10 4:13 5:1",
        "Public_Health": "0 3:1 4:28 5:1",
    },
    "Tech and Engineering": {
        "Agriculture": "0 3:2 4:3 5:25",
        "Architecture_and_Engineering": "1 3:8 4:21",
        "Computer_Science": "3 3:3 4:19 5:5",
        "Electronics": "14 2:1 4:15",
        "Energy_and_Power": "0 3:24 4:5 5:1",
        "Materials": "0 3:3 4:26 9:1",
        "Mechanical_Engineering": "0 3:14 4:16",
    },
}
_SPECIFIC: Final = ("Japanese_Art", "Japanese_Heritage", "Japanese_History", "World_History")
#: Subjects of MMMU that JMMMU does not have.
MMMU_ONLY: Final = ("Art", "Art_Theory", "Geography", "History", "Literature", "Sociology")
_ID: Final = re.compile(r"[^_]*_(.+)_\d+")


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject of the whole set.

    :param domain: ``""`` for those on Japanese culture. :param subset: ``"CA"`` or ``"CS"``.
    :param opens: open questions. :param options: number of options to the multiple-choice questions that have so many.
    """

    name: str
    domain: str
    subset: str
    opens: int
    options: Mapping[int, int]

    @property
    def n(self) -> int:
        """All questions."""
        return self.opens + sum(self.options.values())


def _agnostic(name: str, domain: str, text: str) -> Subject:
    opens, *counts = text.split()
    pairs = (count.split(":") for count in counts)
    return Subject(name, domain, "CA", int(opens), {int(options): int(n) for options, n in pairs})


#: Domain to the names of its subjects.
DOMAINS: Final = {domain: tuple(subjects) for domain, subjects in _AGNOSTIC.items()}
#: By name, in the order of the alphabet, CA before CS: the order of documents, and of lmms-eval's random letters.
SUBJECTS: Final[dict[str, Subject]] = {
    one.name: one
    for one in (
        *sorted(
            (_agnostic(name, domain, text) for domain, names in _AGNOSTIC.items() for name, text in names.items()),
            key=lambda subject: subject.name,
        ),
        *(Subject(name, "", "CS", 0, {4: 150}) for name in _SPECIFIC),
    )
}


def subject_of(question_id: str) -> str:
    """The subject in an id: what stands behind the first underscore and in front of the number.

    :raises DataError: an id of another form.

    >>> subject_of("test_Japanese_Art_77")
    'Japanese_Art'
    """
    found = _ID.fullmatch(question_id)
    if found is None:
        raise DataError(f"the id {question_id!r} names no subject; expected one such as 'validation_Accounting_1'")
    return found[1]
