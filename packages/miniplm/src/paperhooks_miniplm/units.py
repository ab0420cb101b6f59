"""Scoring a corpus in units that several workers share without ever waiting for one another.

A scoring folder holds ``manifest.json`` (what determines the scores), ``units/unit-000000.safetensors`` (sums and
counts of some consecutive rows, written under another name and renamed) and, when all units are there,
``scores.safetensors``. A worker takes the units whose number modulo the number of workers is its own and leaves alone
those that exist. Killing it at any moment loses one unit at most; any number of workers may go on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from paperhooks import DataError
from paperhooks.hidden import view_of
from paperhooks.provenance import atomic_path, hash_json, model_digest, now, plain, versions, write_json
from paperhooks.ranks import Ranks
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import nn
from tqdm import tqdm

from paperhooks_miniplm.arrays import read_arrays
from paperhooks_miniplm.duplicates import duplicates_of
from paperhooks_miniplm.manifests import differing_field, read_manifest
from paperhooks_miniplm.record_rows import StreamRows
from paperhooks_miniplm.rows import Row, RowSource
from paperhooks_miniplm.scoring import LogLikelihood, OverLong, ScoringWarning

__all__ = ["NORMALIZATIONS", "Normalize", "Scores", "end_token", "merge", "score", "workers"]

#: Mean per counted token (the official code), sum over a row, or mean per byte of text.
Normalize: TypeAlias = Literal["mean", "sum", "per_byte"]
NORMALIZATIONS: Final[tuple[Normalize, ...]] = ("mean", "sum", "per_byte")

_SCHEMA: Final = 1
_COLUMNS: Final = {"nll": np.float64, "count": np.int64, "n_bytes": np.int64}
#: More rows than this share that are NaN or infinite mean that something is wrong.
_MOST_BAD: Final = 0.001
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
    """

    nll: np.ndarray[Any, Any]
    count: np.ndarray[Any, Any]
    n_bytes: np.ndarray[Any, Any]
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def usable(self) -> np.ndarray[Any, Any]:
        """Rows with something to predict and a finite score, bool [N]."""
        return np.isfinite(self.nll) & (self.count > 0)

    def values(self, normalize: Normalize = "mean") -> np.ndarray[Any, Any]:
        """Negative log-likelihood of each row, float64 [N]; NaN for rows that are not usable.

        Raises DataError for an unknown word, and for "per_byte" where byte counts are missing.
        """
        if normalize not in NORMALIZATIONS:
            raise DataError(f"normalize is {normalize!r}; expected one of {', '.join(NORMALIZATIONS)}")
        if normalize == "per_byte" and bool((self.n_bytes[self.usable] < 1).any()):
            row = int(np.flatnonzero(self.usable & (self.n_bytes < 1))[0])
            raise DataError(f"row {row} has no byte count; score text, or a corpus packed with byte counts")
        found = np.full(len(self), np.nan)
        below = {"mean": self.count, "sum": np.ones(len(self)), "per_byte": self.n_bytes}[normalize]
        found[self.usable] = self.nll[self.usable] / below[self.usable]
        return found

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """The merged scores of a scoring folder; raises DataError where there are none."""
        folder = Path(path)
        manifest = read_manifest(folder)
        tensors = _read(folder / "scores.safetensors", manifest["run"])
        if tensors is None:
            raise DataError(f"{folder} has no merged scores; score the corpus to its end, or merge its units")
        return cls(tensors["nll"], tensors["count"], tensors["n_bytes"], manifest)


def score(
    model: nn.Module,
    rows: RowSource,
    out: str | Path,
    *,
    tokenizer: Any = None,
    end: int | Literal["auto"] | None = "auto",
    max_length: int = 1024,
    over_long: OverLong = "truncate",
    mask_after_end: bool = True,
    batch_tokens: int | None = None,
    chunk: int = 512,
    unit_rows: int = 8192,
    worker: tuple[int, int] | None = None,
    name: str = "",
    trained_on: Any = None,
    progress: bool = True,
) -> Scores | None:
    """Score every row of a corpus with one model; returns the scores, or None while other workers have units to do.

    :param model: a causal language model. :param rows: see :func:`paperhooks_miniplm.open_rows`. Of a stream, which is
        known by its name only, each worker reads over the units of the others.
    :param out: the scoring folder; an unfinished one goes on, a finished one returns at once, one of another model,
        corpus or mask is refused with the field that differs.
    :param tokenizer: tells the end token, and is recorded; the model's config otherwise.
    :param end: the end token; "auto" asks tokenizer and config.
    :param mask_after_end: leave predictions from the end token out, as the official code does.
    :param unit_rows: rows a file. :param worker: (index, count); by default those of torch.distributed, or of the
        environment that torchrun and accelerate set. There is no collective call.
    :param trained_on: what the model was trained on: rows, of which those that it scores are counted and warned of
        (:class:`ScoringWarning`), or plain data. Recorded: a reference must not score its own texts.
    :raises DataError: data or a folder that cannot be used; more than 0.1 % of the rows NaN or infinite.
    """
    folder, (index, count) = Path(out), worker or workers()
    likelihood = LogLikelihood(
        model,
        end_token(model, tokenizer, end) if mask_after_end else None,
        max_length,
        over_long,
        batch_tokens,
        chunk=chunk,
    )
    manifest = _manifest(likelihood, rows, tokenizer, unit_rows, name, trained_on)
    if _begin(folder, manifest) and index == 0:
        _warn_of_overlap(rows, trained_on)
    bad = done = 0
    total = manifest["rows"]
    numbers: Iterable[int] = (
        itertools.count(index, count) if total is None else range(index, -(-total // unit_rows), count)
    )
    for number in tqdm(numbers, desc=name or "score", unit="unit", disable=not progress):
        file = folder / "units" / f"unit-{number:06d}.safetensors"
        found = _read(file, manifest["run"])
        if found is None:
            read = _rows_of(rows, number * unit_rows, (number + 1) * unit_rows)
            found = _unit(likelihood, read, number * unit_rows)
            if read:
                _write(file, found, manifest["run"])
        bad, done = bad + int(np.isnan(found["nll"]).sum()), done + len(found["nll"])
        _stop_if_bad(bad, done)
        if total is None and len(found["nll"]) < unit_rows:  # a stream ends here, or before
            _note_end(folder, rows, number * unit_rows + len(found["nll"]))
            break
    return merge(folder, missing_ok=True)


def workers() -> tuple[int, int]:
    """This worker's index and their number: of torch.distributed, else of RANK and WORLD_SIZE, else 0, 1."""
    ranks = Ranks()
    if ranks.count > 1:
        return ranks.index, ranks.count
    index, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return (index, count) if 0 <= index < count else (0, 1)


def merge(out: str | Path, *, missing_ok: bool = False) -> Scores | None:
    """Put the units of a folder together; the order in which they were made does not matter.

    Returns None where units are missing and ``missing_ok``. Raises DataError naming a missing or damaged unit.
    """
    folder = Path(out)
    manifest = read_manifest(folder)
    file, total = folder / "scores.safetensors", _total(folder, manifest)
    if total is None:
        if missing_ok:
            return None
        raise DataError(f"the stream of {folder} was not read to its end; score goes on with it")
    found = _read(file, manifest["run"])
    if found is None:
        found = _joined(folder, manifest, total, missing_ok)
        if found is None:
            return None
        _write(file, found, manifest["run"])
    scores = Scores(found["nll"], found["count"], found["n_bytes"], manifest)
    _stop_if_bad(int(np.isnan(scores.nll).sum()), len(scores))
    return scores


def _joined(
    folder: Path, manifest: Mapping[str, Any], total: int, missing_ok: bool
) -> dict[str, np.ndarray[Any, Any]] | None:
    size = manifest["unit_rows"]
    found: dict[str, np.ndarray[Any, Any]] = {name: np.zeros(total, dtype) for name, dtype in _COLUMNS.items()}
    for number in range(-(-total // size)):
        rows = slice(number * size, min((number + 1) * size, total))
        part = _read(folder / "units" / f"unit-{number:06d}.safetensors", manifest["run"])
        if part is None or len(part["nll"]) != rows.stop - rows.start:
            if missing_ok:
                return None
            raise DataError(f"unit {number} of {-(-total // size)} is missing in {folder}; score goes on with it")
        for name, column in found.items():
            column[rows] = part[name]
    return found


def _rows_of(rows: RowSource, start: int, stop: int) -> list[Row]:
    if isinstance(rows, StreamRows):
        return list(rows.iterate(start, stop))
    return rows.read(list(range(start, min(len(rows), stop))))


def _note_end(folder: Path, rows: RowSource, reached: int) -> None:
    """Keep how many rows a stream has: what a reader that came to its end knows, or where a short unit stopped."""
    # It has no length where the last unit was scored in an earlier run, and nothing was read now.
    with contextlib.suppress(TypeError):
        reached = len(rows)
    write_json(folder / "end.json", {"rows": reached})


def _total(folder: Path, manifest: Mapping[str, Any]) -> int | None:
    if manifest["rows"] is not None:
        return int(manifest["rows"])
    file = folder / "end.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["rows"]) if file.exists() else None


def _unit(likelihood: LogLikelihood, read: Sequence[Row], first: int) -> dict[str, np.ndarray[Any, Any]]:
    found = likelihood.score([row.ids for row in read], first=first)
    n_bytes = np.array([-1 if row.n_bytes is None else row.n_bytes for row in read], dtype=np.int64)
    return {"nll": found.nll, "count": found.count, "n_bytes": n_bytes, "cut": np.array([found.cut])}


def _manifest(
    likelihood: LogLikelihood, rows: RowSource, tokenizer: Any, unit_rows: int, name: str, trained_on: Any
) -> dict[str, Any]:
    if unit_rows < 1:
        raise DataError(f"unit_rows is {unit_rows}; at least 1 is needed")
    model: Any = likelihood.view.model
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    decides = {
        "schema": _SCHEMA,
        "model": model_digest(model),
        "dtype": str(model.dtype),
        "attention": likelihood.view.attention_kernel,
        "corpus": rows.fingerprint(),
        "rows": None if isinstance(rows, StreamRows) else len(rows),
        "unit_rows": unit_rows,
        "tokenizer": hash_json(vocabulary) if vocabulary else None,
        "end": likelihood.end,
        "max_length": likelihood.max_length,
        "over_long": likelihood.over_long,
    }
    run = hash_json(decides)
    about = {"name": name or str(getattr(model.config, "_name_or_path", "")), "parameters": model.num_parameters()}
    about |= {
        "trained_on": trained_on.fingerprint() if isinstance(trained_on, RowSource) else trained_on,
        "started": now(),
        "versions": versions(),
    }
    found: dict[str, Any] = plain({**decides, "run": run, "about": about})
    return found


def _warn_of_overlap(rows: RowSource, trained_on: Any) -> None:
    if not isinstance(trained_on, RowSource) or isinstance(rows, StreamRows):
        return
    own = duplicates_of(rows)
    shared = int((duplicates_of(rows, known=trained_on) & ~own).sum())
    if shared:
        warnings.warn(
            f"{shared} rows of {rows.name} stand in {trained_on.name}, which the model was trained on: it finds them "
            "likelier than unseen ones; leave them out with select(drop=duplicates_of(rows, known=...))",
            ScoringWarning, stacklevel=3,
        )  # fmt: skip


def _begin(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Write the manifest, or check the one that is there; returns whether the run is new."""
    file = folder / "manifest.json"
    new = not file.exists()
    if new:
        write_json(file, manifest)  # the same from every worker, and renamed into place
    there = read_manifest(folder)
    odd = differing_field(there, manifest)
    if odd:
        raise DataError(
            f"{folder} holds scores with {odd} = {there.get(odd)!r}, not {manifest.get(odd)!r}; use another folder, or "
            "the same settings to go on"
        )
    return new


def end_token(model: nn.Module, tokenizer: Any, end: int | Literal["auto"] | None = "auto") -> int | None:
    """The end token as given, or with "auto" that of the tokenizer, else of the model's config.

    Raises DataError where neither names one.
    """
    if end != "auto":
        return end
    for source in (tokenizer, view_of(model).text_config):
        token = getattr(source, "eos_token_id", None)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int):
            return token
    raise DataError("neither tokenizer nor config name an end token; pass end=, or end=None to predict from all tokens")


def _stop_if_bad(bad: int, done: int) -> None:
    if bad > max(1.0, _MOST_BAD * done):
        raise DataError(
            f"{bad} of {done} rows gave NaN or infinity, more than {_MOST_BAD:.1%}: load the model in bfloat16 or "
            "float32, or look at those rows"
        )


def _read(file: Path, run: str) -> dict[str, np.ndarray[Any, Any]] | None:
    """Arrays of a file of this run; None where there is no such file, or one that was cut or is of another run."""
    if not file.exists():
        return None
    try:
        header, arrays = read_arrays(file)
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s) and is computed again", file, error)
        return None
    if header.get("run") == run:
        return arrays
    logger.warning("%s does not belong to this run and is computed again", file)
    return None


def _write(file: Path, arrays: Mapping[str, np.ndarray[Any, Any]], run: str) -> None:
    with atomic_path(file) as temporary:
        save_file({name: np.ascontiguousarray(each) for name, each in arrays.items()}, temporary, {"run": run})
