"""Controls: moved options, other pictures or none, and scores that need no model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from exam_runs import backend, canned, choice, open_question, quick, record
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, Request, arrange
from paperhooks_evaluation import Document
from paperhooks_evaluation import compare as compare_runs
from paperhooks_jmmmu import Jmmmu, JmmmuPro
from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.baselines import baselines
from paperhooks_jmmmu.controls import blank, frequent_letter, is_rotatable, rotated, shuffled
from paperhooks_jmmmu.data import CHOICE, JAPANESE, read_questions
from PIL import Image

compare = partial(compare_runs, resamples=20)
OPTIONS = ("能面", "浮世絵", "枯山水", "漆器", "茶碗")


# -- rotation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("by", range(7))
def test_letters_move_with_their_texts(k: int, by: int) -> None:
    for answer in letters_of(OPTIONS[:k]):
        before = choice(options=OPTIONS[:k], answer=answer)
        (after,) = rotated([before], by)
        options = after.data["options"]
        assert options == [OPTIONS[(place + by) % k] for place in range(k)], "up by so many places"
        assert options["ABCDE".index(after.data["answer"])] == OPTIONS["ABCDE".index(answer)]
        assert (after.id, after.groups) == (before.id, before.groups)
        assert before.data["options"] == [*OPTIONS[:k]], "what was given is left as it was"


def test_several_answers_move_too() -> None:
    (after,) = rotated([choice(options=OPTIONS, answer=["A", "C"])], 1)
    assert after.data["answer"] == ["E", "B"]


def test_over_all_rotations_every_letter_is_right_once() -> None:
    letters = [rotated([choice(options=OPTIONS, answer="B")], by)[0].data["answer"] for by in range(5)]
    assert sorted(letters) == [*"ABCDE"]
    # A model that always says A gets 1 / k over all rotations, and one that knows the text gets all of them.
    for by in range(5):
        (one,) = rotated([choice(options=OPTIONS, answer="B")], by)
        knows = "ABCDE"[one.data["options"].index("浮世絵")]
        assert record(Jmmmu(), one, knows, "official-wrong").score == 1


@pytest.mark.parametrize(
    "option",
    ["上記のすべて", "いずれでもない", "どれも正しくない", "下記の通り", "AとB", "A and C", "None of the above", "Both",
     "All of these", "A", "（Ｂ）", "b", "C.", "すべて正しい", "選択肢Aと同じ", "AとBは正しい",
     "答えはＡ、Ｂ", "either", "a or c", "these options"],
)  # fmt: skip
def test_options_that_speak_of_others_stay(option: str) -> None:
    assert is_rotatable(OPTIONS)
    assert not is_rotatable([*OPTIONS[:3], option])
    assert rotated([choice(options=[*OPTIONS[:3], option])], 1) == []


@pytest.mark.parametrize(
    "option",
    [
        "Bach",
        "a cat",
        "<image 1>",
        "3",
        "Na",
        "the abovementioned",
        "ビタミンA",
        "AB型",
        "AとZ",
        "cats and dogs",
        "Bachか",
    ],
)
def test_options_that_only_look_so_may_move(option: str) -> None:
    assert is_rotatable([*OPTIONS[:3], option])


def test_all_rotations_ask_the_same_questions(japanese: Path) -> None:
    asked = [[one.id for one in Jmmmu(rotation=by).documents(str(japanese))] for by in (1, 2, 9)]
    assert all(ids == asked[0] for ids in asked)
    every = Jmmmu().documents(str(japanese))
    left = {one.id for one in every} - set(asked[0])
    assert left >= {one.id for one in every if one.data["question_type"] != CHOICE} != set()
    assert len(asked[0]) > 40
    assert rotated([choice(options=["x"]), open_question()], 1) == []


def test_a_rotated_question_says_so_in_its_text(japanese: Path) -> None:
    for number in (0, 1):
        task = Jmmmu(rotation=number)
        one = next(one for one in task.documents(str(japanese)) if one.id == "test_Japanese_Art_2")
        text = arrange(task.request(one), "text-only").messages[0]["content"][0]["text"]
        assert [line[3:] for line in text.splitlines() if line[1:3] == ". "] == one.data["options"]


def test_compare_takes_runs_that_differ_in_a_control(japanese: Path, tmp_path: Path) -> None:
    """A model that always says A: paired by id, with the questions that may not move left out."""
    for number in (0, 1):
        task = Jmmmu(rotation=number)
        quick(CallableBackend(lambda request: "A"), None, task, data=japanese, out=tmp_path / str(number))
    with pytest.raises(DataError, match="rotation: 0 in a, 1 in b") as refused:
        compare(tmp_path / "0", tmp_path / "1")
    assert "documents" in str(refused.value)
    found = compare(tmp_path / "0", tmp_path / "1", allow=["rotation", "documents"])
    before, after = (
        {one.id: one.data["answer"] for one in Jmmmu(rotation=number).documents(str(japanese))} for number in (0, 1)
    )
    assert found.overall.n == len(after)
    assert (found.only_a, found.only_b) == (len(before) - len(after), 0)
    assert found.overall.better == sum(after[name] == "A" != before[name] for name in after)
    assert found.overall.worse == sum(before[name] == "A" != after[name] for name in after)


# -- pictures ----------------------------------------------------------------------------------------------------------


def colours(request: Request) -> list[Any]:
    return [(image.size, image.convert("RGB").getcolors(1 << 20)) for image in arrange(request, "prepend").images]


def test_blank_pictures_are_white_and_as_large(japanese: Path) -> None:
    own, white = Jmmmu(), Jmmmu(pictures="blank")
    documents = white.documents(str(japanese))
    assert documents == own.documents(str(japanese)), "the questions are the same"
    for one in documents[::5]:
        before, after = colours(own.request(one)), colours(white.request(one))
        assert [size for size, _ in after] == [size for size, _ in before]
        assert all(found == [(size[0] * size[1], (255, 255, 255))] for size, found in after)
        assert own.request(one).messages == white.request(one).messages
    assert blank(Image.new("L", (3, 5))).size == (3, 5)


def test_shuffled_pictures_are_of_another_question_of_the_subject(japanese: Path) -> None:
    task = Jmmmu(pictures="shuffled")
    before, after = Jmmmu().documents(str(japanese)), task.documents(str(japanese))
    assert [(one.id, one.data["question"], one.data["answer"]) for one in after] == [
        (one.id, one.data["question"], one.data["answer"]) for one in before
    ]
    assert after == task.documents(str(japanese)), "the same in any call"
    owners: dict[str, set[str]] = {}  # two subjects may draw the same word
    for one in before:
        for digest in one.data["pictures"].values():
            owners.setdefault(digest, set()).add(one.groups["subject"])
    for one in after:
        assert all(one.groups["subject"] in owners[digest] for digest in one.data["pictures"].values())
        assert [picture.digest for picture in task.request(one).images] == [
            one.data["pictures"][slot] for slot in sorted(one.data["pictures"])
        ], "what is shown is what is told"


def pictured(question_id: str, *digests: str, shown: int | None = None) -> Document:
    slots = {f"image_{n}": digest for n, digest in enumerate(digests, 1)}
    one = choice(question_id)
    groups = {**one.groups, "pictures": str(len(digests) if shown is None else shown)}
    place = {slot: {"picture": f"{digest}.png"} for slot, digest in slots.items()}
    return replace(one, groups=groups, data={**one.data, "pictures": slots}, place=place)


def test_pictures_go_round_among_questions_that_show_as_many() -> None:
    documents = [
        pictured("validation_Design_1", "a"), pictured("validation_Design_2", "b", "c"),
        pictured("validation_Design_3", "d"), pictured("validation_Design_4", "e"), pictured("validation_Music_1", "f"),
        pictured("validation_Design_5"), pictured("validation_Design_6", "g", "h"),
    ]  # fmt: skip
    found = shuffled(documents)
    assert [[*one.data["pictures"].values()] for one in found] == [
        ["d"], ["g", "h"], ["e"], ["a"], ["f"], [], ["b", "c"],
    ]  # fmt: skip
    for one in found:
        assert [place["picture"] for place in one.place.values()] == [
            f"{digest}.png" for digest in one.data["pictures"].values()
        ]


def test_a_question_whose_pictures_are_in_other_slots_gets_as_many() -> None:
    """A row may have pictures that its text does not show."""
    documents = [pictured("validation_Design_1", "a", "b", shown=1), pictured("validation_Design_2", "c")]
    assert [one.data["pictures"] for one in shuffled(documents)] == [
        {"image_1": "c", "image_2": "c"}, {"image_1": "a"},
    ]  # fmt: skip


def test_without_pictures_the_text_keeps_its_placeholders(japanese: Path) -> None:
    task = Jmmmu()
    seen = 0
    for one in task.documents(str(japanese)):
        request = arrange(task.request(one), "text-only")
        assert request.images == []
        text = "".join(part["text"] for part in request.messages[0]["content"])
        assert text.count("<image ") == (one.data["question"] + "".join(one.data["options"])).count("<image ")
        seen += "<image " in text
    assert seen > 30


def test_controls_of_the_vision_setting(pro: Path) -> None:
    for kind in ("blank", "shuffled"):
        task = JmmmuPro(pictures=kind)
        before, after = JmmmuPro().documents(str(pro)), task.documents(str(pro))
        assert [one.id for one in before] == [one.id for one in after]
        changed = [
            colours(JmmmuPro().request(a)) != colours(task.request(b))
            for a, b in [*zip(before, after, strict=True)][::9]
        ]
        assert all(changed) or kind == "shuffled", "without a font two pictures may be alike"


def test_controls_are_runs_of_their_own(japanese: Path, tmp_path: Path) -> None:
    replies = canned(read_questions(str(japanese), JAPANESE).documents)
    for name, options in (("own", {}), ("blank", {"pictures": "blank"}), ("shuffled", {"pictures": "shuffled"})):
        quick(backend(replies), None, Jmmmu(**options), data=japanese, out=tmp_path / name, limit=12)
    for name, allow in (("blank", ["pictures"]), ("shuffled", ["pictures", "documents"])):
        with pytest.raises(DataError, match=f"pictures: own in a, {name} in b"):
            compare(tmp_path / "own", tmp_path / name)
        assert compare(tmp_path / "own", tmp_path / name, allow=allow).overall.delta == 0
    quick(backend(replies), None, Jmmmu(), data=japanese, out=tmp_path / "text", limit=12, layout="text-only")
    with pytest.raises(DataError, match="layout: prepend in a, text-only in b"):
        compare(tmp_path / "own", tmp_path / "text")
    assert compare(tmp_path / "own", tmp_path / "text", allow=["layout"]).overall.n == 12
    assert json.loads((tmp_path / "blank" / "result.json").read_text())["inputs"]["options"]["pictures"] == "blank"


# -- without a model ---------------------------------------------------------------------------------------------------


def test_baselines() -> None:
    documents = [
        choice("validation_Design_1", OPTIONS[:4], "B"), choice("validation_Design_2", OPTIONS[:2], "B"),
        choice("validation_Design_3", OPTIONS[:4], ["A", "B"]), choice("validation_Design_4", OPTIONS[:4], "A"),
        open_question(),
    ]  # fmt: skip
    found = baselines(documents)
    assert found["random"] == pytest.approx((3 * 0.25 + 0.5) / 5)
    assert found["always A"] == 2 / 5
    assert found["most frequent (B)"] == 2 / 5
    letters = [record(Jmmmu(seed=3), one, "", "official-per-question") for one in documents[:4]]
    assert baselines(documents, seed=3)["one draw"] == sum(one.score for one in letters) / 5
    assert len({baselines(documents, seed)["one draw"] for seed in range(20)}) > 1
    with pytest.raises(ValueError, match="there are no questions"):
        baselines([])


def test_the_draws_are_random_on_average() -> None:
    documents = [choice(f"validation_Design_{n}", OPTIONS[:4], "ABCD"[n % 4]) for n in range(1, 31)]
    mean = sum(baselines(documents, seed)["one draw"] for seed in range(300)) / 300
    assert mean == pytest.approx(0.25, abs=0.02)


def test_the_most_frequent_letter() -> None:
    assert frequent_letter("CABBC") == ("B", 2)
    assert frequent_letter([]) == ("", 0)
    assert Counter("CABBC").most_common(1)[0] == ("C", 2), "of several, the first of the alphabet"
