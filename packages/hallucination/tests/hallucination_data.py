"""Small data in the published forms, the reference values, and what tests of all tasks share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from paperhooks_evaluation import Document, Metric, Record, Summary, Task
from paperhooks_hallucination.chair import objects as chair_objects
from paperhooks_hallucination.pope import SPLITS
from PIL import Image

REFERENCE = Path(__file__).parent / "reference"
METRICS = json.loads((REFERENCE / "metrics.json").read_text())
PUBLISHED = json.loads((REFERENCE / "chair_synonyms.json").read_text())


def write_image(file: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> None:
    """A small image of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(file)


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, as the published files are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pope_rows(n: int, offset: int = 0) -> list[dict[str, Any]]:
    """Six questions an image, as published: yes, yes, yes, no, no, no."""
    return [
        {
            "question_id": i,
            "image": f"COCO_val2014_{offset + i // 6:012d}.jpg",
            "text": f"Is there a thing{i} in the image?",
            "label": "yes" if i % 6 < 3 else "no",
        }
        for i in range(n)
    ]


def write_pope(folder: Path) -> Path:
    """Three splits over the same images, those in val2014/."""
    for split in SPLITS:
        write_lines(folder / f"coco_pope_{split}.json", pope_rows(24))
    for i in range(4):
        write_image(folder / "val2014" / f"COCO_val2014_{i:012d}.jpg")
    return folder


def write_mme(folder: Path) -> Path:
    """The release's two layouts: images/ beside questions_answers_YN/, and images beside text files."""
    for category in ("existence", "count", "position", "color"):
        for i in range(3):
            write_image(folder / category / f"{i}.jpg")
            lines = f"Is it {i}? Please answer yes or no.\tYes\nIs it {i + 1}? Please answer yes or no.\tNo\n"
            (folder / category / f"{i}.txt").write_text(lines)
    write_image(folder / "OCR" / "images" / "a.png")
    (folder / "OCR" / "questions_answers_YN").mkdir()
    (folder / "OCR" / "questions_answers_YN" / "a.txt").write_text("Is it a?\tYes\n\nIs it b?\tNo")
    return folder


def write_coco(folder: Path) -> Path:
    """Three images with instances and captions in COCO's files."""
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (3, 7, 11)]
    for image in images:
        write_image(folder / "val2014" / str(image["file_name"]))
    categories = [{"id": i + 1, "name": row[0]} for i, row in enumerate(chair_objects.COCO_OBJECTS)]
    numbers = {row["name"]: row["id"] for row in categories}
    objects = [(3, "dog"), (3, "dog"), (3, "person"), (7, "toilet")]
    instances = [{"image_id": image, "category_id": numbers[name]} for image, name in objects]
    captions = [(3, "A man walks his puppy."), (3, "Two frisbees."), (7, "A bathroom."), (11, "A pizza on a table")]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2014.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": instances})
    )
    texts = [{"image_id": image, "caption": caption} for image, caption in captions]
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": texts}))
    return folder


def parquet(folder: Path, columns: Mapping[str, Sequence[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set as on the hub: parquet files in data/, images inside."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / "cache")
    images = [{"bytes": Path(file).read_bytes(), "path": None} for file in columns["image"]]
    features = datasets.Features({name: datasets.Value("string") for name in columns} | {"image": datasets.Image()})
    table = datasets.Dataset.from_dict({**columns, "image": images}, features=features)
    (folder / "data").mkdir(parents=True)
    table.to_parquet(folder / "data" / "test-00000-of-00001.parquet")


def png_files(folder: Path, n: int) -> list[str]:
    """Images of different colours."""
    for i in range(n):
        write_image(folder / f"{i}.png", (10 * i, 0, 0))
    return [str(folder / f"{i}.png") for i in range(n)]


def records(task: Task, documents: Sequence[Document], responses: Sequence[str], mode: str) -> list[Record]:
    """What the engine makes of responses."""
    made = []
    for document, response in zip(documents, responses, strict=True):
        parsed = task.parse(document, response, mode)
        made.append(Record(document, response, parsed, task.score(document, parsed)))
    return made


def metric(summary: Summary, name: str, group: str = "") -> Metric:
    """The metric of that name and group; there is exactly one."""
    (found,) = [one for one in summary.metrics if (one.name, one.group) == (name, group)]
    return found
