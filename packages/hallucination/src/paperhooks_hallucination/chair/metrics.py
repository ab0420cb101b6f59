"""CHAIR (Rohrbach et al. 2018, arXiv 1809.02156): objects that a caption names and the image does not show.

Captions come in as lemmas, the words of a sentence in their base form; :mod:`paperhooks_hallucination.chair.lemmas`
makes them. The objects are the rows of a synonym table, :mod:`paperhooks_hallucination.chair.objects` by default.

Two modes. ``official`` reproduces the published script with its quirks: table entries with a blank in front never
match, nor do entries with capitals or of three words, and after "seat" was dropped the places of later words are those
of their left neighbours. ``strict`` repairs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean

from paperhooks_hallucination.chair.objects import COCO_OBJECTS, DOUBLE_WORDS
from paperhooks_hallucination.checks import check_mode, check_same_ids, check_same_length

__all__ = [
    "CaptionObjects",
    "CaptionScore",
    "ChairScores",
    "Mention",
    "ObjectTable",
    "caption_score",
    "chair_scores",
    "image_objects",
]


@dataclass(frozen=True, slots=True)
class Mention:
    """A word of a caption that names an object: the word, the object's class, and the place of the lemma (from 0)."""

    word: str
    name: str
    index: int


@dataclass(frozen=True, slots=True)
class CaptionObjects:
    """A caption after merging: its words, and those of them that name objects, in order."""

    words: tuple[str, ...]
    mentions: tuple[Mention, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The class of every mention; repeats stay."""
        return tuple(mention.name for mention in self.mentions)


class ObjectTable:
    """Finds objects in lemmas.

    :param rows: one row of synonyms a class; the first entry is the class name. Of a word in several rows the last
        counts.
    :param merged: pairs of adjacent lemmas, joined by a blank, to the word they become.
    :param mode: ``"official"`` or ``"strict"``, see the module's text.
    :raises DataError: an unknown mode, or a row that is empty or holds anything but text.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[str]] = COCO_OBJECTS,
        merged: Mapping[str, str] = DOUBLE_WORDS,
        mode: str = "official",
    ) -> None:
        check_mode("CHAIR", mode)
        _check_rows(rows)
        self.mode = mode
        self.class_of = _classes(rows, tidy=mode == "strict")
        self.merged = dict(merged)
        if mode == "strict":
            # Every name of several words has to be joined before it can be found.
            self.merged = {word: word for word in self.class_of if " " in word} | self.merged
        self._span = max((key.count(" ") + 1 for key in self.merged), default=1) if mode == "strict" else 2

    def find(self, lemmas: Sequence[str]) -> CaptionObjects:
        """The objects in a caption of lower-case lemmas."""
        words, places = self._merge(lemmas)
        kept = list(zip(words, places, strict=True))
        if "toilet" in words and "seat" in words:
            kept = [(word, place) for word, place in kept if word != "seat"]
            if self.mode == "official":  # the script drops the words and forgets their places
                kept = [(word, place) for (word, _), place in zip(kept, places, strict=False)]
        found = [Mention(word, self.class_of[word], place) for word, place in kept if word in self.class_of]
        return CaptionObjects(tuple(words), tuple(found))

    def name(self, category: str) -> str:
        """The class of a category of the annotations; raises DataError for one that the table lacks."""
        try:
            return self.class_of[category]
        except KeyError:
            known = set(self.class_of.values())
            raise DataError(f"no row of the synonym table has {category!r}; {did_you_mean(category, known)}") from None

    def _merge(self, lemmas: Sequence[str]) -> tuple[list[str], list[int]]:
        words: list[str] = []
        places: list[int] = []
        i = 0
        while i < len(lemmas):
            joined, length = self._joined(lemmas, i)
            words.append(joined)
            places.append(i)
            i += length
        return words, places

    def _joined(self, lemmas: Sequence[str], start: int) -> tuple[str, int]:
        for length in range(self._span, 1, -1):
            together = " ".join(lemmas[start : start + length])
            if start + length <= len(lemmas) and together in self.merged:
                return self.merged[together], length
        return lemmas[start], 1


def _check_rows(rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows):
        if isinstance(row, str) or not row or not all(isinstance(word, str) for word in row):
            raise DataError(f"row {number} of the synonym table is {row!r}; expected a list of words, class name first")


def _classes(rows: Sequence[Sequence[str]], tidy: bool) -> dict[str, str]:
    if not tidy:
        return {word: row[0] for row in rows for word in row}
    return {" ".join(word.lower().split()): row[0].strip() for row in rows for word in row}


def image_objects(
    table: ObjectTable, categories: Iterable[str] = (), references: Iterable[Sequence[str]] = ()
) -> frozenset[str]:
    """The objects of an image: classes of its annotated instances, and those that its reference captions name.

    ``references`` are captions as lemmas.

    :raises DataError: a category that the table lacks.
    """
    named = {name for lemmas in references for name in table.find(lemmas).names}
    return frozenset(named | {table.name(category) for category in categories})


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """One caption against the objects of its image.

    :param hallucinated: mentions of objects that the image does not have.
    :param mentions: how many mentions of objects there are; repeats count.
    :param recalled, truth: classes of the image that the caption names, and all classes of the image.
    :param length: words after merging.
    """

    hallucinated: tuple[Mention, ...]
    mentions: int
    recalled: frozenset[str]
    truth: frozenset[str]
    length: int

    @property
    def counts(self) -> tuple[int, int, int, int, int, int]:
        """1 if an object is hallucinated, hallucinated mentions, mentions, recalled classes, classes, length."""
        wrong = len(self.hallucinated)
        return (int(wrong > 0), wrong, self.mentions, len(self.recalled), len(self.truth), self.length)


def caption_score(found: CaptionObjects, truth: Iterable[str]) -> CaptionScore:
    """What a caption says about an image with the classes ``truth``."""
    classes = frozenset(truth)
    wrong = tuple(mention for mention in found.mentions if mention.name not in classes)
    return CaptionScore(wrong, len(found.mentions), classes.intersection(found.names), classes, len(found.words))


@dataclass(frozen=True, slots=True)
class ChairScores:
    """Sums over captions and what follows from them; every quotient by zero is 0.

    :param n, hallucinating: captions, and those with at least one hallucinated object.
    :param hallucinated, mentions: hallucinated mentions, and all mentions of objects.
    :param recalled, truth: distinct classes that captions name rightly, and distinct classes of their images, summed
        over captions.
    :param words: words after merging.
    """

    n: int = 0
    hallucinating: int = 0
    hallucinated: int = 0
    mentions: int = 0
    recalled: int = 0
    truth: int = 0
    words: int = 0

    @property
    def chair_s(self) -> float:
        """C_S: share of captions with a hallucinated object, 0 to 1."""
        return _share(self.hallucinating, self.n)

    @property
    def chair_i(self) -> float:
        """C_I: share of hallucinated mentions among all mentions, 0 to 1."""
        return _share(self.hallucinated, self.mentions)

    @property
    def recall(self) -> float:
        """Share of the images' classes that the captions name, 0 to 1."""
        return _share(self.recalled, self.truth)

    @property
    def length(self) -> float:
        """Mean words a caption, after merging."""
        return _share(self.words, self.n)

    @classmethod
    def total(cls, counts: Iterable[Sequence[int]]) -> ChairScores:
        """The scores of captions by their :attr:`CaptionScore.counts`."""
        rows = list(counts)
        return cls(len(rows), *map(sum, zip(*rows, strict=True))) if rows else cls()


def chair_scores(
    captions: Sequence[Sequence[str]],
    truth: Sequence[Iterable[str]],
    *,
    table: ObjectTable | None = None,
    caption_ids: Sequence[Any] | None = None,
    truth_ids: Sequence[Any] | None = None,
) -> ChairScores:
    """Scores of captions, given as lemmas, against the classes of their images.

    The ids, given together, say which image a caption and a set of classes belong to; both in the same order.

    :raises DataError: other numbers of captions and sets, ids that differ (the first difference is named), or a caption
        that is a text and not a list of lemmas.
    """
    for number, caption in enumerate(captions):
        if isinstance(caption, str):
            hint = "lemmatize(tokenize(text)) of paperhooks_hallucination.chair"
            raise DataError(f"caption {number} is the text {caption!r:.60}; expected a list of its lemmas: {hint}")
    check_same_length("captions", captions, "sets of objects", truth)
    check_same_ids("captions", caption_ids, "sets of objects", truth_ids, n=len(captions))
    finder = table if table is not None else _DEFAULT
    pairs = zip(captions, truth, strict=True)
    return ChairScores.total(caption_score(finder.find(lemmas), classes).counts for lemmas, classes in pairs)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


_DEFAULT: Final = ObjectTable()
