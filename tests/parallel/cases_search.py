"""What each rank does in the tests of a search whose candidates the ranks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paperhooks
import torch
from paperhooks import PaperhooksError
from paperhooks.io import Ranks, model_digest, plain
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks_evopress import Evaluator, EvoPress


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (20 + i,), generator=generator).tolist() for i in range(24)]


def searched(target: str, out: str, start: str = "even") -> dict[str, Any]:
    """The levels, fitness and weights that a rank ends with, and how many tokens its candidates read."""
    torch.set_num_threads(1)
    model = tiny_llama(layers=3)
    before = fingerprint(model)
    read: list[Evaluator] = []
    real = Evaluator.__init__

    def noted(self: Evaluator, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        read.append(self)

    Evaluator.__init__ = noted  # type: ignore[method-assign]
    try:
        search = EvoPress(schedule="quick", generations=3, check_model=False, start=start)
        artefact = paperhooks.compress(model, search, data=texts(), target=target, out=out, progress=False)
    finally:
        Evaluator.__init__ = real  # type: ignore[method-assign]
    told = {key: artefact.data[key] for key in ("levels", "final", "first", "cost", "evaluations")}
    weights = model_digest(model)
    artefact.undo()
    assert fingerprint(model) == before
    return {**told, "weights": plain(weights), "tokens": read[0].counters.tokens if read else 0}


def one_fails(out: str) -> str:
    """What a rank is told where the text of rank 1 has ids that the model does not know."""
    rows = texts() if Ranks().index == 0 else [[5, 6, 4000], *texts()]
    search = EvoPress(schedule="quick", generations=1, check_model=False)
    folder = Path(out) / str(Ranks().index)
    try:
        paperhooks.compress(tiny_llama(layers=2), search, data=rows, target="depth=0.5", out=folder, progress=False)
    except PaperhooksError as error:
        return str(error)
    return ""
