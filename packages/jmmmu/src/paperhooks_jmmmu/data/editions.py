"""The data sets of the family, and how rows of one are told from those of another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from paperhooks_jmmmu.data.subjects import MMMU_ONLY, SUBJECTS

__all__ = ["ENGLISH", "JAPANESE", "VERIFIED", "VISION", "Edition", "kinship"]

_AGNOSTIC: Final = tuple(name for name, subject in SUBJECTS.items() if subject.subset == "CA")
#: Of a text in Japanese, and of one with a Japanese character at all, those of half width included.
_HIRAGANA: Final = re.compile("[\u3041-\u309f]")
_JAPANESE: Final = re.compile("[\u3041-\u30ff\u3400-\u9fff\uff66-\uff9f]")


@dataclass(frozen=True, slots=True)
class Edition:
    """A data set of the family.

    :param hub: its name on the hub. :param splits: the first of these that the data have is read.
    :param configs: those of the hub; files here are read by these where they have them, and whole where not.
    :param subjects: that it has, in the order of documents. :param others: that its data may have, and are left out.
    :param repairs: whether ``<image1>`` is read as ``<image 1>``. :param vision: whether a row is one picture.
    :param opens: whether it has open questions. :param japanese: whether its questions are in Japanese.
    """

    hub: str
    splits: tuple[str, ...] = ("test",)
    configs: tuple[str, ...] = ()
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    others: tuple[str, ...] = ()
    repairs: bool = False
    vision: bool = False
    opens: bool = True
    japanese: bool = True


JAPANESE: Final = Edition("JMMMU/JMMMU", configs=tuple(SUBJECTS), repairs=True)
VERIFIED: Final = Edition("JMMMU/JMMMU-Pro", configs=("standard",), opens=False)
VISION: Final = Edition("JMMMU/JMMMU-Pro", configs=("vision",), vision=True, opens=False)
ENGLISH: Final = Edition(
    "MMMU/MMMU", ("validation", "test"), _AGNOSTIC, _AGNOSTIC, (*MMMU_ONLY, *(set(SUBJECTS) - set(_AGNOSTIC))),
    japanese=False,
)  # fmt: skip


def kinship(edition: Edition, questions: Sequence[Any], pictures: int, opens: int) -> str:
    """Whose rows these look like, in a sentence, where they are hardly the edition's; ``""`` otherwise.

    :param questions: the questions of all rows, as they stand there.
    :param pictures: how many rows have a picture in one of the edition's columns. :param opens: how many are open.
    """
    texts = [one for one in questions if isinstance(one, str) and one.strip()]
    written = sum(_HIRAGANA.search(one) is not None for one in texts)
    if edition.vision:
        elsewhere = bool(texts) and not pictures
        return (
            "its rows have questions as texts and no picture in the column image: they look like those of JMMMU (task "
            "jmmmu) or of JMMMU-Pro's config standard (task jmmmu-verified)" if elsewhere else ""
        )  # fmt: skip
    if questions and not texts:
        return "its rows have no questions: they look like those of JMMMU-Pro's config vision (task jmmmu-pro)"
    if not edition.japanese and 2 * written > len(texts):
        return "its questions are in Japanese: they look like those of JMMMU (task jmmmu)"
    if opens and not edition.opens:
        return f"{opens} of its questions are open, and it has none: they look like those of JMMMU (task jmmmu)"
    if edition.japanese and texts and not any(map(_JAPANESE.search, texts)):
        return "no question of it is in Japanese: they look like those of MMMU (task mmmu-paired)"
    return ""
