"""Training-only questions that practise the parts of a two-step question, or ask it where guessing does not help.

- ``neighbour``: two-step questions about an object with several neighbours, where "some object nearby" is wrong.
- ``coordinate``: how many rows of cells are above an object, or columns left of it: finding where something is.
- ``cell``: what is in row r and column c: finding what is somewhere.
"""

from __future__ import annotations

from paperhooks_testbed.questions import DIRECTIONS, LISTINGS, Question, names
from paperhooks_testbed.world import Scene

__all__ = ["DRILLS"]


def _neighbour(scene: Scene) -> list[Question]:
    crowded = {name for name, shape in names(scene) if len(_around(scene, shape.row, shape.column)) > 1}
    return [q for q in LISTINGS["two-step"](scene) if q.text.split(" the ")[-1].removesuffix(" ?") in crowded]


def _around(scene: Scene, row: int, column: int) -> list[tuple[int, int]]:
    cells = [(row + rows, column + columns) for rows, columns in DIRECTIONS.values()]
    return [cell for cell in cells if scene.at(*cell) is not None]


def _coordinate(scene: Scene) -> list[Question]:
    questions = []
    for name, shape in names(scene):
        for words, number in (("above", shape.row), ("left of", shape.column)):
            text = f"how many {words} the {name} ?"
            questions.append(Question("coordinate", text, str(number), scene, shape.tokens))
    return questions


def _cell(scene: Scene) -> list[Question]:
    questions = []
    for shape in scene.shapes:
        where = f"{shape.row} {shape.column}"
        questions.append(Question("cell", f"what colour is in {where} ?", shape.colour, scene, shape.tokens))
        questions.append(Question("cell", f"which shape is in {where} ?", shape.form, scene, shape.tokens))
    return questions


#: The listings of all kinds, for training: those of ``paperhooks_testbed.questions`` and the drills.
DRILLS = {**LISTINGS, "neighbour": _neighbour, "coordinate": _coordinate, "cell": _cell}
