"""What decides an answer besides weights and prompt: all that transformers tells of processor, tokenizer, config and
generation, but for what cannot matter.

Whatever is not known here counts. Entries without a value are left out, since that is how a setting that was never made
looks after saving and loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from paperhooks.compat import CONFIG_CIRCUMSTANCES
from paperhooks.io.files import plain
from paperhooks.models.tokenizers import tokenizer_digest

__all__ = ["config_settings", "generation_settings", "processor_settings", "tokenizer_settings"]

#: Where something came from, who wrote it, what it returns beside its result, how it is compiled.
_CIRCUMSTANCES: Final = frozenset({
    *CONFIG_CIRCUMSTANCES, "name_or_path", "base_model_name_or_path", "revision", "_commit_hash", "_from_model_config",
    "auto_map", "processor_class", "use_fast", "inference_mode", "output_attentions", "output_hidden_states",
    "output_scores", "output_logits", "return_dict", "return_dict_in_generate", "compile_config", "disable_compile",
    "max_new_tokens",  # of each prompt
})  # fmt: skip
_PARTS: Final = ("image_processor", "video_processor", "feature_extractor")
#: What of a tokenizer is not among its rules: how texts are put into tokens, and tokens into text.
_TOKENIZER: Final = (
    "special_tokens_map", "add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens",
    "clean_up_tokenization_spaces",
)  # fmt: skip


def processor_settings(processor: Any) -> dict[str, Any]:
    """Every setting of a processor and of its parts for images, videos and sound; its tokenizer is told apart."""
    found = dict(processor.to_dict()) if hasattr(processor, "to_dict") else {}
    parts = {name: getattr(processor, name, None) for name in _PARTS}
    found |= {name: part.to_dict() for name, part in parts.items() if part is not None}
    for name in ("tokenizer", "chat_template"):
        found.pop(name, None)
    return {"class": type(processor).__name__, **_telling(found)}


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """The digest of a tokenizer's rules, its special tokens, and how it uses them."""
    told = {name: getattr(tokenizer, name, None) for name in _TOKENIZER}
    return {"rules": tokenizer_digest(tokenizer), **_telling(plain(told))}


def generation_settings(config: Any) -> dict[str, Any]:
    """Every setting of a generation config that has a value."""
    return _telling(config.to_dict())


def config_settings(model: Any) -> dict[str, Any]:
    """Every entry of a model's config, and of the adapters on it: what is computed with the weights."""
    adapters = {name: config.to_dict() for name, config in (getattr(model, "peft_config", None) or {}).items()}
    return _telling(model.config.to_dict() | ({"adapters": adapters} if adapters else {}))


def _telling(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(name): _telling(value) if isinstance(value, Mapping) else plain(value)
        for name, value in settings.items()
        if name not in _CIRCUMSTANCES and value is not None
    }
