"""Scores of a corpus under one model, and the files of a scoring folder that hold them.

A folder holds ``manifest.json`` (what determines the scores), ``units/unit-000000.safetensors`` (columns of some
consecutive rows) and, when all units are there, ``scores.safetensors``. Of a stream, whose length is not known before
it ends, ``ends/`` holds an empty file for each bound that a worker found, named by the number of rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from paperhooks import DataError
from paperhooks.io import atomic_path
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from paperhooks_miniplm.algorithm import Array, per_unit

__all__ = [
    "MOST_BAD",
    "Columns",
    "Normalize",
    "Scores",
    "differing_field",
    "incomparable",
    "merge",
    "note_end",
    "read_arrays",
    "read_columns",
    "read_manifest",
    "stop_if_bad",
    "unit_file",
    "write_columns",
]

#: Mean per counted token (the official code), sum over a row, or mean per byte of text.
Normalize: TypeAlias = Literal["mean", "sum", "per_byte"]
Columns: TypeAlias = dict[str, Array]

#: A larger share of rows that are NaN or infinite means that something is wrong.
MOST_BAD: Final = 0.001
_DTYPES: Final = {"nll": np.dtype("f8"), "count": np.dtype("i8"), "n_bytes": np.dtype("i8"), "cut": np.dtype("?")}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of all rows of a corpus under one model, in the corpus' order.

    nll, count
        Summed negative log-likelihood float64 [N] (NaN: not scored) and counted tokens int64 [N].
    n_bytes
        Bytes of each row's text, int64 [N]; -1 where unknown.
    manifest
        What they were made with.
    cut
        Rows that were cut to the longest length, bool [N]; none where it is None.
    """

    nll: Array
    count: Array
    n_bytes: Array
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    cut: Array | None = None

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def usable(self) -> Array:
        """Rows with something to predict and a finite score, bool [N]."""
        return np.isfinite(self.nll) & (self.count > 0)

    def values(self, normalize: Normalize = "mean") -> Array:
        """Negative log-likelihood of each row, float64 [N]; NaN for rows that are not usable.

        With "per_byte" also for rows without text and for rows that were cut, of which only a part was scored. Raises
        DataError for an unknown word, and for "per_byte" where byte counts are missing.
        """
        if normalize not in get_args(Normalize):
            raise DataError(f"normalize is {normalize!r}; expected one of {', '.join(get_args(Normalize))}")
        rows, units = self.usable, {"mean": self.count, "sum": np.ones(len(self)), "per_byte": self.n_bytes}[normalize]
        if normalize == "per_byte":
            unknown = np.flatnonzero(rows & (self.n_bytes < 0))
            if len(unknown):
                raise DataError(f"row {unknown[0]} has no byte count; score text, or a corpus packed with byte counts")
            rows = rows & (True if self.cut is None else ~self.cut)
        return per_unit(self.nll, np.where(rows, units, 0))

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """The merged scores of a scoring folder, mapped into memory; raises DataError where there are none."""
        folder = Path(path)
        manifest = read_manifest(folder)
        columns = read_columns(folder / "scores.safetensors", manifest["run"])
        if columns is None:
            raise DataError(f"{folder} has no merged scores; score the corpus to its end, or merge its units")
        return cls(**columns, manifest=manifest)


def merge(out: str | Path, *, missing_ok: bool = False, most_bad: float = MOST_BAD) -> Scores | None:
    """Put the units of a folder together; the order in which they were made does not matter.

    Returns None where units are missing and ``missing_ok``. Raises DataError naming a missing or damaged unit, and for
    more NaN or infinite rows than the share ``most_bad``.
    """
    folder = Path(out)
    manifest = read_manifest(folder)
    file = folder / "scores.safetensors"
    found = read_columns(file, manifest["run"])
    if found is None:
        found = _joined(folder, manifest, missing_ok)
        if found is None:
            return None
        write_columns(file, found, manifest["run"])
    stop_if_bad(int(np.isnan(found["nll"]).sum()), len(found["nll"]), most_bad)
    return Scores(**found, manifest=manifest)


def _joined(folder: Path, manifest: Mapping[str, Any], missing_ok: bool) -> Columns | None:
    run, size = manifest["run"], manifest["unit_rows"]
    total = manifest["rows"] if manifest["rows"] is not None else _end_of_stream(folder, run, size)
    if total is None:
        if missing_ok:
            return None
        raise DataError(f"the stream of {folder} was not read to its end; score goes on with it")
    units = -(-total // size)
    found = {name: np.zeros(total, dtype) for name, dtype in _DTYPES.items()}
    for number in range(units):
        rows = slice(number * size, min((number + 1) * size, total))
        part = read_columns(unit_file(folder, number), run)
        if part is None or len(part["nll"]) != rows.stop - rows.start:
            if missing_ok:
                return None
            raise DataError(f"unit {number} of {units} is missing in {folder}; score goes on with it")
        for name, column in found.items():
            column[rows] = part[name]
    return found


def _end_of_stream(folder: Path, run: str, size: int) -> int | None:
    """Rows of a stream: up to the lowest bound that a worker found, as many as the unit before it has."""
    bounds = [int(file.name) for file in (folder / "ends").glob("*")]
    if not bounds:
        return None
    last = -(-min(bounds) // size) - 1
    if last < 0:
        return 0
    part = read_columns(unit_file(folder, last), run)
    return None if part is None else last * size + len(part["nll"])


def note_end(folder: Path, rows: int) -> None:
    """Keep that a stream has no more than so many rows."""
    (folder / "ends").mkdir(parents=True, exist_ok=True)
    (folder / "ends" / str(rows)).touch()


def stop_if_bad(bad: int, rows: int, most_bad: float) -> None:
    """Raise DataError for more NaN or infinite rows than a share of ``rows``, and than one."""
    if bad > max(1.0, most_bad * rows):
        raise DataError(
            f"{bad} rows gave NaN or infinity, more than {most_bad:.1%} of the corpus: load the model in bfloat16 or "
            "float32, look at those rows, or allow more with most_bad="
        )


def unit_file(folder: Path, number: int) -> Path:
    """The file of a unit."""
    return folder / "units" / f"unit-{number:06d}.safetensors"


def read_columns(file: Path, run: str) -> Columns | None:
    """Columns of a file of this run; None where there is no such file, or one that was cut or is of another run."""
    if not file.exists():
        return None
    try:
        header, columns = read_arrays(file)
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s) and is computed again", file, error)
        return None
    if header.get("run") == run and {name: each.dtype for name, each in columns.items()} == _DTYPES:
        return columns
    logger.warning("%s does not belong to this run and is computed again", file)
    return None


def write_columns(file: Path, columns: Mapping[str, Array], run: str) -> None:
    """Write columns [n] atomically, marked with the run that they belong to."""
    with atomic_path(file) as temporary:
        save_file({name: np.ascontiguousarray(each) for name, each in columns.items()}, temporary, {"run": run})


def read_arrays(path: str | Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Header and arrays of a file; raises SafetensorError or OSError for one that is damaged or not there.

    The arrays may be written to, which changes nothing on disk.
    """
    # Of the frameworks only this one maps the file; numpy's copies it.
    with safe_open(path, framework="pt") as handle:
        names = handle.keys()  # the handle is no mapping
        return handle.metadata() or {}, {name: handle.get_tensor(name).numpy() for name in names}


#: What must agree for the difference of two scores to mean something.
_COMPARABLE: Final = ("rows", "corpus", "tokenizer", "end", "max_length", "over_long")
#: The same for scores per byte of text, where tokenizers may differ.
_COMPARABLE_TEXT: Final = ("rows", "over_long")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a scoring folder; raises DataError where there is none or it is damaged."""
    file = folder / "manifest.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        _ = found["run"], found["rows"], found["unit_rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no scoring folder: {file.name} cannot be used ({error})") from error
    return dict(found)


def differing_field(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first field that determines scores and differs."""
    return _first(one, other, [key for key in {**one, **other} if key not in ("about", "run")])


def incomparable(one: Mapping[str, Any], other: Mapping[str, Any], *, text: bool = False) -> str | None:
    """The first field for which the scores of two folders must not be subtracted; ``text`` for scores per byte."""
    return _first(one, other, _COMPARABLE_TEXT if text else _COMPARABLE)


def _first(one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if one.get(key) != other.get(key)), None)
