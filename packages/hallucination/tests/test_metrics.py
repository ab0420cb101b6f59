"""POPE, MME and CHAIR as pure functions: reference values, hand-made cases, an independent second computation."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paperhooks.errors import DataError, MissingExtra
from paperhooks_hallucination.chair import lemmas
from paperhooks_hallucination.chair import metrics as chair
from paperhooks_hallucination.chair import objects as chair_objects
from paperhooks_hallucination.checks import raise_faults
from paperhooks_hallucination.mme import metrics as mme
from paperhooks_hallucination.pope import metrics as pope

FOLDER = Path(__file__).parent / "reference"
METRICS = json.loads((FOLDER / "metrics.json").read_text())
PUBLISHED = json.loads((FOLDER / "chair_synonyms.json").read_text())


# POPE


def test_pope_official_matches_the_published_script():
    """Every response, every count and every ratio of the reference."""
    known, official = METRICS["pope"], METRICS["pope"]["official"]
    answers = [int(pope.parse_official(response) == "yes") for response in known["answers"]]
    assert answers == known["per_answer"]
    scores = pope.pope_scores(known["answers"], known["labels"])
    assert scores.counts == (official["TP"], official["FP"], official["TN"], official["FN"], 0)
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert getattr(scores, name) == pytest.approx(official[name], rel=1e-12)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", "yes"),
        ("NO", "yes"),
        ("Nope", "yes"),
        ("No\nbecause", "yes"),
        ("No,because", "yes"),
        ("no, it does not", "no"),
        ("It is not. Yes", "no"),
        ("Yes. No.", "yes"),
        ("  No", "no"),
        ("\tNo", "yes"),
    ],
)
def test_pope_official_keeps_the_quirks(response: str, answer: str):
    """What a reader would read otherwise, the published script reads like this."""
    assert pope.parse_official(response) == answer


def test_pope_strict_counts_what_it_cannot_read():
    """Only the two words count; the rest is wrong for the accuracy and outside precision and recall."""
    responses = [" Yes ", "no\n", "No.", "yes it is", "NO", "yes"]
    labels = ["yes", "yes", "no", "yes", "no", "no"]
    scores = pope.pope_scores(responses, labels, mode="strict")
    assert scores.counts == (1, 1, 1, 1, 2)
    assert scores.accuracy == pytest.approx(2 / 6)
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.5, 0.5)
    assert scores.yes_ratio == pytest.approx(2 / 6)


def test_pope_divides_by_zero_as_zero():
    """No yes at all, and no question at all."""
    scores = pope.pope_scores(["No", "No"], ["yes", "no"])
    assert (scores.precision, scores.recall, scores.f1, scores.yes_ratio) == (0.0, 0.0, 0.0, 0.0)
    empty = pope.pope_scores([], [])
    assert (empty.n, empty.accuracy, empty.f1) == (0, 0.0, 0.0)


def test_pope_refuses_what_does_not_belong_together():
    """Lengths, ids, labels, modes."""
    with pytest.raises(DataError, match="2 responses but 1 labels"):
        pope.pope_scores(["yes", "no"], ["yes"])
    with pytest.raises(DataError, match="place 1: the id is 7 there and 2 here"):
        pope.pope_scores(["yes"] * 3, ["yes"] * 3, response_ids=[1, 7, 8], label_ids=[1, 2, 3])
    with pytest.raises(DataError, match="only the ids of the responses"):
        pope.pope_scores(["yes"], ["yes"], response_ids=[1])
    with pytest.raises(DataError, match="2 ids but 1 responses"):
        pope.pope_scores(["yes"], ["yes"], response_ids=[1, 2], label_ids=[1, 2])
    with pytest.raises(DataError, match="'maybe' is neither"):
        pope.pope_scores(["yes"], ["maybe"])
    with pytest.raises(DataError, match="did you mean 'strict'"):
        pope.pope_scores(["yes"], ["yes"], mode="strickt")
    assert pope.pope_scores(["yes"], ["Yes "], response_ids=[3], label_ids=[3]).tp == 1


def test_pope_scores_add_up():
    """Parts taken together give the scores of the whole."""
    rng = random.Random(0)
    responses = [rng.choice(["yes", "no", "No, sir", "hm"]) for _ in range(40)]
    labels = [rng.choice(["yes", "no"]) for _ in range(40)]
    whole = pope.pope_scores(responses, labels, mode="strict")
    assert (
        pope.pope_scores(responses[:15], labels[:15], mode="strict")
        + pope.pope_scores(responses[15:], labels[15:], mode="strict")
        == whole
    )
    assert whole.unparsable == sum(response not in ("yes", "no") for response in responses)


# MME


def test_mme_official_matches_the_published_script():
    """Parsing, category scores and the total of the reference."""
    known = METRICS["mme"]
    assert [mme.parse_official(response) for _, _, response, _ in known["rows"]] == known["parsed"]
    scores = mme.mme_scores([tuple(row) for row in known["rows"]])
    assert {name: one.score for name, one in scores.categories.items()} == known["per_category"]
    assert scores.total() == pytest.approx(known["total"], rel=1e-12)
    assert scores.total(mme.HALLUCINATION) == pytest.approx(known["total"], rel=1e-12)
    assert scores.total(["count", "color", "OCR"]) == 100.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [("", "other"), ("y", "yes"), ("N.", "no"), ("x", "other"), ("y.e.s", "yes"), ("nothing", "no")],
)
def test_mme_official_reads_the_first_four_characters(response: str, answer: str):
    """Full stops vanish first, single letters count."""
    assert mme.parse_official(response) == answer


def test_mme_counts_by_image():
    """Accuracy is by question, accuracy+ by image; strict refuses "Yes."."""
    rows = [
        ("count", "a", "Yes.", "Yes"),
        ("count", "a", "no", "No."),
        ("count", "b", "no", "Yes"),
        ("count", "b", "no", "No"),
    ]
    one = mme.mme_scores(rows).categories["count"]
    assert (one.n, one.accuracy, one.accuracy_plus, one.score, one.unparsable) == (2, 75.0, 50.0, 125.0, 0)
    strict = mme.mme_scores(rows, mode="strict").categories["count"]
    assert (strict.accuracy, strict.accuracy_plus, strict.unparsable) == (50.0, 0.0, 1)
    assert mme.CategoryScore(()).score == 0.0


def test_mme_refuses_images_without_two_answers():
    """All of them are named, of every category."""
    rows = [("count", "a", "yes", "Yes"), ("color", "a", "yes", "Yes"), *[("color", "b", "no", "No")] * 3]
    with pytest.raises(DataError, match="count/a has 1, color/a has 1, color/b has 3"):
        mme.mme_scores(rows)
    with pytest.raises(DataError, match="'2' is neither"):
        mme.mme_scores([("count", "a", "2", "2")] * 2)


# CHAIR

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


# Lemmas


def test_plain_lemmas():
    """Punctuation counts as words, contractions part, plurals become singular."""
    found = lemmas.PLAIN("Two women's buses, 3 knives; the man can't see well-fed dogs or wine glasses.")
    expected = "two woman 's bus , 3 knife ; the man ca n't see well-fed dog or wine glass ."
    assert found == expected.split()
    assert lemmas.tokenize("the cat’s toy") == ["the", "cat", "'s", "toy"]
    assert lemmas.PLAIN("") == []


def test_plain_lemmas_find_every_class_in_the_plural():
    """Of every word of the table, its plural as English makes it."""
    table = chair.ObjectTable(mode="strict")
    pairs = (
        "man men",
        "woman women",
        "child children",
        "mouse mice",
        "goose geese",
        "ox oxen",
        "knife knives",
        "calf calves",
    )
    irregular = dict(pair.split() for pair in pairs)
    same = {
        "people",
        "men",
        "women",
        "children",
        "sheep",
        "cattle",
        "aircraft",
        "scissors",
        "skis",
        "luggage",
        "baggage",
    }
    for row in chair_objects.COCO_OBJECTS:
        for word in row:
            first, _, last = word.rpartition(" ")
            compounds = {end: plural for end, plural in irregular.items() if last.endswith(end)}
            if last in same or last == "oxen":
                plural = last
            elif compounds and not last.endswith("human"):
                end = max(compounds, key=len)
                plural = last.removesuffix(end) + compounds[end]
            elif last.endswith(("s", "x", "ch", "sh")):
                plural = last + "es"
            elif last.endswith("y") and last[-2] not in "aeo":
                plural = last[:-1] + "ies"
            else:
                plural = last + "s"
            caption = f"{first} {plural}".strip()
            assert row[0] in table.find(lemmas.PLAIN(caption)).names, caption


def test_nltk_is_optional(monkeypatch: pytest.MonkeyPatch):
    """Without the package the extra is named; without its data the download; with both it is used as published."""
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(MissingExtra, match=r"paperhooks-cca\[nltk\]"):
        lemmas.NLTK("A dog")

    def nothing(*_: object) -> None:
        raise LookupError("punkt_tab not found")

    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace(word_tokenize=nothing))
    with pytest.raises(DataError, match=r"nltk\.downloader punkt_tab"):
        lemmas.NLTK("A dog")

    asked: list[tuple[str, str]] = []

    class Lemmatizer:
        def lemmatize(self, word: str, pos: str) -> str:
            asked.append((word, pos))
            return word.rstrip("s")

    tags = {"dogs": "NNS", "runs": "VBZ", "big": "JJ", "fast": "RB", "a": "DT"}
    fake = SimpleNamespace(
        word_tokenize=str.split,
        pos_tag=lambda tokens: [(token, tags[token]) for token in tokens],
        stem=SimpleNamespace(WordNetLemmatizer=Lemmatizer),
    )
    monkeypatch.setitem(sys.modules, "nltk", fake)
    assert lemmas.NLTK("A big Dogs runs fast") == ["a", "big", "dog", "run", "fast"]
    assert asked == [("a", "n"), ("big", "a"), ("dogs", "n"), ("runs", "v"), ("fast", "r")]


def test_analysers_by_name():
    """The names for options."""
    assert lemmas.analyser("plain") is lemmas.PLAIN
    with pytest.raises(DataError, match="did you mean 'nltk'"):
        lemmas.analyser("nlkt")


def test_faults_are_listed_together():
    """All of a few, the first of many."""
    with pytest.raises(DataError, match=r"it has 2 faults:\n  one\n  two$"):
        raise_faults("the data", ["one", "two"])
    with pytest.raises(DataError, match="and 5 more"):
        raise_faults("the data", [str(i) for i in range(25)])
    raise_faults("the data", [])
