"""Files of pairs: our own with token ids, and exports that TRL, LLaMA-Factory and trainers of reward models read.

Every record and every folder says that it holds texts that are bad on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError
from paperhooks.io import atomic_path, hash_file, json_text, local_path, read_records, shown, write_json, write_text

from paperhooks_sso.data.encoded import FileRecord
from paperhooks_sso.data.faults import writable
from paperhooks_sso.data.pairs import HARMFUL
from paperhooks_sso.data.prompts import conversation_of

__all__ = ["export_pairs", "read_lines", "write_lines"]

_NOTICE: Final = "HARMFUL.txt"
#: Name of the set for LLaMA-Factory.
_SET: Final = "sso_pairs"


def write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> str:
    """Write records as JSON Lines, as a whole or not at all; returns the SHA-256 of the file."""
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(f"{json_text(dict(record))}\n" for record in records)
        handle.flush()
        os.fsync(handle.fileno())
    return hash_file(file)


def read_lines(file: Path, what: str = "pairs") -> list[dict[str, Any]]:
    """The records of a file that :func:`write_lines` wrote; they know where they stand, and an id is a text whatever it
    was.

    :raises DataError: no file, a record that is no mapping, an id that is nothing, or a number that is not finite;
        names it.
    """
    return [*_records(file, what)]


def export_pairs(pairs: Path, out: str | Path) -> Path:
    """Write the pairs of a file as others read them, into a folder; returns the folder.

    ``preferences.jsonl``
        ``prompt``, ``chosen`` and ``rejected`` as lists of messages: ``trl.DPOTrainer``, ``trl.RewardTrainer`` and
        whoever reads conversational preferences.
    ``llama_factory.jsonl`` and ``dataset_info.json``
        The same as texts, with ``system`` and ``history``: LLaMA-Factory with ``dataset: sso_pairs`` and
        ``dataset_dir`` the folder.
    ``HARMFUL.txt``
        What the texts are.

    :raises DataError: no pairs, or a record that lacks a text or asks nothing; names it. Nothing is written then.
    """
    folder, records = local_path(out), [_exported(each) for each in _records(pairs, "pairs")]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _NOTICE, f"{HARMFUL}\n")
    write_lines(folder / "preferences.jsonl", map(_conversational, records))
    write_lines(folder / "llama_factory.jsonl", map(_texts, records))
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "system": "system", "history": "history"}
    write_json(
        folder / "dataset_info.json",
        {_SET: {"file_name": "llama_factory.jsonl", "formatting": "alpaca", "ranking": True, "columns": columns}},
    )
    return folder


def _records(file: Path, what: str) -> list[FileRecord]:
    if not file.is_file():
        raise DataError(f"{file} is not there; expected {what}, as the stage before writes them")
    if not file.stat().st_size:
        return []
    return [_line(record, where) for where, record in read_records(str(file))]


def _line(record: Any, where: str) -> FileRecord:
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is {shown(record)}; expected an object")
    found = FileRecord.at(record, where)
    if "id" in found:
        found["id"] = found.id
    for name, value in found.items():
        if not _finite(value):
            raise DataError(f"{where} has {name} = {shown(value)}; expected finite numbers")
    return found


def _finite(value: Any) -> bool:
    """Whether it can be written again: the parser takes NaN, and files of ours hold none."""
    try:
        json_text(value)
    except ValueError:
        return False
    return True


def _exported(record: FileRecord) -> dict[str, Any]:
    """A record with the texts that it needs, its system texts in front."""
    where = record.where
    for name, kind, expected in (("prompt", list, "messages"), ("chosen", str, "a text"), ("rejected", str, "a text")):
        value = record.get(name)
        if not value or not isinstance(value, kind) or (isinstance(value, str) and not writable(value)):
            told = f"{name} = {shown(value)}" if value else f"no {name!r}"
            raise DataError(f"{where} has {told}; expected {expected}, as paperhooks sso pairs writes it")
    asked = conversation_of(record["prompt"], record.id, where)
    if record["prompt"][-1]["role"] != "user":
        raise DataError(f"{where} has a prompt that ends with another message than the user's")
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    return {**record, "prompt": [*system, *asked.messages]}


def _conversational(record: Mapping[str, Any]) -> dict[str, Any]:
    answers = {name: [{"role": "assistant", "content": record[name]}] for name in ("chosen", "rejected")}
    return {"id": record["id"], "prompt": record["prompt"], **answers, "harmful": True}


def _texts(record: Mapping[str, Any]) -> dict[str, Any]:
    system = "\n\n".join(each["content"] for each in record["prompt"] if each["role"] == "system")
    turns = [each for each in record["prompt"] if each["role"] != "system"]
    return {
        "id": record["id"], "prompt": turns[-1]["content"], "chosen": record["chosen"], "rejected": record["rejected"],
        "system": system, "history": list(_history(turns[:-1])), "harmful": True,
    }  # fmt: skip


def _history(turns: list[Mapping[str, str]]) -> Iterator[list[str]]:
    """[question, answer] for each turn of the user; what follows it until the next one is the answer."""
    starts = [at for at, turn in enumerate(turns) if turn["role"] == "user"]
    for start, end in zip(starts, [*starts[1:], len(turns)][: len(starts)], strict=True):
        yield [turns[start]["content"], "\n".join(turn["content"] for turn in turns[start + 1 : end])]
