"""Controls: the same questions with options moved, or with other pictures or none to see.

What a model gets right without looking, or by a liking for a letter, says what its score is worth. Each control is an
option of the tasks, so a run of its own that ``compare`` takes: ``rotation=1``, ``pictures="blank"``.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks_evaluation import Document

from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.data import CHOICE

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PICTURES", "blank", "check_pictures", "frequent_letter", "is_rotatable", "rotated", "shuffled"]

#: What is shown: the question's own pictures, white ones of their size, or those of another question of the subject.
PICTURES: Final = ("own", "blank", "shuffled")

#: Words by which an option speaks of others, or of where it stands.
_RELATIVE: Final = re.compile(
    r"上記|下記|以上|以下の|いずれ|どれも|どちら|すべて|全て|両方|前述|選択肢|"
    r"\b(?:above|below|both|neither|either|none of|all of|these|options?)\b|"
    r"(?<![a-z])[A-IＡ-Ｉ]\s*(?:と|か|、|・|及び|および|and|or|&|,)\s*[A-IＡ-Ｉ](?![a-z])",
    re.IGNORECASE,
)
_LETTER: Final = re.compile(r"[\s(（「【]*[A-Ia-iＡ-Ｉ][\s)）」】.．。]*")


def check_pictures(name: str) -> str:
    """What is shown, if there is such a choice; raises DataError."""
    if name not in PICTURES:
        raise DataError(f"pictures = {name!r} is no control; {did_you_mean(name, PICTURES)}")
    return name


def is_rotatable(options: Sequence[str]) -> bool:
    """Whether options may change places: none is a letter, and none speaks of others or of its place.

    >>> is_rotatable(["能面", "浮世絵"]), is_rotatable(["能面", "上記のいずれでもない"]), is_rotatable(["B", "A"])
    (True, False, False)
    """
    return len(options) > 1 and not any(_RELATIVE.search(text) or _LETTER.fullmatch(text) for text in options)


def rotated(documents: Iterable[Document], by: int) -> list[Document]:
    """The multiple-choice questions whose options may change places, with options moved up by ``by`` places.

    Whatever moves over the first place comes to the last one; by a multiple of their number nothing changes. Questions
    that have to stay as they are, and open ones, are left out at every rotation but 0, so that all rotations ask the
    same ones.
    """
    return list(documents) if by == 0 else [_rotated(one, by) for one in documents if _may_rotate(one)]


def _may_rotate(document: Document) -> bool:
    return document.data["question_type"] == CHOICE and is_rotatable(document.data["options"])


def _rotated(document: Document, by: int) -> Document:
    options = document.data["options"]
    k, letters = len(options), letters_of(options)
    answer = document.data["answer"]
    moved = {letter: letters[(place - by) % k] for place, letter in enumerate(letters)}
    told = [moved[one] for one in answer] if isinstance(answer, list) else moved[answer]
    order = [options[(place + by) % k] for place in range(k)]
    return dataclasses.replace(document, data={**document.data, "options": order, "answer": told})


def shuffled(documents: Sequence[Document]) -> list[Document]:
    """Every question with the pictures of the next one of its subject that shows as many, the last with the first's.

    A question that is alone in that keeps its own.
    """
    alike: dict[tuple[str, str], list[int]] = {}
    for number, document in enumerate(documents):
        if document.groups.get("pictures", "0") != "0":
            alike.setdefault((document.groups["subject"], document.groups["pictures"]), []).append(number)
    found = list(documents)
    for numbers in alike.values():
        for number, other in zip(numbers, numbers[1:] + numbers[:1], strict=True):
            found[number] = _with_pictures_of(documents[number], documents[other])
    return found


def _with_pictures_of(document: Document, other: Document) -> Document:
    slots, given = sorted(document.data["pictures"]), sorted(other.data["pictures"])
    pairs = [(slot, given[place % len(given)]) for place, slot in enumerate(slots)]
    pictures = {slot: other.data["pictures"][source] for slot, source in pairs}
    place: dict[str, Any] = {slot: other.place[source] for slot, source in pairs if source in other.place}
    return dataclasses.replace(document, data={**document.data, "pictures": pictures}, place=place)


def blank(image: Any) -> Image:
    """A white image of the size of another one, opened or not."""
    from PIL import Image

    return Image.new("RGB", image.size, "white")


def frequent_letter(answers: Iterable[str]) -> tuple[str, int]:
    """The letter that is right most often, the first of the alphabet of several, and how often; ``("", 0)`` of none."""
    counts = Counter(answers)
    return min(((letter, n) for letter, n in counts.items()), key=lambda pair: (-pair[1], pair[0]), default=("", 0))
