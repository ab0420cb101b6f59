"""From a corpus to its best part in one call: scores, the choice, the files, the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor, nn

from paperhooks.data.scorer import find_method, open_corpus, read_scores, score
from paperhooks.data.selection import Selection, choose
from paperhooks.data.top_rows import Array, blocks
from paperhooks.errors import DataError, MissingExtra
from paperhooks.io.corpus import Corpus, CorpusSource
from paperhooks.io.files import atomic_path
from paperhooks.io.hashing import tensor_digest
from paperhooks.plugins.methods import describe_method
from paperhooks.reports.blocks import Block, Figure, Heading, Paragraph, Table
from paperhooks.reports.run_folder import RunFolder

__all__ = ["select"]

_BATCH: Final = 1024
#: Scores in a histogram; of more every n-th is taken.
_SHOWN: Final = 100_000


def select(
    method: Any,
    *,
    corpus: CorpusSource | Corpus,
    ratio: float | None = None,
    out: str | Path,
    models: Mapping[str, nn.Module] | None = None,
    teacher: nn.Module | None = None,
    reference: nn.Module | None = None,
    scores: str | Path | Tensor | None = None,
    tokenizer: Any = None,
    batch_size: int = 16,
    unit_rows: int = 1024,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Selection:
    """Score a corpus and write its best ``floor(ratio * n)`` examples, in the corpus' order.

    ``teacher`` and ``reference`` are the usual roles of ``models``. ``scores`` (the folder of an earlier
    :func:`score`, or a tensor [n]) skips scoring, so that several ratios share one scoring. Writes
    ``selected.jsonl``, ``selection.safetensors`` (rows and scores) and a report; examples whose score is not finite are
    never selected, and of equal scores the earlier row wins. ``options`` are the others of
    :func:`paperhooks.data.choose`: ``count`` or ``tokens`` in place of the ratio, quotas, noise, rows to leave out.

    Raises DataError for a ratio outside (0, 1] and for other options that make no sense, and what :func:`score` raises.
    """
    run = RunFolder(out)
    asked = {"ratio": ratio, **options}
    if ratio is not None and not 0 < ratio <= 1:
        raise DataError(f"ratio is {ratio}; it must be above 0 and at most 1")
    if run.result_file.exists():  # of another kind of run: known before anything is scored
        RunFolder.open(out, "select")
    opened, chosen = open_corpus(corpus), find_method(method)
    list(opened.lines([0]))  # whether rows can be written is known before, too
    roles = {**(models or {}), **{k: v for k, v in (("teacher", teacher), ("reference", reference)) if v is not None}}
    if scores is None:
        scoring = {"tokenizer": tokenizer, "batch_size": batch_size, "unit_rows": unit_rows, "seed": seed}
        scores = score(roles, opened, chosen, out=Path(out) / "scoring", progress=progress, **scoring)
    values = read_scores(scores, opened)
    inputs = {"method": describe_method(chosen), "corpus": opened.fingerprint(), "scores": tensor_digest(values)}
    inputs |= {name: _known(value) for name, value in asked.items() if value is not None}
    with run:
        run.start("select", inputs=inputs, seed=seed)
        with run.timed("select"):
            finite = _finite(values.numpy())
            found = choose(finite, seed=seed, corpus=opened.fingerprint(), **asked)
            if not len(found):
                reason = "no score is finite" if found.about["asked"] else f"the ratio keeps 0 of {found.total} rows"
                raise DataError(f"nothing can be selected: {reason}")
            found = _write(run, opened, found)
            _report(run, opened, finite, found)
        run.finish()
    return found


def _known(value: Any) -> Any:
    """An option as plain data; of an array its digest."""
    if not isinstance(value, np.ndarray):
        return value
    text = value.astype(str) if value.dtype == object else value
    return hashlib.sha256(f"{text.dtype}".encode() + np.ascontiguousarray(text).tobytes()).hexdigest()


def _finite(values: Array) -> Array:
    """The scores, NaN for those that are not finite; a copy only where there are such."""
    if all(bool((~np.isinf(values[rows])).all()) for rows in blocks(len(values))):
        return values
    return np.where(np.isinf(values), np.float32(np.nan), values)


def _write(run: RunFolder, corpus: Corpus, found: Selection) -> Selection:
    file = run.path / "selected.jsonl"
    # Halves of characters are escaped, which in JSON is how they are written.
    with (
        atomic_path(file) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as handle,
    ):
        for start in range(0, len(found), _BATCH):
            handle.writelines(f"{line}\n" for line in corpus.lines(found.rows[start : start + _BATCH].tolist()))
    return found.written(file, found.save(run.path / "selection.safetensors"))


def _report(run: RunFolder, corpus: Corpus, scores: Array, found: Selection) -> None:
    kept = found.scores if found.scores is not None else scores[found.rows]
    size, total = 0, 0.0
    for rows in blocks(len(scores)):
        known = scores[rows][~np.isnan(scores[rows])]
        size, total = size + len(known), total + float(known.sum(dtype=np.float64))
    mean = float(kept.mean(dtype=np.float64))
    rest = size - len(found)
    facts: dict[str, float | None] = {
        "rows": len(scores),
        "kept": len(found),
        "unscored": len(scores) - size,
        "cut": found.cut,
        "mean_kept": mean,
        "mean_dropped": (total - mean * len(found)) / rest if rest else None,
    }
    run.record(**facts)
    shown: list[Block] = [
        Paragraph(f"{len(found)} of {len(scores)} examples of {corpus.name} were kept: those with the largest scores."),
        Table(("figure", "value"), [(name.replace("_", " "), value) for name, value in facts.items()]),
        *_histogram(run, scores, found.cut),
    ]
    run.report("Selection", shown)


def _histogram(run: RunFolder, scores: Array, cut: float) -> list[Block]:
    from paperhooks.reports.figures import histogram_figure

    shown = scores[:: max(1, len(scores) // _SHOWN)]
    try:
        known = shown[~np.isnan(shown)].tolist()
        figure = histogram_figure(known, marker=cut, title="Scores", x="score", y="examples")
    except MissingExtra as error:
        return [Paragraph(f"Without figures: {error}", "note")]
    run.figure("scores", figure)
    return [Heading("Scores"), Figure("scores", "Histogram of the scores", "Dashed: the lowest score that was kept.")]
