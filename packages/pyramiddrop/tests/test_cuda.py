"""What needs a GPU: parity on CUDA in half precision, flash attention, inductor. Skipped without one, and says so."""

from __future__ import annotations

from dataclasses import replace

import golden_pyramiddrop as golden
import pytest
import torch
from paperhooks import attach
from paperhooks.testing import tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import POLICIES, PyramidDrop, Ranking
from transformers import DynamicCache

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STAGES = {2: 0.5, 4: 0.25}
MIXED = ((3, 12, 5), (2, 8, 3, 8, 4), (6,))


def on_device(inputs, dtype=None):
    moved = {k: v.cuda() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    outputs = inputs["mm_encoder_outputs"]["image"]
    pooled = outputs.pooler_output
    convert = (lambda t: t.cuda().to(dtype)) if dtype else (lambda t: t.cuda())
    outputs.pooler_output = [convert(t) for t in pooled] if isinstance(pooled, list) else convert(pooled)
    return {**moved, "mm_encoder_outputs": {"image": outputs}}


@pytest.mark.parametrize("mode", ["renumber", "preserve"])
@pytest.mark.parametrize("case", golden.CASES_A)
@torch.no_grad()
def test_reference_values_on_cuda(case, mode):
    meta = golden.GOLDEN[case]
    stages = dict(zip(meta["layers"], meta["ratios"], strict=True))
    model = golden.llama().cuda()
    embeds, visual = (t.cuda() for t in golden.sequence(case))
    cache, tokens = DynamicCache(config=model.config), []
    with attach(model, PyramidDrop(stages=stages, positions=mode)):
        hidden = model.model(inputs_embeds=embeds, past_key_values=cache, visual_mask=visual).last_hidden_state
        token = model.lm_head(hidden[:, -1]).argmax(-1)
        for _ in range(6):
            tokens.append(int(token))
            token = model(input_ids=token[None], past_key_values=cache).logits[:, -1].argmax(-1)
    assert tokens == golden.REFERENCE[f"{case}/{mode}"]["greedy_tokens"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("attn", ["eager", "sdpa", "flash_attention_2"])
@torch.no_grad()
def test_half_precision_and_flash_agree_with_eager_float32(attn, dtype):
    if attn == "flash_attention_2":
        pytest.importorskip("flash_attn")
    exact = tiny_vlm(attn_implementation="eager").to(dtype).float().cuda()
    model = tiny_vlm(attn_implementation="eager").to(dtype).cuda()
    model.set_attn_implementation(attn)
    with attach(exact, PyramidDrop(stages=STAGES)):
        want = exact(**on_device(vlm_inputs(exact, MIXED), dtype=torch.float32)).logits
    with attach(model, PyramidDrop(stages=STAGES)):
        got = model(**on_device(vlm_inputs(model, MIXED), dtype=dtype)).logits
    assert torch.isfinite(got.float()).all()
    torch.testing.assert_close(got[:, -1].float(), want[:, -1], atol=0.5, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("policy", ["last_token", "mean_text", "key_norm"])
@torch.no_grad()
def test_autocast_does_not_reach_the_ranking_on_cuda(policy, dtype):
    model, seen = tiny_vlm().cuda(), []

    def spy(given: Ranking):
        seen.append((given, POLICIES[policy](given)))
        return seen[-1][1]

    for seed in range(6):
        with attach(model, PyramidDrop(stages=STAGES, rank=spy)), torch.autocast("cuda", dtype):
            model(**on_device(vlm_inputs(model, MIXED, seed=seed)))
    for given, scores in seen:
        again = POLICIES[policy](replace(given, hidden_states=given.hidden_states.float()))
        torch.testing.assert_close(scores, again, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_inductor_gives_the_eager_logits():
    model = tiny_vlm().cuda()
    with attach(model, PyramidDrop(stages=STAGES)):
        want = model(**on_device(vlm_inputs(model, MIXED))).logits
        got = torch.compile(model)(**on_device(vlm_inputs(model, MIXED))).logits
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    torch.compiler.reset()


@torch.no_grad()
def test_decoding_does_not_wait_for_the_device():
    """No host synchronisation in a decode step."""
    model = tiny_vlm().cuda()
    cache = DynamicCache(config=model.config.get_text_config())
    with attach(model, PyramidDrop(stages=STAGES)):
        model(**on_device(vlm_inputs(model, MIXED[:1])), past_key_values=cache)
        token = torch.tensor([[7]], device="cuda")
        model(input_ids=token, past_key_values=cache)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(input_ids=token, past_key_values=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
