"""What the engine takes beside the model: a run against its own calls of ``generate``.

Synthetic questions with up to four pictures, the test bed's vision-language model, batches of 8. The run reads the
data, makes prompts, opens pictures, stores every reply and scores all in eight modes. Its calls of ``generate`` and of
the model's processor are timed inside the run, kept, and made again alone, in turn in one process.

``asking_ratio``: from the start of asking to the last reply, against the calls of processor and ``generate`` in it, as
a loop of one's own would make them. ``slowing``: these calls inside the run against the same ones alone, since work
ahead of the model may slow them. ``run_ratio``: the whole run, with reading and scoring, which take some tenths of a
second however long the model takes. The ratios ``to_generate`` count the processor as the engine's.

    python packages/jmmmu/benchmarks/engine.py [--quick] [--rounds N] [--new-tokens N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
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
#: A function, and what it was called with.
Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Calls:
    """The calls of ``generate`` and of the processor while this is in use: made as they come, timed and kept."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.kept: dict[str, list[Call]] = {}
        self.seconds: dict[str, float] = {}
        self._model, self._processor, self._class = model, processor, type(processor)
        self._generate = model.generate

    def __enter__(self) -> Calls:
        self.kept, self.seconds = {"generate": [], "processor": []}, {"generate": 0.0, "processor": 0.0}

        def timed(which: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            self.kept[which].append((function, arguments, named))
            begin = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[which] += time.perf_counter() - begin

        def prepare(processor: Any, *arguments: Any, **named: Any) -> Any:
            return timed("processor", partial(self._class.__call__, processor), *arguments, **named)

        self._model.generate = partial(timed, "generate", self._generate)
        self._processor.__class__ = type(self._class.__name__, (self._class,), {"__call__": prepare})
        return self

    def __exit__(self, *error: object) -> None:
        del self._model.generate
        self._processor.__class__ = self._class

    def again(self) -> float:
        """Make the calls again; seconds of all."""
        begin = time.perf_counter()
        with torch.no_grad():
            for function, arguments, named in (call for calls in self.kept.values() for call in calls):
                function(*arguments, **named)
        return time.perf_counter() - begin


class Clock:
    """An observer: from the start of asking to the last reply."""

    def __init__(self) -> None:
        self.begin = self.end = 0.0

    def started(self, run: Any) -> None:
        self.begin = time.perf_counter()

    def sample(self, record: Any) -> None:
        self.end = time.perf_counter()


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
    sides: dict[str, list[float]] = {"run": [], "asking": [], "generate": [], "processor": [], "alone": []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        make_sample(data, per_subject=1 if options.quick else PER_SUBJECT)
        for number in range(rounds + 1):  # the first round warms up, and is not counted
            clock, begin = Clock(), time.perf_counter()
            with calls:
                result = evaluate(
                    TransformersBackend(model, processor), None, "jmmmu", data=data, out=Path(folder, f"run-{number}"),
                    batch_size=BATCH, max_new_tokens=options.new_tokens, observers=[clock], report=False,
                )  # fmt: skip
            took = time.perf_counter() - begin, clock.end - clock.begin, *calls.seconds.values(), calls.again()
            if number:
                for side, seconds in zip(sides, took, strict=True):
                    sides[side].append(seconds)
                print(", ".join(f"{side} {each[-1]:.2f} s" for side, each in sides.items()), flush=True)

    rounds_of = [dict(zip(sides, each, strict=True)) for each in zip(*sides.values(), strict=True)]
    inside = [one["generate"] + one["processor"] for one in rounds_of]
    figures: dict[str, Any] = {
        "questions": result.documents, "calls": len(calls.kept["generate"]), "rounds": rounds,
        "new_tokens": options.new_tokens, **{f"{side}_s": round(median(each), 3) for side, each in sides.items()},
        "slowing": median(each / one["alone"] for each, one in zip(inside, rounds_of, strict=True)),
    }  # fmt: skip
    for side in ("asking", "run"):
        figures[f"{side}_ratio"] = median(one[side] / each for each, one in zip(inside, rounds_of, strict=True))
        figures[f"{side}_to_generate_ratio"] = median(one[side] / one["generate"] for one in rounds_of)
    figures |= {name: round(value, 4) for name, value in figures.items() if isinstance(value, float)}
    beside = median(one["asking"] - each for each, one in zip(inside, rounds_of, strict=True))
    figures["asking_beside_ms_a_question"] = round(1000 * beside / result.documents, 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
