"""The evaluation task ``chair``: does the model describe objects that are not there?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Final

from paperhooks.generation import Request
from paperhooks.io import hash_json
from paperhooks.reports import Table
from paperhooks_evaluation import Document, Metric, Parsed, Record, Summary, Task
from paperhooks_evaluation.sources import image_request

from paperhooks_hallucination.chair.data import read_images, read_synonyms
from paperhooks_hallucination.chair.lemmas import analyser
from paperhooks_hallucination.chair.metrics import ChairScores, ObjectTable, caption_score, image_objects
from paperhooks_hallucination.checks import MODES, check_count
from paperhooks_hallucination.report import bar_spec, cluster_metric, share_metric, with_interval

__all__ = ["CAUTION", "PROMPT", "Chair"]

PROMPT: Final = "Please describe this image in detail."
CAUTION: Final = (
    "The CCA paper decoded its greedy CHAIR rows alike on both sides, which cannot be said of its POPE table (there "
    "the baseline was copied from another paper); even so, only captions with the same length limit, lemmas and "
    "synonym table can be compared."
)
_OWN_LEMMAS: Final = "Lemmas and synonyms are this package's own where not chosen otherwise: not the published counts."


@dataclass(frozen=True)
class Chair(Task):
    """CHAIR on COCO images (see :mod:`paperhooks_hallucination.chair.data` for the folder).

    The mode ``official`` keeps the published script's quirks, ``strict`` repairs them
    (:mod:`paperhooks_hallucination.chair.metrics`).

    :param max_new_tokens: where captions are cut; the paper reports 512 and 64.
    :param images, ids, sample, seed: which images: their folder, a file with their numbers, or how many are drawn (0:
        all), and with which seed.
    :param prompt: what the model is asked.
    :param lemmas: ``"plain"`` (no other package needed) or ``"nltk"`` (as published). It changes scores only.
    :param synonyms: a file with another synonym table, such as the published one. It changes scores only.
    """

    max_new_tokens: int = 512
    images: str = ""
    ids: str = ""
    sample: int = 500
    seed: int = 0
    lemmas: str = "plain"
    synonyms: str = ""
    prompt: str = PROMPT

    version: ClassVar[str] = "1"
    modes: ClassVar[tuple[str, ...]] = MODES
    metric: ClassVar[str] = "without_hallucination"
    scoring_options: ClassVar[tuple[str, ...]] = ("lemmas", "synonyms")

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens, 1)
        check_count("sample", self.sample, 0)
        analyser(self.lemmas)

    def documents(self, source: str) -> Sequence[Document]:
        """The images, by number; raises DataError listing all faults of the data."""
        table = _table(self.synonyms, MODES[0])
        places = {"images": self.images, "ids": self.ids}
        return read_images(source, table, sample=self.sample, seed=self.seed, **places)

    def request(self, document: Document) -> Request:
        """The image and the prompt."""
        return image_request(document, self.prompt, self.max_new_tokens)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        """The objects that the caption names rightly and wrongly, with the counts of :class:`ChairScores`.

        A response without a word is none that can be read.
        """
        table, analyse = _table(self.synonyms, mode), analyser(self.lemmas)
        references = [analyse(caption) for caption in document.data["references"]]
        truth = image_objects(table, document.data["categories"], references)
        one = caption_score(table.find(analyse(response)), truth)
        wrong = [[mention.word, mention.name, mention.index] for mention in one.hallucinated]
        found = {"hallucinated": wrong, "recalled": sorted(one.recalled), "truth": sorted(truth)}
        return Parsed(
            {**found, "counts": list(one.counts)}, rule=self.lemmas, fallback=not any(map(str.isalnum, response))
        )

    def score(self, document: Document, parsed: Parsed) -> float:
        """1 for a caption without hallucinated objects, else 0."""
        return float(not parsed.value["hallucinated"])

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        """C_S, C_I, recall and mean length."""
        counts = [tuple(record.parsed.value["counts"]) for record in records]
        empty = sum(record.parsed.fallback for record in records)
        metrics = _metrics(counts, self.max_new_tokens)
        metrics.append(share_metric("empty", empty, len(records), higher_is_better=False))
        notes = [CAUTION] if self.lemmas == "nltk" and self.synonyms else [CAUTION, _OWN_LEMMAS]
        return _summary(metrics, notes)

    def options(self) -> dict[str, Any]:
        """Without the places of images and ids, which say nothing of the documents."""
        return {name: value for name, value in super().options().items() if name not in ("images", "ids")}

    def scoring(self, mode: str) -> dict[str, Any]:
        """The lemmatiser, and SHA-256 of the rows of the synonym file (``""``: this package's own table)."""
        rows = hash_json(read_synonyms(self.synonyms)) if self.synonyms else ""
        return {"lemmas": self.lemmas, "synonyms": rows}


def _table(synonyms: str, mode: str) -> ObjectTable:
    """The table of a file (or this package's), read again when the file has changed."""
    changed = Path(synonyms).stat().st_mtime_ns if synonyms and Path(synonyms).is_file() else 0
    return _read_table(synonyms, mode, changed)


@lru_cache(maxsize=8)
def _read_table(synonyms: str, mode: str, changed: int) -> ObjectTable:
    return ObjectTable(read_synonyms(synonyms), mode=mode) if synonyms else ObjectTable(mode=mode)


def _metrics(counts: Sequence[tuple[int, ...]], longest: int) -> list[Metric]:
    scores, n = ChairScores.total(counts), len(counts)
    units = [(1, *row) for row in counts]

    def cluster(name: str, read: Callable[[ChairScores], float], of: int, **more: Any) -> Metric:
        return cluster_metric(name, partial(_figure, read), units, n=of, **more)

    return [
        share_metric("chair_s", scores.hallucinating, n, higher_is_better=False),
        cluster("chair_i", lambda found: found.chair_i, scores.mentions, higher_is_better=False),
        cluster("recall", lambda found: found.recall, scores.truth),
        cluster("length", lambda found: found.length, n, scale=float(longest)),
    ]


def _figure(read: Callable[[ChairScores], float], sums: Any) -> float:
    return read(ChairScores(*sums.tolist()))


def _summary(metrics: Sequence[Metric], notes: list[str]) -> Summary:
    rows = [(_LABELS[one.name], with_interval(one), one.n, _COUNTED[one.name]) for one in metrics]
    table = Table(("figure", "value", "n", "of"), rows, f"CHAIR, with 95 % intervals. {' '.join(notes)}")
    shares = [one for one in metrics if one.name in ("chair_s", "chair_i", "recall")]
    labels = [_LABELS[one.name] for one in shares]
    figure = bar_spec("chair", "CHAIR: hallucinated objects and recall", shares, labels, "share")
    return Summary(metrics, (table,), (figure,), {"notes": notes})


_LABELS: Final = {
    "chair_s": "C_S, captions with a hallucinated object",
    "chair_i": "C_I, hallucinated mentions",
    "recall": "recall of objects",
    "length": "words a caption",
    "empty": "empty captions",
}
_COUNTED: Final = {
    "chair_s": "captions",
    "chair_i": "mentions of objects",
    "recall": "objects in images",
    "length": "captions",
    "empty": "captions",
}
