"""Converting rows for another tokenizer: the official rules, and packing anew without losing text."""

from __future__ import annotations

import functools
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import DataError
from paperhooks.data import Selection
from paperhooks.models import vocabulary_digest
from paperhooks_miniplm import (
    MemoryRows,
    Row,
    Shards,
    StreamRows,
    convert,
    export,
    open_rows,
    pack,
    select,
    write_shards,
)
from paperhooks_miniplm.corpus.packer import packer_of, text_bytes
from paperhooks_miniplm.corpus.record_rows import encode

OLD, NEW = golden.tokenizer("tok_a"), golden.tokenizer("tok_b")


def by_hand(ids: list[int], old, new, bos: bool, longest: int) -> list[int]:
    """Section 2.8 word for word."""
    texts, part = [], []
    for token in [*ids, None]:
        if token in (old.eos_token_id, None):
            texts.append(old.decode(part, skip_special_tokens=True))
            part = []
        else:
            part.append(token)
    found: list[int] = []
    for text in texts:
        found += new(text, add_special_tokens=False)["input_ids"] + [new.eos_token_id]
    found = found[:-1]
    if bos:
        return [new.bos_token_id, *found[: longest - 1]]
    found = found[:longest]
    return found if len(found) > 1 else [*found, new.eos_token_id]


def ids_of(rows) -> list[list[int]]:
    return [row.ids.tolist() for row in rows]


one_for_one = functools.partial(convert, repack=False)


@pytest.mark.parametrize(("direction", "bos"), [("a_to_b", True), ("b_to_a", False)])
@pytest.mark.parametrize("longest", [9, 65, 1025])
def test_official_rules(direction: str, bos: bool, longest: int) -> None:
    old, new, rows = (OLD, NEW, golden.chunks()) if direction == "a_to_b" else (NEW, OLD, golden.chunks("b_bos"))
    eos = old.eos_token_id
    sample = [ids.tolist() for ids in rows[::17]] + [[eos], [], [5], [5, eos], [eos, eos, 7], [5, eos, 6]]
    found = one_for_one(sample, old, new, max_length=longest - 1, bos=bos)
    expected = [by_hand(ids, old, new, bos, longest) for ids in sample]
    assert ids_of(found) == expected
    report = found.report
    assert report.rows_in == report.rows_out == len(sample)
    assert report.tokens_in == sum(map(len, sample))
    assert report.tokens_out == sum(map(len, expected))
    uncut = [by_hand(ids, old, new, bos, 10**6) for ids in sample]
    assert report.cut == sum(len(one) > longest for one in uncut)
    assert report.tokens_cut == sum(max(0, len(one) - longest) for one in uncut)


def test_small_rows() -> None:
    rows = [[0], [5], [], [5, 0, 0, 7], [5, 0]]
    assert ids_of(one_for_one(rows, OLD, NEW, bos=False)) == [[1, 1], [6, 1], [1], [6, 1, 1, 8], [6, 1]]
    assert ids_of(one_for_one(rows, OLD, NEW, bos=True)) == [[0, 1], [0, 6], [0], [0, 6, 1, 1, 8], [0, 6, 1]]
    assert ids_of(one_for_one(rows, OLD, NEW)) == ids_of(one_for_one(rows, OLD, NEW, bos=False))


def test_characters_that_were_cut_in_two_are_counted() -> None:
    ids = encode(OLD, ["na\u00efve \U0001f600"])[0]
    found = one_for_one([ids, ids[:-1], ids[1:]], OLD, NEW, max_length=64)
    texts = [NEW.decode(row.ids) for row in found]
    assert ["\ufffd" in text for text in texts] == [False, True, False]
    assert found.report.damaged == 1


def test_domains_and_bytes_are_kept() -> None:
    rows = [Row(ids, "ab"[n % 2], 1) for n, ids in enumerate(golden.chunks()[:6])]
    for row, old in zip(one_for_one(rows, OLD, NEW, max_length=20), rows, strict=True):
        assert row.domain == old.domain
        assert row.n_bytes == text_bytes(NEW, row.ids)
        assert row.ids.dtype == np.int64


def test_sources_selections_and_shards(tmp_path: Path) -> None:
    chosen = [3, 100, 1505]
    expected = ids_of(one_for_one([golden.chunks()[row] for row in chosen], OLD, NEW, max_length=64))
    for source in (golden.SHARDS, Shards(golden.SHARDS), golden.chunks()):
        assert ids_of(one_for_one(source, OLD, NEW, rows=np.array(chosen), max_length=64)) == expected
    write_shards(one_for_one(golden.SHARDS, OLD, NEW, rows=chosen, max_length=64), tmp_path, vocabulary=len(NEW))
    assert ids_of(Shards(tmp_path).read(range(3))) == expected
    stream = iter([golden.chunks()[row] for row in chosen])
    assert ids_of(one_for_one(stream, OLD, NEW, max_length=64)) == expected
    for repack in (False, True):
        of_rows = [
            convert(source, OLD, NEW, rows=chosen, repack=repack)
            for source in (StreamRows(golden.chunks()), golden.SHARDS)
        ]
        assert ids_of(of_rows[0]) == ids_of(of_rows[1])
    with pytest.raises(DataError, match="has no row 1"):
        list(one_for_one(iter([]), OLD, NEW, rows=[1]))


def test_rows_go_on_where_the_corpus_says_that_they_do(tmp_path: Path) -> None:
    """pack says so of its own rows, in its order; shuffled ones, exports and others are not joined."""
    pack(golden.corpus()[:30], OLD, tmp_path / "packed", max_length=32)
    pack(golden.corpus()[:30], OLD, tmp_path / "shuffled", max_length=32, shuffle=True)
    packed = Shards(tmp_path / "packed")
    assert packed.in_packing_order
    write_shards(packed.read(range(len(packed))), tmp_path / "copy", vocabulary=len(OLD))
    for folder, joined in (("packed", True), ("shuffled", False), ("copy", False)):
        found, same = (ids_of(convert(tmp_path / folder, OLD, NEW, **options)) for options in ({}, {"join": joined}))
        assert found == same
        assert found != ids_of(convert(tmp_path / folder, OLD, NEW, join=not joined))


def test_masks_and_selections_choose_rows() -> None:
    mask = np.zeros(1506, dtype=bool)
    mask[[3, 100]] = True
    wanted = ids_of(one_for_one(golden.SHARDS, OLD, NEW, rows=[3, 100]))
    for rows in (mask, Selection(np.array([3, 100]), 1506, 0.0)):
        assert ids_of(one_for_one(golden.SHARDS, OLD, NEW, rows=rows)) == wanted
    for rows, words in (([9999], "row 9999"), (mask[:5], "5 entries"), ([0.5], "expected row numbers")):
        with pytest.raises(DataError, match=words):
            convert(golden.SHARDS, OLD, NEW, rows=rows)


def test_tokenizers_without_an_end_are_refused() -> None:
    class Endless:
        eos_token_id = bos_token_id = None

    for repack in (False, True):
        with pytest.raises(DataError, match="no end-of-sequence token"):
            list(convert([[5, 6]], Endless(), NEW, bos=False, repack=repack))
        with pytest.raises(DataError, match="no end-of-sequence token"):
            list(convert([[5, 6]], OLD, Endless(), bos=False, repack=repack))


# -- packing anew ------------------------------------------------------------------------------------------------------


def packed(texts: list[tuple[str, str]], tokenizer, longest: int, bos: bool = False) -> list[Row]:
    packer = packer_of(tokenizer, max_length=longest, bos=bos)
    rows = []
    for text, domain in texts:
        made = packer.add([*encode(tokenizer, [text])[0], tokenizer.eos_token_id], domain)
        rows += [Row(np.array(ids), domain) for ids in made]
    return rows + [Row(np.array(ids), domain) for domain, ids in packer.flush()]


def texts_of(rows, tokenizer, bos: bool) -> dict[str, list[str]]:
    """The documents of every domain, rows put one behind the other."""
    streams: dict[str, list[int]] = {}
    for row in rows:
        streams.setdefault(row.domain, []).extend(row.ids[bos:].tolist())
    found: dict[str, list[str]] = {}
    for domain, ids in streams.items():
        ends = [n for n, token in enumerate(ids) if token == tokenizer.eos_token_id]
        starts = [0, *(end + 1 for end in ends)]
        found[domain] = [tokenizer.decode(ids[s:e]) for s, e in zip(starts, ends, strict=False)]
    return found


@pytest.mark.parametrize("direction", ["a_to_b", "b_to_a"])
def test_no_text_of_the_corpus_is_lost(direction: str) -> None:
    old, new = (OLD, NEW) if direction == "a_to_b" else (NEW, OLD)
    texts = [(one["text"], one["label"]) for one in golden.corpus()]
    rows = packed(texts, old, 64, bos=old is NEW)
    found = convert(rows, old, new, max_length=64, bos=new is NEW, join=True)
    made = list(found)
    assert all(len(row.ids) <= 65 for row in made)
    expected: dict[str, list[str]] = {}
    for text, domain in texts:
        expected.setdefault(domain, []).append(text)
    assert texts_of(made, new, bos=new is NEW) == expected
    report = found.report
    assert (report.rows_in, report.rows_out) == (len(rows), len(made))
    assert (report.damaged, report.cut, report.unfinished) == (0, 0, 0)
    official = one_for_one(rows, old, new, max_length=64, bos=new is NEW)
    lengths = [len(row.ids) for row in official]
    assert official.report.damaged > 0  # what packing anew avoids
    assert np.mean([len(row.ids) for row in made]) > np.mean(lengths) or official.report.tokens_cut > 0


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.tuples(st.text("a. \u00e9\u4e2d\U0001f600\n", min_size=1, max_size=30), st.sampled_from("xy")), max_size=6
    ),
    longest=st.integers(2, 12),
    bos=st.booleans(),
)
def test_no_text_is_lost(texts, longest: int, bos: bool) -> None:
    rows = packed(texts, NEW, longest, bos=True)
    made = list(convert(rows, NEW, OLD, max_length=longest, bos=False, join=True))
    expected: dict[str, list[str]] = {}
    for text, domain in texts:
        expected.setdefault(domain, []).append(text)
    assert texts_of(made, OLD, bos=False) == expected


def test_rows_that_do_not_follow_each_other_are_not_joined() -> None:
    rows = [[5, 6], [7, 0, 8], [9, 10], [11, 0]]
    ends = NEW.eos_token_id

    def texts(**options) -> list[str]:
        found = convert(MemoryRows(rows), OLD, NEW, bos=False, **{"join": True, **options})
        ids = [token for row in found for token in row.ids.tolist()]
        return NEW.decode(ids).split(NEW.decode([ends]))[:-1], found.report.unfinished

    letters = [OLD.decode([n]) for n in range(12)]
    joined = ["".join(letters[5:8]), "".join(letters[8:12])]
    assert texts() == texts(rows=[0, 1, 2, 3]) == (joined, 0)
    assert texts(rows=[0, 2, 3]) == (["".join(letters[5:7]), "".join(letters[9:12])], 1)
    assert texts(rows=[1]) == ([letters[7], letters[8]], 1)
    assert texts(join=False) == (
        ["".join(letters[5:7]), letters[7], letters[8], "".join(letters[9:11]), letters[11]],
        3,
    )


def test_rows_of_a_domain_follow_each_other_across_those_of_others() -> None:
    rows = [Row(np.array(ids), domain) for ids, domain in [([5], "x"), ([6], "y"), ([7, 0], "x"), ([8, 0], "y")]]
    letters = [OLD.decode([n]) for n in range(12)]

    def texts(chosen) -> dict[str, list[str]]:
        return texts_of(convert(MemoryRows(rows), OLD, NEW, rows=chosen, bos=False, join=True), NEW, bos=False)

    assert texts([0, 2]) == {"x": [letters[5] + letters[7]]}
    assert texts([0, 2, 3]) == {"x": [letters[5] + letters[7]], "y": [letters[8]]}
    assert texts(None) == {"x": [letters[5] + letters[7]], "y": [letters[6] + letters[8]]}


def test_halves_of_characters_at_open_ends_are_left_out() -> None:
    ids = encode(OLD, ["ab \U0001f600 cd"])[0]
    middle = ids.index(encode(OLD, ["\U0001f600"])[0][0]) + 2
    found = convert([ids[:middle], ids[middle:]], OLD, NEW, bos=False, join=False)
    text = NEW.decode([token for row in found for token in row.ids], skip_special_tokens=True)
    assert text == "ab  cd"
    assert found.report.damaged == 2
    joined = convert([ids[:middle], ids[middle:]], OLD, NEW, bos=False, join=True)
    assert NEW.decode([token for row in joined for token in row.ids], skip_special_tokens=True) == "ab \U0001f600 cd"


def test_a_folder_packed_anew(tmp_path: Path) -> None:
    found = convert(golden.SHARDS, OLD, NEW, max_length=64, bos=True, join=True)
    write_shards(found, tmp_path, vocabulary=len(NEW), rows_per_shard=500)
    rows = open_rows(tmp_path)
    assert len(rows) == found.report.rows_out
    assert {int(row.ids[0]) for row in rows.read(range(len(rows)))} == {0}


# -- whose ids they are ------------------------------------------------------------------------------------------------


def test_the_tokenizer_that_packed_a_corpus_is_asked_for(tmp_path: Path) -> None:
    pack(golden.corpus()[:9], OLD, tmp_path / "packed", max_length=64)
    source = Shards(tmp_path / "packed")
    assert source.packed_with == (vocabulary_digest(OLD), OLD.name_or_path)
    export(select(np.zeros(len(source), np.float32), count=4), source, tmp_path / "half", "shards")
    for folder in ("packed", "half"):
        with pytest.raises(DataError, match=r"was packed with the tokenizer .*tok_a, whose ids mean .*tok_b"):
            convert(tmp_path / folder, NEW, OLD)
    report = convert(source, OLD, NEW, max_length=64).write(tmp_path / "new")
    again = convert(source, OLD, NEW, max_length=64).write(tmp_path / "new")
    assert again == report
    assert again.rows_out == len(Shards(tmp_path / "new"))
    assert Shards(tmp_path / "new").packed_with == (vocabulary_digest(NEW), NEW.name_or_path)
    with pytest.raises(DataError, match=r"made otherwise \(settings\.max_length = 64, not 32\)"):
        convert(source, OLD, NEW, max_length=32).write(tmp_path / "new")


def test_ids_that_a_tokenizer_does_not_have_are_named_with_their_row(tmp_path: Path) -> None:
    rows = MemoryRows([[5, 6], [7, 512], [8]])
    for repack in (False, True):
        with pytest.raises(DataError, match="row 1 of in memory has the id 512; the tokenizer has 0 to 511"):
            list(convert(rows, OLD, NEW, rows=[0, 1], repack=repack))
    chosen = select(np.array([0, 1, 1], np.float32), count=2)
    for format in ("jsonl", "parquet"):
        with pytest.raises(DataError, match="row 1 of in memory has the id 512"):
            export(chosen, rows, tmp_path / f"a.{format}", format, tokenizer=OLD)
    with pytest.raises(DataError, match="row 1 of in memory has the id 512"):
        export(chosen, rows, tmp_path / "shards", "shards", vocabulary=512)
    assert not list(tmp_path.glob("a.*"))
