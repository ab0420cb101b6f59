"""The generated world: scenes of coloured shapes on a grid, drawn from named splits.

A scene is a handful of shapes on a 7 x 7 grid of cells. Every cell is 32 x 32 pixels, so it is covered by exactly
2 x 2 patches of a 14 x 14 patch grid, and every object owns exactly four image tokens.

Splits cannot overlap: what a scene *contains* is hashed into 16 buckets, bucket 0 belongs to ``test``, bucket 1 to
``dev`` and the others to ``train``. Two scenes with the same contents therefore always belong to the same split.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

__all__ = [
    "CELL_PIXELS",
    "COLOURS",
    "FORMS",
    "GRID",
    "IMAGE_PIXELS",
    "IMAGE_TOKENS",
    "MAX_OBJECTS",
    "PATCHES",
    "PATCH_PIXELS",
    "PLURALS",
    "SPLITS",
    "Scene",
    "Shape",
    "content_split",
    "generate_scene",
]

COLOURS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "black")
FORMS: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "diamond")
#: The forms again, for more than one of them.
PLURALS: tuple[str, ...] = tuple(f"{form}s" if form != "cross" else "crosses" for form in FORMS)
SPLITS: tuple[str, ...] = ("train", "dev", "test")

#: Cells a side.
GRID = 7
CELL_PIXELS = 32
IMAGE_PIXELS = GRID * CELL_PIXELS
PATCH_PIXELS = 16
#: Patches a side: 14.
PATCHES = IMAGE_PIXELS // PATCH_PIXELS
#: Image tokens an image: 196.
IMAGE_TOKENS = PATCHES * PATCHES
MAX_OBJECTS = 9
DEFAULT_OBJECTS: tuple[int, ...] = (3, 4, 5, 6)

_BUCKETS = 16
_NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0))


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """One object: ``form`` and ``colour`` are words of ``FORMS`` and ``COLOURS``, ``row`` and ``column`` its cell."""

    form: str
    colour: str
    row: int
    column: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The four image tokens that the object covers, as row-major indices into the 14 x 14 patch grid."""
        first = 2 * self.row * PATCHES + 2 * self.column
        return (first, first + 1, first + PATCHES, first + PATCHES + 1)


@dataclass(frozen=True, slots=True)
class Scene:
    """An image's contents. ``split`` and ``index`` also seed the small variations of how it is drawn."""

    split: str
    index: int
    shapes: tuple[Shape, ...]

    def at(self, row: int, column: int) -> Shape | None:
        """The object in a cell, or None."""
        return next((s for s in self.shapes if (s.row, s.column) == (row, column)), None)

    def matching(self, form: str | None = None, colour: str | None = None) -> tuple[Shape, ...]:
        """The objects that have the form and the colour, where given."""
        return tuple(s for s in self.shapes if form in (None, s.form) and colour in (None, s.colour))


def content_split(shapes: tuple[Shape, ...]) -> str:
    """The only split in which a scene with these contents may appear."""
    text = "|".join(f"{s.form},{s.colour},{s.row},{s.column}" for s in sorted(shapes))
    bucket = hashlib.sha256(text.encode()).digest()[0] % _BUCKETS
    return {0: "test", 1: "dev"}.get(bucket, "train")


def generate_scene(split: str, index: int, n_objects: int | None = None) -> Scene:
    """Generate one scene; the same arguments always give the same scene.

    :param split: ``"train"``, ``"dev"`` or ``"test"``.
    :param index: any integer; the scene's number in its split.
    :param n_objects: 1 to 9; None draws 3 to 6.
    :raises ValueError: an unknown split or a number of objects out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
    if n_objects is not None and not 1 <= n_objects <= MAX_OBJECTS:
        raise ValueError(f"n_objects must be 1 to {MAX_OBJECTS}, or None for 3 to 6; got {n_objects}")
    rng = random.Random(f"paperhooks-testbed scene {split} {index}")
    while True:
        shapes = _draw_shapes(rng, n_objects or rng.choice(DEFAULT_OBJECTS))
        if content_split(shapes) == split:
            return Scene(split, index, shapes)


def _draw_shapes(rng: random.Random, n_objects: int) -> tuple[Shape, ...]:
    # Half of the scenes use few forms or few colours: otherwise hardly anything could be counted beyond two.
    forms, colours = list(FORMS), list(COLOURS)
    palette = rng.random()
    if palette < 0.25:
        forms = rng.sample(forms, 3)
    elif palette < 0.5:
        colours = rng.sample(colours, 3)
    cells: list[tuple[int, int]] = []
    while len(cells) < n_objects:
        cells.append(_next_cell(rng, cells))
    return tuple(Shape(rng.choice(forms), rng.choice(colours), row, column) for row, column in cells)


def _next_cell(rng: random.Random, taken: list[tuple[int, int]]) -> tuple[int, int]:
    # Two-step questions need neighbours, so most objects are put beside one that is already there.
    if taken and rng.random() < 0.65:
        row, column = rng.choice(taken)
        beside = [(row + dr, column + dc) for dr, dc in _NEIGHBOURS]
        free = [cell for cell in beside if cell not in taken and all(0 <= c < GRID for c in cell)]
        if free:
            return rng.choice(free)
    while True:
        cell = (rng.randrange(GRID), rng.randrange(GRID))
        if cell not in taken:
            return cell
