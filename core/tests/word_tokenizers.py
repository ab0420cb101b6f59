"""A tokenizer of one token a word, for the tiny models."""

from __future__ import annotations

from typing import Any

__all__ = ["word_tokenizer"]


def word_tokenizer(size: int = 64) -> Any:
    """Knows ``<pad>``, ``<s>``, ``</s>`` (ids 0 to 2) and the words w3 and on; a prompt begins with ``<s>``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    words = special + [f"w{i}" for i in range(len(special), size)]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w3"))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3"
    )
