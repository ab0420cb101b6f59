"""MME's questions as documents: the release's folders, or a data set of the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks.io import read_records
from paperhooks_evaluation import Document, DocumentList
from paperhooks_evaluation.sources import OUTSIDE, DataSource, ImageFolder, holds_tables, raise_faults

from paperhooks_hallucination.checks import no_texts
from paperhooks_hallucination.mme.metrics import CATEGORIES

__all__ = ["read_questions"]

_HUB_COLUMNS: Final = ("question_id", "question", "answer", "category")


def read_questions(source: str) -> DocumentList:
    """All questions of MME's release folder or of a hub data set, grouped by category.

    A category is a folder with ``images/`` and ``questions_answers_YN/``, or with images and text files side by side; a
    text file has the name of its image and two lines of question, tab, answer.

    :raises DataError: lists every fault: unknown categories, lines that are no question, answers, missing images,
        images without two questions.
    """
    faults: list[str] = []
    tables = DataSource(source) if holds_tables(source) else None
    rows = _hub_rows(tables, faults) if tables else _folder_rows(Path(source), faults)
    documents = [document for document in (_document(row, faults) for row in rows) if document is not None]
    asked = Counter(document.data["image"] for document in documents)
    faults += [f"{image}: has {n} readable questions; expected 2" for image, n in asked.items() if n != 2]
    raise_faults(f"the MME data in {source}", faults)
    if not documents:
        raise DataError(f"{source} holds no questions; expected folders such as existence/ with images and .txt files")
    return DocumentList(documents, revision=tables.commit if tables else "")


def _folder_rows(source: Path, faults: list[str]) -> Iterator[dict[str, Any]]:
    if not source.is_dir():
        raise DataError(f"{source} is neither a folder here nor the name of a hub data set (owner/name)")
    for folder in _category_folders(source):
        texts, images = _text_files(folder), ImageFolder(folder)
        if texts and folder.name not in CATEGORIES:
            faults.append(f"{folder.name}: is no category; {did_you_mean(folder.name, CATEGORIES)}")
            continue
        for file in texts:
            image_file = images.find_stem(file.stem)
            if image_file is None:
                faults.append(f"{folder.name}/{file.stem}: the image {OUTSIDE}")
                continue
            yield from _lines(folder.name, file, image_file, faults)


def _category_folders(source: Path) -> list[Path]:
    """The folders of the categories, in the source or in its only folder, as the release's archive unpacks."""
    folders = [path for path in sorted(source.iterdir()) if path.is_dir()]
    known = [path for path in folders if path.name in CATEGORIES]
    if not known and len(folders) == 1 and not _text_files(folders[0]):
        return _category_folders(folders[0])
    return sorted(folders, key=lambda path: [*CATEGORIES, path.name].index(path.name))


def _text_files(folder: Path) -> list[Path]:
    inner = folder / "questions_answers_YN"
    files = sorted((inner if inner.is_dir() else folder).glob("*.[tT][xX][tT]"))
    return [file for file in files if not file.name.startswith(".")]


def _lines(category: str, file: Path, image_file: Path, faults: list[str]) -> Iterator[dict[str, Any]]:
    try:
        content = "".join(text for _, text in read_records(file))
    except DataError as error:
        faults.append(str(error))
        return
    # A line ends at a line feed only: other separators may stand inside of a question.
    for number, line in enumerate((line for line in content.split("\n") if line.strip()), 1):
        question, tab, answer = line.strip().rpartition("\t")
        if not tab:
            faults.append(f"{category}/{file.name}:{number}: has no tab between question and answer")
            continue
        image = f"{category}/{image_file.name}"
        data = {"question": question.strip(), "answer": answer, "image": image, "place": {"picture": str(image_file)}}
        yield {"id": f"{image}/{number}", "category": category, **data}


def _hub_rows(data: DataSource, faults: list[str]) -> Iterator[dict[str, Any]]:
    seen: Counter[str] = Counter()
    data.require([*_HUB_COLUMNS, "image"])
    for number, stored in enumerate(data.rows(_HUB_COLUMNS, ["image"])):
        row, where, place = stored.data, f"{data.source}, record {number}", stored.places.get("image", {})
        wrong = no_texts(where, row, _HUB_COLUMNS) + ([] if place else [f"{where}: has no image"])
        faults += wrong
        if wrong:
            continue
        # The two questions of an image share one question_id, which is category/file there.
        name, category = row["question_id"], row["category"]
        image = name if name.startswith(f"{category}/") else f"{category}/{name}"
        seen[image] += 1
        text = {"question": row["question"].strip(), "answer": row["answer"]}
        yield {"id": f"{image}/{seen[image]}", "category": category, **text, "image": image, "place": place}


def _document(row: dict[str, Any], faults: list[str]) -> Document | None:
    name, category, place = row.pop("id"), row.pop("category"), row.pop("place")
    answer = row["answer"].replace(".", "").strip().lower()
    wrong = [] if row["question"] else [f"{name}: has no question"]
    if answer not in ("yes", "no"):
        wrong.append(f"{name}: the answer is {row['answer']!r}; expected 'Yes' or 'No'")
    if category not in CATEGORIES:
        wrong.append(f"{name}: the category is {category!r}; {did_you_mean(category, CATEGORIES)}")
    faults += wrong
    return None if wrong else Document(name, {"category": category}, {**row, "answer": answer}, place)
