"""Several sequences in one row, by positions that begin anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paperhooks import DataError, ModelView, UnsupportedModel
from paperhooks.logprobs import Head, next_token_labels, sequence_logprobs, sequence_numbers
from paperhooks.testing import TEXT_FAMILIES, tiny_llama, tiny_text
from torch import Tensor, nn

LENGTHS = (4, 1, 6, 3)
#: Families that take no positions, or do not tell sequences apart by them.
ACROSS = {"bloom", "opt"}


def flattened(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, Tensor]:
    """Sequences of these lengths in a row: [1, N]."""
    ids = torch.randint(3, 90, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "position_ids": torch.cat([torch.arange(n) for n in lengths])[None]}


def alone(model: Any, batch: dict[str, Tensor], lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """The sum of every sequence by itself, float64 [S]."""
    return torch.cat([sequence_logprobs(model, {"input_ids": ids}).sum for ids in batch["input_ids"].split(lengths, 1)])


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [False, True])
def test_sequences_of_a_row_are_those_of_rows_of_their_own(kernel: str, mask: bool) -> None:
    model, batch = tiny_llama(attn_implementation=kernel), flattened()
    if mask:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        found = sequence_logprobs(model, batch)
        torch.testing.assert_close(found.sum, alone(model, batch), rtol=1e-5, atol=1e-5)
    assert found.count.tolist() == [3, 0, 5, 2]
    assert found.sum.dtype == torch.float64
    assert found.tokens.shape == (1, 14)
    assert found.mean[1] == 0
    assert "attention_mask" not in batch or bool(batch["attention_mask"].all())


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_every_family_keeps_sequences_apart_or_is_refused(family: str) -> None:
    model, batch = tiny_text(family), flattened()
    with torch.no_grad():
        if family in ACROSS:
            with pytest.raises(UnsupportedModel, match="row"):
                sequence_logprobs(model, batch)
            return
        found = sequence_logprobs(model, batch)
        torch.testing.assert_close(found.sum, alone(model, batch), rtol=1e-5, atol=1e-4)


def test_with_a_mask_the_model_itself_does_not_keep_them_apart() -> None:
    """Why a full mask is left out: transformers looks at positions only where there is none."""
    model, batch = tiny_llama(), flattened()
    with torch.no_grad():
        apart = model(**batch, use_cache=False).logits
        across = model(**batch, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=False).logits
    assert not torch.allclose(apart[:, -1], across[:, -1], atol=1e-3)


def test_several_rows_and_gradients() -> None:
    model, one, two = tiny_llama(), flattened((3, 4)), flattened((5, 2), seed=1)
    batch = {name: torch.cat([one[name], two[name]]) for name in one}
    found = sequence_logprobs(model, batch)
    assert found.count.tolist() == [2, 3, 4, 1]
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    made = torch.autograd.grad(found.sum @ weights, list(model.parameters()))
    sums = torch.cat([alone(model, one, (3, 4)), alone(model, two, (5, 2))])
    for each, wanted in zip(made, torch.autograd.grad(sums @ weights, list(model.parameters())), strict=True):
        torch.testing.assert_close(each, wanted, rtol=1e-4, atol=1e-5)


def test_labels_end_with_their_sequence_and_shift_labels_are_taken_as_they_are() -> None:
    view, batch = ModelView.from_model(tiny_llama()), flattened((2, 3))
    ids = batch["input_ids"][0].tolist()
    assert next_token_labels(view, batch).tolist() == [[ids[1], -100, ids[3], ids[4], -100]]
    labels = torch.tensor([[-100, 7, 8, 9, 10]])
    assert next_token_labels(view, {**batch, "labels": labels}).tolist() == [[7, -100, 9, 10, -100]]
    given = torch.tensor([[1, 2, 3, 4, 5]])
    assert next_token_labels(view, {**batch, "shift_labels": given}).tolist() == given.tolist()
    with torch.no_grad():
        assert sequence_logprobs(view, {**batch, "shift_labels": given}).count.tolist() == [2, 3]


def test_a_row_that_goes_on_is_one_sequence_whatever_it_begins_with() -> None:
    model, ids = tiny_llama(), torch.randint(3, 90, (2, 5))
    with torch.no_grad():
        plain = sequence_logprobs(model, {"input_ids": ids})
        shifted = sequence_logprobs(model, {"input_ids": ids, "position_ids": torch.arange(7, 12)[None]})
    assert shifted.count.tolist() == [4, 4]
    torch.testing.assert_close(shifted.sum, plain.sum, rtol=1e-4, atol=1e-4)


def test_padding_beside_its_positions_is_no_beginning() -> None:
    model, ids = tiny_llama(), torch.randint(3, 90, (2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)}
    with torch.no_grad():
        assert sequence_logprobs(model, batch).count.tolist() == [4, 2]
        full = {**batch, "attention_mask": torch.ones_like(ids), "position_ids": torch.tensor([[0, 1, 2, 7, 8]] * 2)}
        assert sequence_logprobs(model, full).count.tolist() == [4, 4]  # a jump ahead, seen across


def test_positions_that_begin_anew_beside_padding_are_refused() -> None:
    batch = flattened((3, 3)) | {"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}
    with pytest.raises(DataError, match=r"begin anew at token 3 of row 0.*leave out attention_mask"):
        sequence_logprobs(tiny_llama(), batch)


def test_a_mask_of_the_users_own_says_who_sees_whom() -> None:
    batch = flattened((3, 3))
    batch["attention_mask"] = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    with torch.no_grad():
        assert sequence_logprobs(tiny_llama(), batch).count.tolist() == [5]


def test_a_model_that_looks_across_is_refused_and_tried_once() -> None:
    model = tiny_llama()

    class Across(type(model)):
        def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
            Across.calls += 1
            mask = torch.ones_like(input_ids)
            return super().forward(input_ids, position_ids=position_ids, attention_mask=mask, **kwargs)

    Across.calls = 0
    model.__class__ = Across
    head = Head.from_model(model)
    with torch.no_grad(), pytest.raises(UnsupportedModel, match=r"does not keep apart.*'sdpa', 1 rows"):
        sequence_logprobs(model, flattened(), head=head)
    model.__class__ = Across.__bases__[0]
    calls: list[Any] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for _ in range(3):
            sequence_logprobs(model, flattened(), head=head)
    assert len(calls) == 3 + 2


def test_a_model_without_positions_is_refused() -> None:
    model = tiny_llama()

    class Without(type(model)):
        def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
            return super().forward(input_ids, **kwargs)

    model.__class__ = Without
    with torch.no_grad(), pytest.raises(UnsupportedModel, match="takes no position_ids"):
        sequence_logprobs(model, flattened())


def test_numbers_go_on_through_the_rows() -> None:
    found = sequence_numbers(torch.tensor([[0, 1, 0, 0], [5, 6, 7, 0]]))
    assert found.tolist() == [[0, 0, 1, 2], [3, 3, 3, 4]]
    assert found.dtype == torch.int64


def test_dropout_and_mode_are_as_before_the_trial() -> None:
    model = tiny_llama(attention_dropout=0.5).train()
    before = torch.random.get_rng_state()
    Head.from_model(model).check_kept_apart(model, 2)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(model, nn.Module)
