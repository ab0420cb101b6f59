"""Batches against the official ones, and the mask where padding and end differ."""

from __future__ import annotations

import golden_miniplm as golden
import numpy as np
import pytest
import torch
from paperhooks import DataError
from paperhooks_miniplm import collate
from paperhooks_miniplm.algorithm import sequence_means
from paperhooks_miniplm.corpus.collator import loss_mask

NAMES = ("input_ids", "attention_mask", "label", "loss_mask")


def official_rows() -> list[np.ndarray]:
    return [np.array(ids) for _, ids in golden.collate_inputs()["rows"]]


def options() -> dict[str, int]:
    return {name: golden.collate_inputs()[name] for name in ("pad_id", "max_length")}


@pytest.mark.parametrize(("kind", "pad_to"), [("fixed", golden.MAX_LENGTH), ("ada", None)])
def test_batches_are_the_official_ones(kind: str, pad_to: int | None) -> None:
    found = collate(official_rows(), pad_to=pad_to, **options())
    assert set(found) == set(NAMES)
    for name in NAMES:
        wanted = golden.collate()[f"{kind}.{name}"]
        assert found[name].dtype == wanted.dtype, name
        assert torch.equal(found[name], wanted), name


def test_positions_are_the_official_ones() -> None:
    found = collate(official_rows()[1:3], positions=True, **options())
    for name in (*NAMES, "position_ids"):
        assert torch.equal(found[name], golden.collate()[f"ada_gpt2.{name}"]), name


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_ids_of_any_integer_type_give_one_batch(dtype: type) -> None:
    found = collate([row.astype(dtype) for row in official_rows()], **options())
    assert torch.equal(found["label"], golden.collate()["ada.label"])


def test_the_official_mask_with_padding_other_than_the_end() -> None:
    row, swapped = np.array([5, 0, 6, 7]), np.array([5, 1, 6, 7])
    one = collate([row, row[:2]], max_length=8, pad_id=0)["loss_mask"]
    two = collate([swapped, swapped[:2]], max_length=8, pad_id=9, eos_id=1)
    assert torch.equal(one, two["loss_mask"])
    assert one.tolist() == [[1, 0, 1], [1, 0, 0]]
    assert two["label"].tolist() == [[1, 6, 7], [1, 9, 9]]


def test_counting_what_follows_the_end_leaves_out_padding_only() -> None:
    rows = [np.array([5, 0, 6, 7]), np.array([0, 5])]
    found = collate(rows, max_length=8, pad_id=0, mask_after_eos=False)
    assert found["loss_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_padding_token_inside_a_row_predicts_nothing() -> None:
    ids = torch.tensor([[4, 9, 1, 4]])
    assert loss_mask(ids, eos_id=1, pad_id=9).tolist() == [[1, 0, 0, 1]]
    assert loss_mask(ids, eos_id=1, pad_id=9, mask_after_eos=False).tolist() == [[1, 0, 1, 1]]
    assert loss_mask(ids.numpy(), eos_id=None).tolist() == [[1, 1, 1, 1]]


def test_rows_without_input_are_masked_whole() -> None:
    found = collate([np.array([], dtype=np.int64), np.array([3]), np.array([0, 3])], max_length=8, pad_id=0)
    assert found["input_ids"].shape == (3, 1)
    assert found["loss_mask"].sum() == 0
    assert found["attention_mask"].tolist() == [[0], [0], [1]]


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        ([], {}, "no rows"),
        ([np.array([1.5, 2.0])], {}, r"row 0 of the batch: holds float64"),
        ([np.zeros((2, 2), dtype=int)], {}, r"\[2, 2\]; expected a list"),
        ([np.arange(9)], {"pad_to": 4}, "8 inputs, more than pad_to=4"),
        ([np.arange(9)], {"max_length": 0}, "max_length is 0"),
    ],
)
def test_wrong_rows_and_widths_are_named(rows, changed, words) -> None:
    with pytest.raises(DataError, match=words):
        collate(rows, **{"max_length": 16, "pad_id": 0, **changed})


def test_means_of_rows_ignore_what_does_not_count() -> None:
    values = torch.tensor([[1.0, torch.nan, 3.0], [torch.inf, 1.0, 2.0]])
    means, count = sequence_means(values, torch.tensor([[1, 0, 1], [0, 0, 0]]))
    assert means.tolist() == [2.0, 0.0]
    assert count.tolist() == [2, 0]
