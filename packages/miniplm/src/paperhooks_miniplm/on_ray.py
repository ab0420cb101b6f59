"""Scoring a corpus in parts on Ray Data: rows are numbers of units of a :class:`~paperhooks_miniplm.ScoringRun`.

An actor reads its own rows and leaves a unit alone that is there, so Ray may do a block again whenever it likes.
"""

from __future__ import annotations

from typing import Any, Final

from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import number, whole
from tqdm import tqdm

from paperhooks_miniplm.scoring.runs import ScoringRun

__all__ = ["UnitScorer", "check_places", "score_on_ray"]

#: Ray replaces actors that are killed, and begins a unit again as often as this.
_AGAIN: Final = {"max_restarts": -1, "max_task_retries": 3}


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
    ray = require("ray", "paperhooks-miniplm[ray]", "to score on it")
    data = require("ray.data", "paperhooks-miniplm[ray]", "to score on it")
    gpus = float(scoring.device.startswith("cuda")) if gpus is None else number("gpus", gpus, low=0)
    needed = {"CPU": number("cpus", cpus, low=0), "GPU": gpus}
    if not ray.is_initialized():
        ray.init()
    check_places(ray, whole("workers", workers, at_least=1), needed)
    if not (missing := scoring.missing()):
        return
    units = data.from_items([{"unit": each} for each in missing], override_num_blocks=len(missing))
    done = units.map_batches(
        UnitScorer, fn_constructor_args=(scoring,), batch_size=1, batch_format="numpy", num_cpus=needed["CPU"],
        num_gpus=needed["GPU"], compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        ray_remote_args_fn=lambda: dict(_AGAIN),
    )  # fmt: skip
    rows = tqdm(done.iter_rows(), desc="score", unit="unit", total=scoring.units, initial=scoring.units - len(missing))
    try:
        for row in rows:
            if row["error"]:
                raise DataError(row["error"])
    except ray.exceptions.RayActorError as error:
        raise DataError(f"actors were killed with one unit again and again; give them more memory: {error}") from error


def check_places(ray: Any, workers: int, needed: dict[str, float]) -> None:
    """Raise DataError where fewer actors than ``workers`` fit on the nodes; Ray would wait for ever."""
    wanted = {name: amount for name, amount in needed.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(min([workers, *(int(node.get(name, 0) / wanted[name]) for name in wanted)]) for node in nodes)
    if places < workers:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        raise DataError(f"the cluster has places for {places} actors with {asked}, not for {workers}; ask for fewer")
