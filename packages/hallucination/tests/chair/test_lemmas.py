"""From captions to lemmas."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from paperhooks.errors import DataError, MissingExtra
from paperhooks_hallucination.chair import lemmas
from paperhooks_hallucination.chair import metrics as chair
from paperhooks_hallucination.chair import objects as chair_objects


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
    with pytest.raises(MissingExtra, match=r"paperhooks-hallucination\[nltk\]"):
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
