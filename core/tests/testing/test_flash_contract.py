"""Token selection under flash attention's contract, emulated on the CPU: 2-D masks or none, causal from the end.

The real kernels need a GPU; this holds the masks that selection hands them to the same oracle as everywhere else.
"""

from __future__ import annotations

import pytest
import torch
from methods import KeepRows, mask_oracle
from paperhooks import attach
from paperhooks.testing import cache_argument, tiny_llama
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

CACHE = cache_argument(tiny_llama())
LAYER = 2
NAME = "flash_emulated"
SEEN: list[tuple[int, ...] | None] = []


def flash(module, query, key, value, attention_mask, scaling, **kwargs):
    """[B, H, n, h] with a 2-D mask [B, m] or None; the last query row is aligned with the last key."""
    SEEN.append(None if attention_mask is None else tuple(attention_mask.shape))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    n, m = query.shape[2], key.shape[2]
    allowed = torch.ones(n, m, dtype=torch.bool).tril(m - n)[None, None]
    if attention_mask is not None:
        assert attention_mask.ndim == 2
        assert attention_mask.shape[1] == m
        allowed = allowed & attention_mask.bool()[:, None, None, :]
    scores = (query @ key.transpose(-1, -2)) * scaling
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
    return (weights @ value).transpose(1, 2), None


@pytest.fixture
def flash_llama(monkeypatch):
    """A tiny Llama on the emulated kernel; the tables of kernels are put back."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, flash)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, NAME, flash_attention_mask)
    SEEN.clear()
    model = tiny_llama(attn_implementation="eager")
    model.config._attn_implementation_internal = NAME
    return model


@pytest.mark.parametrize("pad", ["left", "right", None])
@torch.no_grad()
def test_prefill_and_decoding_equal_the_oracle(flash_llama, pad):
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if pad:
        mask[1, slice(0, 3) if pad == "left" else slice(9, 12)] = 0
    keep = (torch.rand(2, 12, generator=torch.Generator().manual_seed(1)) < 0.6) & mask.bool()
    keep[:, 8] = True
    keep[:, -1] |= mask[:, -1].bool()
    stock = tiny_llama(attn_implementation="eager")
    cache = DynamicCache(config=flash_llama.config)
    with attach(flash_llama, KeepRows(LAYER, keep)):
        logits = flash_llama(ids, attention_mask=mask, **{CACHE: cache}).logits
        want = mask_oracle(stock, ids, keep, LAYER, attention_mask=mask)
        torch.testing.assert_close(logits[keep], want[keep], atol=2e-5, rtol=1e-4)
        text = ids
        for _ in range(3):
            text = torch.cat([text, (text[:, -2:-1] * 5 + 3) % 90], dim=1)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = flash_llama(text[:, -1:], attention_mask=mask, **{CACHE: cache}).logits
            want = mask_oracle(stock, text, keep, LAYER, attention_mask=mask)
            torch.testing.assert_close(logits[:, -1], want[:, -1], atol=2e-5, rtol=1e-4)
    assert any(shape is not None for shape in SEEN)


@torch.no_grad()
def test_without_padding_the_kernel_gets_no_mask(flash_llama):
    ids = torch.arange(3, 15)[None]
    with attach(flash_llama, KeepRows(LAYER)):
        cache = DynamicCache(config=flash_llama.config)
        flash_llama(ids, **{CACHE: cache})
        flash_llama(ids[:, :1], **{CACHE: cache})
        flash_llama(ids[:, :3], **{CACHE: cache})
    assert SEEN == [None] * 12
