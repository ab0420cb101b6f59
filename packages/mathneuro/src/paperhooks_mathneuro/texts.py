"""Texts of a skill and of everything else: records of any common form as token ids, with the place where answers begin.

A record is a text, token ids, or an object with one of

- ``text``, or ``qa`` (a question and its answer as one text);
- ``prompt`` and ``completion``, or ``question`` and ``answer`` (or ``solution``), joined by a template;
- ``input_ids``, and ``answer_start`` where the answer begins.

Objects may also hold ``choices`` (a list) and ``answer`` (the right one's number), for accuracies.
"""

from __future__ import annotations

import ast
import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import hash_json

__all__ = [
    "OFFICIAL_TEMPLATE",
    "TEMPLATE",
    "Sample",
    "batches_by_length",
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
_HUB: Final = "hub:"


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenized text.

    ids
        Its tokens.
    answer_start
        Index of the first token of the answer; 0 where the text has no question.
    choices, right
        Tokens of the alternatives, each with the question before it, and the number of the right one; or nothing.
    """

    ids: tuple[int, ...]
    answer_start: int = 0
    choices: tuple[Sample, ...] = ()
    right: int | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A record as text: what is given, what is to be answered, and alternatives to it."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    right: int | None = None


def read_records(source: str | Path | Iterable[Any]) -> list[Any]:
    """Records of a file, of a dataset of the hub, or of a sequence as they are.

    :param source: ``.jsonl``, ``.json`` (a list), ``.csv`` (a header line), any other file as plain text (one a block
        between blank lines), or ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT``.
    :raises DataError: a file that cannot be read, naming it and the line. :raises MissingExtra: without datasets.
    """
    if isinstance(source, str) and source.startswith(_HUB):
        return _from_hub(source.removeprefix(_HUB))
    if not isinstance(source, str | Path):
        return list(source)
    path = Path(source)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        return [_json(path, number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix == ".json":
        found = _json(path, 1, content)
        if not isinstance(found, list):
            raise DataError(f"{path} holds a {type(found).__name__}; expected a list of records")
        return found
    if path.suffix == ".csv":
        return list(csv.DictReader(content.splitlines(keepends=True)))
    return [block.strip() for block in content.split("\n\n") if block.strip()]


def needs_tokenizer(records: Sequence[Any]) -> bool:
    """Whether some of the records are text and not token ids."""
    return any(isinstance(one, str) or (isinstance(one, Mapping) and "input_ids" not in one) for one in records)


def _json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}:{number}: is not JSON: {error}") from error


def _from_hub(name: str) -> list[Any]:
    datasets = require("datasets", "paperhooks-mathneuro[hub]", "to read datasets of the hub")
    parts = name.split(":")
    if len(parts) not in (2, 3):
        raise DataError(f"hub:{name} names no split; write hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")
    dataset, *config, split = parts
    try:
        return list(datasets.load_dataset(dataset, *config, split=split))
    except (OSError, ValueError) as error:
        raise DataError(f"the dataset hub:{name} cannot be loaded: {error}") from error


def tokenized(
    records: Iterable[Any],
    tokenizer: Any = None,
    *,
    template: str = TEMPLATE,
    max_length: int | None = None,
    truncate: bool = False,
) -> list[Sample]:
    """Records as samples, in their order; those that are empty are left out with a warning in the log.

    :param tokenizer: needed for text. Special tokens are added as it adds them.
    :param template: joins ``{question}`` and ``{answer}``, in this order; the answer comes last.
    :param max_length: longest text in tokens. Longer ones are an error, or cut with ``truncate``.
    :raises DataError: no record, one of another form, text without a tokenizer, or a text that is too long.
    """
    _check_template(template)
    found, empty, cut = [], 0, 0
    for number, record in enumerate(records):
        sample = _sample(record, number, tokenizer, template)
        if not sample.ids:
            empty += 1
            continue
        if max_length is not None and len(sample.ids) > max_length:
            if not truncate:
                raise DataError(
                    f"record {number} has {len(sample.ids)} tokens, the longest allowed are {max_length}; pass "
                    "truncate=True to cut such texts, or leave them out"
                )
            sample = Sample(sample.ids[:max_length], min(sample.answer_start, max_length), (), None)
            cut += 1
        found.append(sample)
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
    found: list[list[int]] = []
    for i in sorted(wanted, key=lambda i: len(samples[i].ids)):
        fits = found and len(found[-1]) < batch_size and len(samples[i].ids) * (len(found[-1]) + 1) <= batch_tokens
        if fits:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over the tokens of samples and where their answers begin."""
    return hash_json([[list(sample.ids), sample.answer_start] for sample in samples])


def _check_template(template: str) -> None:
    if template.count("{answer}") != 1 or not template.endswith("{answer}") or "{question}" not in template:
        raise DataError(f"the template {template!r} must hold {{question}} and end with {{answer}}")


def _sample(record: Any, number: int, tokenizer: Any, template: str) -> Sample:
    ids: Any = record.get("input_ids") if isinstance(record, Mapping) else record
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if isinstance(ids, Sequence) and not isinstance(ids, str) and all(isinstance(i, int) for i in ids):
        start = record.get("answer_start", 0) if isinstance(record, Mapping) else 0
        return Sample(tuple(ids), int(start))
    text = _text(record, number, template)
    if tokenizer is None:
        raise DataError(f"record {number} is text; pass tokenizer=, or token ids")
    if not (text.prompt + text.answer).strip():
        return Sample(())
    choices = tuple(_encoded(tokenizer, text.prompt, choice) for choice in text.choices)
    whole = _encoded(tokenizer, text.prompt, text.answer)
    return Sample(whole.ids, whole.answer_start, choices, text.right)


def _encoded(tokenizer: Any, prompt: str, answer: str) -> Sample:
    """Tokens of both together; the answer begins where they part from those of the prompt alone."""
    ids = tokenizer(prompt + answer)["input_ids"]
    if not prompt:
        return Sample(tuple(ids))
    alone = tokenizer(prompt)["input_ids"]
    pairs = zip(ids, alone, strict=False)
    start = next((i for i, (one, two) in enumerate(pairs) if one != two), min(len(ids), len(alone)))
    return Sample(tuple(ids), start)


def _text(record: Any, number: int, template: str) -> _Text:
    if isinstance(record, str):
        return _Text("", record)
    if not isinstance(record, Mapping):
        raise DataError(f"record {number} is {type(record).__name__}; expected a text, token ids or an object")
    choices, right = _choices(record, number)
    prompt, answer = _parts(record, number, template, choices, right)
    return _Text(prompt, answer, tuple(f"{_gap(prompt)}{choice}" for choice in choices), right)


def _parts(
    record: Mapping[str, Any], number: int, template: str, choices: Sequence[str], right: int | None
) -> tuple[str, str]:
    if isinstance(record.get("text"), str):
        return "", record["text"]
    if isinstance(record.get("qa"), str):
        cut = record["qa"].rfind(_ANSWER)
        cut = 0 if cut < 0 else cut + len(_ANSWER)
        return record["qa"][:cut], record["qa"][cut:]
    if isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        return record["prompt"], record["completion"]
    question = record.get("question")
    answer = choices[right] if right is not None else record.get("answer", record.get("solution"))
    if isinstance(question, str) and isinstance(answer, str):
        prompt = template.removesuffix("{answer}").replace("{question}", question)
        return prompt.rstrip(" "), prompt[len(prompt.rstrip(" ")) :] + answer
    raise DataError(
        f"record {number} has the keys {sorted(map(str, record))}; expected text, qa, prompt and completion, question "
        "and answer, or input_ids"
    )


def _gap(prompt: str) -> str:
    # Tokenizers bind a space to the word behind it.
    return "" if not prompt or prompt[-1].isspace() else " "


def _choices(record: Mapping[str, Any], number: int) -> tuple[list[str], int | None]:
    choices = record.get("choices")
    if isinstance(choices, str):  # a list as a cell of a table
        try:
            choices = ast.literal_eval(choices)
        except (ValueError, SyntaxError) as error:
            raise DataError(f"record {number}: choices is text and no list: {choices[:60]!r}") from error
    if not choices:
        return [], None
    try:
        right = int(record["answer"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"record {number} has choices, but 'answer' is not the number of the right one") from error
    if not 0 <= right < len(choices):
        raise DataError(f"record {number}: answer {right} is not one of {len(choices)} choices")
    return [str(choice) for choice in choices], right
