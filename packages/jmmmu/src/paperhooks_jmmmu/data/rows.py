"""Rows of JMMMU, JMMMU-Pro and MMMU as documents, checked; all faults of a data set are told at once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks_evaluation import Document
from paperhooks_evaluation.sources import DataSource, StoredRow, raise_faults

from paperhooks_jmmmu.data.editions import ENGLISH, JAPANESE, Edition, kinship
from paperhooks_jmmmu.data.option_lists import LETTERS, parse_answer, parse_options
from paperhooks_jmmmu.data.placeholders import SLOTS, odd_slots, repaired, shown_slots
from paperhooks_jmmmu.data.subjects import SUBJECTS, subject_of

__all__ = ["CHOICE", "OPEN", "Questions", "read_questions"]

log = logging.getLogger(__name__)

#: The two types of questions.
CHOICE: Final = "multiple-choice"
OPEN: Final = "open"
_FLAGS: Final = tuple(f"{slot}_use_original_mmmu" for slot in SLOTS)
_COLUMNS: Final = ("id", "subject", "question", "options", "answer", "question_type", "topic_difficulty", *_FLAGS)
#: How many faults a message lists before it only counts.
_LISTED: Final = 100
#: And how many a report.
_NOTED: Final = 10


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a source.

    :param documents: in the order of the subjects, then of the rows. Their ``data`` are ``question``, ``options``,
        ``answer`` (a text, or a list of which any is right), ``question_type`` and ``pictures``: slot to SHA-256 of the
        bytes of every picture of the row, shown or not. ``place`` has the places of these pictures by slot.
    :param dropped: the faults of the rows that were left out. :param left_out: how many rows these are.
    :param missing: subject to how many questions fewer than in the whole set there are.
    :param revision: the commit of the hub that they are of; ``""`` for files here.
    :param doubt: why they are hardly the edition's, in a sentence; ``""`` where nothing speaks against it.
    """

    documents: Sequence[Document]
    dropped: Sequence[str] = ()
    left_out: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    revision: str = ""
    doubt: str = ""

    def notes(self) -> list[str]:
        """What a report on these questions has to say: the rows that were left out, and doubts."""
        found = [f"Of the data: {self.doubt}."] if self.doubt else []
        if self.dropped:
            first, more = "; ".join(self.dropped[:_NOTED]), len(self.dropped) - _NOTED
            further = f"; and {more} more" if more > 0 else ""
            found.append(f"Rows with faults that were left out: {self.left_out}. {first}{further}.")
        return found


def read_questions(
    source: str, edition: Edition = JAPANESE, *, revision: str = "", skip_bad: bool = False
) -> Questions:
    """The questions of an edition from a hub data set, a folder (a folder a subject, or flat), a file.

    Parquet as on the hub, or JSON Lines, CSV and JSON whose rows name the files of their pictures.

    :param revision: of the hub, to pin it.
    :param skip_bad: leave rows with faults out, and count them, instead of refusing the data.
    :raises DataError: with all faults and their ids; nothing that could be read; no question left; Japanese questions
        for the English edition.
    :raises MissingExtra: Parquet without pyarrow.
    """
    slots = ("image",) if edition.vision else SLOTS
    documents: dict[str, list[Document]] = {name: [] for name in edition.subjects}
    faults: list[str] = []
    seen: dict[str, str] = {}
    texts: list[Any] = []
    shown = left_out = 0
    data_source = _data_source(source, edition, revision)
    for row in data_source.rows(_COLUMNS, slots, digests=True):
        name = row.data.get("id")
        called = name if isinstance(name, str) and name else row.where
        found, wrong = _document(row, edition)
        if called in seen:
            wrong.append(f"occurs twice, in {seen[called]} and {row.where}")
        seen.setdefault(called, row.where)
        texts.append(row.data.get("question"))
        shown += bool(row.places)
        left_out += bool(wrong)
        faults += [f"{called}: {fault}" for fault in wrong]
        if found is not None and not wrong:
            documents[found.groups["subject"]].append(found)
    opens = sum(one.groups["question_type"] == OPEN for each in documents.values() for one in each)
    doubt = kinship(edition, texts, shown, opens)
    if not skip_bad:
        raise_faults(f"the data in {source}{f' ({doubt})' if doubt else ''}", faults, listed=_LISTED)
    whole = [document for each in documents.values() for document in each]
    if not whole:
        lacking = f"all rows have faults, the first {faults[0]}" if faults else "none is of one of its subjects"
        raise DataError(f"{source} has no question of {edition.hub}: {doubt or lacking}")
    if doubt and not edition.japanese:  # English parsers make nothing of Japanese, and would score it all the same
        raise DataError(f"{source} cannot be used as {edition.hub}: {doubt}")
    if faults:
        log.warning("%s: rows with faults left out: %d; %s", source, left_out, "; ".join(faults[:_LISTED]))
    if doubt:
        log.warning("%s: %s", source, doubt)
    _warn_of_odd_placeholders(source, whole, edition)
    counts = Counter({name: len(each) for name, each in documents.items()})
    missing = {name: lack for name in edition.subjects if (lack := SUBJECTS[name].n - counts[name]) > 0}
    return Questions(whole, tuple(faults), left_out if faults else 0, missing, data_source.commit, doubt)


def _data_source(source: str, edition: Edition, revision: str) -> DataSource:
    """The source with the split and the configs of the edition; a source of other configs is read whole."""
    first, *others = edition.splits
    data = DataSource(source, first, revision)
    if data.hub:
        official = data.hub.name == edition.hub and not data.hub.config
        return DataSource(source, first, revision, edition.configs if official else ())
    found = next((one for one in (data, *(DataSource(source, each) for each in others)) if _is_there(one)), data)
    if not _is_there(found) and edition.japanese and _is_there(DataSource(source, ENGLISH.splits[0])):
        raise DataError(
            f"{source} has no split {first!r} but {ENGLISH.splits[0]!r}, as MMMU has (task mmmu-paired); {edition.hub} "
            f"has {first!r}"
        )
    known = found.files
    return DataSource(source, found.split, configs=tuple(name for name in edition.configs if name in known))


def _is_there(data: DataSource) -> bool:
    try:
        return bool(data.files)
    except DataError:
        return False


def _document(row: StoredRow, edition: Edition) -> tuple[Document | None, list[str]]:
    """The document of a row, and what is wrong with the row; None where its subject is not of the edition."""
    told = row.data
    faults: list[str] = []
    subject = _subject(told, edition, faults)
    if subject is None:
        return None, faults
    question = told.get("question")
    if not edition.vision and not (isinstance(question, str) and question.strip()):
        faults.append(f"the question is {question!r:.200}; expected a text")
    question = question if isinstance(question, str) else ""
    options = _read(parse_options, told.get("options", []), faults)
    kind = _kind(told.get("question_type"), options, edition, faults)
    answer = _answer(told.get("answer"), options, kind, faults)
    faults += [f"the file {name} of {slot} is not there" for slot, name in row.missing.items()]
    shown = ["image"] if edition.vision else shown_slots(_texts(question, options or [], kind, edition))
    lacking = [slot for slot in shown if slot not in row.places and slot not in row.missing]
    if lacking:
        have = ", ".join(row.places) or "no picture"
        faults.append(f"shows {', '.join(lacking)}, which the row does not have; it has {have}")
    if any(isinstance(one, str) and not _is_text(one) for one in (question, *(options or []))):
        faults.append("question or options have half of a surrogate pair, which is no text")
    groups = {
        "subject": subject,
        "domain": SUBJECTS[subject].domain,
        "subset": SUBJECTS[subject].subset,
        "question_type": kind,
        "pictures": str(len(shown)),
        "difficulty": difficulty if isinstance(difficulty := told.get("topic_difficulty"), str) else "",
        "translated": _translated(told, shown),
    }
    data = {
        "question": question,
        "options": options,
        "answer": answer,
        "question_type": kind,
        "pictures": dict(sorted(row.digests.items())),
    }
    return Document(str(told["id"]), groups, data, dict(row.places)), faults


def _subject(row: Mapping[str, Any], edition: Edition, faults: list[str]) -> str | None:
    """The subject that the id names; None, and maybe a fault, where the edition has no such."""
    name = row.get("id")
    if not isinstance(name, str) or not name:
        faults.append(f"the id is {name!r}; expected one such as 'validation_Accounting_1'")
        return None
    found = _read(subject_of, name, faults)
    if found is None or found in edition.subjects:
        return str(found) if found else None
    if found not in edition.others:
        faults.append(f"there is no subject {found!r}; {did_you_mean(found, edition.subjects)}")
    return None


def _kind(told: Any, options: Sequence[str] | None, edition: Edition, faults: list[str]) -> str:
    """The type of a question; where the row tells none, one with options is multiple choice."""
    if told == OPEN and options and not edition.opens:
        return CHOICE  # one that was open until it was given options
    if told in (CHOICE, OPEN):
        return str(told)
    if told not in (None, ""):
        faults.append(f"the question_type is {told!r}; {did_you_mean(str(told), (CHOICE, OPEN))}")
    return CHOICE if options else OPEN


def _answer(told: Any, options: Sequence[str] | None, kind: str, faults: list[str]) -> str | list[str] | None:
    answer = _read(lambda value: parse_answer(value, letters=kind == CHOICE), told, faults)
    if kind != CHOICE or options is None:
        return answer
    if len(options) < 2:
        faults.append(f"the number of options is {len(options)}; expected 2 at least of a multiple-choice question")
    if twice := [option for option, n in Counter(options).items() if n > 1]:
        faults.append(f"has the option {twice[0]!r:.200} several times; nobody could tell which is meant")
    letters = LETTERS[: len(options)]
    answers = answer if isinstance(answer, list) else [answer]
    if wrong := [letter for letter in answers if letter is not None and letter not in tuple(letters)]:
        faults.append(f"the answer is {wrong[0]!r:.200}; expected a letter of its {len(options)} options, {letters}")
    return answer


def _texts(question: str, options: Sequence[str], kind: str, edition: Edition) -> list[str]:
    """What is shown of a question besides the instruction; an open one's options are not."""
    return [repaired(question) if edition.repairs else question, *(options if kind == CHOICE else ())]


def _translated(row: Mapping[str, Any], shown: Sequence[str]) -> str:
    """Whether a shown picture was translated, or all are MMMU's own; ``""`` where the row does not tell."""
    flags = [flag for slot in shown if isinstance(flag := row.get(f"{slot}_use_original_mmmu"), bool)]
    return "" if not flags else "original" if all(flags) else "translated"


def _warn_of_odd_placeholders(source: str, documents: Sequence[Document], edition: Edition) -> None:
    odd = {one.id: _odd_slots(one, edition) for one in documents}
    for told, there in (
        ("it is shown in the layout interleave alone, as the published code does not show it", True),
        ("the row has no such picture, and none is shown", False),
    ):
        names = [
            one.id for one in documents if any((slot in one.place) is there for slot in odd[one.id])
        ]  # fmt: skip
        if names:
            log.warning(
                "%s: %d questions name a picture in another form than <image 1>, such as <image1> or <Image 1>; %s: %s",
                source, len(names), told, ", ".join(names[:_LISTED]),
            )  # fmt: skip


def _odd_slots(document: Document, edition: Edition) -> list[str]:
    data = document.data
    return odd_slots(_texts(data["question"], data["options"], data["question_type"], edition))


def _is_text(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def _read(read: Any, value: Any, faults: list[str]) -> Any:
    """What a function makes of a value; None, and its error among the faults, where it cannot."""
    try:
        return read(value)
    except DataError as error:
        faults.append(str(error))
        return None
