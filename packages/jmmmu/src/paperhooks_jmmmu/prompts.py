"""What models are asked: the published texts of JMMMU, JMMMU-Pro and MMMU, and where their pictures stand.

Texts keep their placeholders, as in the published runs: pictures go before the text (layout ``prepend``). In the layout
``interleave`` a picture stands where it is mentioned first, and a mention behind that is a text such as 「画像2」.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.generation import Request
from paperhooks.io import Picture
from paperhooks_evaluation import Document
from paperhooks_evaluation.sources import placed_picture

from paperhooks_jmmmu.data.option_lists import LETTERS
from paperhooks_jmmmu.data.placeholders import ANY_FORM, odd_slots, repaired, shown_slots
from paperhooks_jmmmu.data.rows import CHOICE

__all__ = [
    "JMMMU",
    "MMMU",
    "PRO_COT",
    "PRO_DIRECT",
    "VISION_COT",
    "VISION_DIRECT",
    "Wording",
    "exam_request",
    "interleaved_text",
    "question_text",
    "shown_pictures",
    "vision_request",
]

_CHOICE: Final = "与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"
_OPEN: Final = "質問に対する回答を単語や短いフレーズで記入してください。"
_ROLE: Final = "あなたの役割は画像で与えられた問題を解くことです。"
_STEPS: Final = (
    "あなたの回答の最終行は、次の形式にしてください：'答え: $LETTER'（引用符なし）。"
    "ここで LETTER は選択肢のいずれかの文字です。答える前に step by step で考えてください。"
)
#: The texts of JMMMU-Pro's vision setting, whose questions are inside the pictures.
VISION_DIRECT: Final = _ROLE + _CHOICE
VISION_COT: Final = _ROLE + _STEPS


@dataclass(frozen=True, slots=True)
class Wording:
    """How questions are put.

    :param choice, open: the instruction behind a question; without one for open questions they are put like the others.
    :param mention: how a picture that has been shown is mentioned again, with the number of its slot.
    :param repairs: whether ``<image1>`` is read as ``<image 1>``.
    """

    choice: str
    open: str = ""
    mention: str = "「画像{}」"
    repairs: bool = False


JMMMU: Final = Wording(_CHOICE, _OPEN, repairs=True)
PRO_DIRECT: Final = Wording(_CHOICE)
PRO_COT: Final = Wording(f"次の選択式問題に答えてください。{_STEPS}")
MMMU: Final = Wording(
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase.",
    "image {}",
)


def question_text(data: Mapping[str, Any], wording: Wording = JMMMU) -> str:
    """The whole text of a question (the ``data`` of its document), with its placeholders.

    >>> data = {"question": "<image1>は何か。", "options": ["能面", "皿"], "question_type": "multiple-choice"}
    >>> print(question_text(data))
    <image 1>は何か。
    A. 能面
    B. 皿
    <BLANKLINE>
    与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。
    """
    question = repaired(data["question"]) if wording.repairs else data["question"]
    if wording.open and data["question_type"] != CHOICE:
        return f"{question}\n\n{wording.open}"
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, data["options"], strict=False))
    return f"{question}\n{options}\n\n{wording.choice}"


def interleaved_text(text: str) -> str:
    """A text as harnesses interleave it: ``<image>`` for each of the placeholders 1 to 7, also where one is repeated.

    >>> interleaved_text("<image 2>と<image 8>")
    '<image>と<image 8>'
    """
    return re.sub(r"<image [1-7]>", "<image>", text)


def shown_pictures(data: Mapping[str, Any], wording: Wording = JMMMU) -> list[str]:
    """The slots whose pictures are shown, in their order: those that the text mentions."""
    return shown_slots([question_text(data, wording)])


def exam_request(
    document: Document, wording: Wording = JMMMU, *, max_new_tokens: int = 1024, stop: Sequence[str] = ()
) -> Request:
    """A question with its pictures.

    A picture that is mentioned in another form alone (``<image2>``) is shown in the layout ``interleave``, and in no
    other: the published code does not know that form.

    :raises DataError: a placeholder without picture, or another picture than when the data were read.
    """
    text = question_text(document.data, wording)
    shown = shown_slots([text])
    if lacking := [slot for slot in shown if slot not in document.place]:
        raise DataError(
            f"{document.id}: shows {', '.join(lacking)}, which it does not have; it has "
            f"{', '.join(document.place) or 'no picture'}"
        )
    repairs = [slot for slot in odd_slots([text]) if slot in document.place]
    return Request(
        [{"role": "user", "content": list(_parts(text, shown, repairs, wording))}],
        images=[_picture(document, slot) for slot in (*shown, *repairs)],
        max_new_tokens=max_new_tokens,
        stop=tuple(stop),
        metadata={"id": document.id},
    )


def vision_request(
    document: Document, text: str = VISION_DIRECT, *, max_new_tokens: int = 256, stop: Sequence[str] = ()
) -> Request:
    """A question of JMMMU-Pro's vision setting: its one picture, then a text."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return Request(
        [{"role": "user", "content": content}],
        images=[_picture(document, "image")],
        max_new_tokens=max_new_tokens,
        stop=tuple(stop),
        metadata={"id": document.id},
    )


def _picture(document: Document, slot: str) -> Picture:
    return placed_picture(document.place[slot], document.data.get("pictures", {}).get(slot, ""))


def _parts(text: str, shown: Sequence[str], repairs: Sequence[str], wording: Wording) -> Iterator[dict[str, Any]]:
    """Texts and images in their order; an image leaves its placeholder where a layout moves it away."""
    placed: set[str] = set()
    end = 0
    for found in ANY_FORM.finditer(text):
        slot = f"image_{int(found[1])}"
        if slot not in (*shown, *repairs):
            continue
        if end < found.start():
            yield {"type": "text", "text": text[end : found.start()]}
        end = found.end()
        exact = found[0] == f"<image {found[1]}>"
        if slot in placed or exact != (slot in shown):
            yield {"type": "text", "text": found[0], "interleave": wording.mention.format(int(found[1]))}
            continue
        placed.add(slot)
        image = {"type": "image", "index": (*shown, *repairs).index(slot), "text": found[0]}
        yield image if exact else {**image, "only": "interleave"}
    yield {"type": "text", "text": text[end:]}
