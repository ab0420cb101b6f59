"""A run over a corpus in parts: what any engine is given, and the one unit of work that it calls.

A unit is a row group of the corpus and becomes one file of scores, named by its number and the run. It is there whole
or not at all, and equal for whoever made it; so it does not matter how often, where, or in what order units are made.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.io import differences, hash_json, now, plain, versions

from paperhooks_miniplm.corpus.parquet_files import arrow, metadata, parquet
from paperhooks_miniplm.corpus.parts import Parts
from paperhooks_miniplm.corpus.storage import Storage
from paperhooks_miniplm.scoring.scores import MOST_BAD, RUN, Columns, stop_if_bad
from paperhooks_miniplm.scoring.spec import ScoringSpec, score_rows

__all__ = ["ScoringRun", "corpus_differences", "read_run", "unit_file"]

_KIND: Final = "scores in parts"
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """A run that has begun: plain data that can be pickled. Made by :meth:`begin`.

    spec, corpus, out
        What scores which parts, and the folder or address of the scores.
    run
        The hash of what decides them.
    rows, units
        How many there are.
    device
        Where workers load the model.
    most_bad
        Share of the rows that may give NaN or infinity.
    """

    spec: ScoringSpec
    corpus: str
    out: str
    run: str
    rows: int
    units: int
    device: str = "cpu"
    most_bad: float = MOST_BAD

    @classmethod
    def begin(
        cls, spec: ScoringSpec, corpus: str | Path | Parts, out: str | Path, *, device: str = "cpu", name: str = "",
        most_bad: float = MOST_BAD,
    ) -> ScoringRun:  # fmt: skip
        """Begin a run, or go on with the one in ``out``; here alone the whole model is digested.

        :param corpus: :class:`Parts`, or their address. :param name: such as "teacher". :param device: of the workers.
        :raises DataError: ``out`` holds another run, whose entries that differ are named.
        """
        parts = corpus if isinstance(corpus, Parts) else Parts(corpus)
        spec, storage = spec.settled(), Storage(out)
        identity = plain(spec.identity(parts))
        known, scorer = _found(storage), spec.open()
        if known is None:
            size = sum(each.numel() for each in scorer.likelihood.model.parameters())
            about = {"name": name or scorer.name, "parameters": size, "started": now(), "versions": versions()}
            head = {"schema": _SCHEMA, "kind": _KIND, "run": hash_json(identity), "identity": identity}
            known = {**head, "spec": asdict(spec), "corpus": parts.name, "loaded": scorer.loaded(), "about": about}
            storage.write_json(RUN, known)
        odd = differences(known["identity"], identity)
        if odd:
            raise DataError(
                f"{storage.address} holds scores of another run: {'; '.join(odd)}; use another folder, or the same "
                "settings to go on with it"
            )
        scorer.check(known["loaded"])  # of what is in no weight, as in the config
        return cls(spec, parts.name, storage.address, known["run"], len(parts), parts.units, device, most_bad)

    def missing(self) -> list[int]:
        """Numbers of the units that are not there; a store that lists late may name some that are."""
        there = set(Storage(self.out).names(".parquet"))
        return [number for number in range(self.units) if unit_file(number, self.run) not in there]

    def score(self, number: int) -> bool:
        """Score a unit, unless it is there; returns whether it had to be.

        :raises DataError: the part or one of its rows cannot be used, too many rows have no score, the model or the
            corpus is another one than where the run began, or ``out`` belongs to another run by now.
        """
        storage, name = Storage(self.out), unit_file(number, self.run)
        if storage.size(name) is not None and _whole(storage, name):
            return False
        known = _confirmed(self)
        scorer = self.spec.open(self.device)
        _check_model(scorer, self.run, json.dumps(known["loaded"]))
        unit = _corpus(self.corpus, json.dumps(known["identity"])).unit(number)
        try:
            found = score_rows(scorer, unit.ids, first=unit.first)
        except DataError as error:
            raise DataError(f"unit {number} of {self.corpus}: {error}") from error
        stop_if_bad(int(np.isnan(found["nll"]).sum()), self.rows, self.most_bad)
        content = _file(unit.first, {**found, "n_bytes": unit.n_bytes}, {"run": self.run, "unit": number})
        _confirmed(self)  # it may have taken a while
        with storage.staged(name) as file:
            file.write_bytes(content)
        return True


def read_run(storage: Storage) -> dict[str, Any]:
    """What a folder of scores says of its run. Raises DataError where there is none."""
    found = _found(storage)
    if found is None:
        raise DataError(f"{storage.where(RUN)} is not there; name the folder that scores were written to")
    return found


def corpus_differences(identity: Mapping[str, Any], corpus: Parts) -> list[str]:
    """In what a corpus differs from the one that a run is of, by what identifies the run."""
    known = plain({"corpus": corpus.fingerprint(), "rows": len(corpus), "unit_rows": corpus.unit_rows})
    return differences({name: identity[name] for name in known}, known)


def unit_file(number: int, run: str) -> str:
    """What the file of a unit is called."""
    return f"scores-{number:06d}-{run[:12]}.parquet"


def _found(storage: Storage) -> dict[str, Any] | None:
    found = storage.read_json(RUN, "run of scores")
    if found is not None and (found.get("kind") != _KIND or found.get("run") != hash_json(found.get("identity"))):
        raise DataError(f"{storage.where(RUN)} is no run of scores, or was changed; use another folder")
    return found


def _confirmed(run: ScoringRun) -> Mapping[str, Any]:
    """What the folder says of this run. Raises DataError where the folder is not this run's any more."""
    known = _found(Storage(run.out))
    if known is None or known["run"] != run.run:
        raise DataError(f"{run.out} belongs to another run by now, or is gone; this one stops without writing")
    return known


@lru_cache(maxsize=1)
def _corpus(address: str, identity: str) -> Parts:
    """Opened once a process and run; raises DataError for parts of another corpus than the run is of."""
    found = Parts(address)
    if odd := corpus_differences(json.loads(identity), found):
        raise DataError(
            f"{found.name} is another corpus here than where the run began: {'; '.join(odd)}; give every machine the "
            "same parts, or begin a run in another folder"
        )
    return found


@lru_cache(maxsize=1)
def _check_model(scorer: Any, run: str, loaded: str) -> None:
    """Once a process and run."""
    scorer.check(json.loads(loaded))


def _whole(storage: Storage, name: str) -> bool:
    """Whether a file of scores has its end; one that was cut is made again."""
    try:
        with storage.open(name) as handle:
            parquet().read_metadata(handle)
    except (OSError, ValueError):
        return False
    return True


def _file(first: int, columns: Columns, about: Mapping[str, Any]) -> bytes:
    """Scores of consecutive rows as Parquet; equal scores give equal bytes."""
    rows = {"row": np.arange(first, first + len(columns["nll"])), **columns}
    table = arrow().table(rows).replace_schema_metadata(metadata(about))
    buffer = io.BytesIO()
    parquet().write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
