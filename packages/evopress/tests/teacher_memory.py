"""Run by test_evaluator in a process of its own: the peak of scoring sequences with a vocabulary of 50,000."""

from __future__ import annotations

import math
import sys

import scored_models as made
import torch
from paperhooks import ModelView
from paperhooks.testing import print_peak, tiny_text
from paperhooks_evopress.evaluator import Evaluator


def main(count: int, limit: int) -> None:
    """``count`` sequences of 128 tokens, and a limit in MiB for the teacher."""
    torch.set_num_threads(1)
    view = ModelView.from_model(tiny_text(layers=2, vocab_size=50_000))
    sequences = made.sequences_of([128] * count, vocabulary=50_000)
    choice = {"model.layers.0.mlp": "out"}
    with made.drop_levels(view) as levels:
        Evaluator(view, levels, sequences[:1], most_perplexity=math.inf).score([choice], 64, 0)  # what torch loads once

        def work() -> dict[str, float]:
            evaluator = Evaluator(view, levels, sequences, limit=limit * 2**20, most_perplexity=math.inf)
            evaluator.score([choice], 128 * count, 0)
            return {"kept": evaluator.teacher.nbytes / 2**20}

        print_peak(work)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
