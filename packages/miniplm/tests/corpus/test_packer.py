"""Packing: the official rows, every token accounted for, and tokenizers that need care."""

from __future__ import annotations

import json
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import DataError
from paperhooks_miniplm import Packer, Shards, TextRecord, pack, read_documents
from paperhooks_miniplm.corpus.packer import EndTokens, end_tokens, packer_of, text_bytes
from paperhooks_miniplm.corpus.record_rows import encode

CASES = [("tok_a", "a_no_bos", False), ("tok_b", "b_bos", True)]


class Words:
    """A tokenizer of words that are numbers in a list, with what may be wrong with one."""

    def __init__(self, words: list[str], eos: int | None = 0, bos: int | None = None, stubborn: bool = False) -> None:
        self.words, self.eos_token_id, self.bos_token_id = words, eos, bos
        self.stubborn = stubborn

    def __len__(self) -> int:
        return len(self.words)

    def decode(self, ids, skip_special_tokens: bool = False, **_) -> str:
        special = {self.eos_token_id, self.bos_token_id} if skip_special_tokens else set()
        return "".join(self.words[i] for i in ids if i not in special)

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __call__(self, texts, add_special_tokens: bool = True, **_):
        if isinstance(texts, str):
            return {"input_ids": self(([texts]), add_special_tokens)["input_ids"][0]}
        first = [] if self.bos_token_id is None or not (add_special_tokens or self.stubborn) else [self.bos_token_id]
        return {"input_ids": [first + [self.words.index(character) for character in text] for text in texts]}


def documents() -> list[TextRecord]:
    return [TextRecord(one["text"], one["label"]) for one in golden.corpus()]


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case", "bos"), CASES)
def test_official_end_tokens(name: str, case: str, bos: bool) -> None:
    found, expected = end_tokens(golden.tokenizer(name)), golden.packing()[case]
    assert sorted(found.sentence) == expected["end_sentence_token_ids"]
    assert sorted(found.newline) == expected["newline_token_ids"]
    assert found.eos == expected["eos_token_id"]


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize(("name", "case", "bos"), CASES)
def test_official_rows_and_leftovers(name: str, case: str, bos: bool, keep_all: bool) -> None:
    tokenizer, expected = golden.tokenizer(name), golden.packing()[case]
    packer = packer_of(tokenizer, max_length=golden.MAX_LENGTH, bos=bos, keep_all=keep_all)
    rows = []
    for one in documents():
        rows += packer.add([*encode(tokenizer, [one.text])[0], tokenizer.eos_token_id], one.domain)
    assert rows == expected["chunks"]
    first = [expected["bos_token_id"]] if bos else []
    assert {domain: first + ids for domain, ids in packer.leftovers.items()} == expected["dropped_tail_tokens"]
    assert packer.cut_back == expected["cut_back_tokens"]
    lost = {domain: len(ids) - len(first) for domain, ids in expected["dropped_tail_tokens"].items() if ids}
    assert bool(packer.flush()) == keep_all
    assert +packer.lost == ({} if keep_all else lost)


@pytest.mark.parametrize("name", golden.packing()["hand_made_a"])
def test_official_small_cases(name: str) -> None:
    case = golden.packing()["hand_made_a"][name]
    packer = packer_of(golden.tokenizer(), max_length=case["max_length"] - 1, keep_all=False)
    assert [row for ids in case["docs"] for row in packer.add(ids)] == case["chunks"]
    assert packer.leftovers[""] == case["dropped_tail"]
    assert packer.cut_back[""] == case["cut_back"]
    packer.flush()
    assert packer.lost[""] == sum(map(len, case["docs"])) - sum(map(len, case["chunks"]))


@pytest.mark.parametrize(("name", "case", "bos"), CASES)
def test_the_whole_corpus_on_disk(tmp_path: Path, name: str, case: str, bos: bool) -> None:
    tokenizer, expected = golden.tokenizer(name), golden.packing()[case]
    source = read_documents(golden.CORPUS, domain_field="label")
    report = pack(source, tokenizer, tmp_path, max_length=golden.MAX_LENGTH, bos=bos, rows_per_shard=400)
    rows = Shards(tmp_path).read(range(report.rows))
    full = expected["n_chunks"]
    assert [row.ids.tolist() for row in rows[:full]] == expected["chunks"]
    tails = [ids for ids in expected["dropped_tail_tokens"].values() if len(ids) > bos]
    assert [row.ids.tolist() for row in rows[full:]] == tails
    assert report.tokens_in == report.tokens_kept == sum(len(row.ids) - bos for row in rows)
    assert report.tokens_lost == 0
    assert report.documents == 142
    assert report.cut_back == sum(expected["cut_back_tokens"].values())
    assert set(Shards(tmp_path).domains()) == {one["label"] for one in golden.corpus()} == set(report.by_domain)


def test_without_tails_as_the_official_code(tmp_path: Path) -> None:
    tokenizer, expected = golden.tokenizer(), golden.packing()["a_no_bos"]
    report = pack(documents(), tokenizer, tmp_path, max_length=64, flush_tail=False, rows_per_shard=100)
    for number in range(16):
        name = f"data_{number}.bin"
        assert (tmp_path / name).read_bytes() == (golden.SHARDS / name).read_bytes()
    assert report.rows == 1506
    assert report.tokens_lost == sum(map(len, expected["dropped_tail_tokens"].values()))
    assert report.tokens_kept + report.tokens_lost == report.tokens_in


# -- where rows end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (".", True), (";", True), ("x\n", True), ("a", False), (",", False),
        ("(.", False), (").", True), ("(.)", True), ("[;", False), ("[;]", True), ("<?", False), ("<?>", True),
        ("{.", True), ("\\.", False), ("\\n", False), ("\\{.", True), ("(\n", False), ("!([)", False),
    ],
)  # fmt: skip
def test_brackets_and_the_backslash(text: str, ends: bool) -> None:
    found = end_tokens(Words(["<eos>", text]))
    assert (1 in found.sentence) == ends
    assert (1 in found.newline) == (ends and "\n" in text)
    assert 0 in found.sentence
    assert 0 not in found.newline


def test_abbreviations_are_not_cut() -> None:
    # 1 is a dot, 2 a letter, 3 a word that begins with a space.
    packer = Packer(EndTokens(frozenset({0, 1}), frozenset(), 0), lambda ids: "".join(" .A#"[i] for i in ids).replace("#", " x"), max_length=5)  # fmt: skip  # noqa: E501
    assert packer.add([2, 2, 1, 3, 2, 1, 2, 1]) == [[2, 2, 1]]


IDS = st.lists(st.sampled_from([0, 7, 14, 199, 221, 300]), min_size=1, max_size=90)


@settings(max_examples=80, deadline=None)
@given(
    given_ids=st.lists(st.tuples(IDS, st.sampled_from(["a", "b"])), max_size=6),
    longest=st.integers(1, 20),
    bos=st.sampled_from([None, 5]),
    keep_all=st.booleans(),
)
def test_streams_are_cut_and_nothing_else(given_ids, longest: int, bos: int | None, keep_all: bool) -> None:
    packer = packer_of(golden.tokenizer(), max_length=longest, keep_all=keep_all)
    packer = Packer(packer.ends, golden.tokenizer().decode, max_length=longest, bos=bos, keep_all=keep_all)
    rows = [(domain, row) for ids, domain in given_ids for row in packer.add(ids, domain)]
    assert all(1 < len(row) <= longest + 1 for _, row in rows)
    rows += packer.flush()
    for domain in ("a", "b"):
        own = [row[bos is not None :] for name, row in rows if name == domain]
        stream = [i for ids, name in given_ids if name == domain for i in ids]
        kept = [i for ids in own for i in ids]
        assert len(kept) + packer.lost[domain] == len(stream)
        if keep_all:
            assert kept == stream
    assert bos is None or all(row[0] == bos for _, row in rows)


def test_a_huge_document_is_kept_whole(tmp_path: Path) -> None:
    report = pack(["x" * 30_000], golden.tokenizer(), tmp_path, max_length=8)
    assert report.rows > 2000
    assert report.tokens_kept == report.tokens_in == Shards(tmp_path).lengths().sum()


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Words has no end-of-sequence token"):
        pack(["a"], Words(["a"], eos=None), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="the tokenizer has none; pass bos=False"):
        pack(["a"], Words(["a", "b"]), tmp_path / "new", bos=True)
    with pytest.raises(DataError, match="max_length is 0"):
        pack(["a"], Words(["a", "b"]), tmp_path / "new", max_length=0)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_beginning_is_never_doubled(tmp_path: Path, stubborn: bool) -> None:
    tokenizer = Words(["<eos>", "<bos>", "a", "b"], bos=1, stubborn=stubborn)
    for bos, first in ((None, [1]), (True, [1]), (False, [])):
        folder = tmp_path / str(bos)
        pack(["ab", "b"], tokenizer, folder, max_length=9, bos=bos)
        assert Shards(folder).read([0])[0].ids.tolist() == [*first, 2, 3, 0, 3, 0]


def test_a_beginning_that_the_tokenizer_does_not_add_is_not_added(tmp_path: Path) -> None:
    assert golden.tokenizer("tok_b").bos_token_id == 0
    pack(["ab"], golden.tokenizer("tok_b"), tmp_path)
    assert Shards(tmp_path).read([0])[0].ids[0] != 0


# -- reports -----------------------------------------------------------------------------------------------------------


def test_empty_documents_and_duplicates_are_counted(tmp_path: Path) -> None:
    texts = ["", "same text.", " \n", "same text.", "another", {"text": "same text.", "domain": "x"}]
    report = pack(texts, golden.tokenizer(), tmp_path, max_length=1, drop_duplicates=True)
    assert (report.documents, report.empty_documents) == (4, 2)
    rows = [tuple(row.ids) for row in Shards(tmp_path).read(range(report.rows))]
    assert report.duplicates > 0
    assert len(set(rows)) == len(rows)
    assert report.tokens_kept + report.tokens_duplicate + report.tokens_lost == report.tokens_in


def test_only_an_end_of_sequence(tmp_path: Path) -> None:
    report = pack(["<|endoftext|>"], golden.tokenizer(), tmp_path)
    row = Shards(tmp_path).read([0])[0]
    assert row.ids.tolist() == [0, 0]
    assert row.n_bytes == 0
    assert report.tokens_in == 2


def test_nothing_to_pack(tmp_path: Path) -> None:
    for nothing in ([], ["", "  "]):
        with pytest.raises(DataError, match="there is no text to pack"):
            pack(nothing, golden.tokenizer(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_stored_with_what_it_was_made_with(tmp_path: Path) -> None:
    seen = []
    report = pack(documents()[:9], golden.tokenizer(), tmp_path, max_length=64, shuffle=True, progress=seen.append)
    stored = json.loads((tmp_path / "corpus.json").read_text())
    assert stored["report"]["tokens_in"] == report.tokens_in
    assert stored["report"]["by_domain"] == report.by_domain
    assert stored["settings"]["max_length"] == 64
    assert stored["settings"]["shuffle_seed"] == 233
    assert all(one is report for one in seen)


def test_the_same_documents_again(tmp_path: Path) -> None:
    """A finished folder is known again: by files, lists and datasets, not by what can be read only once."""
    texts = [one["text"] for one in golden.corpus()[:5]]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    for number, source in enumerate((file, texts)):
        first = pack(source, golden.tokenizer(), tmp_path / f"{number}", max_length=64)
        assert pack(source, golden.tokenizer(), tmp_path / f"{number}", max_length=64) == first
        with pytest.raises(DataError, match=r"settings\.max_length = 64, not 32"):
            pack(source, golden.tokenizer(), tmp_path / f"{number}", max_length=32)
        with pytest.raises(DataError, match="made otherwise"):
            pack(texts[1:], golden.tokenizer(), tmp_path / f"{number}", max_length=64)
    half_read = read_documents(file)
    next(half_read)
    for source in (iter(texts), half_read):
        with pytest.raises(DataError, match="holds a corpus already; name"):
            pack(source, golden.tokenizer(), tmp_path / "0", max_length=64)


def test_bytes_are_those_of_the_text(tmp_path: Path) -> None:
    pack(documents(), golden.tokenizer(), tmp_path, max_length=64)
    source, tokenizer = Shards(tmp_path), golden.tokenizer()
    for row in source.read(range(0, len(source), 97)):
        assert row.n_bytes == len(tokenizer.decode(row.ids, skip_special_tokens=True).encode())
    text = "h\u00e9llo \U0001f600"
    assert text_bytes(tokenizer, [*encode(tokenizer, [text])[0], 0]) == len(text.encode())


def test_an_error_in_the_documents_leaves_nothing(tmp_path: Path) -> None:
    texts = (text for text in ["x" * 5000, 3])
    with pytest.raises(DataError, match="record 1"):
        pack(texts, golden.tokenizer(), tmp_path, max_length=8, rows_per_shard=10)
    assert list(tmp_path.iterdir()) == []


def test_shuffled_rows_are_the_same_rows(tmp_path: Path) -> None:
    for name, shuffle in (("plain", False), ("shuffled", True)):
        pack(documents(), golden.tokenizer(), tmp_path / name, max_length=64, shuffle=shuffle, rows_per_shard=500)
    plain, shuffled = Shards(tmp_path / "plain"), Shards(tmp_path / "shuffled")
    for start in range(0, len(plain), 500):
        part = range(start, min(start + 500, len(plain)))
        one, two = ([(tuple(r.ids), r.domain, r.n_bytes) for r in s.read(part)] for s in (plain, shuffled))
        assert one != two
        assert sorted(one) == sorted(two)
    assert not np.array_equal(plain.lengths(), shuffled.lengths())
