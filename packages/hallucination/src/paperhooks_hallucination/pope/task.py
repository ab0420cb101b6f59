"""The evaluation task ``pope``: does the model see objects that are not there?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import numpy as np
from paperhooks.generation import Request
from paperhooks.reports import Table
from paperhooks_evaluation import Document, Metric, Parsed, Record, Summary, Task
from paperhooks_evaluation.sources import image_request

from paperhooks_hallucination.checks import MODES, check_count
from paperhooks_hallucination.pope.data import SUFFIX, read_questions
from paperhooks_hallucination.pope.metrics import PopeScores, plain_answer, read_response
from paperhooks_hallucination.report import bar_spec, cluster_metric, share_metric, with_interval

__all__ = ["CAUTION", "Pope"]

CAUTION: Final = (
    "Do not hold these numbers against the POPE table of the CCA paper: its baseline rows were copied from another "
    "paper, apparently with sampled decoding, while its own model answered greedily; asked greedily, the stock "
    "LLaVA-1.5-7B comes out almost level on COCO, so only runs with the same decoding and prompt can be compared."
)
_COUNTS: Final = len(PopeScores().counts)


@dataclass(frozen=True)
class Pope(Task):
    """POPE on a folder of published files, a file of them, or a hub data set (see
    :mod:`paperhooks_hallucination.pope.data`).

    The mode ``official`` reads responses as the published script does, ``strict`` as the common harnesses do. Both
    report as unparsable what is neither a plain yes nor a plain no; ``official`` counts it as yes or no all the same.

    :param instruction: text behind every question; the default is that of LLaVA and of the paper.
    :param images: folder of the images, where they are not beside the questions.
    :param max_new_tokens: where responses are cut.
    """

    instruction: str = SUFFIX
    images: str = ""
    max_new_tokens: int = 128

    version: ClassVar[str] = "1"
    modes: ClassVar[tuple[str, ...]] = MODES
    metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens, 1)

    def documents(self, source: str) -> Sequence[Document]:
        """The questions, grouped by split and source; raises DataError listing all faults of the data."""
        return read_questions(source, self.images)

    def request(self, document: Document) -> Request:
        """The image, the question, the instruction."""
        return image_request(document, document.data["question"] + self.instruction, self.max_new_tokens)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        """``"yes"``, ``"no"``, or (``strict`` only) None."""
        answer = read_response(response, mode)
        if mode == "strict":
            return Parsed(answer, rule="exact" if answer else "", fallback=answer is None)
        said = plain_answer(response) == answer
        rule = "denial" if answer == "no" else "affirmation" if said else "no denial"
        return Parsed(answer, rule, fallback=not said)

    def score(self, document: Document, parsed: Parsed) -> float:
        """1 for the right answer, else 0."""
        return float(parsed.value == document.data["label"])

    def unit(self, document: Document) -> str:
        """The image: questions about one image are drawn together."""
        return f"{document.data['source']}/{document.data['image']}"

    def options(self) -> dict[str, Any]:
        """Without the place of the images, which says nothing of the questions."""
        return {name: value for name, value in super().options().items() if name != "images"}

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        """Mean over the splits of all sources, then every split.

        Where there are several sources: then the mean of each source and of each split, then every split of each
        source, by the grouping ``source_split``.
        """
        cells = sorted({_cell(record) for record in records})
        counts = _counts_by_image(self, records, cells)
        metrics = _mean_metrics("", "", cells, counts, records)
        several = len({source for source, _ in cells}) > 1
        if several:
            for grouping, groups in zip(("source", "split"), map(set, zip(*cells, strict=True)), strict=True):
                for group in sorted(groups):
                    metrics += _mean_metrics(grouping, group, cells, counts, records)
        for number, (source, split) in enumerate(cells):
            own = [record for record in records if _cell(record) == (source, split)]
            grouping, group = ("source_split", f"{source}-{split}") if several else ("split", split)
            metrics += _split_metrics({"grouping": grouping, "group": group}, counts[:, number], own)
        return _summary(metrics)


def _cell(record: Record) -> tuple[str, str]:
    """Source and split."""
    groups = record.document.groups
    return groups["source"], groups["split"]


def _counts_by_image(task: Pope, records: Sequence[Record], cells: Sequence[tuple[str, str]]) -> Any:
    """tp, fp, tn, fn, unparsable by image, source and split: float64 [images, cells, 5]."""
    units: dict[str, int] = {}
    for record in records:
        units.setdefault(task.unit(record.document), len(units))
    counts = np.zeros((len(units), len(cells), _COUNTS))
    column = {cell: number for number, cell in enumerate(cells)}
    for record in records:
        one = PopeScores.of(record.parsed.value, record.document.data["label"])
        counts[units[task.unit(record.document)], column[_cell(record)]] += one.counts
    return counts


_FIGURES: Final[dict[str, Callable[[PopeScores], float]]] = {
    "accuracy": lambda scores: scores.accuracy,
    "f1": lambda scores: scores.f1,
    "precision": lambda scores: scores.precision,
    "recall": lambda scores: scores.recall,
    "yes_ratio": lambda scores: scores.yes_ratio,
}


def _mean_metrics(
    grouping: str, group: str, cells: Sequence[tuple[str, str]], counts: Any, records: Sequence[Record]
) -> list[Metric]:
    """Means over the splits of a group, or of all; images, which splits share, are resampled for the intervals."""
    own = [record for record in records if not grouping or record.document.groups[grouping] == group]
    members = {_cell(record) for record in own}
    chosen = counts[:, [number for number, cell in enumerate(cells) if cell in members]]
    units = chosen[chosen.sum(axis=(1, 2)) > 0].reshape(-1, len(members) * _COUNTS)
    part = {"grouping": grouping, "group": group}
    metrics = [
        cluster_metric(figure, partial(_mean_of, read), units, n=len(own), **part) for figure, read in _FIGURES.items()
    ]
    unread = sum(record.parsed.fallback for record in own)
    return [*metrics, share_metric("unparsable", unread, len(own), higher_is_better=False, **part)]


def _mean_of(read: Callable[[PopeScores], float], sums: Any) -> float:
    splits = [PopeScores(*row) for row in sums.reshape(-1, _COUNTS).tolist()]
    asked = [split for split in splits if split.n]  # a resample may lack a small split altogether
    return sum(map(read, asked)) / len(asked) if asked else 0.0


def _split_metrics(part: dict[str, str], counts: Any, records: Sequence[Record]) -> list[Metric]:
    """The figures of one split of one source, from its counts [images, 5] and its records."""
    scores = PopeScores(*(int(total) for total in counts.sum(axis=0)))
    unread = sum(record.parsed.fallback for record in records)
    asked = counts[counts.sum(axis=1) > 0]
    return [
        share_metric("accuracy", scores.tp + scores.tn, scores.n, **part),
        cluster_metric("f1", partial(_mean_of, _FIGURES["f1"]), asked, n=scores.n, **part),
        share_metric("precision", scores.tp, scores.tp + scores.fp, **part),
        share_metric("recall", scores.tp, scores.tp + scores.fn, **part),
        share_metric("yes_ratio", scores.tp + scores.fp, scores.n, **part),
        share_metric("unparsable", unread, scores.n, higher_is_better=False, **part),
    ]


def _summary(metrics: Sequence[Metric]) -> Summary:
    rows: dict[tuple[str, str], dict[str, Metric]] = {}
    for metric in metrics:
        rows.setdefault((metric.grouping, metric.group), {})[metric.name] = metric
    labels = {part: part[1] or "mean over splits" for part in sorted(rows, key=lambda part: not part[1])}
    table = Table(
        ("split", "questions", *_FIGURES, "unparsable"),
        [_row(label, rows[part]) for part, label in labels.items()],
        f"POPE, with 95 % intervals. {CAUTION}",
    )
    f1 = [rows[part]["f1"] for part in labels]
    figure = bar_spec("pope-f1", "POPE: F1 by split", f1, list(labels.values()), "F1")
    return Summary(metrics, (table,), (figure,), {"notes": [CAUTION]})


def _row(label: str, metrics: dict[str, Metric]) -> tuple[Any, ...]:
    return (label, metrics["accuracy"].n, *(with_interval(metric) for metric in metrics.values()))
