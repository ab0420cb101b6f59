"""What the engine takes beside the model: a run against the same calls of ``generate`` alone.

Synthetic questions with up to four pictures, the test bed's vision-language model, batches of 8. The run reads the
data, makes prompts, opens pictures, stores every reply and scores all in eight modes; its calls of ``generate`` and of
the model's processor are kept, and made again on their own. All sides in one process, in turn, by wall and by processor
time, which other work on the machine disturbs less.

``asking_ratio``: from the start of asking to the last reply, against processor and ``generate`` alone, as a loop of
one's own would call them. ``run_ratio``: the whole run, with reading and scoring, which take some tenths of a second
however long the model takes. Beside both stand the ratios to ``generate`` alone.

    python packages/jmmmu/benchmarks/engine.py [--quick] [--rounds N] [--new-tokens N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

import torch
from paperhooks import evaluate
from paperhooks.generation import TransformersBackend
from paperhooks_jmmmu import make_sample
from paperhooks_testbed import load_vlm

PER_SUBJECT: Final = 10
BATCH: Final = 8
#: Wall and processor seconds.
Seconds: TypeAlias = tuple[float, float]
#: A function, and what it was called with.
Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Calls:
    """The calls of ``generate`` and of the processor while this is in use; they are made as they come, and kept."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.generations: list[Call] = []
        self.preparations: list[Call] = []
        self._model, self._processor, self._class = model, processor, type(processor)
        self._generate = model.generate

    def __enter__(self) -> Calls:
        self.generations, self.preparations = [], []

        def generate(*arguments: Any, **named: Any) -> Any:
            self.generations.append((self._generate, arguments, named))
            return self._generate(*arguments, **named)

        def prepare(processor: Any, *arguments: Any, **named: Any) -> Any:
            self.preparations.append((partial(self._class.__call__, processor), arguments, named))
            return self._class.__call__(processor, *arguments, **named)

        self._model.generate = generate
        self._processor.__class__ = type(self._class.__name__, (self._class,), {"__call__": prepare})
        return self

    def __exit__(self, *error: object) -> None:
        del self._model.generate
        self._processor.__class__ = self._class


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def since(begin: Seconds, end: Seconds | None = None) -> Seconds:
    wall, used = end or now()
    return wall - begin[0], used - begin[1]


def again(calls: Sequence[Call]) -> Seconds:
    """Make calls again."""
    begin = now()
    with torch.no_grad():
        for function, arguments, named in calls:
            function(*arguments, **named)
    return since(begin)


class Clock:
    """An observer: from the start of asking to the last reply."""

    def __init__(self) -> None:
        self.begin = self.end = now()

    def started(self, run: Any) -> None:
        self.begin = now()

    def sample(self, record: Any) -> None:
        self.end = now()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer questions, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default: 5, quick: 1)")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of every reply (default: 16)")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 5)
    model, processor = load_vlm()
    model.generation_config.min_new_tokens = options.new_tokens  # it has nothing to say to Japanese
    calls = Calls(model, processor)
    sides: dict[str, list[Seconds]] = {"run": [], "asking": [], "generate": [], "processor": []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        make_sample(data, per_subject=1 if options.quick else PER_SUBJECT)
        for number in range(rounds + 1):  # the first round warms up, and is not counted
            clock, begin = Clock(), now()
            with calls:
                result = evaluate(
                    TransformersBackend(model, processor), None, "jmmmu", data=data, out=Path(folder, f"run-{number}"),
                    batch_size=BATCH, max_new_tokens=options.new_tokens, observers=[clock], report=False,
                )  # fmt: skip
            took = since(begin), since(clock.begin, clock.end), again(calls.generations), again(calls.preparations)
            if number:
                for side, seconds in zip(sides, took, strict=True):
                    sides[side].append(seconds)
                told = (f"{side} {wall:.2f} ({used:.2f}) s" for side, (wall, used) in zip(sides, took, strict=True))
                print(", ".join(told), flush=True)

    def ratio(which: int, one: str, *others: str) -> float:
        pairs = zip(sides[one], zip(*(sides[other] for other in others), strict=True), strict=True)
        return round(median(own[which] / sum(each[which] for each in alone) for own, alone in pairs), 4)

    figures: dict[str, Any] = {"questions": result.documents, "calls": len(calls.generations), "rounds": rounds}
    figures["new_tokens"] = options.new_tokens
    for which, ending in enumerate(("", "_cpu")):
        figures |= {f"{side}{ending}_s": round(median(one[which] for one in took), 3) for side, took in sides.items()}
        for side in ("asking", "run"):
            figures[f"{side}_ratio{ending}"] = ratio(which, side, "generate", "processor")
            figures[f"{side}_to_generate_ratio{ending}"] = ratio(which, side, "generate")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
