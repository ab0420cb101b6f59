"""Scoring a corpus in units that several workers share without ever waiting for one another.

A worker takes the units whose number modulo the number of workers is its own and leaves alone those that exist; what
the folder holds is described in :mod:`paperhooks_miniplm.scoring.scores`. Killing a worker at any moment loses one unit
at most; any number of workers may go on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from paperhooks import DataError
from paperhooks.compat import origin
from paperhooks.io import Ranks, hash_json, model_digest, now, plain, versions, write_json
from paperhooks.models import view_of
from torch import nn
from tqdm import tqdm

from paperhooks_miniplm.corpus.duplicates import stand_in
from paperhooks_miniplm.corpus.record_rows import StreamRows
from paperhooks_miniplm.corpus.rows import Row, RowSource
from paperhooks_miniplm.corpus.sources import open_rows
from paperhooks_miniplm.scoring.likelihood import LogLikelihood, OverLong, ScoringWarning
from paperhooks_miniplm.scoring.scores import (
    MOST_BAD,
    Columns,
    Scores,
    differing_field,
    merge,
    note_end,
    read_columns,
    read_manifest,
    stop_if_bad,
    unit_file,
    write_columns,
)

__all__ = ["end_token", "score", "workers"]

_SCHEMA: Final = 2
#: Of a stream at least so many rows are taken to come when the share of those without a score is judged.
_EXPECTED: Final = 10_000
#: Seconds after which a file that is half written belongs to a worker that was killed.
_STALE: Final = 3600


def score(
    model: nn.Module,
    rows: Any,
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
    most_bad: float = MOST_BAD,
    take_over: bool = False,
    progress: bool = True,
) -> Scores | None:
    """Score every row of a corpus with one model; returns the scores, or None while other workers have units to do.

    :param model: a causal language model. :param rows: a :class:`~paperhooks_miniplm.RowSource`, or what
        :func:`~paperhooks_miniplm.open_rows` opens. Of a stream each worker reads over the units of the others.
    :param out: the scoring folder; an unfinished one goes on, a finished one returns at once, one of another model,
        corpus or mask is refused with the field that differs.
    :param tokenizer: tells the end token, and is recorded; the model's config otherwise.
    :param end: the end token; "auto" asks tokenizer and config.
    :param mask_after_end: leave predictions from the end token out, as the official code does.
    :param unit_rows: rows a file. :param worker: (index, count); by default those of torch.distributed, or of the
        environment that torchrun and accelerate set. There is no collective call.
    :param trained_on: what the model was trained on: a :class:`~paperhooks_miniplm.RowSource` or a path that one is
        opened from, of whose rows those that it scores are counted and warned of (:class:`ScoringWarning`; not in a
        stream), or plain data. Recorded: a reference must not score its own texts.
    :param most_bad: share of rows that may give NaN or infinity, also in float32, before the run stops; one always may.
    :param take_over: when its own units are done, also do those of other workers that are not there yet, for workers
        that died; two may do the same one, which changes nothing. Not for streams.
    :raises DataError: data or a folder that cannot be used, or too many rows without a score.
    """
    folder, (index, count) = Path(out), _worker(worker)
    rows, trained_on = open_rows(rows, tokenizer), _opened(trained_on, tokenizer)
    end = end_token(model, tokenizer, end) if mask_after_end else None
    likelihood = LogLikelihood(model, end, max_length, over_long, batch_tokens, chunk=chunk)
    manifest = _manifest(likelihood, rows, tokenizer, unit_rows, name, trained_on)
    _begin(folder, manifest)
    if index == 0 and isinstance(trained_on, RowSource):
        _warn_of_overlap(folder, rows, trained_on)
    bad, done, total = 0, 0, manifest["rows"]
    own: Iterable[int] = itertools.count(index, count)
    left: Iterable[int] = ()
    if total is not None:
        units = -(-total // unit_rows)
        own, left = range(index, units, count), _left(folder, index, units) if take_over else ()
    for number in itertools.chain(tqdm(own, desc=name or "score", unit="unit", disable=not progress), left):
        file, first = unit_file(folder, number), number * unit_rows
        found = read_columns(file, manifest["run"])
        if found is None:
            read = _rows_of(rows, first, first + unit_rows)
            found = _unit(likelihood, read, first)
            if read:
                write_columns(file, found, manifest["run"])
        bad, done = bad + int(np.isnan(found["nll"]).sum()), done + len(found["nll"])
        stop_if_bad(bad, max(done, _EXPECTED) if total is None else total, most_bad)
        if total is None and len(found["nll"]) < unit_rows:  # a stream ends here, or before
            note_end(folder, first + len(found["nll"]))
            break
    return merge(folder, missing_ok=True, most_bad=most_bad)


def workers() -> tuple[int, int]:
    """This worker's index and their number: of torch.distributed, else of RANK and WORLD_SIZE, else 0, 1."""
    ranks = Ranks()
    if ranks.count > 1:
        return ranks.index, ranks.count
    index, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return index, count


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


def _left(folder: Path, index: int, units: int) -> Iterator[int]:
    """Units that are missing, in an order of this worker's own lest all that are done take the same one."""
    order = np.random.default_rng(index).permutation(units).tolist()
    return (number for number in order if not unit_file(folder, number).exists())


def _worker(given: tuple[int, int] | None) -> tuple[int, int]:
    index, count = given or workers()
    if not 0 <= index < count:
        raise DataError(f"worker is ({index}, {count}); expected (index, count) with 0 <= index < count")
    return index, count


def _opened(trained_on: Any, tokenizer: Any) -> Any:
    """Rows, where these are named; a text that names nothing is plain data."""
    named = isinstance(trained_on, Path) or (
        isinstance(trained_on, str) and (trained_on.startswith("hub:") or Path(trained_on).exists())
    )
    return open_rows(trained_on, tokenizer) if named else trained_on


def _rows_of(rows: RowSource, start: int, stop: int) -> list[Row]:
    if isinstance(rows, StreamRows):
        return list(rows.iterate(start, stop))
    return rows.read(list(range(start, min(len(rows), stop))))


def _unit(likelihood: LogLikelihood, read: list[Row], first: int) -> Columns:
    found = likelihood.score([row.ids for row in read], first=first)
    n_bytes = np.array([-1 if row.n_bytes is None else row.n_bytes for row in read], dtype=np.int64)
    return {"nll": found.nll, "count": found.count, "n_bytes": n_bytes, "cut": found.cut}


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
    about = {"name": name or origin(model.config), "parameters": model.num_parameters()}
    about |= {"trained_on": trained_on.fingerprint() if isinstance(trained_on, RowSource) else trained_on}
    about |= {"started": now(), "versions": versions()}
    found: dict[str, Any] = plain({**decides, "run": run, "about": about})
    return found


def _begin(folder: Path, manifest: Mapping[str, Any]) -> None:
    file = folder / "manifest.json"
    if not file.exists():
        write_json(file, manifest)  # the same from every worker, and renamed into place
    for left in (folder / "units").glob(".unit-*.part"):
        with contextlib.suppress(OSError):  # another worker may be at it too
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
    there = read_manifest(folder)
    odd = differing_field(there, manifest)
    if odd:
        raise DataError(
            f"{folder} holds scores with {odd} = {there.get(odd)!r}, not {manifest.get(odd)!r}; use another folder, or "
            "the same settings to go on"
        )


def _warn_of_overlap(folder: Path, rows: RowSource, trained_on: RowSource) -> None:
    """Count once which rows the model was trained on, and warn every time."""
    if isinstance(rows, StreamRows):
        return
    file, known = folder / "overlap.json", trained_on.fingerprint()
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if found.get("trained_on") != plain(known):
        found = {"trained_on": plain(known), "rows": int(stand_in(rows, trained_on).sum())}
        write_json(file, found)
    if found["rows"]:
        warnings.warn(
            f"{found['rows']} rows of {rows.name} stand in {trained_on.name}, which the model was trained on: it finds "
            "them likelier than unseen ones; leave them out with select(drop=duplicates_of(rows, known=...))",
            ScoringWarning, stacklevel=3,
        )  # fmt: skip
