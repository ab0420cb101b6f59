"""The contract that every task keeps, on POPE, CHAIR and MME."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hallucination_data import write_coco, write_mme, write_pope
from paperhooks.testing import TaskContract
from paperhooks_hallucination.chair import Chair
from paperhooks_hallucination.mme import Mme
from paperhooks_hallucination.pope import Pope


class TestPope(TaskContract):
    others = {"instruction": " Answer.", "images": "elsewhere"}
    places = ("images",)
    replies = ("Yes.", "no", "Yes, there is.", "There is not.", "I do not know")

    def make(self) -> Any:
        return Pope()

    def source(self, folder: Path) -> Path:
        return write_pope(folder)


class TestMme(TaskContract):
    others = {"instruction": ""}
    replies = TestPope.replies

    def make(self) -> Any:
        return Mme()

    def source(self, folder: Path) -> Path:
        return write_mme(folder)


class TestChair(TaskContract):
    others = {
        "images": "elsewhere", "ids": "ids.txt", "lemmas": "nltk", "synonyms": "synonyms.txt", "prompt": "What is this?"
    }  # fmt: skip
    places = ("images", "ids")
    replies = ("A man walks his dog.", "two puppies and a toilet", "A pizza, and nothing else", "...")

    def make(self) -> Any:
        return Chair()

    def source(self, folder: Path) -> Path:
        return write_coco(folder)
