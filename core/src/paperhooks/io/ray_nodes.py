"""The Ray cluster that a process is connected to."""

from __future__ import annotations

import logging
from typing import Any, Final

from paperhooks.errors import DataError, require
from paperhooks.io.options import number, whole

__all__ = ["RESTARTS", "lost_actors", "ray_cluster", "ray_places"]

logger = logging.getLogger(__name__)

#: How Ray goes about actors that are killed: it replaces them, and gives a task to the new one as often as this.
RESTARTS: Final = {"max_restarts": -1, "max_task_retries": 3}


def ray_cluster(requirement: str, purpose: str, actors: int, cpus: float, gpus: float) -> Any:
    """The module ``ray``, connected to a cluster that has places for some actors; without one Ray begins its own here.

    :param requirement, purpose: for the error that names what brings Ray, as for :func:`paperhooks.errors.require`.
    :param cpus, gpus: of each actor.
    :raises MissingExtra: Ray is not installed. :raises DataError: fewer places, where Ray would wait for ever.
    """
    ray = require("ray", requirement, purpose)
    needed = {"CPU": number("cpus", cpus, low=0), "GPU": number("gpus", gpus, low=0)}
    actors = whole("actors", actors, at_least=1)
    if not ray.is_initialized():
        ray.init()
    places = ray_places(ray.nodes(), actors, needed)
    if places < actors:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount)
        raise DataError(f"the cluster has places for {places} actors with {asked}, not for {actors}; ask for fewer")
    free = ray.available_resources()
    if taken := [name for name, amount in needed.items() if free.get(name, 0) < amount * actors]:
        logger.warning("others use the cluster's %s: some of %d actors wait until it is free", taken[0], actors)
    return ray


def lost_actors(error: Any) -> DataError:
    """What to tell of actors that Ray gave up. :param error: a ``RayActorError``."""
    if error.actor_init_failed:
        return DataError(
            "an actor could not begin: a node may lack this package or one that it needs, or have another version; "
            f"install the same on every node: {error}"
        )
    return DataError(f"actors were killed with one task again and again; give them more memory: {error}")


def ray_places(nodes: list[dict[str, Any]], most: int, needed: dict[str, float]) -> int:
    """For how many actors nodes have room, counted up to ``most`` on each.

    :param nodes: as Ray lists them. :param needed: of each actor, by the resource's name.
    """
    wanted = {name: amount for name, amount in needed.items() if amount}
    there = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min([most, *(int(node.get(name, 0) / wanted[name]) for name in wanted)]) for node in there)
