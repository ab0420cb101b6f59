"""``corpus.json`` beside shards: what they were made from, by which tokenizer, and what their files were when made.

Folders of the official code have none, and are read without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError
from paperhooks.io import file_digest, hash_json, now, plain, read_json, versions, write_json

__all__ = ["CORPUS_FILE", "check_complete", "check_files", "file_digests", "read_corpus_file", "write_corpus_file"]

CORPUS_FILE: Final = "corpus.json"
_SCHEMA: Final = 1
_DIGEST: Final = "sha256"


def write_corpus_file(folder: Path, identity: Mapping[str, Any] | None, about: Mapping[str, Any]) -> None:
    """Write it into a folder with the files of a corpus.

    :param identity: what the corpus was made from; None where that cannot be known again.
    :param about: what is to be kept beside it.
    """
    files = file_digests(file for file in folder.iterdir() if file.suffix in (".bin", ".idx", ".safetensors"))
    found = {"schema": _SCHEMA, "identity": identity, "files": files, **about, "versions": versions(), "created": now()}
    stored = plain(found)
    write_json(folder / CORPUS_FILE, {**stored, _DIGEST: hash_json(stored)})


def read_corpus_file(folder: Path) -> dict[str, Any] | None:
    """Its content, or None where there is none. Raises DataError for one that is damaged or was changed."""
    file = folder / CORPUS_FILE
    if not file.exists():
        return None
    found = read_json(file, "the description of a corpus")
    if not isinstance(found, dict) or found.get("schema") != _SCHEMA or not isinstance(found.get("files"), dict):
        raise DataError(f"{file} describes no corpus of this version; move it away to read the shards without it")
    if found.pop(_DIGEST, None) != hash_json(found):
        raise DataError(f"{file} was changed after it was written; copy it again")
    return found


def file_digests(files: Iterable[Path]) -> dict[str, str]:
    """Hashes of the files of a corpus by their names; of a large one, but for an index, of pieces of it."""
    return {file.name: file_digest(file, whole=file.suffix == ".idx") for file in sorted(files)}


def check_files(folder: Path, known: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Raise DataError for a file, of those with the digests ``found``, that is not what ``known`` says of it."""
    for name, digest in found.items():
        if known["files"].get(name) != digest:
            what = "was changed or damaged after it was written" if name in known["files"] else "came after the others"
            raise DataError(f"{folder / name} {what}: {CORPUS_FILE} beside it says so; copy the corpus again")


def check_complete(folder: Path, known: Mapping[str, Any], first: int = 0, last: int | None = None) -> None:
    """Raise DataError for a file that ``known`` names and that is missing, of shards from ``first`` to before
    ``last``."""
    for name in known["files"]:
        number = int(name.split("_")[1].split(".")[0])
        if first <= number and (last is None or number < last) and not (folder / name).exists():
            raise DataError(f"{folder / name} is missing: {CORPUS_FILE} beside it names it; copy the corpus again")
