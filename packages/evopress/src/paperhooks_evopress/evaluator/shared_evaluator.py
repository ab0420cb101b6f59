"""An evaluator whose candidates are dealt out among several places, each with a whole copy of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paperhooks import ModelView
from paperhooks.hooks import Levels
from torch import Tensor

from paperhooks_evopress.evaluator.candidate_maps import CandidateMap, CandidateShare, RankMap
from paperhooks_evopress.evaluator.evaluator import Evaluator
from paperhooks_evopress.evaluator.evaluator_spec import EvaluatorSpec

__all__ = ["SharedEvaluator"]


class SharedEvaluator(Evaluator):
    """As :class:`Evaluator`, with candidates that go through a map.

    All candidates get their fitness to the last bit as one process finds it with as many threads; of candidates that
    cannot survive, which ones are left before the end depends on how they were dealt out.

    :param sequences, options: as for :class:`Evaluator`. :param candidates: who scores them; without it the ranks of
        torch.distributed, which call this alike, or this process alone where there are none.
    :raises DataError: places with other text or another model.
    """

    def __init__(
        self, view: ModelView, levels: Levels, sequences: Sequence[Tensor], *, candidates: CandidateMap | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        self._candidates = candidates or RankMap()
        try:
            super().__init__(view, levels, sequences, **options)
        except Exception as error:
            self._candidates.begin(None, error)
            raise
        self._candidates.begin(EvaluatorSpec.of(self, levels, options))

    @property
    def workers(self) -> int:
        """In how many places candidates are scored."""
        return self._candidates.workers

    def score(
        self, choices: Sequence[Mapping[str, str]], tokens: int, seed: int, survivors: int | None = None
    ) -> list[float]:
        """See :meth:`Evaluator.score`; an error of one place is raised.

        :raises DataError: ranks that ask for different things, as searches with other seeds do.
        """
        if self.workers == 1:
            return super().score(choices, tokens, seed, survivors)
        # Neighbours share most layers, so that each place gets neighbours.
        order = sorted(range(len(choices)), key=lambda number: sorted(choices[number].items()))
        each = math.ceil(len(order) / self.workers)
        dealt = [order[each * place : each * (place + 1)] for place in range(self.workers)]
        shares = [
            CandidateShare(tuple(choices[number] for number in own), tokens, seed, survivors) for own in dealt
        ]  # fmt: skip
        found = [math.inf] * len(choices)
        for own, values in zip(dealt, self._candidates.scores(super().score, shares), strict=True):
            for number, value in zip(own, values, strict=True):
                found[number] = value
        return found
