"""Scoring a corpus in units, which the processes of a launch share without ever waiting for one another.

A process takes the units whose number modulo the number of processes is its own and leaves alone those that exist.
Killing it at any moment loses the unit it was at and the one read ahead; any number of processes may go on. Only those
that hold parts of one model wait for one another: a tensor-parallel group takes the units of one process.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from paperhooks import DataError
from paperhooks.compat import origin
from paperhooks.io import (
    Ranks,
    UnitStore,
    ahead,
    config_entries,
    differences,
    launched,
    model_digest,
    plain,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from paperhooks.models import in_step, ranks_of, tokenizer_digest, view_of
from torch import nn
from tqdm import tqdm

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.duplicates import stand_in
from paperhooks_miniplm.corpus.parts import Parts
from paperhooks_miniplm.corpus.record_rows import StreamRows
from paperhooks_miniplm.corpus.rows import RowSource, check_tokenizer
from paperhooks_miniplm.corpus.sources import open_rows
from paperhooks_miniplm.scoring.likelihood import LogLikelihood, OverLong, ScoringWarning
from paperhooks_miniplm.scoring.scores import (
    FILE,
    KIND,
    MOST_BAD,
    Columns,
    Scores,
    columns_of,
    merged,
    read_unit,
    stop_if_bad,
    unit_name,
)

__all__ = ["decisions", "end_token", "launched_here", "score"]

logger = logging.getLogger(__name__)

#: Of a stream at least so many rows are taken to come when the share of those without a score is judged.
_EXPECTED: Final = 10_000


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
    name: str = "",
    trained_on: Any = None,
    most_bad: float = MOST_BAD,
    progress: bool = True,
) -> Scores | None:
    """Score every row of a corpus with one model; returns the scores, or None while other processes have units to do.

    The processes of one launch on one machine (torchrun, accelerate, or RANK and WORLD_SIZE) share the units, by
    replicas of the model. There is no collective call unless the model is spread over them (FSDP2, tensor parallelism).

    :param model: a causal language model. :param rows: a :class:`~paperhooks_miniplm.RowSource`, or what
        :func:`~paperhooks_miniplm.open_rows` opens. A stream is scored by one process.
    :param out: the scoring folder; an unfinished one goes on, a finished one returns at once, one of another model,
        corpus or mask is refused with the entries that differ, and one that another run is using with its holder.
    :param tokenizer: tells the end token, and is recorded; the model's config otherwise. Refused where the corpus was
        packed with another one.
    :param end: the end token; "auto" asks tokenizer and config.
    :param mask_after_end: leave predictions from the end token out, as the official code does.
    :param unit_rows: rows a file.
    :param trained_on: what the model was trained on: a :class:`~paperhooks_miniplm.RowSource` or a path that one is
        opened from, of whose rows those that it scores are counted and warned of (:class:`ScoringWarning`; not in a
        stream), or plain data. Recorded: a reference must not score its own texts.
    :param most_bad: share of rows that may give NaN or infinity, also in float32, before the run stops; one always may.
    :raises DataError: data or a folder that cannot be used, or too many rows without a score.
    """
    if unit_rows < 1:
        raise DataError(f"unit_rows is {unit_rows}; at least 1 is needed")
    store, ranks = UnitStore(out, KIND), ranks_of(model)
    index, count = (ranks.replica, ranks.replicas) if ranks.in_step else launched_here()
    rows, trained_on = open_rows(rows, tokenizer), _opened(trained_on, tokenizer)
    stream = isinstance(rows, StreamRows)
    if stream and count > 1:
        raise DataError(f"{rows.name} can only be read in order, by one process; pack it, or start one process")
    check_tokenizer(rows, tokenizer)
    end = end_token(model, tokenizer, end) if mask_after_end else None
    likelihood = LogLikelihood(model, end, max_length, over_long, batch_tokens, chunk=chunk)
    decides = decisions(likelihood, None if stream else len(rows), unit_rows, tokenizer)
    about: dict[str, Any] = {"name": name or origin(likelihood.view.config), "parameters": _size(model)}
    about |= {"config": config_entries(model)}
    about |= {"trained_on": trained_on.fingerprint() if isinstance(trained_on, RowSource) else trained_on}
    costly = lambda: {"model": model_digest(model), "corpus": rows.fingerprint()}  # noqa: E731
    with store.begin(decides, costly=costly, about=about, together=ranks.in_step):
        _check_config(store, about["config"])
        if index == 0 and ranks.leader and isinstance(trained_on, RowSource):
            _warn_of_overlap(store.folder, rows, trained_on)
        found = _finished(store)
        if found is None:
            total = _shared(store, likelihood, rows, (index, count), most_bad, progress, ranks)
            found = merged(store, total)
            if found is not None and (ranks.first or not ranks.in_step):
                store.confirm()
                write_tensors(store.folder / FILE, found, {"run": store.run})
    if found is None:
        return None
    stop_if_bad(int(np.isnan(found["nll"]).sum()), len(found["nll"]), most_bad)
    if found["cut"].any():
        logger.warning("%d of %d rows were cut to %d tokens", found["cut"].sum(), len(found["cut"]), max_length)
    return Scores(**found, manifest=store.manifest)


def launched_here() -> tuple[int, int]:
    """This process' index in its launch and how many there are; raises DataError where several machines are in it."""
    try:
        return launched()
    except DataError as error:
        launched(one_machine=False)  # an environment that says what cannot be is another error
        raise DataError(
            f"{error}; for several machines write the corpus in parts (paperhooks miniplm parts) and let an engine "
            "share them (score --parts URL --on datatrove, or ray)"
        ) from error


def decisions(likelihood: LogLikelihood, rows: int | None, unit_rows: int, tokenizer: Any) -> dict[str, Any]:
    """What decides scores, beside the model's weights and the corpus, as plain data.

    :param rows: how many; None for a stream.
    """
    return {
        "dtype": str(likelihood.view.model.dtype),
        "attention": likelihood.view.attention_kernel,
        "rows": rows,
        "unit_rows": unit_rows,
        "tokenizer": tokenizer_digest(tokenizer),
        "end": likelihood.end,
        "max_length": likelihood.max_length,
        "over_long": likelihood.over_long,
    }


def _check_config(store: UnitStore, entries: Mapping[str, Any]) -> None:
    """Refuse to go on with equal weights under another config; one of another version may have entries of its own."""
    known = store.manifest["about"].get("config", {})  # folders of earlier versions have none
    shared = known.keys() & entries.keys()
    odd = differences(*({key: each[key] for key in sorted(shared)} for each in (known, plain(entries))))
    if odd:
        raise DataError(
            f"{store.folder} holds scores of the model under another config: {'; '.join(odd)}; use another folder, or "
            "the same config to go on with it"
        )


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _finished(store: UnitStore) -> Columns | None:
    """The scores of a finished run; None where it is not, or where they are damaged and put together again."""
    file = store.folder / FILE
    if not file.exists():
        return None
    try:
        header, tensors = read_tensors(file, "merged scores")
    except DataError as error:
        logger.warning("%s; it is made again from its units", error)
        return None
    return columns_of(tensors) if header.get("run") == store.run else None


def _shared(
    store: UnitStore, likelihood: LogLikelihood, rows: RowSource, part: tuple[int, int], most_bad: float,
    progress: bool, ranks: Ranks,
) -> int:  # fmt: skip
    """Score units; those who hold parts of one model begin with the same ones, and go in step to the end."""
    if not ranks.in_step:
        return _score_units(store, likelihood, rows, part, most_bad, progress)
    done = {name for name in store.names() if store.read(name) is not None}
    ranks.meet()  # all have read before one writes
    with in_step(likelihood.model):
        total = _score_units(store, likelihood, rows, part, most_bad, progress, done, ranks.leader)
    ranks.meet()
    return total


def _score_units(
    store: UnitStore, likelihood: LogLikelihood, rows: RowSource, part: tuple[int, int], most_bad: float,
    progress: bool, done_before: Collection[str] | None = None, writes: bool = True,
) -> int:  # fmt: skip
    """Make the units of this process that are missing; returns the rows of the corpus.

    :param done_before: names of the units that are not missing; by default those that are there when it is their turn.
    """
    size, total, bad, done = store.manifest["unit_rows"], store.manifest["rows"], 0, 0
    units = None if total is None else len(range(part[0], -(-total // size), part[1]))
    work = ahead(_open_units(store, rows, part, done_before))
    for number, found in tqdm(work, total=units, desc="score", unit="unit", disable=not progress):
        if isinstance(found, _Read):
            found = _unit(likelihood, found, number * size)
            if writes:
                store.write(unit_name(number), found)
        bad, done = bad + int(np.isnan(found["nll"]).sum()), done + len(found["nll"])
        stop_if_bad(bad, max(done, _EXPECTED) if total is None else total, most_bad)
    return done if total is None else total


class _Read(NamedTuple):
    """What scoring needs of some rows: the ids of each, and bytes of their texts, int64 [n], -1 where unknown."""

    ids: list[Array]
    n_bytes: Array


def _open_units(
    store: UnitStore, rows: RowSource, part: tuple[int, int], done: Collection[str] | None
) -> Iterator[tuple[int, Columns | _Read]]:
    """Number of each unit of this process with its columns where it is there, or else with its rows."""
    size, total = store.manifest["unit_rows"], store.manifest["rows"]
    numbers = itertools.count() if total is None else range(part[0], -(-total // size), part[1])
    for number in numbers:
        known = read_unit(store, number) if done is None or unit_name(number) in done else None
        found = _read(rows, number, size) if known is None else known
        there = len(found.ids if isinstance(found, _Read) else found["nll"])
        if there:
            yield number, found
        if total is None and there < size:  # a stream ends here
            return


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


def _opened(trained_on: Any, tokenizer: Any) -> Any:
    """Rows, where these are named; a text that names nothing is plain data."""
    named = isinstance(trained_on, Path) or (
        isinstance(trained_on, str) and (trained_on.startswith("hub:") or Path(trained_on).exists())
    )
    return open_rows(trained_on, tokenizer) if named else trained_on


def _read(rows: RowSource, number: int, size: int) -> _Read:
    """The unit of this number, of ``size`` rows."""
    if isinstance(rows, Parts) and rows.unit_rows == size:  # as it lies there: no copy, and no object a row
        unit = rows.unit(number)
        return _Read(unit.ids.rows, unit.n_bytes)
    first, stop = number * size, (number + 1) * size
    if isinstance(rows, StreamRows):
        found = list(rows.iterate(first, stop))
    else:
        found = rows.read(list(range(first, min(len(rows), stop))))
    n_bytes = [-1 if row.n_bytes is None else row.n_bytes for row in found]
    return _Read([row.ids for row in found], np.array(n_bytes, dtype=np.int64))


def _unit(likelihood: LogLikelihood, read: _Read, first: int) -> Columns:
    found = likelihood.score(read.ids, first=first)
    return {"nll": found.nll, "count": found.count, "n_bytes": read.n_bytes, "cut": found.cut}


def _warn_of_overlap(folder: Path, rows: RowSource, trained_on: RowSource) -> None:
    """Count once which rows the model was trained on, and warn every time."""
    if isinstance(rows, StreamRows):
        return
    file, known = folder / "overlap.json", trained_on.fingerprint()
    try:
        found = read_json(file)
    except DataError:  # not there yet, or not whole
        found = {}
    if not isinstance(found, dict) or found.get("trained_on") != plain(known):
        found = {"trained_on": plain(known), "rows": int(stand_in(rows, trained_on).sum())}
        write_json(file, found)
    if found["rows"]:
        warnings.warn(
            f"{found['rows']} rows of {rows.name} stand in {trained_on.name}, which the model was trained on: it finds "
            "them likelier than unseen ones; leave them out with select(drop=duplicates_of(rows, known=...))",
            ScoringWarning, stacklevel=3,
        )  # fmt: skip
