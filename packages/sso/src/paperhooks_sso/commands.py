"""``paperhooks sso ...``: the loop as a whole, its stages alone, reports and exports."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from paperhooks import DataError
from paperhooks.cli import (
    Device,
    Dtype,
    Model,
    RunOut,
    Seed,
    load_model,
    load_processor,
    say,
    usage_errors,
    writable_folder,
)
from paperhooks.errors import counted
from paperhooks.io import local_path

from paperhooks_sso.command_options import (
    Alarms,
    Limit,
    MaxNewTokens,
    MicroBatch,
    Options,
    Preset,
    Prompts,
    SampleBatch,
    alarm_limits,
    loop_options,
    pace_of,
)

if TYPE_CHECKING:
    from paperhooks_sso.data import Conversation
    from paperhooks_sso.loop import Aligned

__all__ = ["add_commands"]

Plan = Annotated[bool, typer.Option("--plan", help="Only say what it would cost: tokens, time, disk.")]
Filter = Annotated[bool, typer.Option("--filter/--no-filter", help="Keep only what the filter keeps, about a tenth.")]
Iterations = Annotated[int, typer.Option("--iterations", min=1, help="How often to sample and train.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="Largest learning rate of AdamW.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Prompts of one step.")]
Pairs = Annotated[Path, typer.Argument(exists=True, help="File of pairs, or the folder of an iteration.")]


def add_commands(app: typer.Typer) -> None:
    """Add the command group ``sso`` to the application."""
    group = typer.Typer(
        name="sso", help="Self-Steering Optimization: a chat model writes its own pairs, and learns from them.",
        no_args_is_help=True,
    )  # fmt: skip
    for command in (align, sample, pairs, train, report, export):
        group.command()(usage_errors(command))
    group.command(name="filter")(usage_errors(filter_pairs))
    app.add_typer(group)


def align(
    model: Model,
    prompts: Prompts,
    out: RunOut,
    iterations: Iterations = 3,
    preset: Preset = "v1-ipo",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 2048,
    learning_rate: LearningRate = 5e-7,
    batch: Batch = 32,
    filter: Filter = False,
    options: Options = None,
    alarm: Alarms = None,
    sample_batch: SampleBatch = 16,
    micro_batch: MicroBatch = 2,
    plan: Plan = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Sample pairs, train on them, and again; an interrupted run goes on. Status 3: an alarm has stopped it."""
    named = {
        "preset": preset, "max_new_tokens": max_new_tokens, "learning_rate": learning_rate, "batch": batch,
        "filter": filter, "seed": seed,
    }  # fmt: skip
    given = loop_options(options, named)
    if plan:
        _say_plan(
            model, prompts, device, dtype, iterations=iterations, limit=limit, pace=pace_of(sample_batch), **given
        )
        return
    found = _aligned(
        model, prompts, device, dtype, out=out, iterations=iterations, limit=limit, limits=alarm_limits(alarm),
        pace=pace_of(sample_batch, micro_batch), **given,
    )  # fmt: skip
    done = counted(iterations, "iteration is", "iterations are")
    say(f"{found.iterations} of {done} done; report: {out / 'report.html'}")
    if found.iterations:
        say(f"the model: {out / f'iteration-{found.iterations}' / 'checkpoint'}")
    if found.alarms:
        say(
            "the same command goes on from here, with other limits: --alarm NAME=VALUE; with other options it wants "
            "another folder", err=True,
        )  # fmt: skip
        raise typer.Exit(3)


def sample(
    model: Model,
    prompts: Prompts,
    out: RunOut,
    preset: Preset = "v1-ipo",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 2048,
    options: Options = None,
    sample_batch: SampleBatch = 16,
    plan: Plan = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Only have the model answer every prompt three times: the first stage of an iteration."""
    given = loop_options(options, {"preset": preset, "max_new_tokens": max_new_tokens, "seed": seed})
    if plan:
        _say_plan(model, prompts, device, dtype, iterations=1, limit=limit, pace=pace_of(sample_batch), **given)
        return
    _aligned(
        model, prompts, device, dtype, out=out, iterations=1, limit=limit, pace=pace_of(sample_batch), until="samples",
        report=False, **given,
    )  # fmt: skip
    say(f"answers: {out / 'iteration-1' / 'samples' / 'replies.jsonl'}; paperhooks sso pairs makes pairs of them")


def pairs(
    model: Model,
    prompts: Prompts,
    out: RunOut,
    preset: Preset = "v1-ipo",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 2048,
    filter: Filter = False,
    options: Options = None,
    sample_batch: SampleBatch = 16,
    plan: Plan = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Sample what is not sampled yet, and make pairs: what others train on, and reward models learn from."""
    named = {"preset": preset, "max_new_tokens": max_new_tokens, "filter": filter, "seed": seed}
    given = loop_options(options, named)
    if plan:
        _say_plan(model, prompts, device, dtype, iterations=1, limit=limit, pace=pace_of(sample_batch), **given)
        return
    _aligned(
        model, prompts, device, dtype, out=out, iterations=1, limit=limit, pace=pace_of(sample_batch), until="pairs",
        **given,
    )  # fmt: skip
    from paperhooks.reports import RunFolder

    name = "iteration-1-generator" if preset == "v2" else "iteration-1"
    told = RunFolder.open(out / name).result["results"]["pairs"]
    say(f"{told['kept']} of {told['prompts']} prompts gave a pair: {out / name / 'pairs.jsonl'}")
    for reason, count in told["dropped"].items():
        if count:
            say(f"  {reason}: {count}")


def filter_pairs(
    model: Model,
    file: Pairs,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the pairs that are kept.")],
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Keep the pairs whose answers are likelier the closer their prompt asks for them; about one in ten."""
    from paperhooks_sso.data import HARMFUL
    from paperhooks_sso.loop import filter_file

    found = filter_file(load_model(model, device, dtype), file, out)
    say(f"{found.given} pairs, {found.ordered} in order, {found.likely} likely enough, {found.apart} told apart: {out}")
    if not found.apart:
        say(
            "none is left: this model's principles have too little effect, or the pairs are too few to compare",
            err=True,
        )
    say(HARMFUL)


def train(
    model: Model,
    file: Pairs,
    out: RunOut,
    preset: Preset = "v1-ipo",
    learning_rate: LearningRate = 5e-7,
    batch: Batch = 32,
    options: Options = None,
    micro_batch: MicroBatch = 2,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Train on a file of pairs, compared with the model as it is; with preset v2 a generator of pairs."""
    from paperhooks_sso.loop import LoopOptions, train_file

    given = loop_options(options, {"preset": preset, "learning_rate": learning_rate, "batch": batch, "seed": seed})
    LoopOptions(**given)
    train_file(
        load_model(model, device, dtype), file, tokenizer=_tokenizer(model), out=out,
        pace=pace_of(micro_batch=micro_batch), **given,
    )  # fmt: skip
    say(f"the model: {out / 'checkpoint'}; report: {out / 'report.html'}")


def report(folder: Annotated[Path, typer.Argument(help="Folder of a loop, or of one of its rounds.")]) -> None:
    """Write the report of what a folder holds anew."""
    from paperhooks.reports import RunFolder

    from paperhooks_sso.loop.alignment import KIND
    from paperhooks_sso.loop.round_folder import KIND as ROUND
    from paperhooks_sso.report import write_overview, write_round

    run = RunFolder.open(folder)
    writers = {KIND: write_overview, ROUND: write_round}
    if run.result["kind"] not in writers:
        raise DataError(f"{folder} holds a run of {run.result['kind']!r}; expected a loop of SSO, or one of its rounds")
    say(f"report: {writers[run.result['kind']](run)}")


def export(
    file: Pairs,
    out: Annotated[Path, typer.Option("--out", "-o", callback=writable_folder, help="Folder for the files.")],
) -> None:
    """Write pairs as TRL, LLaMA-Factory and trainers of reward models read them."""
    from paperhooks_sso.data import HARMFUL, export_pairs

    given = local_path(file)
    folder = export_pairs(given / "pairs.jsonl" if given.is_dir() else given, out)
    say(f"{folder / 'preferences.jsonl'}: prompt, chosen and rejected as messages, for TRL and reward models")
    say(f"{folder / 'dataset_info.json'}: for LLaMA-Factory, the set sso_pairs")
    say(HARMFUL)


def _aligned(model: str, prompts: str, device: str, dtype: Any, **given: Any) -> Aligned:
    from paperhooks_sso.loop import align as run

    asked = _checked(prompts, given)
    return run(load_model(model, device, dtype), asked, tokenizer=_tokenizer(model), **given)


def _say_plan(model: str, prompts: str, device: str, dtype: Any, **given: Any) -> None:
    from paperhooks_sso.loop import plan_loop

    asked = _checked(prompts, given)
    planned = plan_loop(load_model(model, device, dtype), asked, tokenizer=_tokenizer(model), **given)
    for line in planned.lines():
        say(line)


def _checked(prompts: str, given: dict[str, Any]) -> list[Conversation]:
    """The prompts, read before a model is loaded, as options are looked at; ``limit`` is used up."""
    from paperhooks_sso.data import read_prompts
    from paperhooks_sso.loop import LoopOptions

    known = {each.name for each in fields(LoopOptions)}
    LoopOptions(**{name: value for name, value in given.items() if name in known})
    return read_prompts(prompts, given.pop("limit"))


def _tokenizer(model: str) -> Any:
    processor = load_processor(model)
    return getattr(processor, "tokenizer", processor)
