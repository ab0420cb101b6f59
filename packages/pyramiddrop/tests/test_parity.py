"""Parity with the official code and with the independent reading of its formulas."""

from __future__ import annotations

import golden_pyramiddrop as golden
import paperhooks
import pytest
import torch
from paperhooks.testing import image_outputs
from paperhooks_pyramiddrop import DecoderShape, Drop, PyramidDrop, Schedule
from paperhooks_pyramiddrop.algorithm import choose
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer


def method(case: str, mode: str, record: list[Drop] | None = None) -> PyramidDrop:
    meta = golden.GOLDEN.get(case) or golden.REFERENCE[case]
    stages = dict(zip(meta["layers"], meta["ratios"], strict=True))
    return PyramidDrop(stages=stages, positions=mode, record=record)


@torch.no_grad()
def run(model, case: str, mode: str, steps: int = 6):
    """Prefill and greedy decoding: drops, logits of the prompt's end, decode logits, tokens, cache."""
    embeds, visual = golden.sequence(case)
    drops: list[Drop] = []
    cache = DynamicCache(config=model.config)
    with paperhooks.attach(model, method(case, mode, drops)):
        hidden = model.model(inputs_embeds=embeds, past_key_values=cache, visual_mask=visual).last_hidden_state
        lengths = [cache.get_seq_length(i) for i in range(8)]
        token = model.lm_head(hidden[:, -1]).argmax(-1)
        first, logits, tokens = model.lm_head(hidden[:, -1]), [], []
        for _ in range(steps):
            tokens.append(int(token))
            out = model(input_ids=token[None], past_key_values=cache)
            logits.append(out.logits[0, -1])
            token = out.logits[:, -1].argmax(-1)
    return drops, hidden, first, torch.stack(logits), tokens, lengths, cache


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("case", golden.CASES_A)
def test_official_inference(case, attn):
    drops, hidden, first, logits, tokens, lengths, cache = run(golden.llama(attn), case, "renumber")
    meta, tensors = golden.GOLDEN[case], golden.TENSORS
    assert lengths == meta["cache_lengths_after_prefill"]
    assert tokens == meta["greedy_tokens"]
    torch.testing.assert_close(first, tensors[f"{case}/logits_last"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, tensors[f"{case}/decode_logits"], atol=1e-4, rtol=0)
    alive = hidden[0].abs().sum(-1) > 0
    torch.testing.assert_close(hidden[:, alive], tensors[f"{case}/last_hidden_state"], atol=1e-4, rtol=0)
    for drop, stage in zip(drops, meta["stages"], strict=bool(drops)):
        alive_before = ~drop.scores[0].isnan()
        expected = tensors[f"{case}/stage{stage['stage']}/scores0"].float()
        torch.testing.assert_close(drop.scores[0, alive_before], expected, atol=1e-5, rtol=0)
        assert int((drop.kept & drop.visual).sum()) == stage["k"][0]
    for i in (0, 7):
        n = lengths[i]
        torch.testing.assert_close(
            cache.layers[i].keys[:, :, :n], tensors[f"{case}/cache_k_layer{i}"], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            cache.layers[i].values[:, :, :n], tensors[f"{case}/cache_v_layer{i}"], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("mode", ["preserve", "renumber"])
@pytest.mark.parametrize("case", golden.CASES_A + golden.CASES_E)
def test_independent_reading(case, mode):
    model = golden.llama(kv_heads=2 if "gqa" in case else 6)
    drops, _, _, logits, tokens, lengths, _ = run(model, case, mode)
    meta = golden.REFERENCE[f"{case}/{mode}"]
    assert tokens == meta["greedy_tokens"]
    assert lengths == meta["cache_lengths"]
    if drops:
        assert [d.kept[0].nonzero()[:, 0].tolist() for d in drops] == meta["kept_original"]
    key = f"{case}/{mode}/decode_logits"
    if key in golden.REFERENCE_TENSORS:
        torch.testing.assert_close(logits, golden.REFERENCE_TENSORS[key].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", sorted(k for k in golden.GOLDEN if k.startswith("B/")))
def test_official_ranking(case):
    """Group B: the official rank-and-drop function on given hidden states, through a one-layer forward of ours."""
    meta, tensors = golden.GOLDEN[case], golden.TENSORS
    model = golden.llama()
    hidden, mask = tensors[f"{case}/hidden_states"].float(), tensors[f"{case}/attention_mask"].bool()
    visual = torch.zeros_like(mask)
    for row, (start, n) in enumerate(zip(meta["image_start"], meta["n_image_tokens_original"], strict=True)):
        visual[row, start : start + n] = True
    drops: list[Drop] = []
    stage = meta["stage"]
    layer = meta["rank_layer_index"]
    plan = PyramidDrop(stages={layer: meta["ratios"][stage]}, positions="renumber", record=drops)
    model.model.layers = torch.nn.ModuleList([_Feed(hidden), *model.model.layers[1:]])
    for i in range(1, layer):  # the hidden states are those at the entry of the ranking layer
        model.model.layers[i] = _Feed(hidden)
    inputs = {"labels": tensors[f"{case}/labels"]} if meta["training"] else {}
    with paperhooks.attach(model, plan), torch.no_grad():
        model(inputs_embeds=hidden, attention_mask=mask.long(), visual_mask=visual, **inputs)
    kept = [row.nonzero()[:, 0].tolist() for row in drops[0].kept]
    assert kept == [sorted(r) for r in meta["kept_rows"]]
    for row in range(len(kept)):
        scored = drops[0].scores[row][visual[row]]
        torch.testing.assert_close(scored, tensors[f"{case}/scores{row}"].float(), atol=1e-5, rtol=0)


class _Feed(GradientCheckpointingLayer):
    """Stands in for the layers before the ranking one and returns the given hidden states."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states, **kwargs):
        return self.hidden


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("mode", ["renumber", "preserve"])
def test_official_training(mode, restore):
    """Group C: loss, logits and gradients of a right-padded batch of one- and two-turn samples."""
    case, meta, tensors = "C/two_padded", golden.GOLDEN["C/two_padded"], golden.TENSORS
    model = golden.llava().train()
    ids, labels, mask = (tensors[f"{case}/{n}"] for n in ("input_ids", "labels", "attention_mask"))
    rows = [_expand(ids[i][mask[i].bool()], labels[i][mask[i].bool()], n) for i, n in enumerate(meta["image_tokens"])]
    width = max(len(r[0]) for r in rows)
    batch = {
        "input_ids": torch.stack([torch.nn.functional.pad(i, (0, width - len(i))) for i, _ in rows]),
        "labels": torch.stack([torch.nn.functional.pad(x, (0, width - len(x)), value=-100) for _, x in rows]),
        "attention_mask": torch.stack([torch.arange(width) < len(i) for i, _ in rows]).long(),
    }
    features = [tensors[f"{case}/image_features{i}"] for i in range(2)]
    drops: list[Drop] = []
    stages = dict(zip(meta["layers"], meta["ratios"], strict=True))
    plan = PyramidDrop(stages=stages, positions=mode, restore_outputs=restore, record=drops)
    with paperhooks.attach(model, plan):
        out = model(**batch, mm_encoder_outputs={"image": image_outputs(model, features)})
    out.loss.backward()
    expected = golden.REFERENCE[f"{case}/{mode}"]
    assert float(out.loss) == pytest.approx(expected["loss"], abs=1e-5)
    kept = [[row.nonzero()[:, 0].tolist() for row in d.kept] for d in drops]
    per_sample = [[stage[i] for stage in kept] for i in range(2)]
    assert per_sample == expected["kept_original_per_sample_per_stage"]
    if mode == "renumber":
        assert float(out.loss) == pytest.approx(meta["loss"], abs=1e-5)
        names = {n.replace("model.language_model.", "model."): p for n, p in model.named_parameters()}
        for key in [k for k in tensors if k.startswith(f"{case}/grad/")]:
            grad = names[key.removeprefix(f"{case}/grad/")].grad
            torch.testing.assert_close(grad, tensors[key], rtol=1e-3, atol=1e-5)
        if not restore:
            for row in range(2):
                n = len(per_sample[row][-1])
                torch.testing.assert_close(out.logits[row, :n], tensors[f"{case}/logits"][row, :n], atol=1e-4, rtol=0)


def _expand(ids, labels, n):
    at = int((ids == golden.PLACEHOLDER).nonzero())
    image = torch.full((n,), golden.IMAGE_TOKEN)
    ignored = torch.full((n,), -100)
    return torch.cat([ids[:at], image, ids[at + 1 :]]), torch.cat([labels[:at], ignored, labels[at + 1 :]])


def test_published_arithmetic():
    """Section 7 of the paper's tables: FLOPs of the visual tokens and average tokens (group D)."""
    llava7b = DecoderShape()
    four = Schedule.even(32, 4, 0.5)
    assert four.layers == (8, 16, 24)
    at576 = four.savings(576, llava7b)
    assert at576.flops_before / 1e12 == pytest.approx(3.817, abs=5e-4)
    assert at576.flops / 1e12 == pytest.approx(1.777, abs=5e-4)
    assert at576.average_tokens == 270
    at2880 = four.savings(2880, llava7b)
    assert at2880.flops_before / 1e12 == pytest.approx(20.83, abs=5e-3)
    assert at2880.flops / 1e12 == pytest.approx(9.46, abs=5e-3)
    assert 1 - at2880.flops_ratio == pytest.approx(0.546, abs=5e-4)
    assert Schedule.even(32, 3).savings(576, llava7b).flops / 1e12 == pytest.approx(2.134, abs=5e-4)
    assert Schedule.even(32, 5).savings(576, llava7b).flops / 1e12 == pytest.approx(1.391, abs=5e-4)
    assert Schedule.even(32, 4, 0.4).savings(576, llava7b).flops / 1e12 == pytest.approx(1.54, abs=5e-3)
    assert Schedule.even(32, 4, 0.6).savings(576, llava7b).flops / 1e12 == pytest.approx(2.06, abs=5e-3)
    assert at576.kv_bytes / 2**20 == 135
    assert at576.kv_bytes_before / 2**20 == 288
    assert Schedule.powers([2, 8, 16], 0.19).average_tokens(576, 32) == pytest.approx(62.9, abs=0.05)


def test_ties_keep_the_earlier_token():
    scores = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.5, 0.0]])
    segments = torch.tensor([[0, 1, 1, 1, 1, 0]])
    keep = choose(scores, segments, torch.zeros(1, 6, dtype=torch.bool), torch.tensor([[0, 2]]))
    assert keep.tolist() == [[True, True, True, False, False, True]]
