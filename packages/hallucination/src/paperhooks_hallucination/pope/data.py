"""POPE's questions as documents: the published files, LLaVA's question file, a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks_evaluation import Document

from paperhooks_hallucination.checks import raise_faults
from paperhooks_hallucination.images import ImageFolder, hub_columns, is_hub_name, json_lines

__all__ = ["SPLITS", "SUFFIX", "read_questions"]

SPLITS: Final = ("random", "popular", "adversarial")
#: What LLaVA appends to a question; its question files contain it already.
SUFFIX: Final = "\nAnswer the question using a single word or phrase."
_NAME: Final = re.compile(r"(?P<source>.+?)_pope_(?:seem_)?(?P<split>random|popular|adversarial)\.jsonl?")
_HUB_COLUMNS: Final = ("question_id", "question", "answer", "image_source", "category")


@dataclass(frozen=True, slots=True)
class _Row:
    """A question as a file or data set has it; what is missing is empty."""

    where: str
    number: str
    source: str
    split: str
    question: str
    label: str
    image: str
    hub: tuple[str, int] | None = None

    @property
    def group(self) -> str:
        return f"{self.source}-{self.split}"

    @property
    def id(self) -> str:
        return f"{self.group}-{self.number}"


def read_questions(source: str, images: str = "") -> list[Document]:
    """All questions of a folder, a file or a hub data set, grouped by source and split (``"coco-random"``).

    A folder holds files named ``<source>_pope_<split>.json`` (JSON lines), itself or in folders directly inside it;
    images lie beside the files, in a folder beside them, or in ``images``. LLaVA's ``llava_pope_test.jsonl`` is read
    when it is named itself; its labels come from the published files near it.

    :raises DataError: lists every fault: lines that are no question, labels, splits, double ids, missing images.
    """
    faults: list[str] = []
    if is_hub_name(source):
        rows = list(_hub_rows(source))
    else:
        rows = [row for file in _files(Path(source)) for row in _file_rows(file, faults)]
    files = {row.where for row in rows if row.hub is None}
    places = {file: _image_folders(Path(file), Path(source), images) for file in files}
    documents = [_document(row, places.get(row.where, ()), faults) for row in rows]
    faults += _double_ids(rows)
    raise_faults(f"the POPE data in {source}", faults)
    if not rows:
        raise DataError(f"{source} holds no questions; expected lines such as those of coco_pope_random.json")
    return [document for document in documents if document is not None]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} is neither a folder or file here nor the name of a hub data set (owner/name)")
    found = [path for pattern in ("*", "*/*") for path in sorted(source.glob(pattern)) if _NAME.fullmatch(path.name)]
    if not found:
        names = ", ".join(f"coco_pope_{split}.json" for split in SPLITS)
        raise DataError(f"{source} has no POPE files; expected names such as {names}")
    return found


def _file_rows(file: Path, faults: list[str]) -> Iterator[_Row]:
    name = _NAME.fullmatch(file.name)
    source, split = (name["source"], name["split"]) if name else ("coco", "")
    labels: dict[tuple[str, str, str], str] | None = None
    for line, row in json_lines(file):
        if row is None:
            faults.append(f"{file.name}:{line}: is no JSON object")
            continue
        image, question = str(row.get("image", "")), str(row.get("text", row.get("question", "")))
        question = question.removesuffix(SUFFIX).strip()
        category, label = split or str(row.get("category", "")), row.get("label", row.get("answer"))
        if label is None and not name:
            labels = _published_labels(file) if labels is None else labels
            label = labels.get((category, image, question))
        yield _Row(str(file), str(row.get("question_id", "")), source, category, question, str(label or ""), image)


def _published_labels(file: Path) -> dict[tuple[str, str, str], str]:
    """Labels by split, image and question of the files beside a question file, or in folders beside it."""
    near = [path for path in _near(file.parent) if _NAME.fullmatch(path.name)]
    rows = [row for path in near for row in _file_rows(path, [])]
    return {(row.split, row.image, row.question): row.label for row in rows}


def _near(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json*")) + sorted(folder.glob("*/*.json*"))


def _hub_rows(source: str) -> Iterator[_Row]:
    for number, row in enumerate(hub_columns(source, _HUB_COLUMNS)):
        image = str(row["image_source"])
        origin = image.partition("_")[0].lower() if "_" in image else "hub"
        split, hub = str(row["category"]), (source, number)
        yield _Row(source, str(row["question_id"]), origin, split, row["question"].strip(), row["answer"], image, hub)


def _image_folders(file: Path, source: Path, images: str) -> tuple[ImageFolder, ...]:
    """Where the images of a file's questions may be, the nearest first."""
    if images:
        return (ImageFolder(Path(images)),)
    near = ImageFolder(file.parent)
    return (near, ImageFolder(source)) if source.is_dir() and source != file.parent else (near,)


def _document(row: _Row, places: Sequence[ImageFolder], faults: list[str]) -> Document | None:
    where = f"{row.id} ({Path(row.where).name})"
    label = row.label.strip().lower()
    wrong = [f"{where}: has no {name}" for name in ("number", "question", "image") if not getattr(row, name)]
    if label not in ("yes", "no"):
        wrong.append(f"{where}: the label is {row.label!r}; expected 'yes' or 'no'")
    if row.split not in SPLITS:
        wrong.append(f"{where}: the category is {row.split!r}; {did_you_mean(row.split, SPLITS)}")
    place: dict[str, Any] = {}
    if row.hub is not None:
        place = {"hub": row.hub[0], "split": "test", "row": row.hub[1]}
    elif row.image:
        found = next((path for place in places if (path := place.find(row.image))), None)
        place = {"picture": str(found)}
        wrong += [] if found else [f"{where}: the image {row.image} is missing"]
    faults += wrong
    data = {"question": row.question, "label": label, "image": row.image, "source": row.source, **place}
    return None if wrong else Document(row.id, row.group, data)


def _double_ids(rows: Iterable[_Row]) -> list[str]:
    seen: dict[str, str] = {}
    faults = []
    for row in rows:
        if row.number and row.id in seen:
            faults.append(f"{row.id}: occurs twice, in {Path(seen[row.id]).name} and {Path(row.where).name}")
        seen.setdefault(row.id, row.where)
    return faults
