"""Questions, replies that are thought out, and runs, which the tests of the tasks share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from paperhooks.generation import CallableBackend, Request
from paperhooks_evaluation import Document, Record, Task, evaluate
from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.data import CHOICE, SUBJECTS, subject_of

REFERENCE = Path(__file__).parent / "reference"
FALLBACKS = ("per-question", "lmms-eval", "expected", "wrong")
quick = partial(evaluate, report=False)


def reference(name: str) -> Any:
    """A file of reference values."""
    return json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))


def choice(
    question_id: str = "validation_Design_1", options: Sequence[str] = ("能面", "皿", "盆", "筆"), answer: Any = "A"
) -> Document:
    """A multiple-choice question in its groups."""
    return _question(question_id, CHOICE, list(options), answer)


def open_question(question_id: str = "validation_Math_1", answer: Any = "3") -> Document:
    """An open one."""
    return _question(question_id, "open", [], answer)


def _question(question_id: str, kind: str, options: Sequence[str], answer: Any) -> Document:
    subject = subject_of(question_id)
    groups = {"subject": subject, "domain": SUBJECTS[subject].domain, "subset": SUBJECTS[subject].subset}
    data = {"question": "何か。", "options": options, "answer": answer, "question_type": kind, "pictures": {}}
    return Document(question_id, {key: group for key, group in groups.items() if group}, data)


def record(task: Task, document: Document, response: str, mode: str) -> Record:
    """A response, read and scored."""
    parsed = task.parse(document, response, mode)
    return Record(document, response, parsed, task.score(document, parsed))


def canned(documents: Sequence[Document]) -> dict[str, str]:
    """Replies by id: right ones and wrong ones in several forms, and such that one parser or both cannot read."""
    return {document.id: _reply(document, sum(map(ord, document.id))) for document in documents}


def _reply(document: Document, number: int) -> str:
    answer = document.data["answer"]
    if document.data["question_type"] != CHOICE:
        return (f"{answer}", f"答えは{answer}", "約 7", "分かりません。", "")[number % 5]
    letters = letters_of(document.data["options"])
    other = letters[letters.index(answer) - 1]
    forms = (
        answer,
        f"{answer}.",
        f"答えは「{answer}」です。",
        other,
        f"{other}です。",
        "分かりません。",
        "",
        "AかBです",
    )
    return forms[number % len(forms)]


def backend(replies: Mapping[str, str], asked: list[str] | None = None) -> CallableBackend:
    """Gives these replies; the ids it was asked about go to ``asked``."""

    def answer(request: Request) -> str:
        if asked is not None:
            asked.append(request.metadata["id"])
        return replies[request.metadata["id"]]

    return CallableBackend(answer)


def untimed(folder: Path) -> dict[str, Any]:
    """results.json of a run without its two times."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del content["date"], content["total_evaluation_time_seconds"]
    return dict(content)
