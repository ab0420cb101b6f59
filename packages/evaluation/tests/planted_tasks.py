"""Tasks with one fault each, for the test that the contract finds it; the sound one is ``quiz_task.Quiz``."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from paperhooks.generation import Request
from paperhooks_evaluation import Document, Metric, Parsed, Record, Summary
from quiz_task import Quiz

_COUNTER = itertools.count()


class Documents(Quiz):
    """Documents that are changed somehow by :meth:`change`."""

    def documents(self, source: str) -> Sequence[Document]:
        return [self.change(document, source) for document in super().documents(source)]

    def change(self, document: Document, source: str) -> Document:
        raise NotImplementedError


class Shuffled(Quiz):
    def documents(self, source: str) -> Sequence[Document]:
        found = list(super().documents(source))
        random.shuffle(found)
        return found


class NoDocuments(Quiz):
    def documents(self, source: str) -> Sequence[Document]:
        return []


class SameIds(Documents):
    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, id=document.id[:3])


class NumberAsId(Documents):
    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, id=len(document.id))  # type: ignore[arg-type]


class SpaceInGrouping(Documents):
    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, groups={"sub ject": "Art"})


class NumberAsGroup(Documents):
    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, groups={"subject": 1})  # type: ignore[dict-item]


class PathInData(Documents):
    """No JSON."""

    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, data={**document.data, "suffix": Path("x.png")})


class NumbersAsKeys(Documents):
    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, data={**document.data, 1: "x"})


class PlaceInData(Documents):
    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, data={**document.data, "folder": source})


class FolderInIds(Documents):
    def change(self, document: Document, source: str) -> Document:
        return dataclasses.replace(document, id=f"{Path(source).name}-{document.id}")


class RequestsDiffer(Quiz):
    def request(self, document: Document) -> Request:
        made = super().request(document)
        return dataclasses.replace(made, max_new_tokens=self.limit + next(_COUNTER))


class NamesAsImages(Quiz):
    """Files instead of pictures."""

    def request(self, document: Document) -> Request:
        made = super().request(document)
        return dataclasses.replace(made, images=["red.png" for _ in made.images])


class NoPartForImages(Quiz):
    """Shows an image that is not there in one layout alone."""

    def request(self, document: Document) -> Request:
        return Request([{"role": "user", "content": [{"type": "image"}]}], images=())


class LayoutThatFails(Quiz):
    """A wording that is no text."""

    def request(self, document: Document) -> Request:
        parts = [{"type": "text", "text": "a", "joined": 1}, {"type": "text", "text": "b"}]
        return Request([{"role": "user", "content": parts}])


@dataclass(frozen=True)
class SeedInFingerprint(Quiz):
    def options(self) -> dict[str, Any]:
        return {"seed": self.seed, "limit": self.limit}


@dataclass(frozen=True)
class LimitNotInFingerprint(Quiz):
    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class LimitThatChangesScoresOnly(Quiz):
    """Says so, and asks for as many tokens all the same."""

    scoring_options: ClassVar[tuple[str, ...]] = ("seed", "limit")


@dataclass(frozen=True)
class Unknown(Quiz):
    """An option of which nobody knows another value."""

    language: str = "ja"


@dataclass(frozen=True)
class NoPickle(Quiz):
    pattern: Any = field(default_factory=lambda: lambda text: text, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class ForgetsOptions(Quiz):
    """Options that JSON cannot give back."""

    letters: Any = ("A", "B")

    def options(self) -> dict[str, Any]:
        return {"letters": repr(self.letters)}


class LoadsTorch(Quiz):
    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        import torch  # noqa: F401

        return super().parse(document, response, mode)


class FailsOnSurrogates(Quiz):
    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        response.encode()
        return super().parse(document, response, mode)


class MatchAsValue(Quiz):
    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        return Parsed(re.match("A", response), "match")


class InfiniteScore(Quiz):
    def score(self, document: Document, parsed: Parsed) -> float:
        return math.inf if parsed.fallback else 1.0


class GuessesInParse(Quiz):
    """A letter drawn from the generator that all share."""

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        return Parsed(random.choice("ABCDEFGH"), "guess", fallback=True)


class WritesIntoData(Quiz):
    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        document.data.setdefault("read", response)  # type: ignore[attr-defined]
        return super().parse(document, response, mode)


class LeavesOut(Quiz):
    def settle(self, records: Sequence[Record], mode: str) -> Sequence[Record]:
        return [dataclasses.replace(record, response="") for record in records]


class DrawsAnew(Quiz):
    def settle(self, records: Sequence[Record], mode: str) -> Sequence[Record]:
        letters = random.Random(uuid.uuid4().int)
        return [
            dataclasses.replace(record, parsed=Parsed(letters.random(), "drawn", fallback=True)) for record in records
        ]


class DividesByNone(Quiz):
    """One record gives no deviation."""

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        mean = sum(record.score for record in records) / (len(records) - 1)
        return Summary([Metric("accuracy", mean, len(records))])


class NotANumber(Quiz):
    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        return Summary([Metric("accuracy", math.nan, len(records))])


class SameFigures(Quiz):
    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        return Summary([Metric("accuracy", 1.0, 1), Metric("accuracy", 0.0, 1)])


class NotANumberBeside(Quiz):
    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        return Summary([Metric("accuracy", 1.0, 1)], extra={"luck": math.inf})


class FirstCounts(Quiz):
    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        weights = [1 / (1 + number) for number in range(len(records))]
        total = sum(weight * len(record.response) for weight, record in zip(weights, records, strict=True))
        return Summary([Metric("accuracy", total, len(records))])


class ReadsPlaceToScore(Quiz):
    """What is read back from a run's folder has no place."""

    def score(self, document: Document, parsed: Parsed) -> float:
        return float(bool(document.place))


class CountsCalls(Quiz):
    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        return Summary([Metric("accuracy", float(next(_COUNTER)), len(records))])
