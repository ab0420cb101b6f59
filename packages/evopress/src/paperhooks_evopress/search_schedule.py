"""How long a search goes on, and what it spends on every candidate."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["SearchSchedule", "SearchWarning", "SelectionStage"]


class SearchWarning(UserWarning):
    """The search will do less, or other things, than its settings suggest."""


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")


@dataclass(frozen=True, slots=True)
class SelectionStage:
    """A stage of the selection: how many candidates are kept, by how many tokens."""

    survivors: int
    tokens: int

    def __post_init__(self) -> None:
        _whole("survivors", self.survivors, 1)
        _whole("tokens", self.tokens, 2)  # one token predicts nothing


@dataclass(frozen=True)
class SearchSchedule:
    """How long a search goes on, and what it spends on every candidate.

    :param generations: how often children are made; 0 keeps the best of the initial candidates.
    :param offspring: lambda, children of a generation. :param stages: of the selection; the last keeps ``population``.
    :param initial: distinct candidates to begin with, as far as the space has so many. :param initial_tokens: tokens
        that they are scored on; a single candidate is not scored.
    :param max_mutations: the most switches of one child. :param population: mu, members that have children.
    :param exhaustive: score all states instead, where there are at most so many; None: where that takes no more
        token-evaluations than the search; 0: never.
    :raises ValueError: survivors increase, are more than the candidates, or end in another number than ``population``.
    """

    generations: int
    offspring: int
    stages: tuple[SelectionStage, ...]
    initial: int = 64
    initial_tokens: int = 2048
    max_mutations: int = 3
    population: int = 1
    exhaustive: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("stages=(): expected at least one Stage(survivors, tokens)")
        _whole("generations", self.generations, 0)
        _whole("offspring", self.offspring, 1)
        _whole("population", self.population, 1)
        _whole("initial", self.initial, self.population)
        _whole("initial_tokens", self.initial_tokens, 2)
        _whole("max_mutations", self.max_mutations, 1)
        if self.exhaustive is not None:
            _whole("exhaustive", self.exhaustive, 0)
        kept = [stage.survivors for stage in self.stages]
        # The population joins the last stage, which may be the first one.
        candidates = self.offspring + (self.population if len(kept) == 1 else 0)
        for number, (before, after) in enumerate(pairwise([candidates, *kept]), 1):
            if after > before:
                raise ValueError(f"stage {number} keeps {after} of {before} candidates; expected at most {before}")
        if kept[-1] != self.population:
            raise ValueError(
                f"the last stage keeps {kept[-1]}; it makes the next population, which is {self.population}"
            )
        if any(second.tokens < first.tokens for first, second in pairwise(self.stages)):
            tokens = ", ".join(str(stage.tokens) for stage in self.stages)
            warnings.warn(
                f"tokens of the stages are {tokens}: a later stage with fewer tokens decides by more noise than the "
                "one before it",
                SearchWarning,
                stacklevel=3,
            )

    @property
    def generation_evaluations(self) -> int:
        """Tokens times candidates of one generation."""
        counts = [self.offspring, *(stage.survivors for stage in self.stages)]
        counts[len(self.stages) - 1] += self.population
        return sum(count * stage.tokens for count, stage in zip(counts, self.stages, strict=False))

    @property
    def evaluations(self) -> int:
        """Tokens times candidates of the whole search, at most."""
        return self.initial * self.initial_tokens + self.generations * self.generation_evaluations
