"""The reference values: computed with the official code (group A, B, C) or an independent float64 reading of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from paperhooks.testing import taking_features
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

DATA = Path(__file__).parent / "data"
GOLDEN: dict[str, Any] = json.loads((DATA / "golden.json").read_text())
REFERENCE: dict[str, Any] = json.loads((DATA / "reference.json").read_text())
TENSORS = load_file(DATA / "golden.safetensors")
REFERENCE_TENSORS = load_file(DATA / "reference.safetensors")
PLACEHOLDER = -200
IMAGE_TOKEN = 90

MODES = {"renumber": GOLDEN, "preserve": REFERENCE}
CASES_A = sorted(k for k in GOLDEN if k.startswith("A/"))
CASES_E = sorted(k for k in REFERENCE if k.startswith("E/") and k.count("/") == 1)


def weights(kv_heads: int = 6) -> dict[str, torch.Tensor]:
    """The random language model; with ``kv_heads`` < 6 the first key and value heads only (grouped queries)."""
    state = load_file(DATA / "lm_weights.safetensors")
    rows = kv_heads * 8
    return {k: v[:rows] if "k_proj" in k or "v_proj" in k else v for k, v in state.items()}


def config(kv_heads: int = 6) -> dict[str, Any]:
    options = json.loads((DATA / "lm_config.json").read_text())
    options["rope_parameters"] = {"rope_type": "default", "rope_theta": options.pop("rope_theta")}
    return {**options, "num_key_value_heads": kv_heads}


def llama(attn: str = "sdpa", kv_heads: int = 6) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**config(kv_heads), attn_implementation=attn)).eval()
    model.load_state_dict(weights(kv_heads))
    return model


def llava(attn: str = "sdpa") -> LlavaForConditionalGeneration:
    """The same language model inside LLaVA, fed with features instead of pixels."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    with torch.random.fork_rng(devices=[]):
        model = taking_features(LlavaForConditionalGeneration)(
            LlavaConfig(
                vision_config=vision,
                text_config={"model_type": "llama", **config()},
                image_token_index=IMAGE_TOKEN,
                tie_word_embeddings=False,
                attn_implementation=attn,
            )
        ).eval()
    inner = {f"model.language_model.{k.removeprefix('model.')}": v for k, v in weights().items() if "lm_head" not in k}
    missing = model.load_state_dict({**inner, "lm_head.weight": weights()["lm_head.weight"]}, strict=False)
    assert not missing.unexpected_keys
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def sequence(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``inputs_embeds`` [1, n, 48] and the visual mask [1, n] of a case of group A or E."""
    if case.startswith("A/"):
        embeds, meta = TENSORS[f"{case}/inputs_embeds"], GOLDEN[case]
        flags: list[bool] = []
        sizes = iter(meta["ns"])
        for token in meta["input_ids"]:
            flags += [True] * next(sizes) if token == PLACEHOLDER else [False]
    else:
        embeds = REFERENCE_TENSORS[f"{case}/inputs_embeds"][None]
        flags = [token == PLACEHOLDER for token in REFERENCE[case]["input_ids"]]
    return embeds.float(), torch.tensor(flags)[None]
