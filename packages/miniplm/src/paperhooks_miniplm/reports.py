"""The report of a selection: what was kept of what, where the cut lies, and what the rows on both sides look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.data import Selection
from paperhooks.reports import Block, Code, Columns, Figure, Heading, Paragraph, RunFolder, Table

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.converter import text_of
from paperhooks_miniplm.corpus.rows import RowSource, check_corpus, count_rows
from paperhooks_miniplm.difference import Difference
from paperhooks_miniplm.figures import UNITS, kept_figure, scatter_figure, score_figure

__all__ = ["Kept", "kept_by_domain", "report"]

_EXAMPLES: Final = 3
_SHOWN: Final = 360


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one domain: rows and tokens, in all and kept, and the mean difference of its rows."""

    domain: str
    rows: int
    kept_rows: int
    tokens: int
    kept_tokens: int
    mean: float

    @property
    def share(self) -> float:
        """Share of the rows that is kept."""
        return self.kept_rows / max(1, self.rows)


def kept_by_domain(selection: Selection, difference: Difference, source: RowSource) -> list[Kept]:
    """What is kept of every domain, the largest first; one entry called "" where domains are unknown."""
    mask, lengths = selection.mask(), source.lengths()
    domains = source.domains()
    names = np.unique(domains).tolist() if domains is not None else [""]
    found = []
    for name in names:
        own = np.ones(len(mask), dtype=bool) if domains is None else domains == name
        known = difference.values[own & ~np.isnan(difference.values)]
        found.append(
            Kept(
                str(name),
                int(own.sum()),
                int((own & mask).sum()),
                int(lengths[own].sum()),
                int(lengths[own & mask].sum()),
                float(known.mean()) if len(known) else float("nan"),
            )
        )
    return sorted(found, key=lambda one: (-one.rows, one.domain))


def report(
    out: str | Path,
    selection: Selection,
    difference: Difference,
    source: RowSource,
    *,
    tokenizer: Any = None,
    duplicates: Array | None = None,
    title: str = "Difference sampling",
) -> Path:
    """Write ``report.html``, ``report.md``, figures and ``result.json`` into a folder; returns the path of the first.

    :param tokenizer: shows rows as text. :param duplicates: bool [N] of :func:`paperhooks_miniplm.duplicates_of`.
    :raises DataError: a selection or scores of another corpus, or a folder of another report.
    """
    if not selection.total == len(difference) == (size := count_rows(source)):
        raise DataError(
            f"the selection is of {selection.total} rows, the scores of {len(difference)}, and {source.name} has {size}"
        )
    for about in (difference.about, selection.about):
        check_corpus(about, source)
    with RunFolder(out) as run:
        normalize = difference.about.get("normalize", "mean")
        run.start(
            "miniplm-selection",
            inputs={"corpus": source.fingerprint(), "selection": selection.about, "normalize": normalize},
        )
        kept = kept_by_domain(selection, difference, source)
        blocks = [
            *_summary(selection, difference, source, duplicates),
            *_score_blocks(run, selection, difference, source),
        ]
        blocks += _domain_blocks(run, kept, selection)
        blocks += _examples(selection, difference, source, tokenizer)
        run.record(
            kept=[_plain(one) for one in kept],
            rows=len(selection),
            cut=None if np.isnan(selection.cut) else selection.cut,
        )
        html = run.report(title, blocks)
        run.finish()
        return html


def _plain(one: Kept) -> dict[str, Any]:
    mean = None if np.isnan(one.mean) else one.mean
    return {"domain": one.domain, "rows": one.rows, "kept": one.kept_rows, "share": one.share, "mean": mean}


def _summary(selection: Selection, difference: Difference, source: RowSource, duplicates: Array | None) -> list[Block]:
    mask, lengths = selection.mask(), source.lengths()
    rows: list[tuple[str, int, int, str]] = [
        ("rows", selection.total, len(selection), f"{len(selection) / selection.total:.1%}"),
        ("tokens", int(lengths.sum()), int(lengths[mask].sum()), f"{lengths[mask].sum() / max(1, lengths.sum()):.1%}"),
    ]
    if duplicates is not None:
        inside = int((duplicates & mask).sum())
        rows.append(
            ("exact duplicates", int(duplicates.sum()), inside, f"{inside / max(1, int(duplicates.sum())):.1%}")
        )
    text = f"{difference.unscored} rows have no score and are never kept."
    asked = selection.about.get("asked", len(selection))
    if selection.about.get("tokens") is None and len(selection) < asked:
        text += f" {asked} rows were asked for, {len(selection)} can be taken."
    note = (
        "Text that the teacher was trained on, or that stands in the corpus many times, is likely for the teacher and "
        "so preferred: look at the duplicates, and at what lies at the top."
    )
    return [Table(("", "corpus", "kept", "share"), rows), Paragraph(text), Paragraph(note, "note")]


def _score_blocks(run: RunFolder, selection: Selection, difference: Difference, source: RowSource) -> list[Block]:
    unit = UNITS[difference.about.get("normalize", "mean")]
    run.figure("scores", score_figure(difference.values, selection.cut, kept=selection.mask(), unit=unit))
    run.figure("models", scatter_figure(difference.teacher, difference.reference, source.domains(), unit=unit))
    known = difference.values[~np.isnan(difference.values)]
    middle = float(np.median(known)) if len(known) else float("nan")
    return [
        Heading("Scores"),
        Figure("scores", alt=f"median difference {middle:.3f}, cut at {selection.cut:.3f}"),
        Figure(
            "models", alt="each row's loss under both models", caption="Above the dashed line the teacher is better."
        ),
    ]


def _domain_blocks(run: RunFolder, kept: Sequence[Kept], selection: Selection) -> list[Block]:
    if len(kept) < 2:
        return []
    overall = len(selection) / selection.total
    run.figure("domains", kept_figure({one.domain: one.share for one in kept}, overall))
    rows = [(one.domain, one.rows, one.kept_rows, f"{one.share:.1%}", one.kept_tokens, one.mean) for one in kept]
    alt = ", ".join(f"{one.domain} {one.share:.0%}" for one in kept)
    return [
        Heading("Domains"),
        Figure("domains", alt=alt),
        Table(("domain", "rows", "kept", "share", "kept tokens", "mean difference"), rows),
    ]


def _examples(selection: Selection, difference: Difference, source: RowSource, tokenizer: Any) -> list[Block]:
    """Kept rows beside dropped ones: the best beside the worst, and those on both sides of the cut."""
    known = np.flatnonzero(~np.isnan(difference.values))
    order = known[np.argsort(-difference.values[known], kind="stable")]
    mask = selection.mask()
    kept, dropped = order[mask[order]], order[~mask[order]]
    pairs: Mapping[str, tuple[Array, Array]] = {
        "The ends": (kept[:_EXAMPLES], dropped[::-1][:_EXAMPLES]),
        "At the cut": (kept[::-1][:_EXAMPLES], dropped[:_EXAMPLES]),
    }
    blocks: list[Block] = [Heading("Rows on both sides")]
    for name, (ours, theirs) in pairs.items():
        if len(ours) or len(theirs):
            left, right = (_shown(rows, difference, source, tokenizer) for rows in (ours, theirs))
            blocks += [Heading(name, 3), Columns(([Heading("Kept", 4), *left], [Heading("Dropped", 4), *right]))]
    return blocks


def _shown(rows: Array, difference: Difference, source: RowSource, tokenizer: Any) -> list[Block]:
    blocks: list[Block] = []
    for number, row in zip(rows.tolist(), source.read(rows.tolist()), strict=True):
        losses = f"teacher {difference.teacher[number]:.3f}, reference {difference.reference[number]:.3f}"
        domain = f" ({row.domain})" if row.domain else ""
        blocks.append(Paragraph(f"Row {number}{domain}: difference {difference.values[number]:+.3f}, {losses}."))
        blocks.append(Code(_text(row.ids, tokenizer)))
    return blocks or [Paragraph("None.")]


def _text(ids: Array, tokenizer: Any) -> str:
    if tokenizer is None:
        return " ".join(map(str, ids[:60].tolist())) + (" ..." if len(ids) > 60 else "")
    text = text_of(ids, tokenizer)
    return text[:_SHOWN] + (" ..." if len(text) > _SHOWN else "")
