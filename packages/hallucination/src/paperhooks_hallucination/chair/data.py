"""COCO images with their objects as documents for CHAIR."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperhooks.errors import DataError
from paperhooks.io import read_json, read_records
from paperhooks_evaluation import Document
from paperhooks_evaluation.sources import OUTSIDE, ImageFolder, raise_faults

from paperhooks_hallucination.chair.metrics import ObjectTable

__all__ = ["read_images", "read_synonyms"]


@dataclass(slots=True)
class _CocoImage:
    file: str = ""
    categories: set[str] = field(default_factory=set)
    references: list[str] = field(default_factory=list)


def read_images(
    source: str, table: ObjectTable, *, images: str = "", ids: str = "", sample: int = 500, seed: int = 0
) -> list[Document]:
    """Images with what COCO knows about them: the categories of their instances, and their reference captions.

    ``source`` holds COCO's ``instances_*.json`` and ``captions_*.json`` (itself or in ``annotations/``) and the image
    folder, such as ``val2014/``, unless ``images`` names it. ``ids`` is a file with the numbers of the images to take,
    one a line, or objects with ``image_id``, or a JSON list; without it, ``sample`` images are drawn with ``seed`` (0:
    all).

    :raises DataError: lists every fault: unknown ids, double ids, missing images, categories that the synonym table
        lacks.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source} is no folder; CHAIR needs COCO's annotations (instances_*.json, captions_*.json)")
    known = _annotated(folder)
    wanted = _read_ids(Path(ids)) if ids else _drawn(known, sample, seed)
    faults = [f"image {number}: is listed {n} times" for number, n in _repeated(wanted)]
    faults += _unknown_categories(known, wanted, table)
    places = ImageFolder(Path(images) if images else folder)
    documents = [_document(number, known.get(number), places, faults) for number in dict.fromkeys(wanted)]
    raise_faults(f"the COCO data in {source}", faults)
    if not documents:
        raise DataError(f"{source} has no annotated images to caption")
    return [document for document in documents if document is not None]


def read_synonyms(file: str) -> list[list[str]]:
    """A synonym table from a file: the published form (one row a line, ", " between words) or JSON (a list of lists).

    A JSON object is taken to hold the rows under ``rows``.

    :raises DataError: anything else.
    """
    path = Path(file)
    if path.suffix.lower() == ".json":
        found = read_json(path, "synonym table")
        rows = found.get("rows") if isinstance(found, Mapping) else found
    else:
        # Split as the published script does: a second blank behind a comma stays in front of the word.
        content = "".join(str(text) for _, text in read_records(path))
        rows = [line.strip().split(", ") for line in content.split("\n") if line.strip()]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise DataError(f"{file} holds no synonym table; expected one row of words a line, or a JSON list of lists")
    return rows


def _annotated(folder: Path) -> dict[int, _CocoImage]:
    instances, captions = (_found(folder, kind) for kind in ("instances", "captions"))
    known: dict[int, _CocoImage] = {}
    try:
        for file in instances:
            _add_instances(known, read_json(file, "annotations of COCO"))
        for file in captions:
            _add_captions(known, read_json(file, "annotations of COCO"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is not in COCO's form: {error!r}; use the published annotation files") from error
    return known


def _found(folder: Path, kind: str) -> list[Path]:
    files = sorted(folder.glob(f"{kind}_*.json")) + sorted(folder.glob(f"*/{kind}_*.json"))
    if not files:
        raise DataError(f"{folder} has no {kind}_*.json, itself or in annotations/; CHAIR needs instances and captions")
    return files


def _add_images(known: dict[int, _CocoImage], images: Iterable[Mapping[str, Any]]) -> None:
    for image in images:
        known.setdefault(_whole(image["id"]), _CocoImage()).file = _text(image["file_name"])


def _add_instances(known: dict[int, _CocoImage], content: Mapping[str, Any]) -> None:
    _add_images(known, content["images"])
    names = {category["id"]: _text(category["name"]) for category in content["categories"]}
    for annotation in content["annotations"]:
        image = known.setdefault(_whole(annotation["image_id"]), _CocoImage())
        image.categories.add(names[annotation["category_id"]])


def _add_captions(known: dict[int, _CocoImage], content: Mapping[str, Any]) -> None:
    _add_images(known, content["images"])
    for annotation in content["annotations"]:
        known.setdefault(_whole(annotation["image_id"]), _CocoImage()).references.append(_text(annotation["caption"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a text belongs")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def _drawn(known: Mapping[int, _CocoImage], sample: int, seed: int) -> list[int]:
    numbers = sorted(number for number, image in known.items() if image.categories or image.references)
    if not sample or sample >= len(numbers):
        return numbers
    return sorted(random.Random(f"chair {seed}").sample(numbers, sample))


def _read_ids(file: Path) -> list[int]:
    records = [record for _, record in read_records(file)]
    entries = [part for record in records for part in (record.split() if isinstance(record, str) else [record])]
    try:
        return [_whole(entry["image_id"] if isinstance(entry, Mapping) else entry) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is no list of image ids ({error!r}); expected whole numbers") from error


def _repeated(numbers: Sequence[int]) -> list[tuple[int, int]]:
    counts: dict[int, int] = {}
    for number in numbers:
        counts[number] = counts.get(number, 0) + 1
    return [(number, n) for number, n in counts.items() if n > 1]


def _unknown_categories(known: Mapping[int, _CocoImage], wanted: Iterable[int], table: ObjectTable) -> list[str]:
    used = {name for number in wanted if number in known for name in known[number].categories}
    return [f"category {name!r}: is in no row of the synonym table" for name in sorted(used - set(table.class_of))]


def _document(number: int, image: _CocoImage | None, places: ImageFolder, faults: list[str]) -> Document | None:
    if image is None:
        faults.append(f"image {number}: is not in the annotations")
        return None
    found = places.find(image.file)
    if not image.file or found is None:
        faults.append(f"image {number}: the file {image.file or '(no name)'} {OUTSIDE}")
        return None
    data = {"image": image.file, "categories": sorted(image.categories), "references": image.references}
    return Document(str(number), data=data, place={"picture": str(found)})
