"""``paperhooks mathneuro ...``: every stage of the method on files, and the whole experiment in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from paperhooks import DataError
from paperhooks.cli import BatchSize, Device, Dtype, Model, RunOut, Seed, load_model, usage_errors

__all__ = ["add_commands"]

Template = Annotated[str | None, typer.Option("--template", help="Joins {question} and {answer} of records.")]
_DATA = ".jsonl, .json, .csv or plain text, or hub:NAME:SPLIT."


def add_commands(app: typer.Typer) -> None:
    """Add the command group ``mathneuro`` to the application."""
    group = typer.Typer(
        name="mathneuro",
        help="MathNeuro: find the weights of a skill, edit them, measure the effect.",
        no_args_is_help=True,
    )
    for command in (collect, select, apply, undo, evaluate, report, study, compare):
        group.command()(usage_errors(command))
    app.add_typer(group)


def collect(
    model: Model,
    data: Annotated[str, typer.Argument(help=f"Texts of one side: {_DATA}")],
    out: RunOut,
    name: Annotated[str, typer.Option("--name", help="What the side is called.")] = "",
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Draw so many texts.")] = None,
    scope: Annotated[Literal["all", "answer", "no_first"], typer.Option("--scope", help="Tokens that count.")] = "all",
    keep: Annotated[Literal["samples", "sums"], typer.Option("--keep", help="Sums are smaller.")] = "samples",
    head: Annotated[Literal["no", "untied", "tied"], typer.Option("--head", help="Whether to score the head.")] = "no",
    include: Annotated[str | None, typer.Option("--include", help="Only matrices whose name this finds.")] = None,
    exclude: Annotated[str | None, typer.Option("--exclude", help="No matrices whose name this finds.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="Longest text in tokens.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut longer texts.")] = False,
    template: Template = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Read the texts of one side and keep how strongly they drive every input channel."""
    from paperhooks_mathneuro.statistics.collector import collect as run
    from paperhooks_mathneuro.texts import TEMPLATE

    statistics = run(
        load_model(model, device, dtype), data, name=name, samples=samples, seed=seed,
        token_scope=scope, keep=keep, head=head, include=include, exclude=exclude,
        max_length=max_length, truncate=truncate, template=template or TEMPLATE, batch_size=batch_size, out=out,
    )  # fmt: skip
    typer.echo(f"{out / 'statistics.safetensors'}: {statistics}")


def select(
    model: Model,
    target: Annotated[Path, typer.Option("--target", help="Statistics of the target: file or folder of collect.")],
    reference: Annotated[list[str], typer.Option("--reference", help="Statistics, or NAME=statistics; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for a file a ratio.")],
    ratio: Annotated[
        list[float] | None, typer.Option("--ratio", help="Share of a matrix in the top, 0.05 by default; repeatable.")
    ] = None,
    reference_ratio: Annotated[float | None, typer.Option("--reference-ratio", help="The references' share.")] = None,
    expression: Annotated[str | None, typer.Option("--expression", help="Such as 'target - (a & b)'.")] = None,
    combine: Annotated[
        Literal["union", "intersection"], typer.Option("--combine", help="What several references are together.")
    ] = "union",
    granularity: Annotated[
        Literal["matrix", "row", "global"], typer.Option("--granularity", help="Within what the top is taken.")
    ] = "matrix",
    aggregate: Annotated[
        Literal["sum_of_norms", "mean_of_norms", "rms"], typer.Option("--aggregate", help="How samples make c.")
    ] = "sum_of_norms",
    mode: Annotated[
        Literal["exact", "compat"], typer.Option("--mode", help="compat has the official rounding.")
    ] = "exact",
    max_isolated: Annotated[float | None, typer.Option("--max-isolated", help="Largest share of a matrix.")] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Write packed masks too.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Find the entries that matter for the target and not for the references, at every ratio."""
    from paperhooks_mathneuro.selection.overlaps import shares
    from paperhooks_mathneuro.selection.ratio_sweep import sweep

    loaded = load_model(model, device, dtype)
    found = sweep(
        loaded, _statistics(target), _references(reference), ratios=ratio or [0.05], reference_ratio=reference_ratio,
        expression=expression, combine=combine, granularity=granularity, aggregate=aggregate,
        mode=mode, max_isolated=max_isolated,
    )  # fmt: skip
    for one, selection in found.items():
        file = selection.save(out / f"selection-{one:g}")
        if masks and mode == "exact":
            selection.masks(loaded).save(out / f"masks-{one:g}")
        total = shares(selection.matrices, selection.about["counts"]).total
        typer.echo(f"{file}: {selection.label}, {total:.3%} of the entries")


def apply(
    model: Model,
    selection: Annotated[Path, typer.Argument(help="A file that select wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the edited model.")],
    scale: Annotated[float, typer.Option("--scale", help="Factor on the entries; 0 prunes.")] = 0.0,
    rounding: Annotated[
        Literal["nearest", "stochastic"], typer.Option("--rounding", help="To the weights' dtype.")
    ] = "nearest",
    force: Annotated[bool, typer.Option("--force", help="Whatever weights the model has.")] = False,
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Write an ordinary checkpoint with the entries scaled, and what is needed to undo it."""
    from paperhooks_mathneuro.selection.selections import load_selection
    from paperhooks_mathneuro.surgery import apply as run

    _refuse_existing(out)
    loaded = load_model(model, "cpu", dtype)
    with run(loaded, load_selection(selection), scale, rounding=rounding, seed=seed, force=force) as surgery:
        surgery.reversal().save(out / "undo.safetensors")
        _save(loaded, model, out)
        typer.echo(f"{out}: {surgery.entries} entries times {scale:g}; undo.safetensors takes it back")


def undo(
    edited: Annotated[Path, typer.Argument(help="Folder that apply wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the restored model.")],
    dtype: Dtype = "auto",
) -> None:
    """Write the model as it was before apply, bit for bit."""
    from paperhooks import Artefact

    _refuse_existing(out)
    loaded = load_model(str(edited), "cpu", dtype)
    Artefact.load(edited / "undo.safetensors").apply(loaded)
    _save(loaded, str(edited), out)
    typer.echo(f"{out}: restored")


def evaluate(
    model: Model,
    selection: Annotated[list[Path], typer.Argument(help="Files that select wrote; the first one gets controls.")],
    target: Annotated[str, typer.Option("--target", help=f"Items of the target: {_DATA}")],
    reference: Annotated[list[str], typer.Option("--reference", help="Items, or NAME=items; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for effects.json and a report.")],
    scale: Annotated[list[float] | None, typer.Option("--scale", help="Factors, 0 by default; repeatable.")] = None,
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Measure the controls too.")] = True,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Let the model answer; 0 does not.")] = 0,
    template: Template = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Measure what scaling selections does to both sides, with controls, intervals and a report."""
    from paperhooks_mathneuro.experiment.evaluation import evaluate as run
    from paperhooks_mathneuro.experiment.study_report import report as write
    from paperhooks_mathneuro.selection.selections import load_selection
    from paperhooks_mathneuro.texts import TEMPLATE

    selections = {file.stem: load_selection(file) for file in selection}
    data = {"target": target, **_named(reference)}
    effects = run(
        load_model(model, device, dtype), selections, data, scales=scale or [0.0], with_controls=controls,
        template=template or TEMPLATE, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
        out=out / "effects.json",
    )  # fmt: skip
    typer.echo(f"report: {write(out, selections=selections, effects={next(iter(selections)): effects})}")


def report(folder: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """Write a study's report anew from its files."""
    from paperhooks_mathneuro.experiment.study_report import report as write

    typer.echo(f"report: {write(folder)}")


def study(
    model: Model,
    target: Annotated[str, typer.Option("--target", help=f"Texts of the skill: {_DATA}")],
    reference: Annotated[str, typer.Option("--reference", help="Other texts.")],
    out: RunOut,
    ratio: Annotated[
        list[float] | None, typer.Option("--ratio", help="Shares in the top, 0.01 and 0.05 by default; repeatable.")
    ] = None,
    scale: Annotated[list[float] | None, typer.Option("--scale", help="Factors to search; repeatable.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Texts a side to identify with.")] = 48,
    items: Annotated[int, typer.Option("--items", min=2, help="Texts a side to report on.")] = 100,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Draws of the texts to identify with.")] = 1,
    template: Template = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """The whole experiment: find, prune with all controls, search factors, report."""
    from paperhooks_mathneuro.experiment.protocol import study as run
    from paperhooks_mathneuro.texts import TEMPLATE

    run(
        load_model(model, device, dtype), target, reference, out, ratios=ratio or [0.01, 0.05], scales=scale or [],
        samples=samples, items=items, repeats=repeats, template=template or TEMPLATE, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    typer.echo(f"report: {out / 'report.html'}")


def compare(
    model: Model,
    first: Annotated[Path, typer.Argument(help="A file that select wrote.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same model.")],
    dtype: Dtype = "auto",
) -> None:
    """How far two selections agree: Jaccard index overall, by layer and by kind of module."""
    from paperhooks_mathneuro.selection.overlaps import overlap
    from paperhooks_mathneuro.selection.selections import load_selection

    found = overlap(load_model(model, "cpu", dtype), load_selection(first), load_selection(second))
    typer.echo(str(found))
    for name, group in found.groups.items():
        typer.echo(f"{name:<24} Jaccard {group.jaccard:.3f}   {group.first:>9} {group.second:>9} {group.common:>9}")


def _statistics(path: Path) -> Any:
    from paperhooks_mathneuro.statistics.statistics import Statistics

    return Statistics.load(path / "statistics.safetensors" if path.is_dir() else path)


def _named(texts: list[str]) -> dict[str, str]:
    """``NAME=path`` or a path alone, which is called reference."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        key = name if separator and name.isidentifier() else "reference"
        if key in found:
            raise DataError(f"two references are called {key!r}; write NAME=path for each")
        found[key] = path if separator and name.isidentifier() else text
    return found


def _references(texts: list[str]) -> dict[str, Any]:
    return {name: _statistics(Path(path)) for name, path in _named(texts).items()}


def _refuse_existing(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty; choose a new folder")


def _save(model: Any, source: str, out: Path) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(out)
    try:
        AutoTokenizer.from_pretrained(source).save_pretrained(out)
    except (OSError, ValueError):
        return  # a model without a tokenizer is as usable as before
