"""What each training step shows: a function of the seed and the step alone, so that a resumed run sees the same."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from paperhooks_testbed.questions import KINDS, Question, questions_for
from paperhooks_testbed.training.drills import DRILLS
from paperhooks_testbed.world import Scene, generate_scene

__all__ = ["Curriculum", "Lesson"]

HIDDEN_LAYERS: tuple[int, ...] = (0, 1, 2)
#: In these shares of the images, questions cannot see the image in the first 0, 1 or 2 decoder layers.
HIDDEN_SHARES: tuple[float, ...] = (0.4, 0.2, 0.4)

#: The main step from which on these shares of kinds are drawn.
Drill = tuple[int, tuple[tuple[str, float], ...]]
_EASY = (("existence", 0.05), ("colour", 0.03), ("count", 0.12), ("place", 0.04))
DRILL_PLAN: tuple[Drill, ...] = (
    (1300, (*_EASY, ("two-step", 0.12), ("neighbour", 0.36), ("coordinate", 0.18), ("cell", 0.10))),
    (1800, (*_EASY, ("two-step", 0.10), ("neighbour", 0.20), ("coordinate", 0.10), ("cell", 0.36))),
    (2000, (*_EASY, ("two-step", 0.22), ("neighbour", 0.44), ("coordinate", 0.05), ("cell", 0.05))),
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One step: scenes, the questions about each, and how many first layers hide the image from each's questions."""

    scenes: list[Scene]
    questions: list[list[Question]]
    hidden: torch.Tensor


@dataclass(frozen=True)
class Curriculum:
    """From two objects to six, and from one-step questions to a large share of two-step ones.

    :param seed: everything drawn derives from it.
    :param pictures: images a step.
    :param questions: questions drawn an image (a few less where a scene cannot answer that many).
    :param pace: main steps after which one more object is allowed.
    :param drills: from which main step on which shares of kinds are drawn, in scenes of 3 to 9 objects; before the
        first of them all kinds are drawn from scenes of up to six.
    """

    seed: int = 0
    pictures: int = 10
    questions: int = 24
    pace: int = 150
    drills: tuple[Drill, ...] = DRILL_PLAN

    def scenes(self, step: int, images: int, most: int, least: int) -> list[Scene]:
        """The scenes of a step, with ``least`` to ``most`` objects; no two steps share a scene's number."""
        rng = random.Random(f"objects {self.seed} {step}")
        first = (self.seed * 100_000_000) + step * 1_000
        return [generate_scene("train", first + i, rng.randint(least, most)) for i in range(images)]

    def lesson(self, step: int, main_step: int) -> Lesson:
        """The lesson of ``step``, which is the ``main_step``-th one after the warm-up."""
        begun = [shares for start, shares in self.drills if main_step >= start]
        most = 9 if begun else min(6, 2 + main_step // self.pace)
        scenes = self.scenes(step, self.pictures, most, 3 if begun else max(1, most - 3))
        rng = random.Random(f"lesson {self.seed} {step}")
        kinds, weights = zip(*begun[-1]) if begun else (KINDS, _weights(main_step / (4 * self.pace)))
        asked = [questions_for(scene, rng, rng.choices(kinds, weights, k=self.questions), DRILLS) for scene in scenes]
        hidden = torch.tensor(rng.choices(HIDDEN_LAYERS, HIDDEN_SHARES, k=len(scenes)))
        return Lesson(scenes, asked, hidden)


def _weights(progress: float) -> list[float]:
    """Shares of existence, colour, count, place and two-step questions; two-step grows from a fifth to two fifths."""
    two_step = 0.2 + 0.2 * min(1.0, progress)
    rest = 1.0 - two_step
    return [0.27 * rest, 0.2 * rest, 0.33 * rest, 0.2 * rest, two_step]
