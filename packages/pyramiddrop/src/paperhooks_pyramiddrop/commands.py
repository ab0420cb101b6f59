"""``paperhooks pyramiddrop ...``: schedules and their savings, the solver, and figures of a drop."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer
from paperhooks.cli import Model, say, usage_errors, writable_folder

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the command group ``pyramiddrop`` to the application."""
    group = typer.Typer(name="pyramiddrop", help="PyramidDrop: schedules, savings, figures.", no_args_is_help=True)
    for command in (schedule, solve, illustrate):
        group.command()(usage_errors(command))
    app.add_typer(group)


def schedule(
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Visual tokens of the prompt.")] = 576,
    stages: Annotated[int, typer.Option(min=1, help="Stages of an even split.")] = 4,
    ratio: Annotated[float, typer.Option(help="Share kept from stage to stage (lambda).")] = 0.5,
    drops: Annotated[str, typer.Option(help="Drop layers, such as 8,16,24, in place of an even split.")] = "",
    hidden: Annotated[int, typer.Option(min=1, help="Hidden width.")] = 4096,
    intermediate: Annotated[int, typer.Option(min=1, help="Width of the MLP.")] = 11008,
) -> None:
    """Show what a schedule keeps and saves."""
    from paperhooks_pyramiddrop.schedule import DecoderShape, Schedule

    plan = Schedule.powers(_layers(drops), ratio) if drops else Schedule.even(layers, stages, ratio)
    saved = plan.savings(tokens, DecoderShape(layers, hidden, intermediate))
    edges = itertools.pairwise([0, *plan.layers, layers])
    for (start, stop), kept in zip(edges, [tokens, *plan.keep(tokens)], strict=True):
        say(f"layers {start:>3}-{stop - 1:<3} {kept:>6} visual tokens")
    say(f"mean per layer   {saved.average_tokens:>6.4g}")
    say(f"multiply-adds    {saved.flops_before / 1e12:.3f} T -> {saved.flops / 1e12:.3f} T ({saved.flops_ratio:.1%})")
    mib = 2**20
    say(f"KV cache (2 B)   {saved.kv_bytes_before / mib:.1f} MiB -> {saved.kv_bytes / mib:.1f} MiB")


def solve(
    average: Annotated[float, typer.Option(min=0, help="Visual tokens a layer, on average.")],
    drops: Annotated[str, typer.Option(help="Drop layers, such as 2,8,16.")] = "2,8,16",
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Visual tokens of the prompt.")] = 576,
) -> None:
    """Find the lambda that meets an average token budget."""
    from paperhooks_pyramiddrop.schedule import Schedule, solve_ratio

    ratio = solve_ratio(_layers(drops), layers, average, tokens)
    reached = Schedule.powers(_layers(drops), ratio).average_tokens(tokens, layers)
    say(f"ratio {ratio:.6f} keeps {reached:.4g} of {tokens} visual tokens a layer on average")


def illustrate(
    model: Model,
    image: Annotated[Path, typer.Argument(help="Image file.", exists=True, dir_okay=False)],
    prompt: Annotated[str, typer.Argument(help="Question; the processor's image placeholder is added if missing.")],
    out: Annotated[Path, typer.Option(callback=writable_folder, help="Folder for report.html and the figures.")] = Path(
        "pyramiddrop-report"
    ),
    stages: Annotated[str, typer.Option(help="Number of stages, or layer=ratio,... such as 8=0.5,16=0.25.")] = "4",
) -> None:
    """Answer a question about an image with and without PyramidDrop, and draw what each stage sees.

    The model testbed is that of the demo.
    """
    from paperhooks.io import read_image

    from paperhooks_pyramiddrop.method import PyramidDrop
    from paperhooks_pyramiddrop.report import illustrate as draw

    method, shown = PyramidDrop(stages=_stages(stages)), read_image(image)
    loaded, processor = _load(model)
    token = getattr(processor, "image_token", "<image>")
    text = prompt if token in prompt else f"{token} {prompt}"
    say(f"report: {draw(loaded, processor, shown, text, out, method)}")


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} are no layers; expected whole numbers such as 8,16,24") from error


def _stages(text: str) -> Any:
    try:
        if "=" not in text:
            return int(text)
        return {int(layer): float(ratio) for layer, ratio in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a number of stages nor layer=ratio,...") from error


def _load(name: str) -> tuple[Any, Any]:
    from paperhooks.cli import load_model, load_processor

    from paperhooks_pyramiddrop.demo import load_testbed

    return load_testbed() if name == "testbed" else (load_model(name), load_processor(name))
