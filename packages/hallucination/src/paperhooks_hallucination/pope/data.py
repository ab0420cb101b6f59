"""POPE's questions as documents: the published files, LLaVA's question file, a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks.io import read_records
from paperhooks_evaluation import Document, DocumentList
from paperhooks_evaluation.sources import OUTSIDE, DataSource, ImageFolder, holds_tables, raise_faults

from paperhooks_hallucination.checks import no_texts

__all__ = ["SPLITS", "SUFFIX", "read_questions"]

SPLITS: Final = ("random", "popular", "adversarial")
#: What LLaVA appends to a question; its question files contain it already.
SUFFIX: Final = "\nAnswer the question using a single word or phrase."
_NAME: Final = re.compile(
    r"(?P<source>[^.].*?)_pope_(?:seem_)?(?P<split>random|popular|adversarial)"
    r"\.(?:jsonl?|ndjson|jsonlines|csv|tsv)(?:\.gz|\.zst)?",
    re.IGNORECASE,
)
_HUB_COLUMNS: Final = ("question_id", "question", "answer", "image_source", "category")


@dataclass(frozen=True, slots=True)
class _Row:
    """A question as a file or data set has it: whatever stands there, None where nothing does."""

    where: str
    number: Any
    source: str
    split: Any
    question: Any
    label: Any
    image: Any
    file: Path | None = None
    place: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        return f"{self.source}-{self.split}-{self.number}"


def read_questions(source: str, images: str = "") -> DocumentList:
    """All questions of a folder, a file or a hub data set, grouped by split (``"random"``) and source (``"coco"``).

    A folder holds files named ``<source>_pope_<split>.json`` (JSON lines, or another form that
    :func:`paperhooks.io.read_records` reads), itself or in folders directly inside it; images lie beside the files, in
    a folder beside them, or in ``images``. LLaVA's ``llava_pope_test.jsonl`` is read
    when it is named itself; its labels come from the published files near it.

    :raises DataError: lists every fault: lines that are no question, labels, splits, double ids, missing images.
    """
    faults: list[str] = []
    tables = DataSource(source) if holds_tables(source) else None
    if tables:
        rows = list(_hub_rows(tables))
    else:
        rows = [row for file in _files(Path(source)) for row in _file_rows(file, faults)]
    places = {row.file: _image_folders(row.file, Path(source), images) for row in rows if row.file is not None}
    documents = [_document(row, places[row.file] if row.file else (), faults) for row in rows]
    faults += _double_ids(rows)
    raise_faults(f"the POPE data in {source}", faults)
    if not rows:
        raise DataError(f"{source} holds no questions; expected lines such as those of coco_pope_random.json")
    found = (document for document in documents if document is not None)
    return DocumentList(found, revision=tables.commit if tables else "")


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} is neither a folder or file here nor the name of a hub data set (owner/name)")
    found = _near(source)
    if not found:
        names = ", ".join(f"coco_pope_{split}.json" for split in SPLITS)
        raise DataError(f"{source} has no POPE files; expected names such as {names}")
    return found


def _file_rows(file: Path, faults: list[str]) -> Iterator[_Row]:
    name = _NAME.fullmatch(file.name)
    source, split = (name["source"], name["split"].lower()) if name else ("coco", "")
    labels: dict[tuple[Any, Any, Any], Any] | None = None
    try:
        for where, row in read_records(file):
            if not isinstance(row, Mapping):
                faults.append(f"{where}: is a {type(row).__name__}; expected an object")
                continue
            image, question = row.get("image"), row.get("text", row.get("question"))
            question = question.removesuffix(SUFFIX).strip() if isinstance(question, str) else question
            category, label = split or row.get("category"), row.get("label", row.get("answer"))
            if label is None and not name:
                labels = _published_labels(file) if labels is None else labels
                label = labels.get((str(category), str(image), str(question)))
            yield _Row(where, row.get("question_id"), source, category, question, label, image, file)
    except DataError as error:  # what cannot be read ends a file, whose other faults are told with it
        faults.append(str(error))


def _published_labels(file: Path) -> dict[tuple[Any, Any, Any], Any]:
    """Labels by split, image and question of the files beside a question file, or in folders beside it."""
    rows = [row for path in _near(file.parent) for row in _file_rows(path, [])]
    return {(str(row.split), str(row.image), str(row.question)): row.label for row in rows}


def _near(folder: Path) -> list[Path]:
    """The published files in a folder and in folders directly inside it, but for hidden ones."""
    inside = [path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern))]
    return [path for path in inside if _NAME.fullmatch(path.name) and not path.parent.name.startswith(".")]


def _hub_rows(data: DataSource) -> Iterator[_Row]:
    data.require([*_HUB_COLUMNS, "image"])
    for number, stored in enumerate(data.rows(_HUB_COLUMNS, ["image"])):
        row, place = stored.data, stored.places.get("image", {})
        image, question = row["image_source"], row["question"]
        origin = image.partition("_")[0].lower() if isinstance(image, str) and "_" in image else "hub"
        question = question.strip() if isinstance(question, str) else question
        told = row["question_id"], origin, row["category"], question, row["answer"], image
        yield _Row(f"{data.source}, record {number}", *told, place=place)


def _image_folders(file: Path, source: Path, images: str) -> tuple[ImageFolder, ...]:
    """Where the images of a file's questions may be, the nearest first."""
    if images:
        return (ImageFolder(Path(images)),)
    near = ImageFolder(file.parent)
    return (near, ImageFolder(source)) if source.is_dir() and source != file.parent else (near,)


def _document(row: _Row, places: Sequence[ImageFolder], faults: list[str]) -> Document | None:
    texts = {"question_id": str(row.number) if isinstance(row.number, int) else row.number}
    texts |= {"question": row.question, "image": row.image, "category": row.split}
    wrong = no_texts(row.where, texts, list(texts))
    label = row.label.strip().lower() if isinstance(row.label, str) else ""
    if label not in ("yes", "no"):
        wrong.append(f"{row.where}: the label is {row.label!r}; expected 'yes' or 'no'")
    if isinstance(row.split, str) and row.split and row.split not in SPLITS:
        wrong.append(f"{row.where}: the category is {row.split!r}; {did_you_mean(row.split, SPLITS)}")
    place = row.place
    if place is not None:
        wrong += [] if place else [f"{row.where}: has no image"]
    elif isinstance(row.image, str) and row.image:
        found = next((path for place in places if (path := place.find(row.image))), None)
        place = {"picture": str(found)}
        wrong += [] if found else [f"{row.where}: the image {row.image} {OUTSIDE}"]
    faults += wrong
    data = {"question": row.question, "label": label, "image": row.image, "source": row.source}
    return None if wrong else Document(row.id, {"split": row.split, "source": row.source}, data, place or {})


def _double_ids(rows: Iterable[_Row]) -> list[str]:
    seen: dict[str, str] = {}
    faults = []
    for row in rows:
        if row.number is not None and row.id in seen:
            faults.append(f"{row.id}: occurs twice, in {seen[row.id]} and {row.where}")
        seen.setdefault(row.id, row.where)
    return faults
