"""Scores against stored ones of the official program, whatever is batched with what; and what cannot be scored."""

from __future__ import annotations

import warnings

import golden_miniplm as golden
import numpy as np
import pytest
import torch
import transformers
from paperhooks import DataError
from paperhooks.testing import LargestTensor, fingerprint, tiny_text
from paperhooks_miniplm import LogLikelihood, ScoringWarning
from paperhooks_miniplm.scoring.likelihood import fitted, labels_of

END = 0
CHUNKS = golden.packing()["a_no_bos"]["chunks"]
STORED = {name: each.numpy() for name, each in golden.scores().items()}


def arrays(rows) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def means(found) -> np.ndarray:
    return found.nll / found.count


@pytest.mark.parametrize("name", ["teacher", "ref"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_tokens": 1},
        {"batch_tokens": 7 * 65, "sort": False},
        {"batch_tokens": 64 * 65, "chunk": 1},
        {"batch_tokens": 64 * 65, "chunk": 4096},
        {"batch_tokens": 999, "chunk": 64},
        {"full_logits": True},
    ],
    ids=str,
)
def test_scores_are_the_official_ones_however_they_are_batched(name: str, options) -> None:
    some = CHUNKS[:200]
    found = LogLikelihood(golden.fresh(name), END, 64, **options).score(arrays(some))
    np.testing.assert_allclose(means(found), STORED[f"{name}_nll"][:200], atol=2e-5)
    np.testing.assert_allclose(means(found), STORED[f"{name}_nll_float64"][:200], atol=2e-5)
    assert found.count.tolist() == STORED["scored_tokens"][:200].tolist()


def test_the_whole_corpus_scores_as_stored() -> None:
    for name in ("teacher", "ref"):
        found = LogLikelihood(golden.fresh(name), END, 64).score(arrays(CHUNKS))
        np.testing.assert_allclose(means(found), STORED[f"{name}_nll"], atol=2e-5)
        assert found.count.tolist() == STORED["scored_tokens"].tolist()


def check_against_own_logits(model) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 90, (n,), generator=generator).numpy() for n in (9, 2, 30, 17)]
    rows[2][[4, 11]] = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScoringWarning)  # no fallback to full logits
        found = LogLikelihood(model, 2, 64).score(rows)
    for row, nll, count in zip(rows, found.nll, found.count, strict=True):
        ids = torch.from_numpy(row)[None]
        with torch.no_grad():
            logprobs = model(ids).logits[0].double().log_softmax(-1)
        wanted = [-float(logprobs[t, ids[0, t + 1]]) for t in range(len(row) - 1) if row[t] != 2]
        assert count == len(wanted)
        assert nll == pytest.approx(sum(wanted), rel=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "opt"])
def test_every_family_scores_as_its_own_logits(family: str) -> None:
    check_against_own_logits(tiny_text(family, layers=2))


@pytest.mark.parametrize("name", ["Mamba", "Rwkv"])
def test_models_without_attention_score_as_their_own_logits(name: str) -> None:
    """Padding on the right cannot reach what stands before it."""
    options = {"state_size": 8, "initializer_range": 0.2} if name == "Mamba" else {}
    config = getattr(transformers, f"{name}Config")(hidden_size=32, num_hidden_layers=2, vocab_size=100, **options)
    torch.manual_seed(0)
    check_against_own_logits(getattr(transformers, f"{name}ForCausalLM")(config).eval())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Granite", {"logits_scaling": 4.0}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Gemma2", {"final_logit_softcapping": 2.0}),
    ],
)
def test_scaled_and_capped_heads_score_as_their_own_logits(name: str, options) -> None:
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=100, pad_token_id=0, initializer_range=0.2, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    check_against_own_logits(getattr(transformers, f"{name}ForCausalLM")(config).eval())


def test_no_logits_of_all_positions_are_made() -> None:
    vocabulary, length = 5000, 200
    model = tiny_text(layers=1, vocab_size=vocabulary)
    rows = [np.arange(3, 3 + length) for _ in range(8)]
    likelihood = LogLikelihood(model, 2, 256, chunk=64)
    with LargestTensor() as seen:
        likelihood.score(rows)
    assert seen.entries <= max(64 * vocabulary, vocabulary * 32)
    assert seen.entries < 0.05 * 8 * length * vocabulary


def test_end_tokens_predict_nothing_but_are_predicted() -> None:
    ids = torch.tensor([[5, 0, 6, 7, 0], [0, 5, 0, 0, 0]])
    labels = labels_of(ids, torch.tensor([5, 3]), 0)
    assert labels.tolist() == [[0, -100, 7, 0], [-100, 0, -100, -100]]
    assert labels_of(ids, torch.tensor([5, 3]), None).tolist() == [[0, 6, 7, 0], [5, 0, -100, -100]]


def test_rows_with_nothing_to_predict_count_nothing() -> None:
    model = golden.fresh("ref")
    found = LogLikelihood(model, END, 64).score(arrays([[], [5], [END, 7], [5, 6]]))
    assert found.count.tolist() == [0, 0, 0, 1]
    assert found.nll[:3].tolist() == [0, 0, 0]
    assert found.nll[3] > 0
    assert LogLikelihood(model, END, 64).score([]).nll.shape == (0,)


def test_rows_that_are_too_long() -> None:
    model, row = golden.fresh("ref"), np.arange(1, 151)
    cut = LogLikelihood(model, None, 64).score([row])
    assert (cut.cut.tolist(), cut.count.tolist()) == ([True], [64])
    assert cut.nll[0] == pytest.approx(LogLikelihood(model, None, 64).score([row[:65]]).nll[0])
    pieces = LogLikelihood(model, None, 64, "split").score([row])
    assert (pieces.cut.tolist(), pieces.count.tolist()) == ([False], [149])
    parts = LogLikelihood(model, None, 64).score([row[:65], row[64:129], row[128:]])
    assert pieces.nll[0] == pytest.approx(parts.nll.sum())
    with pytest.raises(DataError, match=r"row 7 has 150 ids, more than max_length \+ 1 = 65"):
        LogLikelihood(model, None, 64, "error").score([row], first=7)
    with pytest.raises(DataError, match="the model reads at most"):
        LogLikelihood(model, None, 10**6)
    with pytest.raises(DataError, match="over_long is 'wrap'"):
        LogLikelihood(model, None, 64, "wrap")
    with pytest.raises(DataError, match="must be at least 1"):
        LogLikelihood(model, None, 64, chunk=0)
    assert not fitted([row], 149, "error")[2].any()


@pytest.mark.parametrize("wrong", [512, -1])
def test_ids_that_the_model_does_not_know_are_named(wrong: int) -> None:
    with pytest.raises(DataError, match=f"row 11 has the id {wrong}; the model has 0 to 511"):
        LogLikelihood(golden.fresh("ref"), END, 64).score(arrays([[1, 2], [3, wrong]]), first=10)


def test_rows_that_overflow_are_scored_again_or_left_out() -> None:
    model = tiny_text(layers=1).half()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 6e4
        model.model.layers[0].mlp.down_proj.weight.mul_(50)
        model.model.layers[0].mlp.up_proj.weight.mul_(100)
        model.model.layers[0].mlp.gate_proj.weight.mul_(100)
    rows = arrays([[5, 7, 8, 9], [5, 6, 8]])
    with (
        warnings.catch_warnings(),
        pytest.warns(ScoringWarning, match=r"rows gave NaN or infinity in torch\.float16; they are scored again"),
    ):
        found = LogLikelihood(model, None, 64).score(rows)
    assert np.isfinite(found.nll).all()
    broken = tiny_text(layers=1)
    with torch.no_grad():
        broken.model.embed_tokens.weight[7] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScoringWarning)
        found = LogLikelihood(broken, None, 64).score(rows)
    assert np.isnan(found.nll).tolist() == [True, False]


def test_running_out_of_memory_halves_the_batch(caplog, monkeypatch) -> None:
    likelihood = LogLikelihood(golden.fresh("ref"), END, 64, batch_tokens=65 * 16)
    whole = likelihood.score(arrays(CHUNKS[:16]))
    small = LogLikelihood(golden.fresh("ref"), END, 64, batch_tokens=65 * 16)
    plain = small._batch

    def batch(rows):
        if len(rows) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(rows)

    monkeypatch.setattr(small, "_batch", batch)
    found = small.score(arrays(CHUNKS[:16]))
    assert small._budget == 65 * 4
    assert "going on with 260 tokens a batch" in caplog.text
    np.testing.assert_allclose(found.nll, whole.nll, rtol=1e-6)
    monkeypatch.setattr(small, "_batch", lambda rows: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        small.score(arrays(CHUNKS[:4]))


def test_models_whose_head_cannot_be_read_are_scored_with_their_own_logits(monkeypatch) -> None:
    from paperhooks import UnsupportedModel
    from paperhooks.logprobs import Head

    wanted = LogLikelihood(golden.fresh("ref"), END, 64).score(arrays(CHUNKS[:9]))

    def refuse(view):
        raise UnsupportedModel("no such head")

    monkeypatch.setattr(Head, "from_model", refuse)
    with pytest.warns(ScoringWarning, match="full logits, a row at a time: no such head"):
        likelihood = LogLikelihood(golden.fresh("ref"), END, 64)
    np.testing.assert_allclose(likelihood.score(arrays(CHUNKS[:9])).nll, wanted.nll, rtol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_text(layers=2).train()
    model(torch.tensor([[1, 2]]))
    before, state = fingerprint(model), torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LogLikelihood(model, 2, 64).score(arrays([[1, 2, 3], [4, 5]]))
    assert fingerprint(model) == before
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
