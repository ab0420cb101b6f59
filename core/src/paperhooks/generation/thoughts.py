"""Reasoning that a model writes in tags in front of its answer, told apart from the answer.

Both are kept: what was reasoned and the answer, one behind the other, are what the model wrote. Only text in front of
the answer counts as reasoning, so that an answer may speak of a tag.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from paperhooks.generation.requests import Prompt, Response

__all__ = ["REASONING_TAGS", "separate_reasoning", "split_reasoning"]

_NAMES: Final = ("think", "thinking", "thought", "thoughts", "reason", "reasoning")
#: What begins and what ends reasoning, as models write it. A tokenizer may have some of them as special tokens.
REASONING_TAGS: Final[tuple[tuple[str, str], ...]] = (
    *((f"<{name}>", f"</{name}>") for name in _NAMES),
    *((f"[{name.upper()}]", f"[/{name.upper()}]") for name in _NAMES),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_OPENS: Final = "|".join(re.escape(begin) for begin, _ in REASONING_TAGS)
_CLOSES: Final = "|".join(re.escape(end) for _, end in REASONING_TAGS)
_OPEN: Final = re.compile(_OPENS, re.IGNORECASE)
_BEGIN: Final = re.compile(rf"\s*(?:{_OPENS})", re.IGNORECASE)
_LAST: Final = tuple(begin.lower() for begin, _ in REASONING_TAGS)
#: One of these stands in every tag.
_SIGNS: Final = sorted({begin[0] for begin, _ in REASONING_TAGS})
_END: Final = re.compile(rf"(?:{_CLOSES})\s*", re.IGNORECASE)


def split_reasoning(text: str, begun: bool = False) -> tuple[str, str]:
    """Reasoning, with its tags and the blanks behind them, and answer; put together they are ``text``.

    The answer begins behind the last tag that ends reasoning, also where the one that begins it was in the prompt.
    What begins with such a tag and is never ended has no answer.

    :param begun: the prompt ended with a tag, so that a text without any is reasoning that was cut.

    >>> split_reasoning("<think>no cat, but a dog</think> Yes")
    ('<think>no cat, but a dog</think> ', 'Yes')
    >>> split_reasoning("Yes.<think>or so</think>")
    ('', 'Yes.<think>or so</think>')
    >>> split_reasoning("a tag such as <think> may be spoken of")
    ('', 'a tag such as <think> may be spoken of')
    """
    if not begun and not any(sign in text for sign in _SIGNS):
        return "", text
    end = max((found.end() for found in _END.finditer(text)), default=0)
    opening = _OPEN.search(text)
    if opening is not None and text[: opening.start()].strip() and not begun and not text[end:].strip():
        return "", text  # the answer came first, and reasoning, or talk of a tag, behind it
    if _BEGIN.match(text, end) or (begun and not end):
        end = len(text)
    return text[:end], text[end:]


def separate_reasoning(response: Response, prompt: Prompt) -> Response:
    """A response whose text is the answer alone; :attr:`Response.reasoning` gets what stood before it."""
    begun = prompt.text[-200:].rstrip().lower().endswith(_LAST)
    reasoning, answer = split_reasoning(response.text, begun and not response.reasoning)
    if not reasoning:
        return response
    return dataclasses.replace(response, text=answer, reasoning=response.reasoning + reasoning)
