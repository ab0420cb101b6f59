"""Scoring a corpus in parts on Ray Data: rows are numbers of units of a :class:`~paperhooks_miniplm.ScoringRun`.

An actor reads its own rows and leaves a unit alone that is there, so Ray may do a block again whenever it likes.
"""

from __future__ import annotations

from typing import Any

from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import RESTARTS, lost_actors, ray_cluster
from tqdm import tqdm

from paperhooks_miniplm.scoring.runs import ScoringRun

__all__ = ["UnitScorer", "score_on_ray"]


class UnitScorer:
    """An actor, which loads the model with its first unit."""

    def __init__(self, scoring: ScoringRun) -> None:
        self.scoring = scoring

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score ``unit``, int64 [1]. What is wrong with it is in ``error``: Ray would wrap it, or try it again."""
        try:
            self.scoring.score(int(batch["unit"][0]))
        except DataError as error:
            return {**batch, "error": [str(error)]}
        return {**batch, "error": [""]}


def score_on_ray(scoring: ScoringRun, workers: int = 1, cpus: float = 1.0, gpus: float | None = None) -> None:
    """Score what is missing on the cluster that this process is connected to; without one Ray begins its own here.

    :param workers: actors, each with the model. :param cpus: of each. :param gpus: of each; 1 without where the run's
        device is one of CUDA.
    :raises DataError: as :meth:`ScoringRun.score` does, or the cluster has no place for so many actors.
    """
    gpus = float(scoring.device.startswith("cuda")) if gpus is None else gpus
    ray = ray_cluster("paperhooks-miniplm[ray]", "to score on it", workers, cpus, gpus)
    data = require("ray.data", "paperhooks-miniplm[ray]", "to score on it")
    if not (missing := scoring.missing()):
        return
    units = data.from_items([{"unit": each} for each in missing], override_num_blocks=len(missing))
    done = units.map_batches(
        UnitScorer, fn_constructor_args=(scoring,), batch_size=1, batch_format="numpy", num_cpus=cpus,
        num_gpus=gpus, compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        ray_remote_args_fn=lambda: dict(RESTARTS),
    )  # fmt: skip
    rows = tqdm(done.iter_rows(), desc="score", unit="unit", total=scoring.units, initial=scoring.units - len(missing))
    try:
        for row in rows:
            if row["error"]:
                raise DataError(row["error"])
    except ray.exceptions.RayActorError as error:
        raise lost_actors(error) from error
