"""Negative log-likelihoods of rows: which predictions count, batches, and what does not change them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers
from paperhooks.errors import DataError, UnsupportedModel
from paperhooks.logprobs import Head, LogLikelihood, longest_readable, row_pieces
from paperhooks.testing import tiny_text

ROWS = [np.asarray(row) for row in ([5, 6, 7, 8, 9], [3, 4], [11], [], [20, 21, 22, 23, 24, 25, 26])]


@pytest.fixture(scope="module")
def model():
    return tiny_text("llama", layers=2)


def surprises(model, row: Sequence[int]) -> list[float]:
    """Of every id but the first, read alone."""
    with torch.no_grad():
        logits = model(torch.tensor([list(row)])).logits[0].double().log_softmax(-1)
    return [-float(logits[place - 1, row[place]]) for place in range(1, len(row))]


def test_sums_and_counts(model) -> None:
    found = LogLikelihood(model, max_length=64).score(ROWS)
    expected = [sum(surprises(model, row)) if len(row) > 1 else 0.0 for row in ROWS]
    np.testing.assert_allclose(found.nll, expected, rtol=1e-5)
    assert found.count.tolist() == [4, 1, 0, 0, 6]
    assert not found.cut.any()


@pytest.mark.parametrize("full_logits", [False, True])
def test_what_counts_is_said_by_the_caller(model, full_logits: bool) -> None:
    counted = [np.arange(len(row)) >= 3 for row in ROWS]
    found = LogLikelihood(model, max_length=64, full_logits=full_logits).score(ROWS, counted=counted)
    expected = [sum(surprises(model, row)[2:]) if len(row) > 1 else 0.0 for row in ROWS]
    np.testing.assert_allclose(found.nll, expected, rtol=1e-5, atol=1e-6)
    assert found.count.tolist() == [2, 0, 0, 0, 4]
    ended = LogLikelihood(model, end=8, max_length=64).score(ROWS, counted=counted)
    assert ended.count.tolist() == [1, 0, 0, 0, 4], "and nothing from an end token"
    pieces = LogLikelihood(model, None, 2, "split").score([ROWS[4]], counted=[counted[4]])
    assert pieces.count.tolist() == [4]


def test_what_does_not_fit_is_refused(model) -> None:
    likelihood = LogLikelihood(model, max_length=64)
    with pytest.raises(DataError, match="counted names the ids of 1 rows, and there are 2"):
        likelihood.score(ROWS[:2], counted=[np.ones(5, dtype=bool)])
    with pytest.raises(DataError, match="row 8 has 2 ids, and counted tells of 3"):
        likelihood.score(ROWS[:2], first=7, counted=[np.ones(5, dtype=bool), np.ones(3, dtype=bool)])
    with pytest.raises(DataError, match="batch_rows and chunk must be at least 1"):
        LogLikelihood(model, max_length=64, batch_rows=-1)
    with pytest.raises(DataError, match="end has the id 999; the model has 0 to "):
        LogLikelihood(model, 999, max_length=64)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_encoders_are_refused_and_decoders_of_their_families_are_not(family: str) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    build = getattr(transformers, "BertLMHeadModel" if family == "Bert" else f"{family}ForCausalLM")
    model, decoder = (
        build(getattr(transformers, f"{family}Config")(**sizes, intermediate_size=16, is_decoder=decodes)).eval()
        for decodes in (False, True)
    )
    with pytest.raises(UnsupportedModel, match="is an encoder: its layers see the tokens that they are to predict"):
        LogLikelihood(model, max_length=16)
    row = [5, 6, 7, 8]
    found = LogLikelihood(decoder, max_length=16).score([np.asarray(row)])
    assert found.nll == pytest.approx(sum(surprises(decoder, row)), rel=1e-5)


@pytest.mark.parametrize("options", [{"batch_rows": 1}, {"batch_rows": 2}, {"batch_tokens": 6}, {"sort": False}])
def test_batches_make_no_difference(model, options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LogLikelihood(model, max_length=64).score(ROWS)
    likelihood, sizes = LogLikelihood(model, max_length=64, head=Head.from_model(model), **options), []
    plain = likelihood._batch
    monkeypatch.setattr(likelihood, "_batch", lambda rows: (sizes.append(len(rows)), plain(rows))[1])
    np.testing.assert_allclose(likelihood.score(ROWS).nll, whole.nll, rtol=1e-5)
    assert sum(sizes) == 3
    assert max(sizes) <= options.get("batch_rows", 3)


def test_pieces_overlap_by_one_id() -> None:
    pieces, owners, cut = row_pieces(ROWS, 3, "split")
    assert [piece.tolist() for piece in pieces if len(piece) > 2] == [[5, 6, 7, 8], [20, 21, 22, 23], [23, 24, 25, 26]]
    assert owners == [0, 0, 1, 2, 3, 4, 4]
    assert not cut.any()
    assert row_pieces(ROWS, 3, "truncate")[2].tolist() == [True, False, False, False, True]
    with pytest.raises(DataError, match="row 9 has 7 ids, more than max_length \\+ 1 = 4"):
        row_pieces([ROWS[4]], 3, "error", [9])


def test_the_limit_is_the_model_s(model) -> None:
    limit = longest_readable(LogLikelihood(model, max_length=64).view)
    assert limit == model.config.max_position_embeddings
    with pytest.raises(DataError, match=f"max_length is {limit + 1}, but the model reads at most {limit} tokens"):
        LogLikelihood(model, max_length=limit + 1)
