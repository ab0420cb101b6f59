"""Sublayers or layers left out by what leaving out one of them does to the model's predictions."""

from __future__ import annotations

from paperhooks_evopress.baselines.comparison import Found, Setting
from paperhooks_evopress.baselines.removals import Removals

__all__ = ["greedy", "one_shot"]


def one_shot(setting: Setting, *, whole_layers: bool = False) -> Found:
    """Each is left out alone; those go of which the model's fitness suffers least.

    With perplexity as fitness and whole layers this is Shortened Llama (arXiv 2402.02834).

    :param whole_layers: leave out attention and MLP of a layer together.
    """
    removals = Removals.of(setting, whole_layers=whole_layers)
    choices = [setting.problem.choice(removals.state((place,))) for place in range(len(removals.groups))]
    scores = setting.scores(choices)
    places = removals.first(sorted(range(len(scores)), key=scores.__getitem__))
    name = f"one_shot_{setting.evaluator.fitness}{'_layers' * whole_layers}"
    told = {removals.names(place): score for place, score in enumerate(scores)}
    return setting.found(name, removals.state(places), len(choices), scores=told)


def greedy(setting: Setting, *, whole_layers: bool = False) -> Found:
    """One after another: each time that goes without which the model, as far as it is cut by then, is best.

    :param whole_layers: leave out attention and MLP of a layer together.
    """
    removals = Removals.of(setting, whole_layers=whole_layers)
    places: list[int] = []
    fitness: list[float] = []
    passes = 0
    while options := removals.open(places):
        states = [removals.state([*places, place]) for place in options]
        state, score = setting.best(states)
        places.append(options[states.index(state)])
        fitness.append(score)
        passes += len(states)
    told = {"removed": [removals.names(place) for place in places], "fitness": fitness}
    name = f"greedy{'_layers' * whole_layers}"
    return setting.found(name, removals.state(removals.checked(places)), passes, **told)
