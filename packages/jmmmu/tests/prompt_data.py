"""The documents of the reference file as rows with pictures of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "prompt_cases.json").read_text(encoding="utf-8"))


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines beside the pictures that they name: ``image_1`` is red of strength 1, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 8):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def row_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case of the reference file as a row."""
    fields = ("id", "question", "options", "question_type", "answer")
    return {name: case[name] for name in fields} | {slot: f"{slot[-1]}.png" for slot in case["present"]}
