"""MME (Fu et al. 2023, arXiv 2306.13394): two yes-or-no questions an image; how responses are read and scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from paperhooks.errors import DataError

from paperhooks_hallucination.checks import check_mode
from paperhooks_hallucination.pope.metrics import parse_strict, plain_answer, read_label

__all__ = [
    "CATEGORIES",
    "COGNITION",
    "HALLUCINATION",
    "PERCEPTION",
    "CategoryScore",
    "ImageScore",
    "MmeScores",
    "is_plain",
    "mme_scores",
    "parse_official",
    "read_answer",
    "read_response",
]

PERCEPTION: Final = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION: Final = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES: Final = PERCEPTION + COGNITION
#: The subset about hallucinated objects and attributes; at most 200 each, 800 together.
HALLUCINATION: Final = ("existence", "count", "position", "color")


def parse_official(response: str) -> str:
    """``"yes"``, ``"no"`` or ``"other"``.

    Lower case, outer blanks and all full stops removed. Then "yes" and "no" themselves, the single letters y and n; in
    longer responses the first four characters are searched for "yes", then for "no" (so "nothing" says no).

    >>> [parse_official(response) for response in (" YES. ", "N", "nothing", "Well yes")]
    ['yes', 'no', 'no', 'other']
    """
    text = response.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def read_response(response: str, mode: str = "official") -> str | None:
    """The answer in a response, read as ``mode`` reads it; None if it has none.

    :raises DataError: an unknown mode.
    """
    check_mode("MME", mode)
    answer = parse_official(response) if mode == "official" else parse_strict(response)
    return None if answer == "other" else answer


def is_plain(response: str, answer: str | None) -> bool:
    """Whether a response says its answer as such: with the word yes or no, or with the letter y or n alone."""
    letter = response.lower().strip().replace(".", "")
    return answer is not None and answer == {"y": "yes", "n": "no"}.get(letter, plain_answer(response))


def read_answer(answer: str) -> str:
    """``"yes"`` or ``"no"`` of the data's answer, in any case and with or without full stop; else DataError."""
    return read_label(answer.replace(".", "") if isinstance(answer, str) else answer)


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The two questions of one image: how many are answered rightly, and how many responses could not be read."""

    right: int
    unparsable: int = 0

    @property
    def score(self) -> float:
        """Accuracy (0, 50, 100) plus 100 if both answers are right: 0, 50 or 200."""
        return 100.0 * self.right / 2 + (100.0 if self.right == 2 else 0.0)


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """One category: its images in the order of the data."""

    images: tuple[ImageScore, ...]

    @property
    def n(self) -> int:
        """Images."""
        return len(self.images)

    @property
    def accuracy(self) -> float:
        """Percent of questions answered rightly; 0 without images."""
        return 100.0 * sum(image.right for image in self.images) / (2 * self.n) if self.n else 0.0

    @property
    def accuracy_plus(self) -> float:
        """Percent of images with both questions answered rightly; 0 without images."""
        return 100.0 * sum(image.right == 2 for image in self.images) / self.n if self.n else 0.0

    @property
    def score(self) -> float:
        """Mean over images of accuracy plus accuracy+, at most 200; 0 without images."""
        return sum(image.score for image in self.images) / self.n if self.n else 0.0

    @property
    def unparsable(self) -> int:
        """Responses that could not be read."""
        return sum(image.unparsable for image in self.images)


@dataclass(frozen=True, slots=True)
class MmeScores:
    """Scores by category, in the order of the data."""

    categories: Mapping[str, CategoryScore] = field(default_factory=dict)

    def total(self, names: Iterable[str] | None = None) -> float:
        """Sum of the scores of all categories, or of those named that are there; at most 200 each."""
        wanted = self.categories if names is None else [name for name in names if name in self.categories]
        return sum(self.categories[name].score for name in wanted)


def mme_scores(rows: Sequence[tuple[str, str, str, str]], *, mode: str = "official") -> MmeScores:
    """Scores of responses; ``rows`` are (category, image, response, answer), an image's two in any order.

    :raises DataError: an image that does not have exactly two answers (all of them are named), an answer in the data
        that is neither yes nor no, or an unknown mode.
    """
    answered: dict[str, dict[str, list[tuple[str | None, str]]]] = {}
    for category, image, response, answer in rows:
        pair = read_response(response, mode), read_answer(answer)
        answered.setdefault(category, {}).setdefault(image, []).append(pair)
    odd = [
        f"{c}/{p} has {len(pairs)}" for c, found in answered.items() for p, pairs in found.items() if len(pairs) != 2
    ]
    if odd:
        raise DataError(f"MME needs exactly two answers an image, but {', '.join(odd)}; answer both questions of each")
    return MmeScores({c: CategoryScore(tuple(map(_image_score, found.values()))) for c, found in answered.items()})


def _image_score(pairs: Sequence[tuple[str | None, str]]) -> ImageScore:
    return ImageScore(sum(said == answer for said, answer in pairs), sum(said is None for said, _ in pairs))
