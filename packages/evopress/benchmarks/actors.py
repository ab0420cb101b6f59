"""A generation of a depth search over two Ray actors, against one process; and what a round of messages costs.

24 offspring of one parent, as in ``generation.py``, all of which are scored to the end: by one process, and by two
actors with a copy of the model each, on an idle machine with two cores or more. Sides take turns; the fitness has to be
the same to the last bit. ``message_ms`` is a round in which actors are sent the same candidates and answer without
scoring. Seconds are of the clock, with one thread a process; models are sent before.

    python packages/evopress/benchmarks/actors.py [--quick] [--rounds 5]

Ray has to be installed (nox -s engines makes such an environment). The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import ray
import torch
from generation import choice_of, first_parent, levels_of, material, offspring_of
from paperhooks import ModelView
from paperhooks_evopress.evaluator import CandidateShare, SharedEvaluator
from paperhooks_evopress.on_ray import ActorMap

ACTORS: Final = 2
TOKENS: Final = 512
MESSAGES: Final = 50


class UnscoredShare(CandidateShare):
    """Is sent and comes back."""

    def scored_by(self, score: Any) -> list[float]:
        """Of each candidate a nought."""
        return [0.0] * len(self.choices)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and seconds."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def main() -> None:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six layers")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, sequences = material(argparse.Namespace(smollm2=False, quick=options.quick))
    view, draw, layers = ModelView.from_model(model), random.Random(0), len(model.model.layers)
    choices = [choice_of(child) for child in offspring_of(first_parent(layers, draw), layers, draw)]
    ray.init(num_cpus=ACTORS, include_dashboard=False, log_to_driver=False)
    found: dict[str, list[float]] = {"here_s": [], "actors_s": [], "message_s": []}
    with levels_of(view) as levels, ActorMap(ACTORS) as actors:
        made = {"most_perplexity": math.inf}
        here = SharedEvaluator(view, levels, sequences, **made)
        there = SharedEvaluator(view, levels, sequences, candidates=actors, **made)
        _, first = timed(lambda: there.score(choices, TOKENS, 0))  # the model is sent, and the actors begin
        here.score(choices, TOKENS, 0)
        for seed in range(1, options.rounds + 1):
            wanted, seconds = timed(lambda: here.score(choices, TOKENS, seed))  # noqa: B023
            found["here_s"].append(seconds)
            same, seconds = timed(lambda: there.score(choices, TOKENS, seed))  # noqa: B023
            found["actors_s"].append(seconds)
            if same != wanted:
                raise SystemExit("the actors' fitness is not that of one process")
        half = len(choices) // ACTORS
        shares = [UnscoredShare(tuple(choices[half * n : half * (n + 1)]), TOKENS, 0) for n in range(ACTORS)]
        for _ in range(MESSAGES):
            found["message_s"].append(timed(lambda: actors.scores(here.score, shares))[1])
    ratios = [theirs / mine for theirs, mine in zip(found["actors_s"], found["here_s"], strict=True)]
    figures = {
        "quick": options.quick, "layers": layers, "candidates": len(choices), "actors": ACTORS,
        "first_s": first, "here_s": median(found["here_s"]), "actors_s": median(found["actors_s"]),
        "message_ms": 1e3 * median(found["message_s"]),
        "ratio": median(ratios), "low": min(ratios), "high": max(ratios),
    }  # fmt: skip
    print(json.dumps({name: round(v, 5) if isinstance(v, float) else v for name, v in figures.items()}))


if __name__ == "__main__":
    main()
