"""Questions: every answer is checked against the scene by code that shares nothing with the generator."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from paperhooks_testbed import COLOURS, FORMS, KINDS, generate_scene, prompt, question_set, questions_for
from paperhooks_testbed.architecture import UNK
from paperhooks_testbed.questions import LISTINGS
from paperhooks_testbed.training.drills import DRILLS

SINGULAR = {**{f"{form}s": form for form in FORMS}, "crosses": "cross"}
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
ROWS = ["top", "top", "", "", "", "bottom", "bottom"]
COLUMNS = ["left", "left", "", "", "", "right", "right"]


def find(scene, words: str) -> list:
    """The objects that a phrase such as "red star", "star" or "red shape" names."""
    wanted = words.split()
    found = list(scene.shapes)
    for word in wanted:
        if word in COLOURS:
            found = [s for s in found if s.colour == word]
        elif word in FORMS:
            found = [s for s in found if s.form == word]
        else:
            assert word == "shape"
    return found


def solve(scene, text: str) -> str:
    """Answer a question by reading its words."""
    if match := re.fullmatch(r"is there a (.+) \?", text):
        return "yes" if find(scene, match[1]) else "no"
    if match := re.fullmatch(r"how many (\S+) shapes \?", text):
        return str(len(find(scene, match[1])))
    if match := re.fullmatch(r"how many (\S+) \?", text):
        return str(len(find(scene, SINGULAR[match[1]])))
    if match := re.fullmatch(r"where is the (.+) \?", text):
        (shape,) = find(scene, match[1])
        return "-".join(filter(None, (ROWS[shape.row], COLUMNS[shape.column]))) or "centre"
    if match := re.fullmatch(r"(what colour is the|which) shape (?:is )?(.+?) the (.+) \?", text):
        (anchor,) = find(scene, match[3])
        rows, columns = STEPS[match[2]]
        (other,) = [s for s in scene.shapes if (s.row, s.column) == (anchor.row + rows, anchor.column + columns)]
        return other.colour if "colour" in match[1] else other.form
    match = re.fullmatch(r"what colour is the (\S+) \?", text)
    (shape,) = find(scene, match[1])
    return shape.colour


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_follows_from_the_scene(kind):
    for question in question_set("train", 300, [kind], seed=5):
        assert question.kind == kind
        assert solve(question.scene, question.text) == question.answer, (question.text, question.scene)


def test_sets_are_reproducible_and_seeds_use_other_scenes():
    first, again, other = question_set("test", 50), question_set("test", 50), question_set("test", 50, seed=1)
    assert first == again
    assert not {q.scene_index for q in first} & {q.scene_index for q in other}
    assert {q.scene.split for q in first} == {"test"}


def test_kinds_and_answers_are_balanced():
    questions = question_set("dev", 1000)
    assert set(Counter(q.kind for q in questions).values()) == {200}
    answers = {kind: Counter(q.answer for q in questions if q.kind == kind) for kind in KINDS}
    assert 0.4 < answers["existence"]["yes"] / 200 < 0.6
    assert max(answers["colour"].values()) < 0.3 * 200
    assert max(answers["count"].values()) < 0.45 * 200
    assert max(answers["place"].values()) < 0.3 * 200
    assert max(answers["two-step"].values()) < 0.2 * 200
    assert len(answers["place"]) == 9
    assert set(answers["two-step"]) == set(COLOURS) | set(FORMS)


def test_absent_pairs_are_often_those_whose_halves_are_present():
    absent = [q for q in question_set("dev", 300, ["existence"]) if q.answer == "no"]
    hard = 0
    for question in absent:
        words = question.text.split()[3:-1]
        forms, colours = {s.form for s in question.scene.shapes}, {s.colour for s in question.scene.shapes}
        hard += len(words) == 2 and words[0] in colours and words[1] in forms
    assert hard > len(absent) / 3


def test_one_draw_never_repeats_a_text_and_knows_its_kinds():
    scene = generate_scene("train", 1)
    texts = [q.text for q in questions_for(scene, random.Random(0), list(KINDS) * 10)]
    assert len(texts) == len(set(texts)) > 10
    with pytest.raises(ValueError, match="there is no kind of question 'size'"):
        questions_for(scene, random.Random(0), ["size"])


def test_image_tokens_belong_to_the_objects_in_question():
    for question in question_set("train", 200, ["two-step"], seed=3):
        owners = [s for s in question.scene.shapes if set(s.tokens) <= set(question.image_tokens)]
        assert len(owners) == 2
        assert len(question.image_tokens) == 8
        assert question.answer in {owners[0].colour, owners[0].form, owners[1].colour, owners[1].form}
    for question in question_set("train", 100, ["existence"], seed=3):
        assert bool(question.image_tokens) == (question.answer == "yes")


def test_the_tokenizer_knows_every_word(processor):
    unknown = processor.tokenizer.convert_tokens_to_ids(UNK)
    for question in question_set("train", 1000, seed=4):
        ids = processor.tokenizer(f"{question.text} {question.answer}")["input_ids"]
        assert unknown not in ids
        assert len(ids) == 2 + len(question.text.split())


def test_prompt_puts_the_image_first():
    question = question_set("test", 1)[0]
    assert prompt(question) == f"<image> {question.text}"


def test_drills_are_true_and_stay_out_of_the_question_sets():
    assert set(KINDS) == set(LISTINGS) < set(DRILLS)
    asked = Counter()
    for index in range(60):
        scene = generate_scene("train", index, 8)
        kinds = ["neighbour", "coordinate", "cell"] * 3
        for question in questions_for(scene, random.Random(index), kinds, DRILLS):
            asked[question.kind] += 1
            if match := re.fullmatch(r"how many (above|left of) the (.+) \?", question.text):
                (shape,) = find(scene, match[2])
                assert question.answer == str(shape.row if match[1] == "above" else shape.column)
            elif match := re.fullmatch(r"(what colour|which shape) is in (\d) (\d) \?", question.text):
                (shape,) = [s for s in scene.shapes if (s.row, s.column) == (int(match[2]), int(match[3]))]
                assert question.answer == (shape.colour if "colour" in match[1] else shape.form)
            else:
                assert solve(scene, question.text) == question.answer
                (anchor,) = find(scene, question.text.split(" the ")[-1].removesuffix(" ?"))
                beside = [s for s in scene.shapes if abs(s.row - anchor.row) + abs(s.column - anchor.column) == 1]
                assert len(beside) >= 2
    assert set(asked) == {"two-step", "coordinate", "cell"}
    with pytest.raises(ValueError, match="there is no kind of question 'cell'"):
        question_set("train", 1, ["cell"])
