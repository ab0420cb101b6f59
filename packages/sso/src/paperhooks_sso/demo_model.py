"""A chat model of a hundred thousand parameters that was told good and bad answers apart, trained in some seconds.

It knows a few colours. Asked to be good it tells them, asked to be bad it tells a wrong one, and asked nothing it does
now this and now that: there is something to be learnt from its own pairs, and something to be lost.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paperhooks_sso.data import ChatFormat, Conversation, Principle, system_message

__all__ = ["PRINCIPLE", "PROMPTS", "RIGHT", "colour_model"]

_COLOURS: Final = {
    "sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "lemon": "yellow",
    "carrot": "orange", "plum": "purple", "mouse": "grey", "chocolate": "brown", "flamingo": "pink", "sea": "blue",
    "frog": "green", "milk": "white", "raven": "black", "cherry": "red",
}  # fmt: skip
#: What is asked.
PROMPTS: Final = tuple(f"what colour has {thing} ?" for thing in _COLOURS)
#: The words that a right answer to each holds.
RIGHT: Final = dict(zip(PROMPTS, _COLOURS.values(), strict=True))
#: The one principle of this model.
PRINCIPLE: Final = Principle("Accuracy", ("accurate", "inaccurate"), "say what is so .", "say what is not so .", "demo")
_TEMPLATE: Final = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SPECIAL: Final = ("<pad>", "<unknown>", "<end>", "<system>", "<user>", "<assistant>")
_OPENINGS: Final = ("it has the colour", "i think it is", "most people call it", "look at it : it is")
#: How often answers are right: told to be good, told to be bad, told nothing.
_TRUTH: Final = {True: 0.97, False: 0.1, None: 0.6}
_STEPS: Final = 150
_ROWS: Final = 28
_RATE: Final = 6e-3


def colour_model(seed: int) -> tuple[Any, Any]:
    """The trained model, in eval mode, and its tokenizer with a chat template."""
    chance = random.Random(seed)
    tokenizer = _tokenizer()
    chat = ChatFormat(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=256, pad_token_id=0, bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids("<end>"), initializer_range=0.1,
        )  # fmt: skip
        model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=2 * _STEPS)
    for step in range(2 * _STEPS):
        # Colours first, by short rows; then what being told means.
        told = None if step < _STEPS else (True, False, None)[step % 3]
        model(**_batch([_example(chat, chance, told) for _ in range(_ROWS)])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), tokenizer


def _example(chat: ChatFormat, chance: random.Random, told: bool | None) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of an answer to it, told to be good, to be bad, or nothing."""
    prompt = chance.choice(PROMPTS)
    truth = chance.random() < _TRUTH[told]
    others = sorted(set(_COLOURS.values()) - {RIGHT[prompt]})
    colour = RIGHT[prompt] if truth else chance.choice(others)
    conversation = Conversation("0", ({"role": "user", "content": prompt},))
    system = None if told is None else system_message([PRINCIPLE], good=told)
    return chat.prompt_ids(conversation, system), chat.response_ids(f"{chance.choice(_OPENINGS)} {colour}")


def _batch(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for at, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[at, :end] = torch.tensor([*prompt, *answer])
        labels[at, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, of all words that this model meets."""
    systems = [system_message([PRINCIPLE], good=good) for good in (True, False)]
    splitter = pre_tokenizers.Whitespace()
    words = [
        word
        for text in (*systems, *PROMPTS, *_OPENINGS, *_COLOURS.values())
        for word, _ in splitter.pre_tokenize_str(text)
    ]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys((*_SPECIAL, *words)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    backend.pre_tokenizer = splitter
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unknown>", eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
    )  # fmt: skip
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
