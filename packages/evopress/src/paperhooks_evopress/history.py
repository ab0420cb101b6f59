"""What a search saw and decided, generation by generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Generation", "StageRecord", "evaluations"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a stage saw.

    tokens
        Of its minibatch.
    fitness
        Of each candidate, ``inf`` where it is not finite or was not scored to its end.
    survivors
        Places of the candidates that went on, best first.
    parents
        So many of the first candidates are the population as it was: their values are those of this minibatch.
    """

    tokens: int
    fitness: tuple[float, ...]
    survivors: tuple[int, ...]
    parents: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, which has no infinity: None stands for it."""
        fitness = [value if math.isfinite(value) else None for value in self.fitness]
        return {**asdict(self), "fitness": fitness, "survivors": list(self.survivors)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StageRecord:
        """What :meth:`to_json` gave."""
        fitness = tuple(math.inf if value is None else value for value in data["fitness"])
        return cls(**{**data, "fitness": fitness, "survivors": tuple(data["survivors"])})


@dataclass(frozen=True, slots=True)
class Generation:
    """What a generation came to.

    number
        From 0, which makes the first population.
    kind
        ``"initial"``, ``"generation"``, or ``"exhaustive"``: all states were scored and the search is over.
    stages
        Those in which candidates were scored; where all survive, they are not.
    best
        The first of the population.
    fitness
        Its last value; None where it was not scored.
    note
        What differs from the schedule, in words.
    """

    number: int
    kind: str
    stages: tuple[StageRecord, ...]
    best: tuple[int, ...]
    fitness: float | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "stages": [stage.to_json() for stage in self.stages], "best": list(self.best)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Generation:
        """What :meth:`to_json` gave."""
        stages = tuple(map(StageRecord.from_json, data["stages"]))
        return cls(**{**data, "stages": stages, "best": tuple(data["best"])})


def evaluations(history: Sequence[Generation]) -> int:
    """Tokens times candidates of all stages, those that were remembered or left before the end too.

    It is the same for a search that was interrupted and went on.
    """
    return sum(stage.tokens * len(stage.fitness) for generation in history for stage in generation.stages)
