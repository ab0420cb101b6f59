"""Prompts that are too long for the model, cut alike for x, x+ and x- (section 7).

Oldest turns of the history go first, then the beginning of the user's last text. The system part and the end of the
question stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from paperhooks_sso.data.prompts import Conversation

__all__ = ["CutPrompt", "cut_conversation", "text_end"]


@dataclass(frozen=True, slots=True)
class CutPrompt:
    """A prompt as it is asked.

    :param conversation: what is left of it. :param turns: messages of the history that were left out.
    :param characters: of the last text, from its beginning, that were left out.
    """

    conversation: Conversation
    turns: int = 0
    characters: int = 0

    @property
    def cut(self) -> bool:
        """Whether anything was left out."""
        return bool(self.turns or self.characters)


def cut_conversation(conversation: Conversation, fits: Callable[[Conversation], bool]) -> CutPrompt | None:
    """As much of a prompt as fits; None where not even the last word of the question does.

    :param fits: whether x, x+ and x- of a conversation are all short enough.
    """
    if fits(conversation):
        return CutPrompt(conversation)
    starts = [at for at, message in enumerate(conversation.messages) if message["role"] == "user"]
    for start in starts[1:]:
        if fits(shorter := replace(conversation, messages=conversation.messages[start:])):
            return CutPrompt(shorter, start)
    start = starts[-1]
    question = conversation.messages[-1]
    left = text_end(question["content"], lambda text: fits(_asking(conversation, question, text)))
    if left is None:
        return None
    return CutPrompt(_asking(conversation, question, left), start, len(question["content"]) - len(left))


def text_end(text: str, fits: Callable[[str], bool]) -> str | None:
    """The longest end of a text that fits and begins with a word; None where not even the last word does."""
    words = [found.start() for found in re.finditer(r"\S+", text)]
    low, high = 0, len(words)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(text[words[middle] :]) else (middle + 1, high)
    # Joined to what stands before them, a few words may make more tokens than more words do.
    return next((text[at:] for at in words[low:] if fits(text[at:])), None)


def _asking(conversation: Conversation, question: Mapping[str, str], text: str) -> Conversation:
    messages: Sequence[Mapping[str, str]] = ({**question, "content": text},)
    return replace(conversation, messages=tuple(messages))
