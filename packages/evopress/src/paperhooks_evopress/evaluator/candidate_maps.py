"""Who scores candidates: shares of them go through one map, which this process, ranks or an engine's actors fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from paperhooks import DataError
from paperhooks.io import Ranks, hash_json

from paperhooks_evopress.evaluator.evaluator_spec import EvaluatorSpec

__all__ = ["CandidateMap", "CandidateShare", "RankMap", "ScoreFunction"]

#: As :meth:`paperhooks_evopress.Evaluator.score`: choices, tokens, seed, survivors.
ScoreFunction: TypeAlias = Callable[[Sequence[Mapping[str, str]], int, int, int | None], list[float]]


@dataclass(frozen=True)
class CandidateShare:
    """Candidates that one process scores together, and what they read; see :meth:`Evaluator.score`."""

    choices: tuple[Mapping[str, str], ...]
    tokens: int
    seed: int
    survivors: int | None = None

    def scored_by(self, score: ScoreFunction) -> list[float]:
        """Fitness of each."""
        return score(self.choices, self.tokens, self.seed, self.survivors) if self.choices else []

    def told(self) -> list[Any]:
        """All of it as plain data."""
        return [[sorted(choice.items()) for choice in self.choices], self.tokens, self.seed, self.survivors]


class CandidateMap(Protocol):
    """Scores shares of candidates in several places, each with the model."""

    @property
    def workers(self) -> int:
        """How many places there are: into so many shares candidates are dealt out, some of which may be empty."""
        ...

    def begin(self, spec: EvaluatorSpec | None, error: Exception | None = None) -> None:
        """Called once this process has its evaluator, or has failed with an error, which is raised; then spec is None.

        :raises DataError: the places have other models or text.
        """
        ...

    def scores(self, score: ScoreFunction, shares: Sequence[CandidateShare]) -> list[list[float]]:
        """Fitness of the candidates of each share. :param score: scores candidates in this process."""
        ...


class RankMap:
    """The processes of torch.distributed, which call it alike, or this one alone; an error of one is raised by all."""

    def __init__(self) -> None:
        self._ranks = Ranks()

    @property
    def workers(self) -> int:
        """How many ranks there are."""
        return self._ranks.count

    def begin(self, spec: EvaluatorSpec | None, error: Exception | None = None) -> None:
        """See :class:`CandidateMap`."""
        told = None if spec is None else (spec.text, spec.perplexity)
        others = self._ranks.gathered(told, error)
        assert spec is not None  # there was no error
        for rank, (text, perplexity) in others.items():
            other = EvaluatorSpec(spec.view, spec.levels, (), {}, text, perplexity)
            if not spec.alike(other):
                raise DataError(
                    f"rank {rank} has {other.told()}, and rank {self._ranks.index} {spec.told()}; give all processes "
                    "one model and one text"
                )

    def scores(self, score: ScoreFunction, shares: Sequence[CandidateShare]) -> list[list[float]]:
        """Every rank scores its own share. Raises DataError for ranks that ask for different things."""
        error: Exception | None = None
        values: list[float] = []
        try:
            values = shares[self._ranks.index].scored_by(score)
        except Exception as found:
            error = found
        # What each has found stands for candidates of all, which have to be the same ones.
        asked = hash_json([each.told() for each in shares])
        gathered = self._ranks.gathered((asked, values), error)
        if odd := [rank for rank, (other, _) in gathered.items() if other != asked]:
            raise DataError(
                f"rank {odd[0]} asks for other candidates than rank {self._ranks.index}, or for other tokens; give all "
                "processes one seed, one target, one schedule and the same levels"
            )
        return [gathered[rank][1] for rank in sorted(gathered)]
