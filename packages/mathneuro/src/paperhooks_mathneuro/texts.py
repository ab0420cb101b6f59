"""Texts of a skill and of everything else: records of any common form as token ids, with the place where answers begin.

A record is a text, token ids, or an object with one of

- ``text``, or ``qa`` (a question and its answer as one text);
- ``prompt`` and ``completion``, or ``question`` and ``answer`` (or ``solution``), joined by a template;
- ``input_ids``, and ``answer_start`` where the answer begins.

Objects may also hold ``choices``, for accuracies: a list, also as the text of a cell, and in ``answer`` the number of
the right one (from 0) or its letter; or, as ARC has them, ``{"text": [...], "label": [...]}`` and in ``answerKey`` the
right one's label. Where choices are text and no list, a record that is text without them is used without them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError
from paperhooks.io import hash_json, list_cell
from paperhooks.io import read_records as placed_records
from paperhooks.models import check_ids, length_batches

__all__ = [
    "OFFICIAL_TEMPLATE",
    "TEMPLATE",
    "PlacedRecords",
    "Sample",
    "batches_by_length",
    "check_template",
    "check_vocabulary",
    "needs_tokenizer",
    "read_records",
    "samples_digest",
    "tokenized",
]

logger = logging.getLogger(__name__)

#: How questions and answers are joined unless a template is given.
TEMPLATE: Final = "Question: {question}\n\nAnswer: {answer}"
#: What the official code falls back to for data without a column ``qa``.
OFFICIAL_TEMPLATE: Final = "Instruct: {question} Let's write a Python program.\nOutput:\n{answer}"
_ANSWER: Final = "Answer:"


class PlacedRecords(list[Any]):
    """PlacedRecords in order. ``places`` has for each what to call it in messages: file and line, or its number."""

    def __init__(self, found: Iterable[tuple[str, Any]]) -> None:
        found = list(found)
        super().__init__(record for _, record in found)
        self.places = [place for place, _ in found]

    def take(self, rows: Iterable[int]) -> PlacedRecords:
        """Some of them, in the given order."""
        return PlacedRecords((self.places[row], self[row]) for row in rows)


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenized text.

    ids
        Its tokens.
    answer_start
        Index of the first token of the answer; 0 where the text has no question.
    choices, right
        Tokens of the alternatives, each with the question before it, and the number of the right one; or nothing.
    place
        What to call its record in messages.
    """

    ids: tuple[int, ...]
    answer_start: int = 0
    choices: tuple[Sample, ...] = ()
    right: int | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class _Text:
    """A record as text: what is given, what is to be answered, and alternatives to it."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    right: int | None = None


def read_records(source: str | Path | Iterable[Any]) -> PlacedRecords:
    """PlacedRecords of a file or folder, of a dataset of the hub, or of a sequence as they are.

    :param source: whatever :func:`paperhooks.io.read_records` reads; a text file has one record a block between blank
        lines.
    :raises DataError: a file that cannot be read, naming it and the line. :raises MissingExtra: without the library.
    """
    return source if isinstance(source, PlacedRecords) else PlacedRecords(placed_records(source, text="blocks"))


def needs_tokenizer(records: Sequence[Any]) -> bool:
    """Whether some of the records are text and not token ids."""
    return any(isinstance(one, str) or (isinstance(one, Mapping) and one.get("input_ids") is None) for one in records)


def tokenized(
    records: Sequence[Any],
    tokenizer: Any = None,
    *,
    template: str = TEMPLATE,
    max_length: int | None = None,
    truncate: bool = False,
) -> list[Sample]:
    """PlacedRecords as token ids.

    Texts get the special tokens that the tokenizer adds by itself, also when they are joined from question and answer.
    Empty records are left out; how many is logged, as is how many come without their choices.

    :param records: see :mod:`paperhooks_mathneuro.texts`. :param tokenizer: needed unless all are token ids.
    :param template: joins ``{question}`` and, at its end, ``{answer}``.
    :param max_length: longest text in tokens. Longer ones are errors, or with ``truncate`` cut.
    :raises DataError: a record of another form, one that is too long, or no text at all; names the record.
    """
    check_template(template)
    places = records.places if isinstance(records, PlacedRecords) else [f"record {n}" for n in range(len(records))]
    found, empty, cut, bare = [], 0, 0, []
    for place, record in zip(places, records, strict=True):
        reader = _Reader(place, tokenizer, template)
        sample = reader.sample(record)
        if reader.bare:
            bare.append(place)
        if not sample.ids:
            empty += 1
            continue
        if max_length is not None and len(sample.ids) > max_length:
            if not truncate:
                raise DataError(
                    f"{place} has {len(sample.ids)} tokens, the longest allowed are {max_length}; pass truncate=True "
                    "to cut such texts, or leave them out"
                )
            sample = Sample(sample.ids[:max_length], min(sample.answer_start, max_length), place=place)
            cut += 1
        found.append(sample)
    if bare:
        text = "%d records have choices that are no list of texts, and are used without them; the first is %s"
        logger.warning(text, len(bare), bare[0])
    if empty:
        logger.warning("%d empty records were left out", empty)
    if cut:
        logger.warning("%d of %d texts were cut to %d tokens", cut, len(found), max_length)
    if not found:
        raise DataError("there is no text; give at least one that is not empty")
    return found


def batches_by_length(
    samples: Sequence[Sample], wanted: Iterable[int], batch_size: int, batch_tokens: int
) -> list[list[int]]:
    """Numbers of the ``wanted`` samples in batches of similar length, so that little is padding.

    :param batch_size, batch_tokens: most samples and most tokens with padding of a batch; one sample always fits.
    """
    lengths = {i: len(samples[i].ids) for i in wanted}
    return list(length_batches(sorted(lengths, key=lengths.__getitem__), lengths, batch_tokens, batch_size))


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over the tokens of samples and where their answers begin."""
    return hash_json([[list(sample.ids), sample.answer_start] for sample in samples])


def check_vocabulary(samples: Iterable[Sample], model: Any) -> None:
    """Raise DataError for a token id that is outside of a model's vocabulary, naming it and its record."""
    size = model.get_input_embeddings().weight.shape[0]
    for sample in samples:
        for one in (sample, *sample.choices):
            check_ids(sample.place or "a text", one.ids, size)


def check_template(template: str) -> None:
    """Raise DataError for a template without a question, or without the answer at its end."""
    if template.count("{answer}") != 1 or not template.endswith("{answer}") or "{question}" not in template:
        raise DataError(f"the template {template!r} must hold {{question}} and end with {{answer}}")


@dataclass(slots=True)
class _Reader:
    """Makes the sample of one record; ``bare`` says afterwards that its choices could not be read."""

    place: str
    tokenizer: Any
    template: str
    bare: bool = False

    def sample(self, record: Any) -> Sample:
        ids = record.get("input_ids") if isinstance(record, Mapping) else record
        if ids is not None and not isinstance(record, str):
            found = list_cell(ids)
            if found is not None:
                return self._of_ids(found, record)
            if isinstance(record, Mapping):
                raise DataError(f"{self.place}: input_ids is {_shown(ids)}; expected a list of token ids")
        text = self._text(record)
        if self.tokenizer is None:
            raise DataError(f"{self.place} is text; pass tokenizer=, or token ids")
        if not (text.prompt + text.answer).strip():
            return Sample(())
        choices = tuple(self._encoded(text.prompt, choice) for choice in text.choices)
        whole = self._encoded(text.prompt, text.answer)
        return Sample(whole.ids, whole.answer_start, choices, text.right, self.place)

    def _of_ids(self, ids: list[Any], record: Any) -> Sample:
        odd = [i for i in ids if not hasattr(i, "__index__") or isinstance(i, bool)]
        if odd:
            raise DataError(f"{self.place} has {_shown(odd[0])} among its token ids; expected whole numbers")
        start = _whole(record.get("answer_start", 0)) if isinstance(record, Mapping) else 0
        if start is None or not 0 <= start <= len(ids):
            given = _shown(record.get("answer_start"))
            raise DataError(f"{self.place}: answer_start is {given}; expected a number from 0 to {len(ids)}")
        return Sample(tuple(map(int, ids)), start, place=self.place)

    def _encoded(self, prompt: str, answer: str) -> Sample:
        """Tokens of both together; the answer begins where they part from those of the prompt alone."""
        ids = self.tokenizer(prompt + answer)["input_ids"]
        if not prompt:
            return Sample(tuple(ids))
        alone = self.tokenizer(prompt)["input_ids"]
        pairs = zip(ids, alone, strict=False)
        start = next((i for i, (one, two) in enumerate(pairs) if one != two), min(len(ids), len(alone)))
        return Sample(tuple(ids), start)

    # -- objects -------------------------------------------------------------------------------------------------------

    def _text(self, record: Any) -> _Text:
        if isinstance(record, str):
            return _Text("", record)
        if not isinstance(record, Mapping):
            raise DataError(f"{self.place} is {type(record).__name__}; expected a text, token ids or an object")
        choices, right = self._choices(record)
        prompt, answer = self._parts(record, choices, right)
        return _Text(prompt, answer, tuple(f"{_gap(prompt)}{choice}" for choice in choices), right)

    def _parts(self, record: Mapping[str, Any], choices: Sequence[str], right: int | None) -> tuple[str, str]:
        """What is given, and what is to be answered."""
        if (text := self._string(record, "text")) is not None:
            return "", text
        if (qa := self._string(record, "qa")) is not None:
            cut = qa.rfind(_ANSWER)
            cut = 0 if cut < 0 else cut + len(_ANSWER)
            return qa[:cut], qa[cut:]
        prompt, completion = (self._string(record, key) for key in ("prompt", "completion"))
        if prompt is not None and completion is not None:
            return prompt, completion
        question = self._string(record, "question")
        if question is not None and self.bare:
            raise DataError(
                f"{self.place}: choices is {_shown(record['choices'])}, which is no list of texts, and nothing else "
                "here holds the answer"
            )
        answer = choices[right] if right is not None else self._string(record, "answer", "solution")
        if question is not None and answer is not None:
            before = self.template.removesuffix("{answer}").replace("{question}", question)
            return before.rstrip(" "), before[len(before.rstrip(" ")) :] + answer
        nulls = [key for key in record if record[key] is None]
        raise DataError(
            f"{self.place} has the keys {sorted(map(str, record))}"
            + (f", of which {', '.join(map(str, nulls))} is null" if nulls else "")
            + "; expected text, qa, prompt and completion, question and answer, or input_ids"
        )

    def _string(self, record: Mapping[str, Any], *keys: str) -> str | None:
        """The first of the keys that holds something; text, or an error."""
        for key in keys:
            value = record.get(key)
            if isinstance(value, str):
                return value
            if value is not None:
                raise DataError(f"{self.place}: {key} is {_shown(value)}; expected text")
        return None

    # -- choices -------------------------------------------------------------------------------------------------------

    def _choices(self, record: Mapping[str, Any]) -> tuple[list[str], int | None]:
        """The alternatives and the number of the right one; nothing where the record has none that can be read."""
        given = record.get("choices")
        if given is None or (isinstance(given, str) and not given.strip()):
            return [], None
        texts, labels = (given.get("text"), given.get("label")) if isinstance(given, Mapping) else (given, None)
        choices = list_cell(texts)
        if choices is None or not all(isinstance(choice, str) for choice in choices):
            if not isinstance(given, str):
                raise DataError(f"{self.place}: choices is {_shown(given)}; expected a list of texts")
            self.bare = True
            return [], None
        if not choices:
            return [], None
        return choices, self._right(record, len(choices), list_cell(labels) or [])

    def _right(self, record: Mapping[str, Any], count: int, labels: Sequence[Any]) -> int:
        key = "answerKey" if record.get("answerKey") is not None else "answer"
        answer = record.get(key)
        if isinstance(answer, str) and answer in labels:
            number: int | None = labels.index(answer)
        elif isinstance(answer, str) and len(answer) == 1 and "A" <= answer <= "Z":
            number = ord(answer) - ord("A")
        else:
            number = _whole(answer) if key == "answer" else None
        if number is None:
            raise DataError(
                f"{self.place} has choices, and {key!r} is {_shown(answer)}; expected the number of the right one, its "
                "letter or its label"
            )
        if not 0 <= number < count:
            raise DataError(f"{self.place}: {key} {_shown(answer)} is not one of {count} choices")
        return number


def _gap(prompt: str) -> str:
    # Tokenizers bind a space to the word behind it.
    return "" if not prompt or prompt[-1].isspace() else " "


def _whole(value: Any) -> int | None:
    """A whole number, also one that a table holds as text (``"2"``, ``"2.0"``); None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        return int(number) if number.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None


def _shown(value: Any) -> str:
    text = {type(None): "null", bool: str(value).lower()}.get(type(value)) or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
