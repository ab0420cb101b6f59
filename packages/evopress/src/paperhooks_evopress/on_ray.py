"""Candidates of a search scored by Ray actors, each with a copy of the model.

An actor that is killed costs its share: Ray replaces it, and the new one scores the share again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from paperhooks import DataError, PaperhooksError
from paperhooks.io import RESTARTS, lost_actors, ray_cluster

from paperhooks_evopress.evaluator import CandidateShare, Evaluator, EvaluatorSpec, ScoreFunction

__all__ = ["ActorMap", "CandidateScorer"]


class CandidateScorer:
    """An actor, which makes its evaluator with its first share."""

    _evaluator: Evaluator | None = None

    def score(self, spec: list[Any], share: CandidateShare) -> list[float] | str:
        """Fitness of each candidate, or what is wrong: Ray would wrap an error. :param spec: a reference to one."""
        import ray

        try:
            if self._evaluator is None:
                self._evaluator = ray.get(spec[0]).open()
            return share.scored_by(self._evaluator.score)
        except PaperhooksError as error:
            return str(error)


class ActorMap(AbstractContextManager["ActorMap"]):
    """A :class:`~paperhooks_evopress.evaluator.CandidateMap` of actors, which end with the block.

    :param actors: how many. :param cpus: of each. :param gpus: of each; 1 without where the model is on one.
    :raises DataError: the cluster has no place for so many, or the model cannot be sent there.
    """

    def __init__(self, actors: int, cpus: float = 1.0, gpus: float | None = None) -> None:
        self.workers, self._cpus, self._gpus = actors, cpus, gpus
        self._ray, self._spec, self._actors = None, None, []  # type: Any, Any, list[Any]

    def begin(self, spec: EvaluatorSpec | None, error: Exception | None = None) -> None:
        """Look whether there is room for the actors, before anything long."""
        if spec is None:
            raise error or ValueError("a spec or an error is needed")
        gpus = float(any(each.is_cuda for each in spec.view.model.parameters())) if self._gpus is None else self._gpus
        self._ray = ray_cluster("paperhooks-evopress[ray]", "for actors", self.workers, self._cpus, gpus)
        self._spec, self._gpus = spec, gpus

    def scores(self, score: ScoreFunction, shares: Sequence[CandidateShare]) -> list[list[float]]:
        """An actor a share, of several; one is scored here."""
        if sum(bool(share.choices) for share in shares) < 2:
            return [share.scored_by(score) for share in shares]
        if not self._actors:
            try:
                self._spec = self._ray.put(self._spec)
            except Exception as error:  # whatever a part of a model that is not plain raises
                raise DataError(f"the model or its levels cannot be sent to actors: {error}") from error
            actor = self._ray.remote(CandidateScorer).options(num_cpus=self._cpus, num_gpus=self._gpus, **RESTARTS)
            self._actors = [actor.remote() for _ in shares]
        asked = [actor.score.remote([self._spec], share) for actor, share in zip(self._actors, shares, strict=True)]
        try:
            found = self._ray.get(asked)
        except self._ray.exceptions.RayActorError as error:
            raise lost_actors(error) from error
        if odd := [each for each in found if isinstance(each, str)]:
            raise DataError(f"an actor failed: {odd[0]}")
        return list(found)

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
