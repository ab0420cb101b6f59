"""Folders of data in the published forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hallucination_data import pope_rows, write_image, write_lines
from paperhooks_hallucination.chair import objects as chair_objects
from paperhooks_hallucination.pope import SPLITS


@pytest.fixture
def pope_folder(tmp_path: Path) -> Path:
    """Three splits over the same images, those in val2014/."""
    folder = tmp_path / "pope"
    for split in SPLITS:
        write_lines(folder / f"coco_pope_{split}.json", pope_rows(24))
    for i in range(4):
        write_image(folder / "val2014" / f"COCO_val2014_{i:012d}.jpg")
    return folder


@pytest.fixture
def mme_folder(tmp_path: Path) -> Path:
    """The release's two layouts: images/ beside questions_answers_YN/, and images beside text files."""
    folder = tmp_path / "MME_Benchmark"
    for category in ("existence", "count", "position", "color"):
        for i in range(3):
            write_image(folder / category / f"{i}.jpg")
            lines = f"Is it {i}? Please answer yes or no.\tYes\nIs it {i + 1}? Please answer yes or no.\tNo\n"
            (folder / category / f"{i}.txt").write_text(lines)
    write_image(folder / "OCR" / "images" / "a.png")
    (folder / "OCR" / "questions_answers_YN").mkdir()
    (folder / "OCR" / "questions_answers_YN" / "a.txt").write_text("Is it a?\tYes\n\nIs it b?\tNo")
    return folder


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Three images with instances and captions in COCO's files."""
    folder = tmp_path / "coco"
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
