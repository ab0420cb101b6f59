"""The demo: a small corpus with noise in it, two tiny models, and the half that is worth reading; in half a minute."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from paperhooks.authoring import DemoContext
from paperhooks.errors import require

from paperhooks_miniplm.corpus.documents import TextRecord
from paperhooks_miniplm.corpus.duplicates import duplicates_of
from paperhooks_miniplm.corpus.packer import pack
from paperhooks_miniplm.corpus.shards import Shards
from paperhooks_miniplm.demo_models import byte_tokenizer, small_llama, train, training_batch
from paperhooks_miniplm.difference import diff
from paperhooks_miniplm.distillation.methods import Distil
from paperhooks_miniplm.reports import kept_by_domain, report
from paperhooks_miniplm.scoring.jobs import score
from paperhooks_miniplm.selection import select

__all__ = ["run"]

_LENGTH = 96
_BATCH = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:()[]<>=+-*/"


def run(context: DemoContext) -> None:
    """Train a teacher and a reference for a moment, score, select, and write report.html."""
    steps = 60 if context.quick else 260
    clean, mixed = _documents(60_000 if context.quick else 160_000, context.seed)
    tokenizer = byte_tokenizer([document.text for document in clean])
    _clear(context.out)
    for name, some in (("trained-on", clean), ("corpus", mixed)):
        pack(some, tokenizer, context.out / name, max_length=_LENGTH)
    rows = Shards(context.out / "corpus")
    context.echo(
        f"{len(rows)} rows of {_LENGTH + 1} tokens; a fifth of the documents is noise, one stands there 40 times"
    )
    for role, width, layers in (("teacher", 96, 3), ("reference", 32, 1)):
        model = small_llama(len(tokenizer), width, layers, inner=3 * width, positions=_LENGTH, seed=context.seed)
        _train(model, Shards(context.out / "trained-on"), steps, context.seed)
        found = score(model, rows, context.out / role, end=0, max_length=_LENGTH, progress=False)
        if found is not None:
            context.echo(
                f"{role:<10} {model.num_parameters():>8} parameters, mean loss {np.nanmean(found.values()):.3f}"
            )
    difference = diff(context.out / "teacher", context.out / "reference")
    selection = select(difference, ratio=0.5)
    context.echo(
        f"kept {len(selection)} of {selection.total} rows, those with a difference of {selection.cut:.3f} and more"
    )
    for one in kept_by_domain(selection, difference, rows):
        context.echo(
            f"  {one.domain:<10} {one.share:>6.1%} kept of {one.rows:>4} rows, mean difference {one.mean:+.3f}"
        )
    repeated = duplicates_of(rows)
    html = report(context.out, selection, difference, rows, tokenizer=tokenizer, duplicates=repeated)
    context.echo(
        "Noise goes, for neither model can read it; what stands there again and again stays: look at duplicates."
    )
    context.echo(f"report: {html}")


def _documents(characters: int, seed: int) -> tuple[list[TextRecord], list[TextRecord]]:
    """Clean text to train on, and other clean text with noise and copies in it."""
    documents = require("paperhooks_testbed", "paperhooks-miniplm[demo]", "to run the demo").documents
    chance = random.Random(seed)
    pieces = [
        TextRecord(document.text[start : start + 1500], domain)
        for domain in ("topics", "docstrings")
        for document in documents(domain=domain)
        for start in range(0, min(len(document.text), 9000), 1500)
    ]
    chance.shuffle(pieces)
    found: list[list[TextRecord]] = [[], []]
    for part in found:
        while pieces and sum(len(document.text) for document in part) < characters:
            part.append(pieces.pop())
    clean, mixed = found
    noise = len(mixed) // 5
    mixed += [TextRecord("".join(chance.choices(_LETTERS, k=700)), "noise") for _ in range(noise)]
    mixed += [TextRecord(clean[0].text[:300], "copies")] * 40
    chance.shuffle(mixed)
    return clean, mixed


def _train(model: Any, rows: Shards, steps: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    draws = (chance.choice(len(rows), _BATCH, replace=False) for _ in range(steps))
    batches = (training_batch(rows, draw, _LENGTH) for draw in draws)
    for _ in train(model, batches, steps=steps, rate=5e-3, warmup=steps // 20, method=Distil(weight=0.0)):
        pass


def _clear(out: Path) -> None:
    """A demo is made anew every time: take away what an earlier one left, and nothing else."""
    (out / "result.json").unlink(missing_ok=True)
    for part in ("trained-on", "corpus", "teacher", "reference"):
        for file in (out / part).glob("**/*"):
            if file.suffix in (".bin", ".idx", ".json", ".safetensors"):
                file.unlink()
