"""What must hold for PyramidDrop, check by check."""

from __future__ import annotations

import copy
import threading
from functools import partial

import pytest
import torch
from oracle_pyramiddrop import kept, masked
from paperhooks import DataError, PluginConflict, PluginIncompatible, UnsupportedGeneration, UnsupportedModel, attach
from paperhooks.testing import fingerprint, tiny_llama, tiny_text, tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import PyramidDrop, Ranking, Schedule, policies, solve_ratio
from paperhooks_pyramiddrop.algorithm import choose
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from transformers import DynamicCache, StaticCache, Trainer, TrainingArguments

STAGES = {2: 0.5, 4: 0.25}
ONE = ((3, 12, 5),)
MIXED = ((3, 12, 5), (2, 8, 3, 8, 4), (6,))
ORACLE_FAMILIES = [
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
    "idefics3",
    "internvl",
    "paligemma",
]
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def new_cache(model):
    return DynamicCache(config=model.config.get_text_config())


def greedy(model, inputs, n=6, **options):
    out = model.generate(**inputs, max_new_tokens=n, min_new_tokens=n, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


# -- 2: no drop, no difference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_ratio_one_and_text_only_are_the_plain_model(attn):
    model = tiny_vlm(attn_implementation=attn)
    inputs, text = vlm_inputs(model, ONE), vlm_inputs(model, ((9,),))
    plain = [model(**inputs).logits, model(**text).logits, greedy(model, vlm_inputs(model, ONE))]
    with attach(model, PyramidDrop(stages={2: 1.0, 4: 1.0})):
        assert torch.equal(model(**inputs).logits, plain[0])
        assert greedy(model, vlm_inputs(model, ONE)) == plain[2]
    with attach(model, PyramidDrop(stages=STAGES)):
        assert torch.equal(model(**text).logits, plain[1])
    assert torch.equal(model(**inputs).logits, plain[0])
    assert not any(m._forward_pre_hooks for m in model.get_decoder().layers)


# -- 3, 4: the mask oracle, and what the caches hold -------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ORACLE_FAMILIES)
@torch.no_grad()
def test_dropping_equals_masking(family, attn):
    model, stock = tiny_vlm(family, attn_implementation=attn), tiny_vlm(family, attn_implementation="eager")
    inputs, drops = vlm_inputs(model, ONE), []
    cache, other = (
        new_cache(model),
        new_cache(model),
    )
    with attach(model, PyramidDrop(stages=STAGES, record=drops)):
        got = [model(**inputs, past_key_values=cache).logits]
        lengths = [cache.get_seq_length(i) for i in range(6)]
        got += [_step(model, cache, 20 + step) for step in range(5)]
        grown = [cache.get_seq_length(i) for i in range(6)]
    assert lengths == [20, 20, 14, 14, 11, 11]  # n - (N0 - k)
    assert grown == [n + 5 for n in lengths]
    with masked(stock, kept(drops)):
        want = [stock(**vlm_inputs(stock, ONE), past_key_values=other).logits]
        want += [_step(stock, other, 20 + step) for step in range(5)]
    alive = drops[-1].kept
    torch.testing.assert_close(got[0][alive], want[0][alive], **TOLERANCE)
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def _step(model, cache, position):
    token = torch.tensor([[7 + position % 5]])
    return model(input_ids=token, attention_mask=torch.ones(1, position + 1), past_key_values=cache).logits


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_a_prefix_language_model_stays_bidirectional(attn):
    """PaliGemma hands sdpa no mask for a prompt that sees itself in both directions; ragged drops must keep that."""
    model = tiny_vlm("paligemma", attn_implementation=attn)
    parts = ((3, 12, 5), (5, 8, 7))  # equally long, but with different numbers of image tokens: ragged once dropped
    with attach(model, PyramidDrop(stages=STAGES)):
        batch = model(**vlm_inputs(model, parts)).logits[:, -1]
        single = [model(**vlm_inputs(model, parts, rows=slice(r, r + 1))).logits[:, -1] for r in (0, 1)]
    torch.testing.assert_close(batch, torch.cat(single), **TOLERANCE)


# -- 5: batches, beams, drafts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["preserve", "renumber"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_a_ragged_batch_generates_what_its_rows_generate(attn, mode):
    model = tiny_vlm(attn_implementation=attn)

    def rows(*which):
        return vlm_inputs(model, MIXED, rows=slice(which[0], which[-1] + 1))

    with attach(model, PyramidDrop(stages=STAGES, positions=mode)):
        assert greedy(model, rows(0, 2)) == [greedy(model, rows(r))[0] for r in range(3)]
        beams = greedy(model, rows(0, 2), num_beams=3)
        assert beams == [greedy(model, rows(r), num_beams=3)[0] for r in range(3)]
        for row in range(3):
            assert greedy(model, rows(row), prompt_lookup_num_tokens=3) == greedy(model, rows(row))
        sampled = model.generate(**rows(0, 2), max_new_tokens=3, num_return_sequences=2, do_sample=True)
    assert sampled.shape[0] == 6


@torch.no_grad()
def test_drafts_do_not_rank():
    """A prompt with repetitions: the first forward of prompt lookup carries drafts behind the real last token."""
    model = tiny_vlm()
    inputs = vlm_inputs(model, ((6, 12, 12),))
    inputs["input_ids"][0, -12:] = torch.tensor([5, 6, 7] * 4)
    drops, looked = [], []
    with attach(model, PyramidDrop(stages=STAGES, record=drops)):
        plain = greedy(model, dict(inputs), n=8)
    with attach(model, PyramidDrop(stages=STAGES, record=looked)):
        assert greedy(model, dict(inputs), n=8, prompt_lookup_num_tokens=3) == plain
    assert looked[0].kept.shape[1] > drops[0].kept.shape[1], "the prompt was meant to provoke drafts"
    assert torch.equal(looked[0].kept[:, :30], drops[0].kept)


# -- 6, 7: over the cache ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["preserve", "renumber"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_continuing_over_the_cache_does_not_drop_again(attn, mode):
    model, drops = tiny_vlm(attn_implementation=attn), []
    more = torch.tensor([[11, 12, 13, 14]])
    with attach(model, PyramidDrop(stages=STAGES, positions=mode, record=drops)):
        cache = new_cache(model)
        model(**vlm_inputs(model, ONE), past_key_values=cache)
        assert len(drops) == 2
        twin = copy.deepcopy(cache)
        together = model(input_ids=more, past_key_values=cache).logits
        single = torch.cat([model(input_ids=more[:, i : i + 1], past_key_values=twin).logits for i in range(4)], dim=1)
    assert len(drops) == 2
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_a_second_turn_with_another_image(attn):
    """Its own visual tokens are pruned by their own number; the first image is not touched again."""
    model, stock = tiny_vlm(attn_implementation=attn), tiny_vlm(attn_implementation="eager")
    first, second = vlm_inputs(model, ONE), vlm_inputs(model, ((2, 8, 4),), seed=3)
    cache, other = (
        new_cache(model),
        new_cache(model),
    )
    one, two = [], []
    method = PyramidDrop(stages=STAGES, record=one)
    with attach(model, method):
        model(**first, past_key_values=cache)
        method.record = two
        del second["attention_mask"]
        got = model(**second, past_key_values=cache).logits
        got_next = model(input_ids=torch.tensor([[9]]), past_key_values=cache).logits
    assert [int((d.kept & d.visual).sum()) for d in two] == [4, 2]
    stages = {a.layer: torch.cat([a.kept, b.kept], dim=1) for a, b in zip(one, two, strict=True)}
    assert [cache.get_seq_length(i) for i in range(6)] == [35, 35, 25, 25, 20, 20]
    with masked(stock, stages):
        stock(**vlm_inputs(stock, ONE), past_key_values=other)
        second = vlm_inputs(stock, ((2, 8, 4),), seed=3)
        del second["attention_mask"]
        want = stock(**second, past_key_values=other).logits
        want_next = stock(input_ids=torch.tensor([[9]]), past_key_values=other).logits
    alive = two[-1].kept
    torch.testing.assert_close(got[alive], want[alive], **TOLERANCE)
    torch.testing.assert_close(got_next, want_next, **TOLERANCE)


# -- 8: training -------------------------------------------------------------------------------------------------------


def training_batch(model, parts=((3, 12, 8), (2, 8, 3, 8, 6)), pad="right"):
    inputs = vlm_inputs(model, parts, pad=pad)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == 95, -100)
    labels[:, : 16 if pad == "right" else -4] = -100
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("restore", [True, False], ids=["restored", "compact"])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "checkpointed"])
def test_loss_and_gradients_equal_the_oracle(pad, checkpointing, restore, monkeypatch):
    model, stock = tiny_vlm().train(), tiny_vlm(attn_implementation="eager").train()
    calls = []

    def counting(given: Ranking):
        calls.append(given.layer)
        return policies.last_token(given)

    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    drops = []
    with attach(model, PyramidDrop(stages=STAGES, record=drops, restore_outputs=restore, rank=counting)):
        loss = model(**training_batch(model, pad=pad), use_cache=False).loss
        loss.backward()
    assert calls == [2, 4], "ranked once a drop, also when the layers are recomputed"
    batch = training_batch(stock, pad=pad)
    real = batch["attention_mask"].bool()
    with masked(stock, {d.layer: d.kept | ~real for d in drops}):
        expected = stock(**batch, use_cache=False).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for (name, a), (_, b) in zip(model.named_parameters(), stock.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=2e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("positions", ["preserve", "renumber"])
@pytest.mark.parametrize("rank", sorted(policies.POLICIES))
@pytest.mark.parametrize("kind", list(CheckpointImpl), ids=str)
def test_gradients_under_a_checkpoint_wrapper_equal_those_without(kind, rank, positions):
    def gradients(*kinds):
        model = tiny_vlm().train()
        model.enable_input_require_grads()
        layers, drops = list(model.get_decoder().layers), []
        with attach(model, PyramidDrop(stages=STAGES, rank=rank, positions=positions, record=drops)):
            for kind in kinds:
                wrapper = partial(checkpoint_wrapper, checkpoint_impl=kind)
                apply_activation_checkpointing(model, wrapper, check_fn=lambda module: module in layers)
            for _ in range(2):
                model(**training_batch(model), use_cache=False).loss.backward()
        named = model.named_parameters()
        return {n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in named if p.grad is not None}, drops

    (expected, dropped), (got, again) = gradients(), gradients(kind)
    assert [str(drop) for drop in again] == [str(drop) for drop in dropped], "each drop is recorded once"
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_dropped_tokens_still_teach_the_layers_before():
    model = tiny_vlm().train()
    batch = training_batch(model)
    embeds = torch.randn(2, batch["input_ids"].shape[1], 32, requires_grad=True)
    visual = batch["input_ids"] == 95
    drops = []
    with attach(model, PyramidDrop(stages=STAGES, record=drops)):
        out = model(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"], visual_mask=visual
        )
    out.loss.backward()
    gone = visual & ~drops[-1].kept
    assert gone.any()
    assert (embeds.grad[gone].abs().sum(-1) > 0).all()


class _Rows(torch.utils.data.Dataset):
    def __init__(self, n):
        generator = torch.Generator().manual_seed(0)
        self.rows = [torch.randint(3, 90, (18,), generator=generator) for _ in range(n)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        ids = self.rows[i].clone()
        ids[3:11] = 95
        return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(18) < 13, -100)}


def test_the_stock_trainer_trains_and_predicts(tmp_path):
    model, drops = tiny_vlm(), []
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=_Rows(4), eval_dataset=_Rows(2))
    with attach(model, PyramidDrop(stages=STAGES, record=drops)):
        result = trainer.train()
        predicted = trainer.predict(_Rows(2))
    assert result.global_step == 2
    assert len(drops) >= 6
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    assert logits.shape[:2] == (2, 18)


# -- 9, 10: who ranks, who is protected --------------------------------------------------------------------------------


def test_labels_decide_the_query_rows_also_in_evaluation():
    model, drops = tiny_vlm(), []
    seen = []

    def spy(given: Ranking):
        seen.append((given.query_rows.clone(), given.query_valid.clone()))
        return policies.last_token(given)

    inputs = vlm_inputs(model, ((3, 12, 9), (3, 12, 9)))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 17:19] = inputs["input_ids"][0, 17:19]  # two turns: answers at 17-18 and 22-23
    labels[0, 22:24] = inputs["input_ids"][0, 22:24]
    with attach(model, PyramidDrop(stages={2: 0.5}, rank=spy, record=drops)), torch.no_grad():
        model(**inputs, labels=labels)
    rows, valid = seen[0]
    assert rows[0][valid[0]].tolist() == [16, 21]
    assert not valid[1].any()
    assert drops[0].kept[1].all(), "a sample without an answer is left alone"
    assert int(drops[0].kept[0].sum()) == 24 - 6
    with attach(model, PyramidDrop(stages={2: 0.5}, rank=spy, query="last")), torch.no_grad():
        model(**inputs, labels=labels)
    assert seen[1][0][seen[1][1]].tolist() == [23, 23]


@pytest.mark.parametrize("protect", [True, False])
@torch.no_grad()
def test_a_prompt_that_ends_in_an_image(protect):
    model, drops = tiny_vlm(), []
    inputs = vlm_inputs(model, ((5, 16),))

    def worst_last(given: Ranking):
        return -torch.arange(given.visual.shape[1]).expand(given.visual.shape).float()

    with attach(model, PyramidDrop(stages={2: 0.5, 4: 0.0}, rank=worst_last, record=drops, protect_queries=protect)):
        model(**inputs)
    assert bool(drops[0].kept[0, -1]) is protect
    assert int((drops[0].kept & drops[0].visual).sum()) == 8, "a protected token counts towards the share"
    assert int((drops[1].kept & drops[1].visual).sum()) == int(protect)


def test_the_row_that_predicts_a_label_is_protected():
    model, drops = tiny_vlm(), []
    inputs = vlm_inputs(model, ((2, 16, 4),))
    labels = inputs["input_ids"].masked_fill(torch.arange(22)[None] < 18, -100)  # the label follows the image at once
    with attach(model, PyramidDrop(stages={2: 0.0}, record=drops)), torch.no_grad():
        loss = model(**inputs, labels=labels).loss
    assert drops[0].kept[0].nonzero()[:, 0].tolist() == [0, 1, 17, 18, 19, 20, 21]
    assert torch.isfinite(loss)


# -- 11: what ranking costs --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_ranking_projects_one_query_row_and_never_builds_n_by_n():
    """Counted on the modules and operators, at n = 1024: 10 % of a layer's multiply-adds at most."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_llama(layers=2, hidden_size=64, intermediate_size=172)
    n, rows = 1024, []
    embeds = torch.randn(1, n, 64)
    visual = torch.zeros(1, n, dtype=torch.bool)
    visual[:, 10:1000] = True
    attention = model.model.layers[1].self_attn

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    counter, sizes = FlopCounterMode(display=False), Sizes()

    def costed(given: Ranking):
        handles = [
            getattr(attention, name).register_forward_pre_hook(
                lambda _, args, name=name: rows.append((name, args[0].shape[1]))
            )
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        ]
        with counter, sizes:
            scores = policies.last_token(given)
        for handle in handles:
            handle.remove()
        return scores

    with attach(model, PyramidDrop(stages={1: 0.5}, rank=costed)):
        model(inputs_embeds=embeds, visual_mask=visual)
    assert rows == [("q_proj", 1), ("k_proj", n)]
    assert sizes.largest <= n * 64 < n * n
    with FlopCounterMode(display=False) as whole:
        tiny = tiny_llama(layers=1, hidden_size=64, intermediate_size=172)
        tiny.model(inputs_embeds=embeds)
    assert counter.get_total_flops() < 0.1 * whole.get_total_flops()


# -- 12: bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "at least one drop layer"),
        ({0: 0.5}, "drop layer of stages is 0; expected a whole number of at least 1"),
        ({4: 0.5, 2: 0.25}, r"stages is \{4: 0.5, 2: 0.25\}: drop layers must increase strictly"),
        ({2: 0.25, 4: 0.5}, "must not increase"),
        ({2: 1.5}, "keep ratio of stages is 1.5; expected a number from 0 to 1"),
        ({2: -0.1}, "keep ratio of stages is -0.1"),
        ({2.5: 0.5}, "drop layer of stages is 2.5"),
        ({True: 0.5}, "drop layer of stages is True"),
    ],
)
def test_bad_schedules_are_refused_at_construction(stages, message):
    with pytest.raises(ValueError, match=message):
        PyramidDrop(stages=stages)


def test_bad_options_are_refused_at_construction():
    for options, message in [
        ({"positions": "keep"}, "positions is 'keep'; expected 'preserve' or 'renumber'"),
        ({"query": "first"}, "query is 'first'; expected 'auto', 'last' or a function"),
        ({"scope": "batch"}, "scope is 'batch'"),
        ({"rank": "lasttoken"}, "rank is 'lasttoken'; expected 'last_token', .*did you mean 'last_token'"),
        ({"ratio": 2.0}, "ratio is 2.0"),
        ({"min_visual_tokens": -1}, "min_visual_tokens is -1; expected a whole number of at least 0"),
        ({"stages": {2: 0.5}, "layers": [2]}, "not both"),
        ({"ratios": [0.5]}, "need layers"),
        ({"layers": [2, 4], "ratios": [0.5]}, "as many keep ratios, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            PyramidDrop(**options)
    with pytest.raises(ValueError, match="2 drop layers need as many keep ratios, got 1"):
        Schedule((2, 4), (0.5,))


def test_schedules_outside_the_decoder_are_refused_at_attach():
    model = tiny_vlm()
    before = fingerprint(model)
    with pytest.raises(ValueError, match="drop layer 6 is outside this decoder: it has layers 0 to 5"):
        attach(model, PyramidDrop(stages={6: 0.5}))
    with pytest.raises(ValueError, match="between 2 and the number of layers"):
        attach(model, PyramidDrop(stages=7))
    assert fingerprint(model).differences(before) == []


def test_generation_modes_that_cannot_work_are_refused():
    model = tiny_vlm()
    inputs = vlm_inputs(model, ONE)
    with attach(model, PyramidDrop(stages=STAGES)):
        with pytest.raises(UnsupportedGeneration, match=r"pyramiddrop does not support chunked prefill \(prefill_ch"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=4)
        with pytest.raises(UnsupportedGeneration, match=r"preallocated cache.*leave cache_implementation unset"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation="static")
        static = StaticCache(config=model.config.get_text_config(), max_cache_len=32)
        with pytest.raises(UnsupportedGeneration, match="pass a DynamicCache"):
            model(**inputs, past_key_values=static)
        with pytest.raises(PluginConflict, match="attached already"):
            attach(model, PyramidDrop(stages=STAGES))
        model(**vlm_inputs(model, ONE))


def test_models_that_cannot_work_are_refused():
    with pytest.raises(UnsupportedModel, match="layer 2 of this gemma3_text is 'sliding_attention'"):
        attach(tiny_text("gemma3"), PyramidDrop(stages={2: 0.5}))
    with pytest.raises(PluginIncompatible, match="positions='renumber' is not defined for qwen2_5_vl"):
        attach(tiny_vlm("qwen2_5_vl"), PyramidDrop(stages=STAGES, positions="renumber"))
    with pytest.raises(UnsupportedModel, match="has no q_proj, k_proj"):
        attach(tiny_text("phi3"), PyramidDrop(stages={2: 0.5}))
    deep = tiny_vlm("qwen2_5_vl")
    deep.config.vision_config.deepstack_visual_indexes = [0, 1, 2]
    with pytest.raises(UnsupportedModel, match="first drop must be at layer 3 or later, not 2"):
        attach(deep, PyramidDrop(stages=STAGES))


@torch.no_grad()
def test_embeddings_without_ids_warn_once_and_take_a_visual_mask():
    model = tiny_vlm()
    embeds = torch.randn(1, 20, 32)
    plain = model(inputs_embeds=embeds).logits
    with attach(model, PyramidDrop(stages=STAGES)):
        with pytest.warns(UserWarning, match="pass visual_mask"):
            assert torch.equal(model(inputs_embeds=embeds).logits, plain)
        visual = torch.zeros(1, 20, dtype=torch.bool)
        visual[:, 3:15] = True
        assert not torch.equal(model(inputs_embeds=embeds, visual_mask=visual).logits, plain)


@torch.no_grad()
def test_a_visual_mask_reaches_generate():
    """Text in place of an image: ids that the caller calls visual, also for beams and drafts."""
    model, drops = tiny_llama(layers=6), []
    ids = torch.arange(3, 23)[None]
    visual = torch.zeros(1, 20, dtype=torch.bool)
    visual[:, 3:15] = True
    with attach(model, PyramidDrop(stages=STAGES, record=drops)):
        out = model.generate(ids, visual_mask=visual, max_new_tokens=3, do_sample=False)
        model.generate(ids, visual_mask=visual, max_new_tokens=3, do_sample=False, num_beams=2)
    assert out.shape == (1, 23)
    assert [int(d.kept[0].sum()) for d in drops] == [14, 11, 14, 11]
    assert drops[2].kept.shape[0] == 2


def test_packed_rows_are_refused():
    model = tiny_vlm()
    inputs = vlm_inputs(model, ONE)
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    with attach(model, PyramidDrop(stages=STAGES)), torch.no_grad(), pytest.raises(DataError, match="packed"):
        model(**inputs, position_ids=positions)


# -- 6.3, 6.4, 6.11: shapes at the edge --------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "parts",
    [((0, 12, 5),), ((5, 12),), ((0, 12),), ((3, 4, 5),)],
    ids=["first", "last", "only", "few"],
)
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
@torch.no_grad()
def test_images_anywhere_and_any_number_kept(parts, ratio, attn):
    model, stock, drops = tiny_vlm(attn_implementation=attn), tiny_vlm(attn_implementation="eager"), []
    with attach(model, PyramidDrop(stages={2: ratio}, record=drops)):
        got = model(**vlm_inputs(model, parts)).logits
    with masked(stock, kept(drops)):
        want = stock(**vlm_inputs(stock, parts)).logits
    torch.testing.assert_close(got[:, -1], want[:, -1], **TOLERANCE)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_a_row_of_nothing_but_padding_harms_nobody(attn):
    model = tiny_vlm(attn_implementation=attn)
    inputs = vlm_inputs(model, ONE)
    both = {
        "input_ids": torch.cat([inputs["input_ids"], torch.zeros_like(inputs["input_ids"])]),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros_like(inputs["attention_mask"])]),
        "mm_encoder_outputs": inputs["mm_encoder_outputs"],
    }
    with attach(model, PyramidDrop(stages=STAGES)):
        alone = model(**inputs).logits[:, -1]
        batch = model(**both).logits[:, -1]
    torch.testing.assert_close(batch[:1], alone, **TOLERANCE)
    assert torch.isfinite(batch[:1]).all()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["bool", "float"])
@torch.no_grad()
def test_masks_of_the_callers_own_making(form, attn):
    """A 4-D mask, boolean or additive, gives what no mask gives when it says the same."""
    model = tiny_vlm(attn_implementation=attn)
    inputs = vlm_inputs(model, ONE)
    n = inputs["input_ids"].shape[1]
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    if form == "float" or attn == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with attach(model, PyramidDrop(stages=STAGES)):
        want = model(**vlm_inputs(model, ONE)).logits
        inputs["attention_mask"] = mask
        got = model(**inputs).logits
    torch.testing.assert_close(got, want, **TOLERANCE)


@torch.no_grad()
def test_segments_keep_their_own_share():
    model, drops = tiny_vlm(), []
    with attach(model, PyramidDrop(stages={2: 0.5}, scope="segment", record=drops, min_visual_tokens=1)):
        model(**vlm_inputs(model, ((2, 8, 3, 4, 4),)))
    assert int(drops[0].kept[0, 2:10].sum()) == 4
    assert int(drops[0].kept[0, 13:17].sum()) == 2


@torch.no_grad()
def test_not_a_number_is_the_lowest_score():
    scores = torch.tensor([[float("nan"), 1.0, float("nan"), 2.0]])
    keep = choose(scores, torch.ones(1, 4, dtype=torch.int64), torch.zeros(1, 4).bool(), torch.tensor([[0, 3]]))
    assert keep.tolist() == [[True, True, False, True]]


# -- 13: the solver ----------------------------------------------------------------------------------------------------


def test_the_solver_finds_the_published_lambda():
    assert solve_ratio([2, 8, 16], 32, 62.95) == pytest.approx(0.19, abs=2e-3)
    for target in (64, 128, 192):
        ratio = solve_ratio([2, 8, 16], 32, target)
        assert target - 1 < Schedule.powers([2, 8, 16], ratio).average_tokens(576, 32) <= target
    with pytest.raises(ValueError, match=r"reach averages from 144.0 to 576.0"):
        solve_ratio([8, 16, 24], 32, 64)


# -- 14: re-entrancy ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_interleaved_generations_with_separate_caches():
    model = tiny_vlm()
    parts = [((3, 12, 5),), ((2, 8, 3, 8, 4),)]
    with attach(model, PyramidDrop(stages=STAGES)):
        alone = [greedy(model, vlm_inputs(model, p), n=4)[0] for p in parts]
        caches = [new_cache(model) for _ in parts]
        tokens = [
            [int(model(**vlm_inputs(model, p), past_key_values=c).logits[0, -1].argmax())]
            for p, c in zip(parts, caches, strict=True)
        ]
        for _ in range(3):
            for cache, found in zip(caches, tokens, strict=True):
                logits = model(input_ids=torch.tensor([[found[-1]]]), past_key_values=cache).logits
                found.append(int(logits[0, -1].argmax()))
    assert tokens == alone


@torch.no_grad()
def test_one_method_instance_serves_models_of_several_depths():
    method = PyramidDrop(stages=2, ratio=0.25)
    short, deep = tiny_vlm(layers=4), tiny_vlm(layers=8)
    with attach(short, method), attach(deep, method):
        for model, layer in ((short, 2), (deep, 4), (short, 2)):
            method.record = []
            model(**vlm_inputs(model, ONE))
            assert [d.layer for d in method.record] == [layer]


@torch.no_grad()
def test_offloaded_weights_rank_alike():
    from accelerate import cpu_offload

    model, offloaded = tiny_vlm(), tiny_vlm()
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    with attach(model, PyramidDrop(stages=STAGES)), attach(offloaded, PyramidDrop(stages=STAGES)):
        want = model(**vlm_inputs(model, ONE)).logits
        torch.testing.assert_close(offloaded(**vlm_inputs(model, ONE)).logits, want)


@torch.no_grad()
def test_notes_of_an_earlier_turn_do_not_stop_a_later_image():
    """A cache that assisted decoding has used goes on in a plain turn with a new image."""
    model, drops = tiny_vlm(), []
    cache = new_cache(model)
    with attach(model, PyramidDrop(stages=STAGES, record=drops)):
        inputs = vlm_inputs(model, ONE)
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False, prompt_lookup_num_tokens=2)
        before = len(drops)
        second = vlm_inputs(model, ((2, 8, 4),), seed=3)
        model(input_ids=second["input_ids"], mm_encoder_outputs=second["mm_encoder_outputs"], past_key_values=cache)
    assert len(drops) == before + 2
    assert int((drops[-1].kept & drops[-1].visual).sum()) == 2


def test_two_models_and_threads():
    one, two = tiny_vlm(seed=0), tiny_vlm(seed=1)
    found = {}
    with attach(one, PyramidDrop(stages=STAGES)), attach(two, PyramidDrop(stages={3: 0.25})):
        expected = {name: greedy(m, vlm_inputs(m, MIXED)) for name, m in (("one", one), ("two", two))}

        def work(key, model):
            found[key] = greedy(model, vlm_inputs(model, MIXED))

        threads = [
            threading.Thread(target=work, args=((n, i), m)) for n, m in (("one", one), ("two", two)) for i in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {key: value == expected[key[0]] for key, value in found.items()} == dict.fromkeys(found, True)
    assert len(found) == 4


def test_an_exception_in_the_middle_leaves_the_model_clean():
    model = tiny_vlm()
    model(**vlm_inputs(model, ONE))
    before = fingerprint(model)

    def failing(given: Ranking):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), attach(model, PyramidDrop(stages=STAGES, rank=failing)):
        model(**vlm_inputs(model, ONE))
    assert fingerprint(model).differences(before) == []


# -- 15: precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_half_precision_keeps_what_float32_ranks_best(dtype):
    """The kept set is that of a float32 ranking of the same half-precision states."""
    model, drops, states = tiny_vlm().to(dtype), [], []

    def spy(given: Ranking):
        states.append(given)
        return policies.last_token(given)

    with attach(model, PyramidDrop(stages={2: 0.5}, rank=spy, record=drops)):
        out = model(**vlm_inputs(model, ONE))
    assert torch.isfinite(out.logits.float()).all()
    (given,) = states
    precise = tiny_vlm().float()
    precise.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    from paperhooks import ModelView

    again = Ranking(
        view=ModelView.from_model(precise),
        layer=given.layer,
        hidden_states=given.hidden_states.float(),
        position_embeddings=tuple(t.float() for t in given.position_embeddings),
        query_rows=given.query_rows,
        query_valid=given.query_valid,
        real=given.real,
        visual=given.visual,
        generator=given.generator,
    )
    exact = policies.last_token(again)[0][given.visual[0]]
    chosen = drops[0].kept[0][drops[0].visual[0]]
    ulp = torch.finfo(dtype).eps * exact.max()
    assert exact[chosen].min() >= exact[~chosen].max() - ulp


@torch.no_grad()
def test_equal_tokens_keep_the_earlier_one():
    """Rows with the same state and position get the same score; order decides."""
    model, drops = tiny_vlm(), []
    with attach(model, PyramidDrop(stages={2: 0.5}, rank=lambda given: torch.ones(given.visual.shape), record=drops)):
        model(**vlm_inputs(model, ONE))
    assert drops[0].kept[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 18, 19]


# -- options ----


@torch.no_grad()
def test_layers_and_ratios_of_their_own():
    assert PyramidDrop(layers=[2, 4], ratios=[0.6, 0.1]).schedule_for(6) == Schedule((2, 4), (0.6, 0.1))
    assert PyramidDrop(layers=[2, 4], ratio=0.6).schedule_for(6).ratios == (0.6, 0.36)


@torch.no_grad()
def test_a_function_chooses_the_query_rows():
    model, seen = tiny_vlm(), []

    def spy(given: Ranking):
        seen.append(given.query_rows[given.query_valid].tolist())
        return policies.last_token(given)

    def second(call):
        return torch.arange(call.query_length).expand(call.input_ids.shape) == 1

    with attach(model, PyramidDrop(stages={2: 0.5}, query=second, rank=spy)):
        model(**vlm_inputs(model, ONE))
    assert seen == [[1]]


@torch.no_grad()
def test_visual_token_ids_for_a_config_that_names_none(monkeypatch):
    model, drops = tiny_vlm(), []
    monkeypatch.setattr("paperhooks.models.view._image_token_ids", lambda config: ())
    with pytest.raises(UnsupportedModel, match="names no image token"):
        attach(model, PyramidDrop(stages=STAGES))
    inputs = vlm_inputs(model, ((20,),))
    wanted = inputs["input_ids"][0, 3:9].unique().tolist()
    with attach(model, PyramidDrop(stages={2: 0.0}, visual_token_ids=wanted, record=drops)):
        model(**inputs)
    assert torch.equal(drops[0].visual, torch.isin(inputs["input_ids"], torch.tensor(wanted)))


# -- policies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", sorted(policies.POLICIES))
@torch.no_grad()
def test_every_policy_keeps_the_right_number(rank):
    model, drops = tiny_vlm(), []
    with attach(model, PyramidDrop(stages=STAGES, rank=rank, record=drops)):
        model(**vlm_inputs(model, MIXED))
    assert [(d.kept & d.visual).sum(1).tolist() for d in drops] == [[6, 8, 0], [3, 4, 0]]


@torch.no_grad()
def test_compiled_with_graph_breaks_it_gives_the_same_logits():
    model = tiny_vlm()
    inputs = vlm_inputs(model, ONE)
    with attach(model, PyramidDrop(stages=STAGES)):
        expected = model(**inputs).logits
        got = torch.compile(model, backend="eager")(**vlm_inputs(model, ONE)).logits
    torch.testing.assert_close(got, expected, **TOLERANCE)
    torch.compiler.reset()
