"""Texts and pictures of requests, against the published code and in every layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.generation import Request, arrange
from paperhooks_evaluation import Document
from paperhooks_jmmmu import prompts
from paperhooks_jmmmu.data import JAPANESE, VERIFIED, read_questions
from prompt_data import CASES, row_of, write_rows


def failed(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("EXC:")


def shown(request: Request) -> tuple[str, list[int]]:
    """The text of a request, ``[]`` for a picture, and the strength of red of its pictures."""
    (message,) = request.messages
    text = "".join("[]" if part["type"] == "image" else part["text"] for part in message["content"])
    return text, [image.getpixel((0, 0))[0] for image in request.images]


@pytest.mark.parametrize("case", CASES["docs"], ids=lambda case: case["id"])
@pytest.mark.parametrize("kind", ["", "pro_"])
def test_texts_and_pictures_are_the_published_ones(tmp_path: Path, case: Mapping[str, Any], kind: str) -> None:
    wording, edition = (prompts.PRO_DIRECT, VERIFIED) if kind else (prompts.JMMMU, JAPANESE)
    slots = case[f"{kind}visual_slots"]
    folder = write_rows(tmp_path / "data", [row_of(case)])
    if failed(slots):
        with pytest.raises(
            DataError, match=rf"has 1 fault:\n  {case['id']}: (the options are|shows image_[28], which)"
        ):
            read_questions(str(folder), edition)
        return
    (document,) = read_questions(str(folder), edition).documents
    expected = case[f"{kind}doc_to_text"]
    assert prompts.question_text(document.data, wording) == expected
    assert prompts.shown_pictures(document.data, wording) == slots
    request = prompts.exam_request(document, wording, max_new_tokens=7, stop=["x"])
    numbers = [int(slot[-1]) for slot in slots]
    assert shown(arrange(request, "prepend")) == ("[]" * len(slots) + expected, numbers)
    text, pictures = shown(arrange(request, "joined"))
    assert (text, len(pictures)) == ("[]" * bool(slots) + expected, bool(slots))
    assert shown(arrange(request, "text-only")) == (expected, [])
    assert (request.max_new_tokens, request.stop, request.metadata) == (7, ("x",), {"id": case["id"]})
    if not kind:
        interleaved = case["doc_to_text_interleaved"]
        assert prompts.interleaved_text(expected) == interleaved
        ours, pictures = shown(arrange(request, "interleave"))
        if case["id"] not in ("validation_Music_3", "validation_Electronics_3", "validation_Design_5"):
            assert ours.replace("[]", "<image>") == interleaved
            assert sorted(pictures) == numbers


def document(question: str, options: Any = ("x", "y"), pictures: str = "123") -> Document:
    place = {f"image_{n}": {"picture": f"{n}.png"} for n in pictures}
    return Document(
        "validation_Design_1",
        data={"question": question, "options": list(options), "question_type": "multiple-choice", "answer": "A"},
        place=place,
    )


@pytest.mark.parametrize(
    ("question", "options", "prepended", "interleaved"),
    [
        ("<image 2>と<image 1>、<image 2>", "xy", ("[][]<image 2>と<image 1>、<image 2>", [1, 2]),
         ("[]と[]、「画像2」", [2, 1])),
        ("図", ["<image 1>", "<image 2>の<image 1>"], ("[][]図\nA. <image 1>\nB. <image 2>の<image 1>", [1, 2]),
         ("図\nA. []\nB. []の「画像1」", [1, 2])),
        ("<image1>と<image2>", "xy", ("[]<image 1>と<image2>", [1]), ("[]と[]", [1, 2])),
        ("<image2>と<Image  2>", "xy", ("<image2>と<Image  2>", []), ("[]と「画像2」", [2])),
        ("<image2>と<image 2>", "xy", ("[]<image2>と<image 2>", [2]), ("「画像2」と[]", [2])),
        ("<image9><image><image 1", "xy", ("<image9><image><image 1", []), ("<image9><image><image 1", [])),
    ],
)  # fmt: skip
def test_repeated_and_odd_placeholders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, options: Any,
    prepended: tuple[str, list[int]], interleaved: tuple[str, list[int]],
) -> None:  # fmt: skip
    monkeypatch.chdir(write_rows(tmp_path, []))
    request = prompts.exam_request(document(question, options))
    for layout, (text, pictures) in (("prepend", prepended), ("interleave", interleaved)):
        found, images = shown(arrange(request, layout))
        assert (found.split("\nA. x")[0].split("\n\n")[0], images) == (text, pictures), layout
    joined = arrange(request, "joined").images
    assert sum(image.width for image in joined) == 4 * len(prepended[1])


def test_a_mention_in_english() -> None:
    request = prompts.exam_request(document("<image 1> and <image 1>"), prompts.MMMU)
    mentions = [part["interleave"] for part in request.messages[0]["content"] if "interleave" in part]
    assert mentions == ["image 1"]
    assert prompts.question_text(document("Q?").data, prompts.MMMU) == (
        "Q?\nA. x\nB. y\n\nAnswer with the option's letter from the given choices directly."
    )


def test_a_picture_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="validation_Design_1: shows image_3, which it does not have; it has image_1"):
        prompts.exam_request(document("<image 1><image 3>", pictures="1"))


def test_the_texts_of_jmmmu_pro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_rows(tmp_path, []))
    steps = (
        "あなたの回答の最終行は、次の形式にしてください：'答え: $LETTER'（引用符なし）。"
        "ここで LETTER は選択肢のいずれかの文字です。答える前に step by step で考えてください。"
    )
    assert prompts.question_text(document("問").data, prompts.PRO_COT) == (
        f"問\nA. x\nB. y\n\n次の選択式問題に答えてください。{steps}"
    )
    role = "あなたの役割は画像で与えられた問題を解くことです。"
    direct = f"{role}与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"
    one = Document("validation_Design_1", data={}, place={"image": {"picture": "5.png"}})
    assert shown(arrange(prompts.vision_request(one), "interleave")) == (f"[]{direct}", [5])
    cot = prompts.vision_request(one, prompts.VISION_COT, max_new_tokens=4096)
    assert shown(arrange(cot, "text-only")) == (f"{role}{steps}", [])
    assert (prompts.vision_request(one).max_new_tokens, cot.max_new_tokens) == (256, 4096)


@pytest.mark.parametrize("layout", ["prepend", "interleave", "joined", "text-only"])
def test_the_model_s_own_token_in_a_question_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    testbed = pytest.importorskip("paperhooks_testbed")
    from paperhooks.generation import TransformersBackend

    monkeypatch.chdir(write_rows(tmp_path, []))
    model, processor = testbed.load_vlm()
    token = processor.image_token
    request = prompts.exam_request(document(f"{token}は<image 1>、{token}は<image 3>", [token, "y"]))
    prompt = TransformersBackend(model, processor).prompt("a", arrange(request, layout))
    pictures = {"prepend": 2, "interleave": 2, "joined": 1, "text-only": 0}[layout]
    assert (prompt.text.count(token), len(prompt.request.images)) == (pictures, pictures)
    assert "は" in prompt.text
