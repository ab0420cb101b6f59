"""Token selection against the mask oracle: nothing removed, dropped columns masked in the layers behind the drop."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import KeepRows, mask_oracle
from paperhooks import HookError, UnsupportedGeneration, attach
from paperhooks.hooks import Call, LayerInputs, Site
from paperhooks.testing import TEXT_FAMILIES, cache_argument, tiny_llama, tiny_text
from paperhooks.tokens import TokenTrack, compact
from paperhooks.tokens.cache import SelectedLayer
from paperhooks.tokens.masks import gather_mask, take_rows
from paperhooks.tokens.row_state import Attendance
from paperhooks.tokens.track import compact_labels
from transformers import DynamicCache, StaticCache

CACHE = cache_argument(tiny_llama())
LAYER = 2
# RoPE families, absolute positions (gpt2, opt), partial rotary (gpt_neox), q/k norms (qwen3), experts (mixtral).
FAMILIES = sorted(TEXT_FAMILIES.keys() - {"bloom", "gemma2", "gemma3"})


def prompts(*lengths: int, pad: str = "left", seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, n in enumerate(lengths):
        where = slice(width - n, width) if pad == "left" else slice(0, n)
        ids[row, where] = torch.randint(3, 90, (n,), generator=generator)
        mask[row, where] = 1
    return ids, mask


def choose(mask: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """A different random half of the real tokens of each row, always with the last one."""
    generator = torch.Generator().manual_seed(seed)
    keep = (torch.rand(mask.shape, generator=generator) < 0.5) & mask.bool()
    last = (torch.arange(1, mask.shape[1] + 1) * mask).argmax(1, keepdim=True)
    return keep.scatter(1, last, True)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_prefill_and_decoding_equal_the_oracle(family, attn):
    ids, mask = prompts(12)
    keep = choose(mask)
    model = tiny_text(family, attn_implementation=attn)
    oracle = tiny_text(family, attn_implementation="eager")
    cache = DynamicCache(config=model.config)
    with attach(model, KeepRows(LAYER, keep)):
        logits = model(ids, **{CACHE: cache}).logits
        torch.testing.assert_close(logits[keep], mask_oracle(oracle, ids, keep, LAYER)[keep], atol=2e-5, rtol=1e-4)
        kept = int(keep.sum())
        assert [cache.get_seq_length(i) for i in range(4)] == [12, 12, kept, kept]
        text = ids
        for step in range(5):
            text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
            logits = model(text[:, -1:], **{CACHE: cache}).logits
            expected = mask_oracle(oracle, text, keep, LAYER)
            torch.testing.assert_close(logits[:, -1], expected[:, -1], atol=2e-5, rtol=1e-4)
            assert cache.get_seq_length() == 13 + step
            assert cache.get_seq_length(LAYER) == kept + 1 + step


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_selection_before_the_first_layer_keeps_counting_the_whole_sequence(attn):
    ids, mask = prompts(12)
    keep = choose(mask)
    model, oracle = tiny_llama(attn_implementation=attn), tiny_llama(attn_implementation="eager")
    with attach(model, KeepRows(0, keep)), torch.no_grad():
        tokens = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    with torch.no_grad():
        expected = mask_oracle(oracle, tokens[:, :-1], keep, 0)[:, 11:].argmax(-1)
    assert tokens[:, 12:].tolist() == expected.tolist()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pad", ["left", "right"])
@torch.no_grad()
def test_ragged_batches_with_padding(pad, attn):
    """Rows keep different numbers of tokens; padding on either side; each equals the oracle, in prefill and decode."""
    ids, mask = prompts(12, 7, 10, pad=pad)
    keep = choose(mask)
    model, oracle = tiny_llama(attn_implementation=attn), tiny_llama(attn_implementation="eager")
    cache = DynamicCache(config=model.config)
    with attach(model, KeepRows(LAYER, keep)):
        logits = model(ids, attention_mask=mask, **{CACHE: cache}).logits
        expected = mask_oracle(oracle, ids, keep, LAYER, attention_mask=mask)
        torch.testing.assert_close(logits[keep], expected[keep], atol=2e-5, rtol=1e-4)
        text = ids
        for _ in range(4):
            text = torch.cat(
                [text, torch.randint(3, 90, (3, 1), generator=torch.Generator().manual_seed(len(text[0])))], 1
            )
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = model(text[:, -1:], attention_mask=mask, **{CACHE: cache}).logits
            expected = mask_oracle(oracle, text, keep, LAYER, attention_mask=mask)
            torch.testing.assert_close(logits[:, -1], expected[:, -1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_several_tokens_over_the_cache_equal_one_by_one(attn):
    ids, mask = prompts(12)
    keep = choose(mask)
    model = tiny_llama(attn_implementation=attn)
    more = torch.randint(3, 90, (1, 4), generator=torch.Generator().manual_seed(3))
    with attach(model, KeepRows(LAYER, keep)):
        cache = DynamicCache(config=model.config)
        model(ids, **{CACHE: cache})
        twin = copy.deepcopy(cache)
        together = model(more, **{CACHE: cache}).logits
        single = torch.cat([model(more[:, i : i + 1], **{CACHE: twin}).logits for i in range(4)], dim=1)
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_a_second_turn_that_selects_again(attn):
    """Each turn drops its own tokens; the cache remembers both."""
    first, mask = prompts(10)
    second, _ = prompts(8, seed=5)
    keep_one, keep_two = choose(mask), choose(torch.ones(1, 8), seed=7)
    model, oracle = tiny_llama(attn_implementation=attn), tiny_llama(attn_implementation="eager")
    cache = DynamicCache(config=model.config)
    method = _EveryTurn(LAYER, keep_one)
    with attach(model, method):
        model(first, **{CACHE: cache})
        method.rows = keep_two
        logits = model(second, **{CACHE: cache}).logits
        third = model(torch.tensor([[7]]), **{CACHE: cache}).logits
    keep = torch.cat([keep_one, keep_two], dim=1)
    whole = torch.cat([first, second, torch.tensor([[7]])], dim=1)
    expected = mask_oracle(oracle, whole, keep, LAYER)
    torch.testing.assert_close(logits[keep_two], expected[:, 10:18][keep_two], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(third[:, -1], expected[:, -1], atol=2e-5, rtol=1e-4)


class _EveryTurn(KeepRows):
    from paperhooks import hookimpl

    @hookimpl
    def pre_attention(self, call, inputs):
        if call.query_length == 1:
            return None
        return inputs.select(self.rows.nonzero()[:, 1][None])


@torch.no_grad()
def test_two_selections_on_the_way_compose():
    """Two methods, two layers: the second chooses among the rows the first has left."""
    ids, mask = prompts(12)
    keep_one = choose(mask)
    rows = keep_one.nonzero()[:, 1]
    inner = torch.ones(1, len(rows), dtype=torch.bool)
    inner[0, 1] = False
    keep_two = torch.zeros_like(keep_one)
    keep_two[0, rows[inner[0]]] = True
    model = tiny_llama()

    class Second(KeepRows):
        pass

    hidden = {}
    with attach(model, KeepRows(1, keep_one), Second(3, inner)):
        cache = DynamicCache(config=model.config)
        logits = model(ids, **{CACHE: cache}).logits
        hidden["lengths"] = [cache.get_seq_length(i) for i in range(4)]
    assert hidden["lengths"] == [12, len(rows), len(rows), len(rows) - 1]
    assert (logits[~keep_two].abs().sum(-1) < logits[keep_two].abs().sum(-1).min()).all()


@torch.no_grad()
def test_beams_share_the_prompts_rows():
    ids, mask = prompts(12, 9)
    model = tiny_llama()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 3}
    with attach(model, KeepRows(LAYER)):  # rows counted from the end: the same for every row, padded or not
        batch = model.generate(ids, attention_mask=mask, **options)
        single = model.generate(ids[:1], attention_mask=mask[:1], **options)
    assert batch[:1].tolist() == single.tolist()


@torch.no_grad()
def test_prompt_lookup_gives_the_greedy_tokens():
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8]])
    model = tiny_llama()
    with attach(model, KeepRows(LAYER)):
        greedy = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        looked = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
    assert greedy.tolist() == looked.tolist()


@pytest.mark.parametrize("crop", [1, 4, 9])
@torch.no_grad()
def test_cropping_into_generated_tokens_and_into_the_prompt(crop):
    """A cropped cache goes on as if the cropped tokens had never been."""
    ids, mask = prompts(12)
    keep = choose(mask)
    more, _ = prompts(5, seed=2)
    model, oracle = tiny_llama(), tiny_llama(attn_implementation="eager")
    cache = DynamicCache(config=model.config)
    with attach(model, KeepRows(LAYER, keep)):
        model(ids, **{CACHE: cache})
        model(more, **{CACHE: cache})
        cache.crop(-crop)
        left = torch.cat([ids, more], dim=1)[:, : 17 - crop]
        assert cache.get_seq_length() == 17 - crop
        logits = model(torch.tensor([[9]]), **{CACHE: cache}).logits
    expected = mask_oracle(oracle, torch.cat([left, torch.tensor([[9]])], 1), keep[:, : left.shape[1]], LAYER)
    torch.testing.assert_close(logits[:, -1], expected[:, -1], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_cache_can_be_copied_repeated_reordered_and_narrowed():
    ids, mask = prompts(10, 8)
    keep = choose(mask)
    model = tiny_llama(attn_implementation="eager")
    token = torch.tensor([[7], [8]])
    grown = torch.nn.functional.pad(mask, (0, 1), value=1)
    with attach(model, KeepRows(LAYER, keep)):
        cache = DynamicCache(config=model.config)
        model(ids, attention_mask=mask, **{CACHE: cache})
        plain = model(token, attention_mask=grown, **{CACHE: copy.deepcopy(cache)}).logits
        swapped = copy.deepcopy(cache)
        swapped.reorder_cache(torch.tensor([1, 0]))
        got = model(token.flip(0), attention_mask=grown.flip(0), **{CACHE: swapped}).logits
        torch.testing.assert_close(got.flip(0), plain)
        doubled = copy.deepcopy(cache)
        doubled.batch_repeat_interleave(2)
        got = model(
            token.repeat_interleave(2, 0), attention_mask=grown.repeat_interleave(2, 0), **{CACHE: doubled}
        ).logits
        torch.testing.assert_close(got[::2], plain)
        cache.batch_select_indices(torch.tensor([1]))
        got = model(token[1:], attention_mask=grown[1:], **{CACHE: cache}).logits
        torch.testing.assert_close(got, plain[1:])
        stock = DynamicCache(config=model.config)
        tiny_llama()(torch.cat([ids, token], dim=1)[1:], **{CACHE: stock})
        for each in (cache, stock):
            each.reset()
        assert cache.get_seq_length() == stock.get_seq_length()  # 0, but before transformers 5.18


@pytest.mark.parametrize("compact_loss", [False, True], ids=["restored", "compact"])
@pytest.mark.parametrize("pad", ["left", "right"])
def test_loss_and_gradients_equal_the_oracle(pad, compact_loss):
    ids, mask = prompts(12, 9, pad=pad)
    labels = ids.masked_fill(mask == 0, -100)
    answer = torch.arange(12)[None] >= 8 if pad == "left" else torch.arange(12)[None] >= 6
    labels = labels.masked_fill(~answer, -100)
    predicts = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))
    keep = choose(mask) | predicts | (labels != -100)
    model, oracle = tiny_llama().train(), tiny_llama(attn_implementation="eager").train()
    with attach(model, KeepRows(LAYER, keep, compact_loss=compact_loss)):
        out = model(ids, attention_mask=mask, labels=labels, use_cache=False)
    out.loss.backward()
    logits = mask_oracle(oracle, ids, keep, LAYER, attention_mask=mask)
    expected = oracle.loss_function(logits=logits, labels=labels, vocab_size=100)
    expected.backward()
    torch.testing.assert_close(out.loss, expected, atol=1e-6, rtol=1e-6)
    for (name, got), (_, want) in zip(model.named_parameters(), oracle.named_parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert out.logits.shape[1] == (int(keep.sum(1).max()) if compact_loss else 12)


def test_dropped_tokens_embeddings_learn_from_the_layers_before():
    ids, mask = prompts(12)
    keep = choose(mask)
    model = tiny_llama().train()
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    with attach(model, KeepRows(LAYER, keep)):
        model(inputs_embeds=embeds, use_cache=False).logits[:, -1].sum().backward()
    assert (embeds.grad[0].abs().sum(-1) > 0).all()


# -- the algebra -------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_compact_keeps_exactly_the_kept_in_order(data):
    batch, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    keep = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=batch, max_size=batch))
    )
    width = max(1, int(keep.sum(1).max()))
    align = data.draw(st.sampled_from(["left", "right"]))
    index, valid = compact(keep, width, align)
    for row in range(batch):
        assert index[row][valid[row]].tolist() == keep[row].nonzero()[:, 0].tolist()
        empty = width - int(keep[row].sum())
        assert (valid[row, empty:] if align == "right" else valid[row, : width - empty]).all()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_restore_undoes_taking_rows(data):
    length = data.draw(st.integers(1, 8))
    keep = torch.tensor([data.draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(2)])
    hidden = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(0))
    index, valid = compact(keep, max(1, int(keep.sum(1).max())))
    track = TokenTrack.whole(hidden, 0).narrowed(index, valid, None)
    back = track.restore(take_rows(hidden, index))
    assert torch.equal(back, hidden * keep[..., None])
    assert track.dropped().tolist() == (length - keep.sum(1)).tolist()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_gathered_masks_agree_in_every_form(data):
    """None, bool, float and 2-D masks of the same meaning stay of the same meaning."""
    length = data.draw(st.integers(2, 8))
    keep = torch.tensor(
        [data.draw(st.lists(st.booleans(), min_size=length, max_size=length).filter(any)) for _ in range(2)]
    )
    index, valid = compact(keep, int(keep.sum(1).max()))
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(2, 1, length, length)
    additive = torch.zeros(2, 1, length, length).masked_fill(~causal, torch.finfo(torch.float32).min)
    where = {"rows": index, "columns": index, "row_valid": valid, "column_valid": valid}
    as_bool = gather_mask(causal, **where)
    as_float = gather_mask(additive, **where)
    from_none = gather_mask(None, **where, offset=0)
    assert torch.equal(as_bool, as_float == 0)
    assert torch.equal(as_bool, from_none)
    flash = gather_mask(torch.ones(2, length, dtype=torch.int64), index, index, row_valid=valid, column_valid=valid)
    assert torch.equal(flash.bool(), valid)
    assert gather_mask(None, index, index) is None
    assert torch.equal(gather_mask(None, index, index, column_valid=valid, flash=True), valid)


def test_labels_move_with_their_tokens():
    track = TokenTrack(
        torch.tensor([[0, 2, 3], [1, 0, 3]]), torch.tensor([[True] * 3, [False, True, True]]), 4, 0, None
    )
    labels = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]])
    assert compact_labels(labels, track).tolist() == [[12, 13, -100], [-100, 23, -100]]


def test_select_checks_its_arguments():
    view = type("View", (), {"attention_kernel": "sdpa", "family": "x", "image_token_ids": ()})()
    site = Site(1, torch.nn.Identity(), 2, "full_attention", view, selects=True)
    call = Call(view, {}, training=False)
    inputs = LayerInputs(torch.zeros(2, 4, 3), None, None, None, None, site, call)
    with pytest.raises(HookError, match=r"int64 index \[B=2, K\], 1 <= K <= 4, got float32\[2, 2\]"):
        inputs.select(torch.zeros(2, 2))
    with pytest.raises(HookError, match=r"got int64\[1, 2\]"):
        inputs.select(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(HookError, match="valid must be bool"):
        inputs.select(torch.zeros(2, 2, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))


def test_a_block_mask_is_refused():
    with pytest.raises(HookError, match=r"cannot follow a object mask.*sdpa"):
        gather_mask(object(), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))


def test_caches_that_cannot_hold_a_selection_are_refused():
    model = tiny_llama()
    ids, _ = prompts(6)
    with attach(model, KeepRows(LAYER)), torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=16)
        with pytest.raises(UnsupportedGeneration, match="preallocated cache"):
            model(ids, **{CACHE: cache})
        model(ids)
    sliding = tiny_text("gemma3")
    with attach(sliding, KeepRows(LAYER)), torch.no_grad():
        with pytest.raises(UnsupportedGeneration, match="DynamicSlidingWindowLayer"):
            sliding(ids, use_cache=True)
        sliding(ids, use_cache=False)


def test_a_crop_that_rows_do_not_share_is_refused():
    layer = SelectedLayer()
    layer.announce(Attendance(), TokenTrack(torch.tensor([[0, 3], [0, 1]]), None, 4, 0, None))
    layer.update(torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 4))
    with pytest.raises(UnsupportedGeneration, match="kept different numbers"):
        layer.crop(-2)


def test_dense_masks_say_the_same_for_every_kernel():
    ids, mask = prompts(6, 4)
    found = {}
    for attn in ("sdpa", "eager"):
        model = tiny_llama(layers=1, attn_implementation=attn)
        with attach(model, _Dense(found, attn)), torch.no_grad():
            model(ids, attention_mask=mask)
    real = mask.bool()
    assert torch.equal(found["sdpa"][0, 0], torch.ones(6, 6, dtype=torch.bool).tril())
    assert torch.equal(found["sdpa"][real[:, None].expand(2, 1, 6)], found["eager"][real[:, None].expand(2, 1, 6)])


from dataclasses import dataclass  # noqa: E402

from paperhooks import Traits, hookimpl  # noqa: E402


@dataclass(eq=False)
class _Dense:
    found: dict
    key: str
    traits = Traits()

    @hookimpl
    def pre_attention(self, inputs):
        self.found[self.key] = inputs.dense_mask()
