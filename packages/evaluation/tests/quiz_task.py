"""A task with pictures, several groupings and modes, for the tests of what other harnesses are given of it."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from paperhooks.generation import Request
from paperhooks.io import Picture
from paperhooks_evaluation import Document, Parsed, Record, Task

COLORS = ("red", "green", "blue", "white")
#: Subject to its domain and subset.
SUBJECTS = {"Art": ("Arts", "A"), "Music": ("Arts", "A"), "Math": ("Sciences", "A"), "歴史 1": ("Sciences?", "B")}


@dataclass(frozen=True)
class Quiz(Task):
    """Multiple choice about pictures; ``drawn`` draws unread answers one after the other, ``wrong`` counts them so."""

    seed: int = 0
    limit: int = 16
    name: ClassVar[str] = "color-quiz"
    version: ClassVar[str] = "1"
    modes: ClassVar[tuple[str, ...]] = ("drawn", "wrong")
    metric: ClassVar[str] = "accuracy"
    scoring_options: ClassVar[tuple[str, ...]] = ("seed",)

    def documents(self, source: str) -> Sequence[Document]:
        folder = Path(source)
        return [
            Document(
                row["id"],
                {"subject": row["subject"], **dict(zip(("domain", "subset"), SUBJECTS[row["subject"]], strict=True)),
                 "pictures": str(len(row["pictures"]))},
                row,
                {"folder": str(folder)},
            )
            for row in json.loads((folder / "questions.json").read_text(encoding="utf-8"))
        ]  # fmt: skip

    def request(self, document: Document) -> Request:
        row = document.data
        pieces = re.split(r"<image (\d)>", row["question"])
        content: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                content.append({"type": "image", "text": f"<image {piece}>", "index": int(piece) - 1})
            elif piece:
                content.append({"type": "text", "text": piece})
        pictures = [Picture(Path(document.place["folder"], name)) for name in row["pictures"]]
        return Request([{"role": "user", "content": content}], images=pictures, max_new_tokens=self.limit)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        found = re.match(r"([A-D])\b", response)  # nothing in front of it: blanks around the answer have to be gone
        return Parsed(found[1], "first") if found else Parsed(None, "fallback", fallback=True)

    def score(self, document: Document, parsed: Parsed) -> float:
        return float(parsed.value == document.data["answer"])

    def settle(self, records: Sequence[Record], mode: str) -> Sequence[Record]:
        if mode == "wrong":
            return records
        draw = random.Random(self.seed)
        return [self._drawn(record, draw) if record.parsed.fallback else record for record in records]

    def _drawn(self, record: Record, draw: random.Random) -> Record:
        parsed = Parsed(draw.choice("ABCD"), "drawn", fallback=True)
        return dataclasses.replace(record, parsed=parsed, score=self.score(record.document, parsed))


def write_quiz(folder: Path, each: int = 3) -> Path:
    """A data folder: some questions a subject, with none, one or two pictures, one of these shown twice."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number, color in enumerate(COLORS):
        Image.new("RGB", (8 + number, 6), color).save(folder / f"{color}.png")
    forms = (
        ("Which color has <image 1>?\n\nA. red\nB. green", 1),
        ("<image 2> is not <image 1>. 何色ですか、<image 2>は?", 2),
        ("Which letter comes first?", 0),
    )
    rows = [
        {
            "id": f"{subject}-{number}",
            "subject": subject,
            "question": f"{number}. {forms[number % 3][0]} ({subject})",
            "pictures": [f"{color}.png" for color in COLORS[: forms[number % 3][1]]],
            "answer": "ABCD"[(number + place) % 4],
        }
        for place, subject in enumerate(SUBJECTS)
        for number in range(each + place % 2)
    ]
    (folder / "questions.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder


def quiz_reply(row: dict[str, Any]) -> str:
    """What a model is made to answer: right, wrong, in other words, with blanks, with reasoning, or nothing."""
    wrong = "ABCD"["ABCD".index(row["answer"]) - 1]
    forms = (
        row["answer"], f" {row['answer']}\n\nBecause it is.", f"{wrong}.", "分かりません。",
        f"<think>perhaps {wrong}</think>\n{row['answer']}", "",
    )  # fmt: skip
    return forms[sum(map(ord, row["id"])) % len(forms)]
