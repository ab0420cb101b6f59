"""Placeholders of pictures in questions and options: ``<image 1>``, and forms that published code does not know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["ANY_FORM", "SLOTS", "odd_slots", "repaired", "shown_slots"]

#: The columns that hold pictures.
SLOTS: Final = tuple(f"image_{number}" for number in range(1, 8))
_EXACT: Final = re.compile(r"<image (\d+)>")
#: Also without a blank, with several, or in capitals.
ANY_FORM: Final = re.compile(r"<[ \u3000]{0,9}image[ \u3000]{0,9}(\d{1,9})[ \u3000]{0,9}>", re.IGNORECASE)


def repaired(question: str) -> str:
    """A question as the published code reads it: ``<image1>`` is ``<image 1>``, and nothing else is repaired."""
    return question.replace("<image1>", "<image 1>")


def shown_slots(texts: Sequence[str]) -> list[str]:
    """The slots whose placeholders occur, in the order in which their pictures are shown: sorted as texts.

    >>> shown_slots(["<image 2>と<image 1>", "<image 2>"])
    ['image_1', 'image_2']
    """
    return sorted({f"image_{number}" for text in texts for number in _EXACT.findall(text)})


def odd_slots(texts: Sequence[str]) -> list[str]:
    """The slots that occur in another form alone, such as ``<image2>``, sorted."""
    found = {f"image_{int(number)}" for text in texts for number in ANY_FORM.findall(text)}
    return sorted(found - set(shown_slots(texts)))
