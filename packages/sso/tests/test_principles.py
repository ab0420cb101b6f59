"""The bank of principles, files that add to it, and the system message."""

from __future__ import annotations

from pathlib import Path

import pytest
from paperhooks import DataError
from paperhooks_sso.data import CONCISION, SAFETY, PrincipleBank, system_message

SEVEN = ("Safety", "Logicality", "Comprehensiveness", "Helpfulness", "Literariness", "Accuracy", "Engagement")
MINE = '[Brevity]\nadjectives = ["brief", "long"]\ngood = "Be brief."\nbad = "Be long."\n'


def test_the_bank_has_the_features_of_the_paper_and_concision() -> None:
    bank = PrincipleBank.load()
    assert bank.features == SEVEN
    assert set(bank) == {*SEVEN, CONCISION}
    for principle in bank.values():
        assert 60 <= len(principle.good.split()) <= 100
        assert 60 <= len(principle.bad.split()) <= 100
        assert principle.good != principle.bad
        assert principle.source == "bank"
        assert not any("\n" in text for text in (principle.good, principle.bad))


def test_safety_can_be_left_out() -> None:
    bank = PrincipleBank.load(safety=False)
    assert SAFETY not in bank.features
    with pytest.raises(DataError, match="no principle for 'Safety'"):
        bank.pick(SAFETY)


def test_files_of_ones_own_add_and_replace(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE + MINE.replace("Brevity", "Accuracy"), encoding="utf-8-sig")
    bank = PrincipleBank.load(tmp_path / "mine.toml")
    assert bank.features == (*SEVEN, "Brevity")
    assert bank["Accuracy"].good == "Be brief."
    assert {bank[name].source for name in ("Accuracy", "Brevity")} == {"mine.toml"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", r"x = 1 must be a table \[x\]"),
        (MINE.replace("bad =", "badly ="), "unknown key 'badly'"),
        (MINE.replace('"brief", ', ""), "must be two words"),
        (MINE.replace('"Be brief."', '" "'), "good = ' ' must be a non-empty string"),
        (MINE.replace('"brief"', '""'), r"\[Brevity\]: adjectives = \['', 'long'\] must be two words"),
        (MINE.replace('"brief"', '" "'), "must be two words"),
        (MINE.replace('"brief"', '"long"'), "must be two words"),
        (MINE.replace("Be long.", " Be brief."), r"\[Brevity\]: good and bad are the same text"),
        (MINE.replace("Brevity", '""'), r"\[\] must be a name of one line without commas"),
        (MINE.replace("Brevity", '"Brief, short"'), r"\[Brief, short\] must be a name of one line without commas"),
        (MINE.replace("Brevity", '"Brief\\nshort"'), "must be a name of one line"),
        (MINE.replace("Brevity", '"Brief."'), "must be a name of one line"),
        ("[Brevity\n", "is not valid TOML"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        PrincipleBank.load(file)
    assert str(file) in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        PrincipleBank.load(tmp_path / "none.toml")


def test_the_system_message_lists_principles_and_forbids_to_mention_them() -> None:
    bank = PrincipleBank.load()
    three = [bank.pick(name) for name in ("Accuracy", "Safety", CONCISION)]
    good, bad = system_message(three, good=True), system_message(three, good=False)
    assert "has to be accurate, safe and concise" in good
    assert "has to be inaccurate, unsafe and verbose" in bad
    for principle in three:
        assert f"{principle.feature}: {principle.good}" in good
        assert f"{principle.feature}: {principle.bad}" in bad
        assert principle.bad not in good
    assert "do not mention them" in good
    assert "has to be safe." in system_message(three[1:2], good=True)
    with pytest.raises(DataError, match="there is no principle to ask for"):
        system_message([], good=True)
