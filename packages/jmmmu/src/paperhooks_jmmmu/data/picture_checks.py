"""Pictures that cannot be decoded, found before a model is asked about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paperhooks.errors import DataError
from paperhooks_evaluation import Document
from paperhooks_evaluation.sources import placed_picture

__all__ = ["picture_faults"]

#: Pictures are decoded whole, and kept no larger than this.
_PIXELS = 1 << 16


def picture_faults(documents: Sequence[Document]) -> Iterator[str]:
    """For every document what is wrong with its pictures, with its id; ``""`` where they can be decoded.

    A picture that several documents have is decoded once.
    """
    known: dict[str, str] = {}
    for document in documents:
        for slot, place in sorted(document.place.items()):
            digest = document.data["pictures"][slot]
            if digest not in known:
                known[digest] = ""
                try:
                    placed_picture(place).open(_PIXELS)
                except DataError as error:
                    known[digest] = str(error)
        told = ((slot, known[document.data["pictures"][slot]]) for slot in sorted(document.place))
        yield "; ".join(f"{document.id}: {slot}: {fault}" for slot, fault in told if fault)
