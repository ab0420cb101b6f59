"""Reference values computed once for a dataset, and stored beside it in a file that survives a kill at any moment.

A line of the file holds the sums of one example, by its id, with digests of the model, the texts and the template that
they were computed from: values of another model, or of other texts, are refused and never used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from torch import nn
from tqdm import tqdm

from paperhooks.errors import DataError
from paperhooks.io.append_log import AppendLog
from paperhooks.io.files import local_path
from paperhooks.io.hashing import hash_json, model_digest
from paperhooks.io.options import whole
from paperhooks.io.processes import Ranks
from paperhooks.logprobs.likelihood import LogLikelihood
from paperhooks.models.rounds import ranks_of

__all__ = ["reference_columns"]

#: Ids of a sequence and its labels: the same id where a token is a target, -100 where it is none.
Row: TypeAlias = tuple[Sequence[int], Sequence[int]]

_KEYS: Final = ("id", "sums", "model", "texts", "template")
_IGNORED: Final = -100


def reference_columns(
    model: nn.Module | str,
    examples: Mapping[str, Sequence[Row]],
    out: str | Path,
    *,
    template: str = "",
    unit: int = 64,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Summed log-probabilities of every sequence of every example under ``model``: id to float64 values, in order.

    What the file ``out`` holds already is not computed again; what is new is added, ``unit`` examples at a time. The
    values become a column of the dataset, which :meth:`Reference.from_column` reads from the batch.

    :param model: the reference, in its own dtype and on its own device; or its digest
        (:func:`paperhooks.io.model_digest`), to read a file that is complete. With adapters still to come, compute
        before they are put into the model.
    :param examples: id to its sequences, each of ids and labels, int [T]; the first token is never a target.
    :param template: what else decides the texts, such as a chat template; another one is refused.
    :param batch_tokens: see :class:`LogLikelihood`.
    :raises DataError: a file of another model, template or texts, which it names; labels that are neither the id nor
        -100; a sequence that the model cannot read, or scores as NaN; values that are missing, with a digest.

    With several processes all have to call it: the first computes and writes, the others read.
    """
    unit = whole("unit", unit, at_least=1)
    digest = model if isinstance(model, str) else model_digest(model)
    stored = _Stored(local_path(out), {"model": digest, "template": hash_json(template)}, examples)
    missing = stored.missing()
    if isinstance(model, str):
        if missing:
            raise DataError(
                f"{stored.file} has no reference values of {len(missing)} examples, such as {missing[0]!r}; give the "
                "model to compute them"
            )
        return stored.values()
    ranks, error = Ranks(), None
    ranks.meet()  # all have read before one writes
    try:
        if missing and (ranks.first or ranks_of(model).in_step):
            _compute(_scorer(model, stored, batch_tokens), stored, missing, unit, progress, write=ranks.first)
    except Exception as raised:
        error = raised
    ranks.meet(error)
    return stored.values()


def _scorer(model: nn.Module, stored: _Stored, batch_tokens: int | None) -> LogLikelihood:
    longest = max(len(ids) for rows in stored.examples.values() for ids, _ in rows)
    return LogLikelihood(model, max_length=max(1, longest - 1), over_long="error", batch_tokens=batch_tokens)


def _compute(
    scorer: LogLikelihood, stored: _Stored, missing: Sequence[str], unit: int, progress: bool, write: bool
) -> None:
    with tqdm(total=len(missing), unit="examples", disable=not progress) as bar, closing(stored.log):
        for start in range(0, len(missing), unit):
            keys = missing[start : start + unit]
            sums = _sums(scorer, keys, stored.examples)
            if write:
                stored.add(sums)
            bar.update(len(keys))


def _sums(scorer: LogLikelihood, keys: Sequence[str], examples: Mapping[str, Sequence[Row]]) -> dict[str, list[float]]:
    """Values of some examples, which are scored together."""
    owners = [key for key in keys for _ in examples[key]]
    rows = [np.asarray(ids, dtype=np.int64) for key in keys for ids, _ in examples[key]]
    counted = [np.asarray(labels) != _IGNORED for key in keys for _, labels in examples[key]]
    found: dict[str, list[float]] = {key: [] for key in keys}
    for key, nll in zip(owners, scorer.score(rows, counted=counted).nll.tolist(), strict=True):
        if math.isnan(nll):
            raise DataError(
                f"example {key!r} has a sequence whose log-probability is NaN; leave it out, or use float32"
            )
        found[key].append(0.0 - nll)
    return found


class _Stored:
    """The file, and what of it belongs to these examples."""

    def __init__(self, file: Path, made_of: Mapping[str, str], examples: Mapping[str, Sequence[Row]]) -> None:
        self.file, self.made_of, self.examples = file, made_of, examples
        self.texts = {key: _texts(key, rows) for key, rows in examples.items()}
        self.log = AppendLog(file, _KEYS)

    def values(self) -> dict[str, list[float]]:
        """Of all examples, in their order."""
        found = self._read()
        return {key: found[key] for key in self.examples}

    def missing(self) -> list[str]:
        """Ids without values, in their order."""
        found = self._read()
        return [key for key in self.examples if key not in found]

    def add(self, sums: Mapping[str, list[float]]) -> None:
        """Write values down, for good."""
        self.log.append({"id": k, "sums": each, "texts": self.texts[k], **self.made_of} for k, each in sums.items())

    def _read(self) -> dict[str, list[float]]:
        rows = self.log.read()
        for row in rows:
            self._check(row)
        return {row["id"]: row["sums"] for row in rows}

    def _check(self, row: Mapping[str, Any]) -> None:
        """Raise DataError where a line was made of something else."""
        for what, wanted in self.made_of.items():
            if row[what] != wanted:
                raise DataError(
                    f"{self.file} holds reference values made with another {what} ({row[what][:12]}, and not "
                    f"{wanted[:12]}); use another file, or delete this one to have them computed again"
                )
        if row["texts"] != self.texts.get(row["id"], row["texts"]):
            raise DataError(
                f"{self.file} holds reference values of other ids or labels for example {row['id']!r}; give examples "
                "ids that say what they are, use another file, or delete this one"
            )


def _texts(key: str, rows: Sequence[Row]) -> str:
    """Digest of the ids and labels of an example."""
    if not isinstance(key, str) or not rows:
        raise DataError(f"example {key!r} has {len(rows)} sequences; expected a text as its id, and at least one")
    plain = [([int(i) for i in ids], [int(i) for i in labels]) for ids, labels in rows]
    for ids, labels in plain:
        if len(ids) != len(labels) or any(label not in (i, _IGNORED) for i, label in zip(ids, labels, strict=False)):
            raise DataError(f"example {key!r} has labels that are neither the ids at their places nor -100")
    return hash_json(plain)
