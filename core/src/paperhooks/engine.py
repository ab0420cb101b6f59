"""Greedy answers of a model to prompts with or without images, in batches, leaving model and processor as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError

__all__ = ["Reply", "Request", "answer", "evaluation_mode", "prompt_text"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked.

    prompt
        The finished prompt with the model's own image placeholders; or empty, with ``messages`` instead.
    messages
        A conversation for the processor's chat template, when there is no ``prompt``.
    images
        PIL images in the order of their placeholders.
    max_new_tokens
        Where the answer is cut.
    """

    prompt: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    images: Sequence[Any] = ()
    max_new_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said: the text, how many tokens, and whether it was cut at the limit."""

    text: str
    new_tokens: int
    truncated: bool


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """``model.eval()`` for the block; every module gets its own mode back."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def answer(model: Any, processor: Any, requests: Sequence[Request]) -> list[Reply]:
    """Greedy answers to a batch of requests, in their order.

    ``processor`` is a transformers processor, or a tokenizer for text-only models. Raises DataError when prompts
    cannot be made (no chat template, or images for a processor without an image part).
    """
    if not requests:
        return []
    tokenizer = getattr(processor, "tokenizer", processor)
    with evaluation_mode(model), torch.no_grad(), _left_padding(tokenizer):
        inputs = _inputs(processor, requests).to(model.device)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[name] = value.to(model.dtype)
        limit = max(request.max_new_tokens for request in requests)
        config = _greedy(model.generation_config, tokenizer, limit)
        output = model.generate(**inputs, generation_config=config)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [_reply(row, request, tokenizer, config) for row, request in zip(new, requests, strict=True)]


def prompt_text(processor: Any, request: Request) -> str:
    """The prompt of a request, made with the chat template when it has messages."""
    if request.prompt:
        return request.prompt
    if not request.messages:
        raise DataError("the request has neither a prompt nor messages")
    if not getattr(processor, "chat_template", None):
        raise DataError("the request has messages, but the processor has no chat template; give a prompt instead")
    text = processor.apply_chat_template(list(request.messages), add_generation_prompt=True, tokenize=False)
    return str(text)


def _inputs(processor: Any, requests: Sequence[Request]) -> Any:
    texts = [prompt_text(processor, request) for request in requests]
    images = [list(request.images) for request in requests]
    if not any(images):
        return processor(text=texts, padding=len(texts) > 1, return_tensors="pt")
    if not hasattr(processor, "image_processor"):
        raise DataError(f"the task shows images, but {type(processor).__name__} takes only text")
    return processor(text=texts, images=images, padding=len(texts) > 1, return_tensors="pt")


@contextmanager
def _left_padding(tokenizer: Any) -> Iterator[None]:
    # Generation goes on from the last column, so padding must come first.
    before = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.padding_side, tokenizer.pad_token = before


def _greedy(base: Any, tokenizer: Any, limit: int) -> Any:
    config = copy.deepcopy(base)
    config.update(do_sample=False, num_beams=1, max_new_tokens=limit, max_length=None)
    config.update(temperature=None, top_p=None, top_k=None)  # without sampling they only cause warnings
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config


def _reply(row: Tensor, request: Request, tokenizer: Any, config: Any) -> Reply:
    ids = row[: request.max_new_tokens].tolist()
    ends = config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends]) - {None}
    length = next((i for i, token in enumerate(ids) if token in stops), None)
    kept = ids if length is None else ids[:length]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Reply(text.strip(), len(kept), length is None and len(ids) >= request.max_new_tokens)
