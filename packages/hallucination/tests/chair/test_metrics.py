"""CHAIR as pure functions: hand-made cases, an independent second computation."""

from __future__ import annotations

import random

import pytest
from hallucination_data import PUBLISHED
from paperhooks.errors import DataError
from paperhooks_hallucination.chair import metrics as chair
from paperhooks_hallucination.chair import objects as chair_objects

TABLE = chair.ObjectTable(PUBLISHED["rows"], PUBLISHED["double_words"])
REPAIRED = chair.ObjectTable(PUBLISHED["rows"], PUBLISHED["double_words"], "strict")


def second_reading(words: list[str]) -> tuple[list[str], list[str], list[int], list[str]]:
    """Merged words that are objects, their classes, their places, and all merged words: a second way to compute it."""
    merged: list[tuple[str, int]] = []
    rest = list(enumerate(words))
    while rest:
        pair = " ".join(word for _, word in rest[:2])
        taken = 2 if pair in PUBLISHED["double_words"] else 1
        merged.append((PUBLISHED["double_words"].get(pair, rest[0][1]), rest[0][0]))
        rest = rest[taken:]
    everything, places = [word for word, _ in merged], [place for _, place in merged]
    kept = [word for word in everything if word != "seat"] if {"toilet", "seat"} <= set(everything) else everything
    last = {word: row[0] for row in PUBLISHED["rows"] for word in row}
    hits = [i for i, word in enumerate(kept) if word in last]
    return [kept[i] for i in hits], [last[kept[i]] for i in hits], [places[i] for i in hits], everything


def test_chair_agrees_with_a_second_computation():
    """2,000 random captions of words that matter, quirks included."""
    rng = random.Random(0)
    single = [word for row in PUBLISHED["rows"] for word in row if " " not in word]
    parts = [part for words in PUBLISHED["double_words"] for part in words.split()]
    pool = [*single, *parts * 8, *["toilet", "seat"] * 60, *["the", "of", "."] * 60]
    for _ in range(2000):
        caption = [rng.choice(pool) for _ in range(rng.randrange(14))]
        found = TABLE.find(caption)
        words, names, places, everything = second_reading(caption)
        assert list(found.words) == everything
        assert [mention.word for mention in found.mentions] == words
        assert list(found.names) == names
        assert [mention.index for mention in found.mentions] == places


def test_chair_by_hand():
    """Repeated mentions count in C_I, classes once in recall; lengths are after merging."""
    captions = [
        text.split() for text in ("a man and a man with a hot dog near a dog", "a passenger train", "nothing here")
    ]
    truth = [{"person", "pizza"}, {"train", "person", "car"}, {"cat"}]
    scores = chair.chair_scores(captions, truth, table=TABLE)
    assert scores == chair.ChairScores(3, 1, 2, 5, 2, 6, 11 + 2 + 2)
    assert scores.chair_s == pytest.approx(1 / 3)
    assert scores.chair_i == pytest.approx(2 / 5)
    assert scores.recall == pytest.approx(2 / 6)
    assert scores.length == pytest.approx(15 / 3)


def test_chair_quirks_and_repairs():
    """A blank in front, capitals, three words, and places behind a dropped seat."""

    def found(text: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        both = TABLE.find(text.split()), REPAIRED.find(text.split())
        official, repaired = ([(one.name, one.index) for one in objects.mentions] for objects in both)
        return official, repaired

    assert found("a motor bike") == ([], [("motorcycle", 1)])
    assert found("an iphone") == ([], [("cell phone", 1)])
    assert found("stove top oven") == ([("oven", 0), ("oven", 2)], [("oven", 0)])
    assert found("a seat and toilet by a dog") == ([("toilet", 2), ("dog", 5)], [("toilet", 3), ("dog", 6)])
    assert found("a dining table") == ([("dining table", 2)], [("dining table", 1)])


def test_chair_divides_by_zero_as_zero():
    """No object in captions or images, and no caption."""
    scores = chair.chair_scores([["a", "b"]], [set()], table=TABLE)
    assert (scores.chair_s, scores.chair_i, scores.recall, scores.length) == (0.0, 0.0, 0.0, 2.0)
    empty = chair.chair_scores([], [])
    assert (empty.chair_s, empty.chair_i, empty.recall, empty.length) == (0.0, 0.0, 0.0, 0.0)


def test_chair_objects_of_an_image():
    """Instances and reference captions together; a category that the table lacks is named."""
    found = chair.image_objects(TABLE, ["tv", "tv"], [["a", "puppy"], ["bow", "tie"]])
    assert found == {"tv", "dog", "tie"}
    with pytest.raises(DataError, match="no row of the synonym table has 'sofas'"):
        chair.image_objects(TABLE, ["sofas"])


def test_chair_refuses_what_does_not_belong_together():
    """Lengths, ids, tables, modes."""
    with pytest.raises(DataError, match="1 captions but 2 sets of objects"):
        chair.chair_scores([["a"]], [set(), set()])
    with pytest.raises(DataError, match="place 0: the id is 5 there and 6 here"):
        chair.chair_scores([["a"]], [set()], caption_ids=[5], truth_ids=[6])
    for rows in ([["cat"], []], ["cat"], [["cat", 3]]):
        with pytest.raises(DataError, match="of the synonym table is"):
            chair.ObjectTable(rows)
    with pytest.raises(DataError, match="CHAIR has no mode 'offical'"):
        chair.ObjectTable(mode="offical")


def test_own_table_covers_coco():
    """80 classes in the published order, no word twice, and the published words that belong together."""
    rows = chair_objects.COCO_OBJECTS
    assert [row[0] for row in rows] == [row[0] for row in PUBLISHED["rows"]]
    words = [word for row in rows for word in row]
    assert len(words) == len(set(words))
    assert all(word == word.strip().lower() for word in words)
    assert PUBLISHED["double_words"] == chair_objects.DOUBLE_WORDS
    own = chair.ObjectTable(mode="strict")
    for row in rows:
        for word in row:
            assert row[0] in own.find(word.split()).names, word


def test_a_caption_that_is_a_text_is_refused() -> None:
    """Its characters would be taken for lemmas, of which none is an object."""
    with pytest.raises(DataError, match="caption 1 is the text 'a dog'; expected a list of its lemmas"):
        chair.chair_scores([["a", "dog"], "a dog"], [{"dog"}, {"dog"}])
