"""Minibatches have exactly the tokens asked for, are drawn anew by their seed, and are padded where nobody looks."""

from __future__ import annotations

import random
import warnings
from collections import Counter

import pytest
import torch
from paperhooks_evopress.evaluator.minibatches import MinibatchWarning, chunks, minibatch, padded


def test_tokens_add_up_and_no_sequence_is_cut_to_one() -> None:
    draw = random.Random(0)
    for seed in range(3000):
        lengths = [draw.randint(2, 9) for _ in range(draw.randint(1, 12))]
        tokens = draw.randint(2, sum(lengths))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drawn = minibatch(lengths, tokens, seed)
        odd = tokens % 2 == 1 and set(lengths) == {2}
        assert sum(read for _, read in drawn) == tokens - odd
        assert len(caught) == odd
        assert len({number for number, _ in drawn}) == len(drawn)
        assert all(2 <= read <= lengths[number] for number, read in drawn)


def test_every_sequence_is_drawn_equally_often_and_at_most_one_is_cut_far() -> None:
    lengths, seen = [20] * 10, Counter()
    for seed in range(4000):
        drawn = minibatch(lengths, 50, seed)
        assert [read for _, read in drawn] == [20, 20, 10]
        seen.update(number for number, _ in drawn)
    assert all(1050 < seen[number] < 1350 for number in range(10))


def test_a_seed_draws_the_same_and_leaves_other_random_numbers_alone() -> None:
    random.seed(5)
    state = random.getstate()
    lengths = [7, 5, 9, 11, 3]
    assert minibatch(lengths, 20, 3) == minibatch(lengths, 20, 3)
    assert len({minibatch(lengths, 20, seed) for seed in range(20)}) > 5
    assert random.getstate() == state


def test_more_tokens_than_there_are_reads_all_and_warns() -> None:
    with pytest.warns(MinibatchWarning, match=r"30 tokens was asked for, and the calibration text has 12"):
        assert sorted(minibatch([5, 7], 30, 0)) == [(0, 5), (1, 7)]


def test_one_token_left_is_arranged() -> None:
    assert sorted(read for _, read in minibatch([8, 8], 9, 0)) == [2, 7]
    assert [read for _, read in minibatch([2, 2, 5], 3, 1)] == [3]
    with pytest.warns(MinibatchWarning, match="one token fewer"):
        assert sum(read for _, read in minibatch([2, 2, 2], 5, 0)) == 4


@pytest.mark.parametrize(
    ("lengths", "tokens", "message"),
    [([5, 5], 1, "a stage of 1 tokens"), ([], 4, "expected some"), ([4, 1], 4, "each of at least 2")],
)
def test_what_cannot_be_drawn_is_named(lengths: list[int], tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minibatch(lengths, tokens, 0)


def test_chunks_are_of_similar_length_and_do_not_depend_on_the_draws_order() -> None:
    drawn = ((3, 5), (0, 9), (2, 9), (1, 4))
    found = chunks(drawn, 18)
    assert found == [((0, 9), (2, 9)), ((3, 5), (1, 4))]
    assert chunks(tuple(reversed(drawn)), 18) == found
    assert chunks(drawn, 1) == [((0, 9),), ((2, 9),), ((3, 5),), ((1, 4),)]


def test_padding_and_last_positions_predict_nothing() -> None:
    sequences = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8, 9])]
    read = padded(sequences, ((1, 4), (0, 2)))
    assert read.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [1, 2, 0, 0]]
    assert read.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert read.rows.tolist() == [0, 1, 2, 4]
    assert read.targets.tolist() == [6, 7, 8, 2]
    assert "attention_mask" not in padded(sequences, ((0, 4), (1, 4))).inputs
