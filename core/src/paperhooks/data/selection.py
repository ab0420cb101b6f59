"""From scores to a selection: the best rows, the files, the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from paperhooks.errors import DataError, LibraryBroken, MissingExtra
from paperhooks.io.corpus import Corpus
from paperhooks.io.files import atomic_path
from paperhooks.reports.blocks import Block, Figure, Heading, Paragraph, Table
from paperhooks.reports.run_folder import RunFolder

__all__ = ["Selection", "best_rows", "write_selection"]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What was kept.

    rows, scores
        Row numbers [k] int64, ascending, and their scores [k] float32.
    total
        Rows of the corpus.
    file, index
        ``selected.jsonl`` and ``selection.safetensors``.
    """

    rows: Tensor
    scores: Tensor
    total: int
    file: Path
    index: Path


def best_rows(scores: Tensor, count: int) -> Tensor:
    """The rows [k] of the ``count`` largest finite scores [n], ascending; of equal scores the earlier row wins.

    NaN and infinite scores are never selected, so k may be less than ``count``. Raises DataError when nothing is left.
    """
    finite = scores.isfinite()
    keep = min(count, int(finite.sum()))
    if keep < 1:
        reason = "no score is finite" if count >= 1 else f"the ratio keeps 0 of {len(scores)} rows"
        raise DataError(f"nothing can be selected: {reason}")
    ranked = torch.where(finite, scores, -math.inf).sort(descending=True, stable=True).indices
    return ranked[:keep].sort().values


def write_selection(run: RunFolder, corpus: Corpus, scores: Tensor, rows: Tensor) -> Selection:
    """Write ``selected.jsonl``, ``selection.safetensors`` and the report of a selection, and finish the run."""
    file, index = run.path / "selected.jsonl", run.path / "selection.safetensors"
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as handle:
        for line in corpus.lines(rows.tolist()):
            handle.write(line + "\n")
    with atomic_path(index) as temporary:
        save_file({"rows": rows, "scores": scores[rows]}, temporary, {"run": run.result["inputs_hash"]})
    _report(run, corpus, scores, rows)
    run.finish()
    return Selection(rows, scores[rows], len(corpus), file, index)


def _report(run: RunFolder, corpus: Corpus, scores: Tensor, rows: Tensor) -> None:
    finite = scores[scores.isfinite()]
    kept = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, rows, True)
    dropped = scores[~kept & scores.isfinite()]
    cut = float(scores[rows].min())
    facts: dict[str, float | None] = {
        "rows": len(scores),
        "kept": len(rows),
        "unscored": len(scores) - len(finite),
        "cut": cut,
    }
    facts |= {"mean_kept": float(scores[rows].mean()), "mean_dropped": float(dropped.mean()) if len(dropped) else None}
    run.record(**facts)
    blocks: list[Block] = [
        Paragraph(f"{len(rows)} of {len(scores)} examples of {corpus.name} were kept: those with the largest scores."),
        Table(("figure", "value"), [(name.replace("_", " "), value) for name, value in facts.items()]),
        *_histogram(run, finite, cut),
    ]
    run.report("Selection", blocks)


def _histogram(run: RunFolder, scores: Tensor, cut: float) -> list[Block]:
    from paperhooks.reports.figures import histogram_figure

    try:
        figure = histogram_figure(scores.tolist(), marker=cut, title="Scores", x="score", y="examples")
    except (MissingExtra, LibraryBroken) as error:
        return [Paragraph(f"Without figures: {error}", "note")]
    run.figure("scores", figure)
    return [Heading("Scores"), Figure("scores", "Histogram of the scores", "Dashed: the lowest score that was kept.")]
