"""A teacher that is computed once: head and divergence of a candidate, against both heads; and what it takes in memory.

Hidden states and heads of SmolLM2's size (width 576, 49,152 tokens). Both sides in one process, in turn, without the
decoders, whose part is the same on both; seconds are of the processor. The peak is that of a process of its own.

    python core/benchmarks/teacher.py [--quick] [--rounds N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import torch
from paperhooks.logprobs import Head, TeacherRows
from paperhooks.logprobs.divergence import kl_divergence
from paperhooks.testing import fresh_process, print_peak
from torch import Tensor, nn

WIDTH: Final = 576
VOCABULARY: Final = 49_152
#: What is asked of the memory: tokens, and bytes.
TOKENS: Final = 8192
LIMIT: Final = 1 << 30


def states(n: int, seed: int) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def head(vocabulary: int = VOCABULARY) -> Head:
    module = nn.Linear(WIDTH, vocabulary, bias=False)
    with torch.no_grad():
        module.weight.normal_(std=4 / WIDTH**0.5, generator=torch.Generator().manual_seed(0))
    return Head(module)


def seconds(work: Callable[[], Any], rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return found


def timed(n: int, tokens: int | None, rounds: int) -> dict[str, float]:
    """A candidate's head and divergence, against the same with the teacher's head."""
    own, taught, candidate = head(), states(n, 0), states(n, 1)
    begin = time.process_time()
    rows = TeacherRows.of(taught, own, limit=4 << 30, tokens=tokens)
    made = time.process_time() - begin
    sides: dict[str, Callable[[], Tensor]] = {
        "stored": lambda: rows.divergence(candidate, own),
        "both_heads": lambda: kl_divergence(candidate, own, taught, own),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    with torch.no_grad():
        for work in sides.values():
            work()
        for _ in range(rounds):
            for name, work in sides.items():
                found[name] += seconds(work, 1)
    ratio = median(a / b for a, b in zip(found["stored"], found["both_heads"], strict=True))
    return {"made_s": made, **{f"{name}_s": median(each) for name, each in found.items()}, "ratio": ratio}


def peak(n: int, limit: int) -> None:
    """In a process of its own: the peak above what hidden states and head take."""
    taught, own = states(n, 0), head(50_000)
    own.logits(taught[:1])

    def work() -> dict[str, int]:
        rows = TeacherRows.of(taught, own, limit=limit)
        return {"tokens": rows.tokens, "rows_bytes": rows.nbytes}

    print_peak(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer positions, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default: 7, quick: 1)")
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        peak(*options.child)
        return
    rounds = options.rounds or (1 if options.quick else 7)
    figures: dict[str, Any] = {"quick": options.quick, "rounds": rounds}
    for n in (128,) if options.quick else (128, 512):
        for name, tokens in (("all", None), ("top", 1024)):
            one = timed(n, tokens, rounds)
            figures |= {f"{name}_{n}_{key}": round(value, 4) for key, value in one.items()}
            print(f"{n} positions, {name}: {one}", flush=True)
    n, limit = (1024, LIMIT >> 3) if options.quick else (TOKENS, LIMIT)
    held = fresh_process(__file__, "--child", str(n), str(limit))
    figures |= {"positions": n, "limit_mib": limit / 2**20, "peak_mib": round(held["mib"], 1)}
    figures |= {"tokens": held["tokens"], "peak_ratio": round(held["mib"] * 2**20 / limit, 3)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
