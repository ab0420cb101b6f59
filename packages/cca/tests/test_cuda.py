"""On a GPU: parity and half precision, on the emulated accelerator too; flex attention, inductor and waits on CUDA."""

from __future__ import annotations

import golden_cca as golden
import pytest
import torch
from paperhooks import attach
from paperhooks.testing import placed, tiny_vlm, vlm_inputs
from paperhooks_cca import CCA
from transformers import DynamicCache

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")
MIXED = ((3, 16, 5), (2, 16, 3, 16, 4), (6,))


def _on_cuda(test):
    """What no other device has."""
    without = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.cuda(without(test))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["F.s1", "F.s2"])
@torch.no_grad()
def test_reference_values(accelerator, name, kernel):
    model = golden.llava(6, kernel)
    inputs = placed(golden.case_inputs(model, name), accelerator)
    model.to(accelerator)
    with attach(model, CCA()):
        logits = model(**inputs).logits.cpu()
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    torch.testing.assert_close(logits, golden.cases()[f"{name}.logits"], atol=1e-3, rtol=1e-3)
    assert torch.equal(tokens[:, -5:].cpu(), golden.cases()[f"{name}.gen_sequences"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_half_precision_agrees_with_float32(accelerator, dtype):
    exact = tiny_vlm("llava").to(dtype).float().to(accelerator)
    model = tiny_vlm("llava").to(accelerator, dtype)
    with attach(exact, CCA()):
        want = exact(**placed(vlm_inputs(exact, MIXED), accelerator)).logits
    with attach(model, CCA()):
        got = model(**placed(vlm_inputs(model, MIXED), accelerator)).logits
    assert torch.isfinite(got.float()).all()
    torch.testing.assert_close(got[:, -1].float(), want[:, -1], atol=0.5, rtol=0.1)


@_on_cuda
@torch.no_grad()
def test_flex_attention_prefill_equals_sdpa():
    """Experimental: the library's own flex path decides what works beyond a prefill. Heads have to be 16 wide."""
    model = tiny_vlm("llava", heads=2).cuda()
    with attach(model, CCA()):
        want = model(**placed(vlm_inputs(model, MIXED), "cuda"), use_cache=False).logits
    model.set_attn_implementation({"text_config": "flex_attention"})
    with attach(model, CCA()):
        got = model(**placed(vlm_inputs(model, MIXED), "cuda"), use_cache=False).logits
    real = vlm_inputs(model, MIXED)["attention_mask"].bool().cuda()
    torch.testing.assert_close(got[real], want[real], atol=1e-3, rtol=1e-3)


@_on_cuda
@torch.no_grad()
def test_inductor_gives_the_eager_logits_of_a_decode_step():
    model = tiny_vlm("llava").cuda()
    caches = [DynamicCache(config=model.config.get_text_config()) for _ in range(2)]
    token = torch.tensor([[7]], device="cuda")
    with attach(model, CCA()):
        for cache in caches:
            model(**placed(vlm_inputs(model, MIXED[:1]), "cuda"), past_key_values=cache)
        want = model(input_ids=token, past_key_values=caches[0]).logits
        got = torch.compile(model)(input_ids=token, past_key_values=caches[1]).logits
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    torch.compiler.reset()


@_on_cuda
@torch.no_grad()
def test_decoding_does_not_wait_for_the_device():
    """No host synchronisation in a decode step."""
    model = tiny_vlm("llava").cuda()
    cache = DynamicCache(config=model.config.get_text_config())
    with attach(model, CCA()):
        model(**placed(vlm_inputs(model, MIXED[:1]), "cuda"), past_key_values=cache)
        token = torch.tensor([[7]], device="cuda")
        model(input_ids=token, past_key_values=cache)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(input_ids=token, past_key_values=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
