"""The evaluation task ``mme``: two questions an image, scored by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from paperhooks.generation import Request
from paperhooks.reports import Table
from paperhooks_evaluation import Document, Metric, Parsed, Record, Summary, Task
from paperhooks_evaluation.sources import image_request

from paperhooks_hallucination.checks import MODES, check_count
from paperhooks_hallucination.mme.data import read_questions
from paperhooks_hallucination.mme.metrics import (
    CATEGORIES,
    COGNITION,
    HALLUCINATION,
    PERCEPTION,
    CategoryScore,
    ImageScore,
    is_plain,
    read_response,
)
from paperhooks_hallucination.pope.data import SUFFIX
from paperhooks_hallucination.report import bar_spec, cluster_metric, share_metric, with_interval

__all__ = ["CAUTION", "Mme"]

CAUTION: Final = (
    "The figures of the CCA paper come without intervals and a category has few images; compare with a baseline run "
    "with the same prompt and decoding. (Its POPE table is no like-for-like comparison: baseline rows copied from "
    "another paper, apparently decoded otherwise.)"
)
_OWN_INSTRUCTION: Final = " Please answer yes or no."
_SUBSETS: Final = {"hallucination": HALLUCINATION, "perception": PERCEPTION, "cognition": COGNITION}
_MOST: Final = 200.0


@dataclass(frozen=True)
class Mme(Task):
    """MME on its release folder or a hub data set (see :mod:`paperhooks_hallucination.mme.data`).

    The mode ``official`` looks at the beginning of a response, ``strict`` takes nothing but yes and no.

    :param instruction: replaces MME's own "Please answer yes or no.", as LLaVA does; empty: the question stays as it
        is.
    :param max_new_tokens: where responses are cut.
    """

    instruction: str = SUFFIX
    max_new_tokens: int = 128

    version: ClassVar[str] = "1"
    modes: ClassVar[tuple[str, ...]] = MODES
    metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens, 1)

    def documents(self, source: str) -> Sequence[Document]:
        """The questions, grouped by category; raises DataError listing all faults of the data."""
        return read_questions(source)

    def request(self, document: Document) -> Request:
        """The image, the question, the instruction."""
        question = document.data["question"]
        if self.instruction:
            question = question.replace(_OWN_INSTRUCTION, "") + self.instruction
        return image_request(document, question, self.max_new_tokens)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        """``"yes"``, ``"no"`` or None, which is wrong; what only looks like one of them counts as unparsable, too."""
        answer = read_response(response, mode)
        return Parsed(answer, rule=mode if answer else "", fallback=not is_plain(response, answer))

    def score(self, document: Document, parsed: Parsed) -> float:
        """1 for the right answer, else 0."""
        return float(parsed.value == document.data["answer"])

    def unit(self, document: Document) -> str:
        """The image with its two questions."""
        return str(document.data["image"])

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        """Sums of categories, then every category.

        Images of which only one question was answered, as under a limit, cannot be scored: they are left out and
        counted in ``extra`` and in the table's caption.
        """
        scores, dropped = _scores(records)
        metrics = [_sum_metric(name, members, scores) for name, members in _sums(scores).items()]
        for category, score in scores.items():
            metrics += _category_metrics(category, score)
        return _summary(metrics, list(scores), dropped)


def _scores(records: Sequence[Record]) -> tuple[dict[str, CategoryScore], int]:
    """Categories in MME's order with their complete images, and how many images are incomplete."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        found.setdefault(record.document.groups["category"], {}).setdefault(record.document.data["image"], []).append(
            record
        )
    pairs = {category: [pair for pair in images.values() if len(pair) == 2] for category, images in found.items()}
    dropped = sum(len(images) - len(pairs[category]) for category, images in found.items())
    ordered = [category for category in CATEGORIES if pairs.get(category)]
    return {category: CategoryScore(tuple(map(_image_score, pairs[category]))) for category in ordered}, dropped


def _image_score(pair: Sequence[Record]) -> ImageScore:
    return ImageScore(int(sum(one.score for one in pair)), sum(one.parsed.fallback for one in pair))


def _sums(scores: Mapping[str, CategoryScore]) -> dict[str, tuple[str, ...]]:
    """What is summed: the known subsets of which every category is there, or else whatever is there."""
    whole = {name: members for name, members in _SUBSETS.items() if scores.keys() >= set(members)}
    return whole or {"total": tuple(scores)}


def _sum_metric(name: str, members: Sequence[str], scores: Mapping[str, CategoryScore]) -> Metric:
    units = []
    for number, member in enumerate(members):
        for image in scores[member].images:
            row = [0.0] * (2 * len(members))
            row[2 * number : 2 * number + 2] = [image.score, 1.0]
            units.append(row)
    known = [scores[member].score for member in members]
    return cluster_metric(name, partial(_sum_of_means, known), units, n=len(units), scale=_MOST * len(members))


def _sum_of_means(known: Sequence[float], sums: Any) -> float:
    """Sum of the categories' means; a category that a resample lacks altogether keeps its own."""
    return sum(sums[2 * i] / sums[2 * i + 1] if sums[2 * i + 1] else mean for i, mean in enumerate(known))


def _category_metrics(category: str, score: CategoryScore) -> list[Metric]:
    n, units = score.n, [(image.score, 1.0) for image in score.images]
    part = {"group": category, "grouping": "category"}
    right, both = (
        sum(image.right for image in score.images),
        sum(image.right == 2 for image in score.images),
    )
    return [
        cluster_metric("score", lambda sums: sums[0] / sums[1], units, n=n, scale=_MOST, **part),
        share_metric("accuracy", right, 2 * n, **part),
        share_metric("accuracy_plus", both, n, **part),
        share_metric("unparsable", score.unparsable, 2 * n, higher_is_better=False, **part),
    ]


def _summary(metrics: Sequence[Metric], categories: Sequence[str], dropped: int) -> Summary:
    by_name = {(metric.group, metric.name): metric for metric in metrics}
    notes = [CAUTION]
    if dropped:
        notes.insert(0, f"Images left out because only one of their two questions was answered: {dropped}.")
    rows: list[tuple[Any, ...]] = []
    for name in categories:
        score = by_name[name, "score"]
        shares = [with_interval(by_name[name, one]) for one in ("accuracy", "accuracy_plus", "unparsable")]
        rows.append((name, score.n, with_interval(score, 2), *shares))
    rows += [
        (f"{one.name} (of {one.scale:.0f})", one.n, with_interval(one, 2), "", "", "")
        for one in metrics
        if not one.group
    ]
    header = ("category", "images", "score (of 200)", "accuracy", "accuracy+", "unparsable")
    table = Table(header, rows, f"MME, with 95 % intervals. {' '.join(notes)}")
    bars = [by_name[name, "score"] for name in categories]
    figure = bar_spec("mme-scores", "MME: score by category", bars, categories, "score, at most 200")
    return Summary(metrics, (table,), (figure,), {"notes": notes, "pictures_left_out": dropped})
