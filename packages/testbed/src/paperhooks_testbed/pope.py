"""POPE-style existence questions over generated scenes: random, popular and adversarial absent objects.

After "Evaluating Object Hallucination in Large Vision-Language Models" (Li et al. 2023): for every image as many
objects that are there as objects that are not; what is not there is drawn at random, by how common it is in the
split, or by how often it stands together with what the image shows. An object here is a colour and a form.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import permutations

from paperhooks_testbed.questions import Question, tokens_of
from paperhooks_testbed.world import COLOURS, FORMS, SPLITS, Scene, generate_scene

__all__ = ["STRATEGIES", "pope_questions"]

STRATEGIES: tuple[str, ...] = ("random", "popular", "adversarial")
Object = tuple[str, str]
_OBJECTS: tuple[Object, ...] = tuple((colour, form) for colour in COLOURS for form in FORMS)
_SURVEYED = 500
_PER_SCENE = 3


def pope_questions(split: str, strategy: str, n: int, seed: int = 0) -> list[Question]:
    """``n`` existence questions, half "yes" and half "no" (to within one), six about each scene.

    :param split: the split that the scenes come from.
    :param strategy: ``"random"``, ``"popular"`` or ``"adversarial"``.
    :param n: how many questions.
    :param seed: other seeds use other scenes.
    :raises ValueError: an unknown strategy or a negative ``n``.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"there is no strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")
    if n < 0:
        raise ValueError(f"n must not be negative; got {n}")
    rng = random.Random(f"paperhooks-testbed pope {split} {strategy} {seed}")
    questions: list[Question] = []
    index = 500_000_000 + seed * 1_000_000
    while len(questions) < n:
        scene = generate_scene(split, index)
        index += 1
        present = sorted({(s.colour, s.form) for s in scene.shapes})
        if len(present) < _PER_SCENE:
            continue
        absent = _RANKINGS[strategy](scene, split, rng)[:_PER_SCENE]
        for shown, missing in zip(rng.sample(present, _PER_SCENE), absent):
            questions += [_ask(scene, shown), _ask(scene, missing)]
    return questions[:n]


def _ask(scene: Scene, thing: Object) -> Question:
    colour, form = thing
    found = scene.matching(form, colour)
    return Question("existence", f"is there a {colour} {form} ?", "yes" if found else "no", scene, tokens_of(found))


def _absent(scene: Scene, rng: random.Random) -> list[Object]:
    absent = [thing for thing in _OBJECTS if not scene.matching(thing[1], thing[0])]
    rng.shuffle(absent)
    return absent


def _by_chance(scene: Scene, split: str, rng: random.Random) -> list[Object]:
    return _absent(scene, rng)


def _by_popularity(scene: Scene, split: str, rng: random.Random) -> list[Object]:
    common, _ = _survey(split)
    return sorted(_absent(scene, rng), key=lambda thing: -common[thing])


def _by_company(scene: Scene, split: str, rng: random.Random) -> list[Object]:
    # First what shares its colour and its form with shown objects, then what most often stands beside them.
    _, together = _survey(split)
    present = {(s.colour, s.form) for s in scene.shapes}
    colours, forms = {c for c, _ in present}, {f for _, f in present}

    def rank(thing: Object) -> tuple[int, int]:
        return -((thing[0] in colours) + (thing[1] in forms)), -sum(together[thing, shown] for shown in present)

    return sorted(_absent(scene, rng), key=rank)


@lru_cache(maxsize=len(SPLITS))
def _survey(split: str) -> tuple[Counter[Object], Counter[tuple[Object, Object]]]:
    """How often objects, and pairs of objects, occur in the first scenes of a split."""
    common: Counter[Object] = Counter()
    together: Counter[tuple[Object, Object]] = Counter()
    for index in range(_SURVEYED):
        things = {(s.colour, s.form) for s in generate_scene(split, index).shapes}
        common.update(things)
        together.update(permutations(things, 2))
    return common, together


_RANKINGS: dict[str, Callable[[Scene, str, random.Random], list[Object]]] = {
    "random": _by_chance,
    "popular": _by_popularity,
    "adversarial": _by_company,
}
