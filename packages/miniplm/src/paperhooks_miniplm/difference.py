"""The difference of two scores: by how much the teacher finds a row likelier than the reference does.

    d = nll_reference / tokens - nll_teacher / tokens        (higher is kept)

Per-token means are what the official code and the paper's case study use; sums and means per byte are options.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.io import read_tensors, with_ending, write_tensors

from paperhooks_miniplm.algorithm import Array, difference_scores
from paperhooks_miniplm.scoring.likelihood import ScoringWarning
from paperhooks_miniplm.scoring.scores import Normalize, Scores, incomparable

__all__ = ["Difference", "diff"]

_KIND: Final = "miniplm-difference"


@dataclass(frozen=True, eq=False)
class Difference:
    """Difference scores of all rows.

    values
        float32 [N]: reference minus teacher; NaN where either has no score.
    teacher, reference
        The normalised scores, float64 [N].
    about
        Plain data: normalisation, fingerprint of the corpus, and both manifests.
    """

    values: Array
    teacher: Array
    reference: Array
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def unscored(self) -> int:
        """Rows without a difference."""
        return int(np.isnan(self.values).sum())

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically, and return it."""
        path = with_ending(path, ".safetensors")
        arrays = {"values": self.values, "teacher": self.teacher, "reference": self.reference}
        write_tensors(path, arrays, {"kind": _KIND, "about": self.about})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Difference:
        """What :meth:`save` wrote, mapped into memory; raises DataError for any other file, also for one changed."""
        header, found = read_tensors(Path(path), "difference scores, which diff writes")
        if header.get("kind") != _KIND:
            raise DataError(f"{path} holds no difference scores; diff writes them")
        values, teacher, reference = (found[name].numpy() for name in ("values", "teacher", "reference"))
        return cls(values, teacher, reference, header["about"])


def diff(teacher: Scores | str | Path, reference: Scores | str | Path, normalize: Normalize = "mean") -> Difference:
    """Reference minus teacher, row by row.

    :param teacher, reference: scores, or scoring folders.
    :param normalize: "mean" per counted token (official), "sum" over a row, or "per_byte" of its text, for which
        teacher and reference may have different tokenizers.
    :raises DataError: scores of other rows, or made with another tokenizer, mask or length; both fields are named.
        Warns (:class:`ScoringWarning`) where the roles look swapped, or both are one model.
    """
    one, other = (each if isinstance(each, Scores) else Scores.load(each) for each in (teacher, reference))
    _check(one, other, normalize)
    first, second = one.values(normalize), other.values(normalize)
    values = difference_scores(first, second)
    known = values[~np.isnan(values)]
    if len(known) and not known.any():
        _warn("all differences are 0: teacher and reference are the same model")
    elif len(known) and float(known.mean(dtype=np.float64)) < 0:
        _warn("the reference finds the corpus likelier than the teacher does, on average: are the roles swapped?")
    _warn_of_cut_rows(one, other, normalize)
    about = {
        "normalize": normalize,
        "corpus": one.manifest.get("corpus"),
        "teacher": dict(one.manifest),
        "reference": dict(other.manifest),
    }
    return Difference(values, first, second, about)


def _check(one: Scores, other: Scores, normalize: Normalize) -> None:
    if len(one) != len(other):
        raise DataError(f"the teacher scored {len(one)} rows and the reference {len(other)}; score the same corpus")
    if one.manifest and other.manifest:
        odd = incomparable(one.manifest, other.manifest, text=normalize == "per_byte")
        if odd:
            raise DataError(
                f"the scores differ in {odd}: {one.manifest.get(odd)!r} for the teacher, {other.manifest.get(odd)!r} "
                "for the reference; score both with the same settings (normalize='per_byte' allows other tokenizers)"
            )
    if normalize != "per_byte" and not np.array_equal(one.count, other.count):
        row = int(np.flatnonzero(one.count != other.count)[0])
        raise DataError(
            f"row {row} has {one.count[row]} tokens that count for the teacher and {other.count[row]} for the "
            "reference: other rows, or another mask"
        )
    if normalize == "per_byte" and not np.array_equal(one.n_bytes, other.n_bytes):
        row = int(np.flatnonzero(one.n_bytes != other.n_bytes)[0])
        raise DataError(f"row {row} has another number of bytes for the teacher than for the reference: other texts")


def _warn_of_cut_rows(one: Scores, other: Scores, normalize: Normalize) -> None:
    cut = sum(each.cut for each in (one, other) if each.cut is not None)
    lost = int((np.asarray(cut) > 0).sum())
    if normalize == "per_byte" and lost:
        _warn(
            f"{lost} of {len(one)} rows were cut to the longest length and have no score per byte: score with "
            "over_long='split'"
        )


def _warn(text: str) -> None:
    warnings.warn(text, ScoringWarning, stacklevel=3)
