"""Reference values computed with the authors' code, and the tiny Llama they were computed on as a stock LLaVA."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paperhooks.testing import image_outputs, taking_features
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

FOLDER = Path(__file__).parent / "reference"
PLACEHOLDER = 127


@cache
def cases() -> dict[str, Tensor]:
    """Every stored tensor."""
    return load_file(FOLDER / "cases.safetensors")


@cache
def facts() -> dict[str, Any]:
    """Stored numbers beside the tensors."""
    return json.loads((FOLDER / "cases.json").read_text())


@cache
def geometry() -> dict[str, Any]:
    """Ring tables and token layouts."""
    return json.loads((FOLDER / "derived_geometry.json").read_text())


def allowed(name: str) -> Tensor:
    """The stored mask of a case, bool [B, S, S]."""
    values = cases()
    if f"{name}.allowed" in values:
        return values[f"{name}.allowed"].bool()
    length = values[f"{name}.input_ids"].shape[1]
    bits = np.unpackbits(values[f"{name}.allowed_bits"].numpy(), axis=-1)[..., :length]
    return torch.from_numpy(bits).bool()


def llava(side: int, attn_implementation: str = "sdpa") -> LlavaForConditionalGeneration:
    """The reference's Llama as the text model of a LLaVA whose images have ``side`` x ``side`` patches."""
    text = json.loads((FOLDER / "tiny_llama_config.json").read_text())
    del text["image_placeholder_id"]
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 4 * side,
        "patch_size": 4,
    }
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=PLACEHOLDER, vision_feature_layer=-1)
    config._attn_implementation = attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = taking_features(LlavaForConditionalGeneration)(config).eval()
    weights = load_file(FOLDER / "tiny_llama.safetensors")
    renamed = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: value
        for name, value in weights.items()
    }
    _, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def case_inputs(model: Any, name: str) -> dict[str, Any]:
    """The inputs of one stored case."""
    ids = cases()[f"{name}.input_ids"]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    features = cases().get(f"{name}.image_features")
    if features is not None:
        inputs["mm_encoder_outputs"] = {"image": image_outputs(model, list(features))}
    return inputs


def batch_inputs(model: Any, names: list[str], pad: str) -> dict[str, Any]:
    """Several stored cases as one padded batch."""
    rows = [cases()[f"{name}.input_ids"][0] for name in names]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if pad == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    features = [cases()[f"{n}.image_features"][0] for n in names if f"{n}.image_features" in cases()]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if features:
        inputs["mm_encoder_outputs"] = {"image": image_outputs(model, features)}
    return inputs
