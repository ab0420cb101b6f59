"""Room for actors on a cluster, of which some nodes are dead."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from paperhooks.errors import DataError, MissingExtra
from paperhooks.io import lost_actors, ray_cluster, ray_places

NODES = [{"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 9.0}}]


@pytest.mark.parametrize(("places", "cpus", "gpus"), [(2, 1.5, 1.0), (3, 1.0, 0.0), (4, 0.0, 0.5)])
def test_more_actors_than_places_are_refused(monkeypatch, places: int, cpus: float, gpus: float) -> None:
    ray = SimpleNamespace(nodes=lambda: NODES, is_initialized=lambda: True, available_resources=dict)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert ray_cluster("some[ray]", "for a test", places, cpus, gpus) is ray
    with pytest.raises(DataError, match=f"places for {places} actors with .*, not for {places + 1}; ask for fewer"):
        ray_cluster("some[ray]", "for a test", places + 1, cpus, gpus)


@pytest.mark.parametrize(("free", "said"), [(1.0, ["others use the cluster's CPU: some of 2 actors"]), (2.0, [])])
def test_a_cluster_that_others_use_is_told_of(monkeypatch, caplog, free: float, said: list[str]) -> None:
    ray = SimpleNamespace(
        nodes=lambda: NODES, is_initialized=lambda: True, available_resources=lambda: {"CPU": free, "GPU": 0.0}
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    ray_cluster("some[ray]", "for a test", 2, 1.0, 0.0)
    assert [message[: len(wanted)] for message, wanted in zip(caplog.messages, said, strict=True)] == said


def test_nodes_are_counted_one_by_one() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 1.5}}, {"Alive": True, "Resources": {"CPU": 1.5}}]
    assert ray_places(nodes, 8, {"CPU": 1.0, "GPU": 0.0}) == 2
    assert ray_places(nodes, 8, {"CPU": 2.0}) == 0
    assert ray_places(nodes, 8, {"CPU": 0.0}) == 16


class LostActor(Exception):
    """As Ray's error tells of it."""

    def __init__(self, actor_init_failed: bool) -> None:
        super().__init__("The actor died")
        self.actor_init_failed = actor_init_failed


@pytest.mark.parametrize(("begins", "said"), [(True, "install the same on every node"), (False, "more memory")])
def test_lost_actors_that_did_not_begin_are_told_apart(begins: bool, said: str) -> None:
    told = str(lost_actors(LostActor(actor_init_failed=begins)))
    assert said in told
    assert told.endswith(": The actor died")


def test_without_ray_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"some\[ray\]"):
        ray_cluster("some[ray]", "for a test", 1, 1.0, 0.0)
