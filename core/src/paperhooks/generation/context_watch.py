"""Prompts that are longer than what a model was made for: counted, and named where one of them fails."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from paperhooks.errors import PaperhooksError, counted
from paperhooks.generation.requests import Prompt

__all__ = ["ContextWatch"]

log = logging.getLogger("paperhooks.generation")


class ContextWatch:
    """What is known of the prompts of a run and the context of its model, ``limit`` tokens; 0 where nobody knows.

    :ivar apart: whether prompts that may go beyond it are asked alone, since one of them has failed in a batch.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.apart = limit, False
        self._beyond = self._longest = 0

    def count(self, prompts: Iterable[Prompt]) -> None:
        """Take note of prompts that are going to be asked."""
        beyond = [prompt.tokens for prompt in prompts if prompt.tokens > self.limit > 0]
        self._beyond += len(beyond)
        self._longest = max([self._longest, *beyond])

    def reaches(self, prompt: Prompt) -> bool:
        """Whether prompt and answer together may be longer than the context."""
        return prompt.tokens + prompt.request.max_new_tokens > self.limit > 0

    def explains(self, error: Exception, prompts: Sequence[Prompt]) -> bool:
        """Whether an error of a batch may be due to that: one of torch, of which no other reason is known."""
        of_torch = isinstance(error, IndexError | RuntimeError) and not isinstance(error, PaperhooksError)
        return of_torch and any(map(self.reaches, prompts)) and not (self.apart and len(prompts) > 1)

    def told(self, error: str, prompt: Prompt) -> str:
        """The error of a request, with what may be its reason."""
        return (
            f"{error}; its prompt takes {counted(prompt.tokens, 'token')} and its answer up to "
            f"{prompt.request.max_new_tokens}, together more than the model's context of {self.limit}"
        )

    def warn(self, name: str) -> None:
        """Say once how many prompts were too long, and by how much."""
        if self._beyond:
            log.warning(
                "%s: %s longer than the model's context, of up to %d tokens (with those of images) where it was made "
                "for %d; answers to these may be the worse for it",
                name, counted(self._beyond, "prompt is", "prompts are"), self._longest, self.limit,
            )  # fmt: skip
