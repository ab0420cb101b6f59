"""On a GPU: parity, half precision and autocast, emulated too; flash attention, inductor and waits on CUDA alone."""

from __future__ import annotations

from dataclasses import replace

import golden_pyramiddrop as golden
import pytest
import torch
from paperhooks import attach
from paperhooks.testing import placed, tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import POLICIES, PyramidDrop, Ranking
from transformers import DynamicCache

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

STAGES = {2: 0.5, 4: 0.25}
MIXED = ((3, 12, 5), (2, 8, 3, 8, 4), (6,))


def _on_cuda(test):
    """What no other device has."""
    without = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.cuda(without(test))


@pytest.mark.parametrize("mode", ["renumber", "preserve"])
@pytest.mark.parametrize("case", golden.CASES_A)
@torch.no_grad()
def test_reference_values(accelerator, case, mode):
    meta = golden.GOLDEN[case]
    stages = dict(zip(meta["layers"], meta["ratios"], strict=True))
    model = golden.llama().to(accelerator)
    embeds, visual = (t.to(accelerator) for t in golden.sequence(case))
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
def test_half_precision_and_flash_agree_with_eager_float32(accelerator, attn, dtype):
    if attn == "flash_attention_2":
        if accelerator.type != "cuda":
            pytest.skip("flash attention has kernels for CUDA only")
        pytest.importorskip("flash_attn")
    exact = tiny_vlm(attn_implementation="eager").to(dtype).float().to(accelerator)
    model = tiny_vlm(attn_implementation="eager").to(accelerator, dtype)
    model.set_attn_implementation(attn)
    with attach(exact, PyramidDrop(stages=STAGES)):
        want = exact(**placed(vlm_inputs(exact, MIXED), accelerator)).logits
    with attach(model, PyramidDrop(stages=STAGES)):
        got = model(**placed(vlm_inputs(model, MIXED), accelerator)).logits
    assert torch.isfinite(got.float()).all()
    torch.testing.assert_close(got[:, -1].float(), want[:, -1], atol=0.5, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("policy", ["last_token", "mean_text", "key_norm"])
@torch.no_grad()
def test_autocast_does_not_reach_the_ranking(accelerator, policy, dtype):
    model, seen = tiny_vlm().to(accelerator), []

    def spy(given: Ranking):
        seen.append((given, POLICIES[policy](given)))
        return seen[-1][1]

    for seed in range(6):
        with attach(model, PyramidDrop(stages=STAGES, rank=spy)), torch.autocast(accelerator.type, dtype):
            model(**placed(vlm_inputs(model, MIXED, seed=seed), accelerator))
    for given, scores in seen:
        again = POLICIES[policy](replace(given, hidden_states=given.hidden_states.float()))
        torch.testing.assert_close(scores, again, atol=1e-6, rtol=1e-6)


@_on_cuda
@torch.no_grad()
def test_inductor_gives_the_eager_logits():
    model = tiny_vlm().cuda()
    with attach(model, PyramidDrop(stages=STAGES)):
        want = model(**placed(vlm_inputs(model, MIXED), "cuda")).logits
        got = torch.compile(model)(**placed(vlm_inputs(model, MIXED), "cuda")).logits
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    torch.compiler.reset()


@_on_cuda
@torch.no_grad()
def test_decoding_does_not_wait_for_the_device():
    """No host synchronisation in a decode step."""
    model = tiny_vlm().cuda()
    cache = DynamicCache(config=model.config.get_text_config())
    with attach(model, PyramidDrop(stages=STAGES)):
        model(**placed(vlm_inputs(model, MIXED[:1]), "cuda"), past_key_values=cache)
        token = torch.tensor([[7]], device="cuda")
        model(input_ids=token, past_key_values=cache)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(input_ids=token, past_key_values=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
