"""Prompts for transformers processors: chat templates, a plain form without one, and harmless placeholders in texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.generation.requests import Prompt, Request

__all__ = ["make_prompt"]

_PLACEHOLDERS: Final = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token")


def make_prompt(processor: Any, document_id: str, request: Request) -> Prompt:
    """The prompt of a request whose images are laid out, for a processor or a tokenizer.

    A finished prompt is taken as it is. Messages go through the chat template. Without a template (base models) the
    prompt is the content of the messages one a line; placeholders of images are put where the images are, each followed
    by a blank. A placeholder that occurs in a text of the messages gets a blank after its first character, so that the
    model does not expect an image there.

    :raises DataError: when the processor takes no images, or has neither a template nor a placeholder.
    """
    if request.images and not hasattr(processor, "image_processor"):
        raise DataError(
            f"{document_id!r} shows images, but {type(processor).__name__} takes only text; give the model's processor "
            "where it has one that takes images, or leave the images out: layout='text-only'"
        )
    if request.prompt:
        return Prompt(document_id, request.prompt, request)
    messages = [_harmless(processor, message) for message in request.messages]
    if not getattr(processor, "chat_template", None):
        return Prompt(document_id, "\n".join(_plain(processor, message) for message in messages), request)
    if not hasattr(processor, "image_processor"):
        messages = [{**message, "content": _joined_text(message)} for message in messages]
    text = str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    return Prompt(document_id, text, request, _adds_special(processor, text))


def _image_token(processor: Any) -> str:
    """What stands for an image in a prompt; raises DataError when the processor does not say."""
    for holder in (processor, getattr(processor, "tokenizer", None)):
        for name in ("boi_token", "image_token"):  # Gemma 3 expands the first of them to images
            if isinstance(found := getattr(holder, name, None), str) and found:
                return found
    raise DataError(
        f"{type(processor).__name__} has neither a chat template nor an image token; let the task's request carry a "
        "finished prompt"
    )


def _harmless(processor: Any, message: Mapping[str, Any]) -> dict[str, Any]:
    tokens = _placeholders(processor)
    content = [
        {**part, "text": _escaped(part["text"], tokens)} if part["type"] == "text" else dict(part)
        for part in message["content"]
    ]
    return {**message, "content": content}


def _placeholders(processor: Any) -> set[str]:
    holders = processor, getattr(processor, "tokenizer", None)
    found = {getattr(holder, name, None) for holder in holders for name in _PLACEHOLDERS}
    return {token for token in found if isinstance(token, str) and token}


def _escaped(text: str, tokens: set[str]) -> str:
    for token in sorted(tokens):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _joined_text(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"])


def _plain(processor: Any, message: Mapping[str, Any]) -> str:
    parts = message["content"]
    return "".join(f"{_image_token(processor)} " if part["type"] == "image" else part["text"] for part in parts)


def _adds_special(processor: Any, text: str) -> bool:
    # As apply_chat_template(tokenize=True) decides: a tokenizer's template writes all special tokens, a processor's
    # may leave the first one to the tokenizer.
    if not hasattr(processor, "image_processor"):
        return False
    first = getattr(processor.tokenizer, "bos_token", None)
    return not (first and text.startswith(first))
