"""Questions about scenes: existence, colour, count, place and two-step, each with a one-word answer.

A kind lists every question that a scene can answer; one is then drawn so that answers are balanced (first an answer,
then a question that has it). Existence asks for absent pairs whose colour and form are both present, one by one,
more often than for pairs that are absent altogether, because the easy ones can be answered without binding the two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from paperhooks_testbed.canvas import render
from paperhooks_testbed.world import COLOURS, FORMS, GRID, PLURALS, Scene, Shape, generate_scene

__all__ = [
    "DIRECTIONS",
    "KINDS",
    "LISTINGS",
    "MAX_COUNT",
    "PLACES",
    "Listing",
    "Question",
    "names",
    "place_of",
    "prompt",
    "question_set",
    "questions_for",
    "tokens_of",
]

KINDS: tuple[str, ...] = ("existence", "colour", "count", "place", "two-step")
MAX_COUNT = 6
PLACES: tuple[str, ...] = (
    *("top-left", "top", "top-right"),
    *("left", "centre", "right"),
    *("bottom-left", "bottom", "bottom-right"),
)
#: Words for the four neighbouring cells, as (row, column) steps from the object that is named to the one asked for.
DIRECTIONS: dict[str, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer.

    ``image_tokens`` are the row-major indices (0 to 195) of the image tokens of the objects that the question is
    about: those named and those that must be found; empty where the answer is that there are none.
    """

    kind: str
    text: str
    answer: str
    scene: Scene = field(repr=False)
    image_tokens: tuple[int, ...] = field(repr=False, default=())

    @property
    def scene_index(self) -> int:
        """The number of the scene in its split."""
        return self.scene.index

    def image(self) -> Image.Image:
        """The image that the question is about (224 x 224 RGB)."""
        return render(self.scene)


#: Lists every question of one kind that a scene can answer.
Listing = Callable[[Scene], list[Question]]


def prompt(question: Question) -> str:
    """The text that the processor takes: the image placeholder, then the question."""
    return f"<image> {question.text}"


def place_of(shape: Shape) -> str:
    """The word of ``PLACES`` for an object's cell: two cells for each border, three for the middle."""
    return PLACES[3 * _third(shape.row) + _third(shape.column)]


def _third(cell: int) -> int:
    return 0 if cell < 2 else (2 if cell >= GRID - 2 else 1)


def questions_for(
    scene: Scene,
    rng: random.Random,
    kinds: Iterable[str] = KINDS,
    listings: Mapping[str, Listing] | None = None,
) -> list[Question]:
    """Draw one question for every entry of ``kinds`` that the scene can answer, without repeating a text.

    :param scene: what is asked about.
    :param rng: the source of the draws.
    :param kinds: the kinds to draw, in this order; repeated as often as wanted.
    :param listings: what lists the questions of each kind; None means ``LISTINGS``, that is, ``KINDS``.
    :raises ValueError: a kind that does not exist.
    """
    drawn: dict[str, Question] = {}
    candidates: dict[str, dict[str, list[Question]]] = {}
    for kind in kinds:
        if kind not in candidates:
            candidates[kind] = _by_answer(_listing(kind, LISTINGS if listings is None else listings)(scene))
        groups = candidates[kind]
        if groups:
            question = _draw(groups, rng)
            drawn.setdefault(question.text, question)
    return list(drawn.values())


def question_set(split: str, n: int, kinds: Sequence[str] | None = None, seed: int = 0) -> list[Question]:
    """``n`` questions, each about its own scene, with the kinds in equal shares.

    :param split: the split that the scenes come from.
    :param n: how many questions.
    :param kinds: the kinds to ask, in turn; None means all five.
    :param seed: sets with different seeds use different scenes of the split (up to a million a set).
    """
    if n < 0 or n > 1_000_000:
        raise ValueError(f"n must be 0 to 1,000,000; got {n}")
    wanted = tuple(kinds) if kinds is not None else KINDS
    rng = random.Random(f"paperhooks-testbed questions {split} {seed}")
    questions: list[Question] = []
    index = seed * 10_000_000
    while len(questions) < n:
        kind = wanted[len(questions) % len(wanted)]
        questions += questions_for(generate_scene(split, index), rng, [kind])
        index += 1
    return questions


def _draw(groups: dict[str, list[Question]], rng: random.Random) -> Question:
    return rng.choice(groups[rng.choice(sorted(groups))])


def _by_answer(questions: Iterable[Question]) -> dict[str, list[Question]]:
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.answer, []).append(question)
    return groups


def tokens_of(shapes: Iterable[Shape]) -> tuple[int, ...]:
    """The image tokens of several objects, ascending."""
    return tuple(sorted({token for shape in shapes for token in shape.tokens}))


def _existence(scene: Scene) -> list[Question]:
    forms, colours = {s.form for s in scene.shapes}, {s.colour for s in scene.shapes}
    questions = []
    for form in (*FORMS, None):
        for colour in (*COLOURS, None):
            if form is None and colour is None:
                continue
            found = scene.matching(form, colour)
            words = " ".join(word for word in (colour, form or "shape") if word)
            question = Question("existence", f"is there a {words} ?", "yes" if found else "no", scene, tokens_of(found))
            bound = not found and form in forms and colour in colours
            questions += [question] * (6 if bound else 1)
    return questions


def _colour(scene: Scene) -> list[Question]:
    return [
        Question("colour", f"what colour is the {shape.form} ?", shape.colour, scene, shape.tokens)
        for shape in scene.shapes
        if len(scene.matching(form=shape.form)) == 1
    ]


def _count(scene: Scene) -> list[Question]:
    asked = [(plural, scene.matching(form=form)) for form, plural in zip(FORMS, PLURALS, strict=True)]
    asked += [(f"{colour} shapes", scene.matching(colour=colour)) for colour in COLOURS]
    return [
        Question("count", f"how many {words} ?", str(len(found)), scene, tokens_of(found))
        for words, found in asked
        if len(found) <= MAX_COUNT
    ]


def _place(scene: Scene) -> list[Question]:
    return [
        Question("place", f"where is the {name} ?", place_of(shape), scene, shape.tokens)
        for name, shape in names(scene)
    ]


def _two_step(scene: Scene) -> list[Question]:
    questions = []
    for name, anchor in names(scene):
        for words, (rows, columns) in DIRECTIONS.items():
            target = scene.at(anchor.row + rows, anchor.column + columns)
            if target is None:
                continue
            tokens = tokens_of((anchor, target))
            colour_text = f"what colour is the shape {words} the {name} ?"
            questions.append(Question("two-step", colour_text, target.colour, scene, tokens))
            questions.append(Question("two-step", f"which shape is {words} the {name} ?", target.form, scene, tokens))
    return questions


def names(scene: Scene) -> list[tuple[str, Shape]]:
    """Every way to name exactly one object: by its form, or by its colour."""
    by_form = [(s.form, s) for s in scene.shapes if len(scene.matching(form=s.form)) == 1]
    by_colour = [(f"{s.colour} shape", s) for s in scene.shapes if len(scene.matching(colour=s.colour)) == 1]
    return by_form + by_colour


LISTINGS: dict[str, Listing] = {
    "existence": _existence,
    "colour": _colour,
    "count": _count,
    "place": _place,
    "two-step": _two_step,
}


def _listing(kind: str, listings: Mapping[str, Listing]) -> Listing:
    if kind not in listings:
        raise ValueError(f"there is no kind of question {kind!r}; use one of {', '.join(listings)}")
    return listings[kind]
