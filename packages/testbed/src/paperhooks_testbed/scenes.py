"""Scenes and questions in one place: what is in a picture, how it is drawn, what can be asked about it."""

from __future__ import annotations

from paperhooks_testbed.canvas import render, render_array
from paperhooks_testbed.questions import KINDS, PLACES, Question, place_of, prompt, question_set, questions_for
from paperhooks_testbed.world import (
    COLOURS,
    FORMS,
    GRID,
    IMAGE_TOKENS,
    SPLITS,
    Scene,
    Shape,
    content_split,
    generate_scene,
)

__all__ = [
    "COLOURS",
    "FORMS",
    "GRID",
    "IMAGE_TOKENS",
    "KINDS",
    "PLACES",
    "SPLITS",
    "Question",
    "Scene",
    "Shape",
    "content_split",
    "generate_scene",
    "place_of",
    "prompt",
    "question_set",
    "questions_for",
    "render",
    "render_array",
]
