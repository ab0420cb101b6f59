"""The options that several commands share, and what they are made into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from paperhooks.cli import parse_value
from paperhooks.errors import did_you_mean

if TYPE_CHECKING:
    from paperhooks_sso.loop import Pace
    from paperhooks_sso.probes import AlarmLimits

__all__ = [
    "Alarms",
    "Limit",
    "MaxNewTokens",
    "MicroBatch",
    "Options",
    "Preset",
    "Prompts",
    "SampleBatch",
    "alarm_limits",
    "loop_options",
    "pace_of",
]

Prompts = Annotated[str, typer.Argument(help="Prompts: .jsonl, .json, .csv, .parquet, .txt, a folder, hub:NAME:SPLIT.")]
Preset = Annotated[Literal["v1-ipo", "v1-dpo", "v2"], typer.Option("--preset", help="Objective and rounds.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of LoopOptions, such as features=random; repeated."),
]
Alarms = Annotated[
    list[str] | None,
    typer.Option("--alarm", help="NAME=VALUE of an alarm, such as length_growth=3, or cut=none; repeated."),
]
SampleBatch = Annotated[int, typer.Option("--sample-batch", min=1, help="Answers sampled at a time.")]
MicroBatch = Annotated[int, typer.Option("--micro-batch", min=1, help="Prompts trained on at a time.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only so many prompts, the first ones.")]


def loop_options(texts: Sequence[str] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, of which those in ``texts`` were given as NAME=VALUE.

    :param named: those that the command has a word of their own for.
    :raises typer.BadParameter: an option that there is not, or that has a word of its own.
    """
    from paperhooks_sso.loop import LoopOptions

    known = [each.name for each in fields(LoopOptions)]
    found = _read(texts, known, "--set")
    for name in found:
        if name in named:
            raise typer.BadParameter(f"--set {name}: give --{name.replace('_', '-')}")
    return {**found, **{name: value for name, value in named.items() if value is not None}}


def alarm_limits(texts: Sequence[str] | None) -> AlarmLimits:
    """The usual limits, with those that were given."""
    from paperhooks_sso.probes import AlarmLimits

    return AlarmLimits(**_read(texts, [each.name for each in fields(AlarmLimits)], "--alarm"))


def pace_of(sample_batch: int = 16, micro_batch: int = 2) -> Pace:
    """How much is done at a time, with lines of progress."""
    from paperhooks_sso.loop import Pace

    return Pace(sample_batch=sample_batch, micro_batch=micro_batch, progress=True)


def _read(texts: Sequence[str] | None, known: Sequence[str], option: str) -> dict[str, Any]:
    found = {}
    for text in texts or ():
        name, mark, value = text.partition("=")
        if not mark:
            raise typer.BadParameter(f"{option} {text!r} is not of the form NAME=VALUE")
        if name not in known:
            raise typer.BadParameter(f"{option}: there is no {name!r}; {did_you_mean(name, known)}")
        found[name] = parse_value(value)
    return found
