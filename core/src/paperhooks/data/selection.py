"""Which rows are kept: the best part of a corpus by its scores, and the file that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from paperhooks.data.top_rows import Array, Blockwise, best, best_within, blocks, gumbel, ordered_keys
from paperhooks.errors import DataError
from paperhooks.io.files import plain, with_ending
from paperhooks.io.tensors import read_tensors, write_tensors

__all__ = ["Quota", "Selection", "choose"]

#: Of every domain the same share, or a ratio for each domain by name.
Quota: TypeAlias = Literal["domain"] | Mapping[str, float]

_KIND: Final = "selection"


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that are kept.

    rows
        int64 [K], ascending.
    total
        Rows of the corpus.
    cut
        The lowest score that is kept (NaN for none).
    about
        Plain data: how it was chosen, of which corpus (its fingerprint), and what was left out.
    scores
        Scores of the kept rows, float32 [K], or None where they are not known.
    file, index
        ``selected.jsonl`` and ``selection.safetensors``, where :func:`paperhooks.select` wrote them.
    """

    rows: Array
    total: int
    cut: float = math.nan
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    scores: Array | None = field(default=None, repr=False)
    file: Path | None = None
    index: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def bitmap(self) -> Array:
        """One bit a row, the first in the highest bit of the first byte: uint8 [ceil(N / 8)]."""
        return np.packbits(self.mask())

    def mask(self) -> Array:
        """Whether each row is kept, bool [N]."""
        kept = np.zeros(self.total, dtype=bool)
        kept[self.rows] = True
        return kept

    def save(self, path: str | Path, form: Literal["index", "bitmap"] = "index") -> Path:
        """Write a safetensors file, atomically, and return it.

        :param form: "index" keeps row numbers and scores (12 bytes a kept row), "bitmap" one bit a row.
        """
        arrays: dict[str, Array] = {"bitmap": self.bitmap()} if form == "bitmap" else {"rows": self.rows}
        if self.scores is not None and form == "index":
            arrays["scores"] = np.asarray(self.scores, dtype=np.float32)
        file = with_ending(path, ".safetensors")
        write_tensors(file, arrays, {"kind": _KIND, "total": self.total, "kept": len(self), "about": self.about})
        return file

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """What :meth:`save` wrote; raises DataError for any other file, and for one that was cut or changed."""
        header, stored = read_tensors(Path(path), "a selection of rows")
        if header.get("kind") != _KIND:
            raise DataError(f"{path} holds {header.get('kind')!r} and no selection of rows")
        found = {name: tensor.numpy() for name, tensor in stored.items()}
        total, scores = int(header["total"]), found.get("scores")
        rows = found.get("rows")
        if rows is None:
            rows = np.flatnonzero(np.unpackbits(found["bitmap"], count=total)).astype(np.int64)
        cut = math.nan if scores is None or not len(scores) else float(scores.min())
        return cls(rows, total, cut, header["about"], scores, index=Path(path))

    def written(self, file: Path, index: Path) -> Selection:
        """The same, with the files that hold it."""
        return replace(self, file=file, index=index)


def choose(
    scores: Array,
    *,
    ratio: float | None = None,
    count: int | None = None,
    tokens: int | None = None,
    lengths: Array | None = None,
    domains: Array | None = None,
    quota: Quota | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    drop: Array | None = None,
    upper: float = 0.0,
    corpus: Any = None,
) -> Selection:
    """The best rows: a share of them, a number of them, or as many as a number of tokens allows.

    Exact, of equal scores the lower row; beside the scores it takes about 50 MB, however many there are.

    :param scores: float32 [N], in memory or memory-mapped; the largest are kept, NaN never, infinity is the largest.
    :param ratio: floor(ratio * N) rows, the product taken in floating point (0.29 of 100 rows are 28).
    :param count: so many rows.
    :param tokens: the best rows whose ``lengths`` int64 [N] fit so many tokens.
    :param quota: "domain" takes the same share of every domain; a mapping takes the given ratio of those it names, and
        ``ratio`` of the others. Needs ``domains``, str [N].
    :param temperature: adds Gumbel noise of this size to the scores (with ``seed``), which draws rows without
        replacement with probability proportional to exp(score / temperature); 0 takes the largest.
    :param drop: bool [N], rows that must not be taken, such as duplicates.
    :param upper: leave the top share out, where copied text gathers.
    :param corpus: the fingerprint of the corpus, kept with the selection.
    :raises DataError: not exactly one of ratio, count and tokens, a value out of range, or an empty corpus.
    """
    n = len(scores)
    drop, domains, lengths = (None if each is None else np.asarray(each) for each in (drop, domains, lengths))
    _check(n, ratio, count, tokens, lengths, temperature, upper, drop)
    keys = _keys(scores, temperature, seed, drop)
    if upper:
        keys = _without_top(keys, _keys(scores, 0.0, seed, drop), n, _share(n, upper))
    parts = _parts(n, domains, quota)
    budgets = _budgets(parts, n, ratio, count, tokens, lengths, quota)
    found = []
    for name, inside in parts.items():
        own = keys if inside is None else _restricted(keys, inside)
        if tokens is None or lengths is None:
            found.append(best(own, n, budgets[name]))
        else:
            found.append(best_within(own, _costs(lengths), n, budgets[name]))
    rows = found[0] if len(found) == 1 else np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
    kept = np.asarray(scores[rows], dtype=np.float32)
    about = {
        "ratio": ratio, "count": count, "tokens": tokens, "quota": quota, "temperature": temperature, "seed": seed,
        "upper": upper, "dropped": int(drop.sum()) if drop is not None else 0, "asked": sum(budgets.values()),
        "corpus": corpus, "unscored": sum(int(np.isnan(scores[block]).sum()) for block in blocks(n)),
    }  # fmt: skip
    return Selection(rows, n, float(kept.min()) if len(kept) else math.nan, plain(about), kept)


def _check(
    n: int, ratio: float | None, count: int | None, tokens: int | None, lengths: Array | None, temperature: float,
    upper: float, drop: Array | None,
) -> None:  # fmt: skip
    given = [name for name, each in (("ratio", ratio), ("count", count), ("tokens", tokens)) if each is not None]
    if len(given) != 1:
        raise DataError(f"choose by exactly one of ratio, count and tokens, not by {', '.join(given) or 'none'}")
    if not n:
        raise DataError("the corpus has no rows, so there is nothing to choose from")
    if ratio is not None and not 0 < ratio <= 1:
        raise DataError(f"ratio is {ratio}; it must be above 0 and at most 1")
    for name, each in (("count", count), ("tokens", tokens)):
        if each is not None and each < 0:
            raise DataError(f"{name} is {each}; it cannot be negative")
    if tokens is not None and (lengths is None or len(lengths) != n):
        raise DataError("choosing by tokens needs the length of every row; pass lengths=source.lengths()")
    if not (math.isfinite(temperature) and temperature >= 0) or not 0 <= upper < 1:
        raise DataError(f"temperature = {temperature} must be at least 0, and upper = {upper} at least 0 and below 1")
    if drop is not None and len(drop) != n:
        raise DataError(f"drop tells of {len(drop)} rows, the corpus has {n}")


def _keys(values: Array, temperature: float, seed: int, drop: Array | None) -> Blockwise:
    def keys(rows: slice) -> Array:
        block = np.asarray(values[rows], dtype=np.float32)
        if temperature:
            block = (block + np.float32(temperature) * gumbel(rows, seed)).astype(np.float32)
        own = ordered_keys(block)
        return own if drop is None else np.where(drop[rows], np.uint32(0), own)

    return keys


def _without_top(keys: Blockwise, plain_keys: Blockwise, n: int, k: int) -> Blockwise:
    """Keys without the ``k`` rows that are the best before any noise."""
    gone = np.zeros(n, dtype=bool)
    gone[best(plain_keys, n, k)] = True
    return _restricted(keys, ~gone)


def _restricted(keys: Blockwise, inside: Array) -> Blockwise:
    return lambda rows: np.where(inside[rows], keys(rows), np.uint32(0))


def _costs(lengths: Array) -> Blockwise:
    return lambda rows: np.asarray(lengths[rows], dtype=np.int64)


def _parts(n: int, domains: Array | None, quota: Quota | None) -> dict[str, Array | None]:
    """Rows of each domain; everything under one name without quotas."""
    if quota is None:
        return {"": None}
    if domains is None or len(domains) != n:
        raise DataError("a quota by domain needs the domain of every row; this corpus does not tell")
    known = sorted(set(np.unique(domains).tolist()))
    if not isinstance(quota, Mapping):
        return {name: domains == name for name in known}
    unknown = [name for name in quota if name not in known]
    if unknown:
        raise DataError(f"the quota names the domain {unknown[0]!r}; the corpus has {', '.join(map(repr, known))}")
    bad = [share for share in quota.values() if not 0 <= share <= 1]
    if bad:
        raise DataError(f"a quota is {bad[0]}; shares of a domain lie between 0 and 1")
    return {name: domains == name for name in known}


def _budgets(
    parts: Mapping[str, Array | None], n: int, ratio: float | None, count: int | None, tokens: int | None,
    lengths: Array | None, quota: Quota | None,
) -> dict[str, int]:  # fmt: skip
    """What each domain may take: rows, or tokens."""
    sizes = {name: n if inside is None else int(inside.sum()) for name, inside in parts.items()}
    if isinstance(quota, Mapping):
        if ratio is None:
            raise DataError("a quota of ratios by domain goes with ratio=, which the other domains have")
        return {name: _share(size, quota.get(name, ratio)) for name, size in sizes.items()}
    if ratio is not None:
        return {name: _share(size, ratio) for name, size in sizes.items()}
    if tokens is not None and lengths is not None:
        sizes = {
            name: int(lengths.sum() if inside is None else lengths[inside].sum()) for name, inside in parts.items()
        }
    return _shared_out(count if count is not None else tokens or 0, sizes)


def _share(n: int, ratio: float) -> int:
    """floor(ratio * n), the product in floating point: 0.29 of 100 rows are 28."""
    return int(ratio * n)


def _shared_out(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """``total`` in proportion to sizes, whole numbers, by the largest remainder."""
    whole = max(1, sum(sizes.values()))
    found = {name: total * size // whole for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (-(total * sizes[name] % whole), name))
    for name in order[: max(0, total - sum(found.values()))]:
        found[name] += 1
    return found
