"""MME (Fu et al. 2023, arXiv 2306.13394): two yes-or-no questions a picture; how replies are read and scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from paperhooks.errors import DataError, did_you_mean

from paperhooks_hallucination.pope.metrics import parse_strict, read_label

__all__ = [
    "CATEGORIES",
    "COGNITION",
    "HALLUCINATION",
    "MODES",
    "PERCEPTION",
    "CategoryScore",
    "MmeScores",
    "PictureScore",
    "mme_scores",
    "parse_official",
    "read_answer",
    "read_reply",
]

MODES: Final = ("official", "strict")
PERCEPTION: Final = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION: Final = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES: Final = PERCEPTION + COGNITION
#: The subset about hallucinated objects and attributes; at most 200 each, 800 together.
HALLUCINATION: Final = ("existence", "count", "position", "color")


def parse_official(reply: str) -> str:
    """``"yes"``, ``"no"`` or ``"other"``.

    Lower case, outer blanks and all full stops removed. Then "yes" and "no" themselves, the single letters y and n; in
    longer replies the first four characters are searched for "yes", then for "no" (so "nothing" says no).

    >>> [parse_official(reply) for reply in (" YES. ", "N", "nothing", "Well yes")]
    ['yes', 'no', 'no', 'other']
    """
    text = reply.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def read_reply(reply: str, mode: str = "official") -> str | None:
    """The answer in a reply, read as ``mode`` reads it; None if it has none. Raises DataError for an unknown mode."""
    if mode == "official":
        answer = parse_official(reply)
        return None if answer == "other" else answer
    if mode == "strict":
        return parse_strict(reply)
    raise DataError(f"MME has no mode {mode!r}; {did_you_mean(mode, MODES)}")


def read_answer(answer: str) -> str:
    """``"yes"`` or ``"no"`` of the data's answer, in any case and with or without full stop; else DataError."""
    return read_label(answer.replace(".", "") if isinstance(answer, str) else answer)


@dataclass(frozen=True, slots=True)
class PictureScore:
    """The two questions of one picture: how many are answered rightly, and how many replies could not be read."""

    right: int
    unparsable: int = 0

    @property
    def score(self) -> float:
        """Accuracy (0, 50, 100) plus 100 if both answers are right: 0, 50 or 200."""
        return 100.0 * self.right / 2 + (100.0 if self.right == 2 else 0.0)


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """One category: its pictures in the order of the data."""

    pictures: tuple[PictureScore, ...]

    @property
    def n(self) -> int:
        """Pictures."""
        return len(self.pictures)

    @property
    def accuracy(self) -> float:
        """Percent of questions answered rightly; 0 without pictures."""
        return 100.0 * sum(picture.right for picture in self.pictures) / (2 * self.n) if self.n else 0.0

    @property
    def accuracy_plus(self) -> float:
        """Percent of pictures with both questions answered rightly; 0 without pictures."""
        return 100.0 * sum(picture.right == 2 for picture in self.pictures) / self.n if self.n else 0.0

    @property
    def score(self) -> float:
        """Mean over pictures of accuracy plus accuracy+, at most 200; 0 without pictures."""
        return sum(picture.score for picture in self.pictures) / self.n if self.n else 0.0

    @property
    def unparsable(self) -> int:
        """Replies that could not be read."""
        return sum(picture.unparsable for picture in self.pictures)


@dataclass(frozen=True, slots=True)
class MmeScores:
    """Scores by category, in the order of the data."""

    categories: Mapping[str, CategoryScore] = field(default_factory=dict)

    def total(self, names: Iterable[str] | None = None) -> float:
        """Sum of the scores of all categories, or of those named that are there; at most 200 each."""
        wanted = self.categories if names is None else [name for name in names if name in self.categories]
        return sum(self.categories[name].score for name in wanted)


def mme_scores(rows: Sequence[tuple[str, str, str, str]], *, mode: str = "official") -> MmeScores:
    """Scores of replies; ``rows`` are (category, picture, reply, answer), a picture's two in any order.

    Raises DataError for a picture that does not have exactly two answers (all of them are named), for an answer in the
    data that is neither yes nor no, and for an unknown mode.
    """
    answered: dict[str, dict[str, list[tuple[str | None, str]]]] = {}
    for category, picture, reply, answer in rows:
        pair = read_reply(reply, mode), read_answer(answer)
        answered.setdefault(category, {}).setdefault(picture, []).append(pair)
    odd = [
        f"{c}/{p} has {len(pairs)}" for c, found in answered.items() for p, pairs in found.items() if len(pairs) != 2
    ]
    if odd:
        raise DataError(f"MME needs exactly two answers a picture, but {', '.join(odd)}; answer both questions of each")
    return MmeScores({c: CategoryScore(tuple(map(_picture, found.values()))) for c, found in answered.items()})


def _picture(pairs: Sequence[tuple[str | None, str]]) -> PictureScore:
    return PictureScore(sum(said == answer for said, answer in pairs), sum(said is None for said, _ in pairs))
