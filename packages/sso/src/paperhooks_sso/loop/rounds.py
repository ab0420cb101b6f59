"""The rounds of a loop: who samples, who is trained, by which objective, compared with whom.

Version 1 of the paper has one round an iteration: the model samples, and is trained on what it sampled. Version 2 has
two: a generator, a copy of the model, is trained on the model's pairs to be a better source of pairs; then the model as
it was is trained, by the base loss alone, on fresh pairs that the generator samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from paperhooks_sso.loop.options import LoopOptions
from paperhooks_sso.method import SSO

__all__ = ["START", "Round", "rounds_of"]

#: Stands for the model that the loop was given.
START: Final = "start"


@dataclass(frozen=True, slots=True)
class Round:
    """One time of sampling and training.

    :param name: of its folder. :param iteration: from 1.
    :param sampler, trained: whose checkpoints sample, and are trained: names of rounds, or :data:`START`. The latter is
        also the reference.
    :param principles: the round whose features and principles it takes over; "" for its own.
    :param method: the objective.
    """

    name: str
    iteration: int
    sampler: str
    trained: str
    method: SSO
    principles: str = ""

    @property
    def draw(self) -> int | str:
        """What stands for it in the seeds of its samples: two rounds of one iteration draw each for itself."""
        return self.name if self.principles else self.iteration

    @property
    def is_policy(self) -> bool:
        """Whether it trains the model itself, not a generator."""
        return self.name == f"iteration-{self.iteration}"


def rounds_of(options: LoopOptions, iterations: int) -> Iterator[Round]:
    """The rounds of so many iterations, in order."""
    before = START
    for iteration in range(1, iterations + 1):
        name = f"iteration-{iteration}"
        *generators, policy = options.methods()
        if not generators:
            yield Round(name, iteration, before, before, policy)
        else:
            generator = f"{name}-generator"
            yield Round(generator, iteration, before, before, generators[0])
            yield Round(name, iteration, generator, before, policy, generator)
        before = name
