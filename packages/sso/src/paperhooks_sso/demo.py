"""The demo: a tiny chat model answers questions well and badly on purpose, and learns from the pairs; half a minute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from paperhooks.authoring import DemoContext
from paperhooks.io import write_text

from paperhooks_sso.data import read_lines
from paperhooks_sso.demo_model import PRINCIPLE, PROMPTS, RIGHT, colour_model
from paperhooks_sso.loop import Pace, align
from paperhooks_sso.probes import AlarmLimits

__all__ = ["run"]

#: Answers of the model are a few words each, so that of one prompt some are alike; that is no alarm here.
_LIMITS: Final = AlarmLimits(min_pairs=2, same=None, leaking=None, margin_fall=None)
_SHOWN: Final = 4


def run(context: DemoContext) -> None:
    """Prompts to pairs, pairs to a better model, twice; leaves report.html."""
    iterations = 1 if context.quick else 2
    _clear(context.out)
    bank = context.out / "principles.toml"
    write_text(bank, _toml())
    model, tokenizer = colour_model(context.seed)
    context.echo(f"a model of {model.num_parameters():,} parameters that knows {len(PROMPTS)} colours, more or less")
    prompts = [{"prompt": prompt, "id": f"{prompt} #{copy}"} for copy in range(4) for prompt in PROMPTS]
    found = align(
        model, prompts, tokenizer=tokenizer, out=context.out, iterations=iterations, features=[PRINCIPLE.feature],
        principles=[str(bank)], feature_number=1, concision=0.0, temperature=1.0, top_p=1.0, max_new_tokens=16,
        drop_leaks=False, batch=8, learning_rate=1e-3, seed=context.seed, limits=_LIMITS,
        pace=Pace(sample_batch=64, micro_batch=8),
    )  # fmt: skip
    for number in range(1, found.iterations + 1):
        _tell(context, number, context.out / f"iteration-{number}")
    if found.stopped:
        context.echo(f"stopped: {found.stopped}")
    context.echo("The pairs are labelled by the principles alone: nobody told the model which colour is right.")
    context.echo(f"report: {found.out / 'report.html'}")


def _tell(context: DemoContext, number: int, folder: Path) -> None:
    """What one iteration sampled, and how right it was without being asked to be."""
    pairs = read_lines(folder / "pairs.jsonl")
    right = {name: sum(_is_right(pair, name) for pair in pairs) / len(pairs) for name in ("chosen", "rejected")}
    plain = _plain_share(folder)
    context.echo(
        f"iteration {number}: {len(pairs)} pairs; right are {right['chosen']:.0%} of the good answers, "
        f"{right['rejected']:.0%} of the bad ones, and {plain:.0%} of those without a principle"
    )
    for pair in pairs[:_SHOWN] if number == 1 else ():
        context.echo(f"  {pair['prompt'][-1]['content']}  good: {pair['chosen']}  bad: {pair['rejected']}")


def _plain_share(folder: Path) -> float:
    """How many of all answers without a principle are right, also of prompts that gave no pair."""
    replies = read_lines(folder / "samples" / "replies.jsonl", "replies")
    plain = [row for row in replies if row["id"].endswith("/yo")]
    return sum(RIGHT[row["id"].partition(" #")[0]] in str(row["reply"]).split() for row in plain) / len(plain)


def _is_right(pair: dict[str, Any], name: str) -> bool:
    return RIGHT[pair["prompt"][-1]["content"]] in pair[name].split()


def _toml() -> str:
    """The principle as a user's file."""
    good, bad = PRINCIPLE.adjectives
    return (
        f'[{PRINCIPLE.feature}]\nadjectives = ["{good}", "{bad}"]\ngood = "{PRINCIPLE.good}"\nbad = "{PRINCIPLE.bad}"\n'
    )


def _clear(out: Path) -> None:
    """A demo is made anew every time: take away what an earlier one left, and nothing else."""
    (out / "result.json").unlink(missing_ok=True)
    for number in (1, 2):
        shutil.rmtree(out / f"iteration-{number}", ignore_errors=True)
