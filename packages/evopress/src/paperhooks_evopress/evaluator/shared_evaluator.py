"""An evaluator whose candidates are dealt out among processes, each with a whole copy of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paperhooks import DataError, ModelView
from paperhooks.hooks import Levels
from paperhooks.io import Ranks, hash_json
from torch import Tensor

from paperhooks_evopress.evaluator.evaluator import Evaluator

__all__ = ["SharedEvaluator"]


class SharedEvaluator(Evaluator):
    """As :class:`Evaluator`, for processes that call it alike, each with all arguments.

    Every process gets the fitness of all candidates, to the last bit what one process finds; of candidates that cannot
    survive, which ones are left before the end depends on how they were dealt out. Alone it is an evaluator like any
    other.

    :param sequences, options: as for :class:`Evaluator`. :raises DataError: processes with other text or another model.
    """

    def __init__(self, view: ModelView, levels: Levels, sequences: Sequence[Tensor], **options: Any) -> None:
        self._ranks = Ranks()
        error: Exception | None = None
        try:
            super().__init__(view, levels, sequences, **options)
        except Exception as found:
            error = found
        told = None if error else (len(self.sequences), self.tokens, self.teacher_perplexity)
        others = self._ranks.gathered(told, error)
        if odd := [rank for rank, other in others.items() if not _alike(other, told)]:
            raise DataError(
                f"rank {odd[0]} has {others[odd[0]]} sequences, tokens and perplexity of the model, and rank "
                f"{self._ranks.index} {told}; give all processes one model and one text"
            )

    def score(
        self, choices: Sequence[Mapping[str, str]], tokens: int, seed: int, survivors: int | None = None
    ) -> list[float]:
        """See :meth:`Evaluator.score`; an error of one process is raised by all.

        :raises DataError: processes that ask for different things, as searches with other seeds do.
        """
        if self._ranks.count == 1:
            return super().score(choices, tokens, seed, survivors)
        # Neighbours share most layers, so that each process gets neighbours.
        order = sorted(range(len(choices)), key=lambda number: sorted(choices[number].items()))
        each = math.ceil(len(order) / self._ranks.count)
        own = order[each * self._ranks.index : each * (self._ranks.index + 1)]
        error: Exception | None = None
        values: list[float] = []
        try:
            if own:
                values = super().score([choices[number] for number in own], tokens, seed, survivors)
        except Exception as found:
            error = found
        # What each has found stands for candidates of all, which have to be the same ones.
        asked = hash_json([[sorted(choice.items()) for choice in choices], tokens, seed, survivors])
        gathered = self._ranks.gathered((asked, values), error)
        if odd := [rank for rank, (other, _) in gathered.items() if other != asked]:
            raise DataError(
                f"rank {odd[0]} asks for other candidates than rank {self._ranks.index}, or for other tokens; give all "
                "processes one seed, one target, one schedule and the same levels"
            )
        dealt = [value for rank in sorted(gathered) for value in gathered[rank][1]]
        found_values = [math.inf] * len(choices)
        for number, value in zip(order, dealt, strict=True):
            found_values[number] = value
        return found_values


def _alike(one: Any, other: Any) -> bool:
    return bool(one[:2] == other[:2] and math.isclose(one[2], other[2], rel_tol=1e-3))
