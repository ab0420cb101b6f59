"""What needs a GPU: parity on CUDA, half precision, flex attention, inductor. Skipped without one, and says so."""

from __future__ import annotations

import golden_cca as golden
import pytest
import torch
from paperhooks import attach
from paperhooks.testing import tiny_vlm, vlm_inputs
from paperhooks_cca import CCA
from transformers import DynamicCache

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning"),
]
MIXED = ((3, 16, 5), (2, 16, 3, 16, 4), (6,))


def on_device(inputs, dtype=None):
    moved = {k: v.cuda() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    if "mm_encoder_outputs" in inputs:
        outputs = inputs["mm_encoder_outputs"]["image"]
        pooled = [t.cuda() if dtype is None else t.cuda().to(dtype) for t in outputs.pooler_output]
        outputs.pooler_output = pooled
        moved["mm_encoder_outputs"] = {"image": outputs}
    return moved


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["F.s1", "F.s2"])
@torch.no_grad()
def test_reference_values_on_cuda(name, kernel):
    model = golden.llava(6, kernel).cuda()
    inputs = on_device(golden.case_inputs(model, name))
    with attach(model, CCA()):
        logits = model(**inputs).logits.cpu()
        tokens = model.generate(**on_device(golden.case_inputs(model, name)), max_new_tokens=5, do_sample=False)
    torch.testing.assert_close(logits, golden.cases()[f"{name}.logits"], atol=1e-3, rtol=1e-3)
    assert torch.equal(tokens[:, -5:].cpu(), golden.cases()[f"{name}.gen_sequences"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_half_precision_agrees_with_float32(dtype):
    exact = tiny_vlm("llava").to(dtype).float().cuda()
    model = tiny_vlm("llava").to(dtype).cuda()
    with attach(exact, CCA()):
        want = exact(**on_device(vlm_inputs(exact, MIXED), torch.float32)).logits
    with attach(model, CCA()):
        got = model(**on_device(vlm_inputs(model, MIXED), dtype)).logits
    assert torch.isfinite(got.float()).all()
    torch.testing.assert_close(got[:, -1].float(), want[:, -1], atol=0.5, rtol=0.1)


@torch.no_grad()
def test_flex_attention_prefill_equals_sdpa():
    """Experimental: the library's own flex path decides what works beyond a prefill."""
    model = tiny_vlm("llava").cuda()
    with attach(model, CCA()):
        want = model(**on_device(vlm_inputs(model, MIXED)), use_cache=False).logits
    model.set_attn_implementation({"text_config": "flex_attention"})
    with attach(model, CCA()):
        got = model(**on_device(vlm_inputs(model, MIXED)), use_cache=False).logits
    real = vlm_inputs(model, MIXED)["attention_mask"].bool().cuda()
    torch.testing.assert_close(got[real], want[real], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_inductor_gives_the_eager_logits_of_a_decode_step():
    model = tiny_vlm("llava").cuda()
    caches = [DynamicCache(config=model.config.get_text_config()) for _ in range(2)]
    token = torch.tensor([[7]], device="cuda")
    with attach(model, CCA()):
        for cache in caches:
            model(**on_device(vlm_inputs(model, MIXED[:1])), past_key_values=cache)
        want = model(input_ids=token, past_key_values=caches[0]).logits
        got = torch.compile(model)(input_ids=token, past_key_values=caches[1]).logits
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    torch.compiler.reset()


@torch.no_grad()
def test_decoding_does_not_wait_for_the_device():
    """No host synchronisation in a decode step."""
    model = tiny_vlm("llava").cuda()
    cache = DynamicCache(config=model.config.get_text_config())
    with attach(model, CCA()):
        model(**on_device(vlm_inputs(model, MIXED[:1])), past_key_values=cache)
        token = torch.tensor([[7]], device="cuda")
        model(input_ids=token, past_key_values=cache)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(input_ids=token, past_key_values=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
