"""Tiny random models of every supported family: seeded, a few thousand parameters, made in milliseconds.

Text models: ``tiny_text("llama")``; vision-language models: ``tiny_vlm("llava")``. Image features can be handed in with
``mm_encoder_outputs`` (see :func:`vlm_inputs`), so that tests need no images.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from paperhooks.compat import cache_parameter, set_attention_kernel
from paperhooks.testing.image_features import taking_features

__all__ = [
    "IMAGE_TOKEN",
    "TEXT_FAMILIES",
    "VLM_FAMILIES",
    "cache_argument",
    "tiny_llama",
    "tiny_llava",
    "tiny_text",
    "tiny_vlm",
    "vlm_inputs",
]

VOCABULARY: Final = 100
IMAGE_TOKEN: Final = 95
_WIDTH: Final = 32

#: Family to (config class, model class, extra options). Every family of decoders that the tests run on.
TEXT_FAMILIES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": None}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 2, "sliding_window": None}),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 64, "word_embed_proj_dim": _WIDTH}),
    "bloom": ("BloomConfig", "BloomForCausalLM", {}),
}

#: Families whose attention transformers offers in one form only.
_EAGER_ONLY: Final = ("bloom", "gemma2")

VLM_FAMILIES: Final = (
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
)


def _decoder_options(layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        # Large weights make a random model's argmax depend on its input, so that wrong tokens show.
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


def _build(model_class: Any, config: Any, seed: int, attn_implementation: str) -> Any:
    """A model with random weights from ``seed``; the global random state is left as it was."""
    set_attention_kernel(config, "eager" if config.model_type in _EAGER_ONLY else attn_implementation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id, generation.eos_token_id = 0, 1, None
    return model


def tiny_text(
    family: str = "llama", *, layers: int = 4, seed: int = 0, attn_implementation: str = "sdpa", **options: Any
) -> Any:
    """A tiny causal language model of ``family`` (a key of :data:`TEXT_FAMILIES`), float32, in eval mode."""
    config_class, model_class, extra = TEXT_FAMILIES[family]
    known = _decoder_options(layers, 4, 2 if family not in ("gpt2", "gpt_neox", "opt", "bloom") else 4)
    config = getattr(transformers, config_class)(**{**known, **extra, **options})
    return _build(getattr(transformers, model_class), config, seed, attn_implementation)


def tiny_llama(**options: Any) -> Any:
    """A tiny Llama; see :func:`tiny_text`."""
    return tiny_text("llama", **options)


def tiny_llava(**options: Any) -> Any:
    """A tiny LLaVA; see :func:`tiny_vlm`."""
    return tiny_vlm("llava", **options)


def cache_argument(model: Any) -> str:
    """Under which name ``model`` takes a cache: it has changed, so tests write ``model(ids, **{name: cache})``."""
    return cache_parameter(model.forward)


def _vision(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        **options,
    }


def _qwen_vision(name: str) -> dict[str, Any]:
    common = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
    if name == "qwen2_vl":
        return {**common, "embed_dim": 16, "hidden_size": _WIDTH, "mlp_ratio": 2}
    if name == "qwen3_vl":  # adds image features to the first two decoder layers
        sizes = {"depth": 3, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": _WIDTH}
        return {**common, **sizes, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return {
        **common,
        "hidden_size": 16,
        "out_hidden_size": _WIDTH,
        "intermediate_size": 32,
        "fullatt_block_indexes": [0],
    }


def _llava(family: str, text: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    grids = {} if family == "llava" else {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
    siglip = family == "llava_onevision"
    options = {
        "vision_config": {"model_type": "siglip_vision_model" if siglip else "clip_vision_model", **_vision()},
        "text_config": {"model_type": "qwen2" if siglip else "llama", **text},
        "image_token_index": IMAGE_TOKEN,
        "vision_feature_layer": -1,
        **({"video_token_index": 96} if siglip else {}),
        **grids,
    }
    return {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}[family], options


def _qwen(family: str, text: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    if family == "qwen3_vl":
        text = {**text, "head_dim": 8}
        rope["mrope_interleaved"] = True
    options = {
        "text_config": {**text, "rope_parameters": rope},
        "vision_config": _qwen_vision(family),
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": 96,
        "vision_start_token_id": 97,
        "vision_end_token_id": 98,
    }
    return {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family], options


def _tiled(family: str, text: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if family == "internvl":
        vision = _vision(image_size=[32, 32], patch_size=[8, 8])
        language = {"model_type": "qwen2", **text}
        options = {"vision_config": vision, "text_config": language, "downsample_ratio": 0.5}
    else:
        language = {"model_type": "llama", **text}
        # Four tokens a tile, as many as a patch has pixels in a row: smolvlm before 5.21 takes one for the other.
        vision = _vision(image_size=16, patch_size=4)
        options = {"vision_config": vision, "text_config": language, "scale_factor": 2}
    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3", "internvl": "InternVL"}[family]
    return name, {**options, "image_token_id": IMAGE_TOKEN}


def _paligemma(family: str, text: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "PaliGemma", {
        "vision_config": {"model_type": "siglip_vision_model", "projection_dim": _WIDTH, **_vision()},
        "text_config": {"model_type": "gemma", **text, "head_dim": 8},
        "image_token_index": IMAGE_TOKEN,
        "projection_dim": _WIDTH,
        "hidden_size": _WIDTH,
    }


def _vlm_config(family: str, layers: int, heads: int, kv_heads: int) -> tuple[Any, str]:
    if family not in VLM_FAMILIES:
        raise ValueError(f"no tiny model of family {family!r}; known: {', '.join(VLM_FAMILIES)}")
    makers = {"llava": _llava, "qwen": _qwen, "paligemma": _paligemma}
    make = next((maker for prefix, maker in makers.items() if family.startswith(prefix)), _tiled)
    name, options = make(family, _decoder_options(layers, heads, kv_heads))
    config = getattr(transformers, f"{name}Config")(**options, tie_word_embeddings=False)
    return config, f"{name}ForConditionalGeneration"


def tiny_vlm(
    family: str = "llava",
    *,
    layers: int = 6,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
    attn_implementation: str = "sdpa",
) -> Any:
    """A tiny vision-language model of ``family`` (one of :data:`VLM_FAMILIES`), float32, in eval mode."""
    config, model_class = _vlm_config(family, layers, heads, kv_heads)
    return _build(taking_features(getattr(transformers, model_class)), config, seed, attn_implementation)


def vlm_inputs(
    model: Any,
    parts: Sequence[Sequence[int]] = ((3, 12, 5),),
    *,
    pad: str = "left",
    seed: int = 0,
    rows: slice = slice(None),
) -> dict[str, Any]:
    """A batch of prompts with images whose features are random, so that tests need no images.

    Every prompt is a list of lengths: text, image, text, image, ... Lengths of images must be multiples of 4.

    :param rows: only these prompts of the batch, with the same tokens and features as in the whole.
    :return: ``input_ids`` int64 [B, T], ``attention_mask`` int64 [B, T], and ``mm_encoder_outputs`` with the features,
        which stock models take in place of pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts, images = [], []
    for lengths in parts:
        prompt: list[int] = []
        for number, length in enumerate(lengths):
            text = torch.randint(3, 90, (length,), generator=generator).tolist()
            prompt += [IMAGE_TOKEN] * length if number % 2 else text
        prompts.append(prompt)
        images.append([torch.randn(n, _WIDTH, generator=generator) for n in lengths[1::2]])
    prompts, features = prompts[rows], [image for row in images[rows] for image in row]
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        where = slice(width - len(prompt), width) if pad == "left" else slice(0, len(prompt))
        ids[i, where] = torch.tensor(prompt)
        mask[i, where] = 1
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if model.config.model_type == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(ids)  # all of the prompt is prefix
    if features:
        inputs["mm_encoder_outputs"] = {"image": image_outputs(model, [f.to(model.dtype) for f in features])}
    return inputs


def placed(inputs: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """What :func:`vlm_inputs` made on another device, image features too; nothing is changed in place.

    :param dtype: of what is floating point, or None to leave it.
    """
    if isinstance(inputs, Tensor):
        return inputs.to(device, dtype if inputs.is_floating_point() else None)
    if isinstance(inputs, list | tuple):
        return type(inputs)(placed(each, device, dtype) for each in inputs)
    if not isinstance(inputs, dict):
        return inputs
    made = copy.copy(inputs)
    for name, value in inputs.items():
        made[name] = placed(value, device, dtype)
    if hasattr(made, "deepstack_features"):  # beside the fields of its class
        made.deepstack_features = placed(made.deepstack_features, device, dtype)
    return made


def image_outputs(model: Any, features: Sequence[Tensor]) -> Any:
    """The features [n, D] of each image of a batch in the form that ``model``'s family expects."""
    pooled: Any = list(features)
    if model.config.model_type in ("smolvlm", "idefics3", "internvl"):
        pooled = torch.cat(pooled).unflatten(0, (-1, 4))  # tiles of 2 x 2 tokens
    elif model.config.model_type == "paligemma":
        pooled = torch.cat(pooled)[None]
    outputs = BaseModelOutputWithPooling(pooler_output=pooled)
    if model.config.model_type == "qwen3_vl":
        outputs.deepstack_features = [[0.5 * f for f in features], [0.25 * f for f in features]]
    return outputs
