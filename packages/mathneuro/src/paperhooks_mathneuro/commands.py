"""``paperhooks mathneuro ...``: every stage of the method on files, and the whole experiment in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from paperhooks import DataError
from paperhooks.cli import BatchSize, Device, Dtype, Model, RunOut, Seed, load_model, say, usage_errors
from paperhooks.io import FolderLock, local_path, optional, pattern, read_manifest
from paperhooks.reports import RunFolder

__all__ = ["add_commands"]

Template = Annotated[str | None, typer.Option("--template", help="Joins {question} and {answer} of records.")]
_DATA = ".jsonl, .json, .csv, .parquet or plain text, or hub:NAME:SPLIT."


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
    from paperhooks_mathneuro.statistics.collector import KIND
    from paperhooks_mathneuro.statistics.collector import collect as run
    from paperhooks_mathneuro.texts import TEMPLATE, check_template, read_records

    if (out / "manifest.json").exists():
        read_manifest(out, KIND)
    for option, expression in (("include", include), ("exclude", exclude)):
        optional(pattern, option, expression)
    check_template(template or TEMPLATE)
    records = read_records(data)
    statistics = run(
        load_model(model, device, dtype), records, name=name, samples=samples, seed=seed,
        token_scope=scope, keep=keep, head=head, include=include, exclude=exclude,
        max_length=max_length, truncate=truncate, template=template or TEMPLATE, batch_size=batch_size, out=out,
    )  # fmt: skip
    say(f"{out / 'statistics.safetensors'}: {statistics}")


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
    force: Annotated[bool, typer.Option("--force", help="Take statistics of other weights too.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Find the entries that matter for the target and not for the references, at every ratio."""
    from paperhooks_mathneuro.selection.overlaps import shares
    from paperhooks_mathneuro.selection.ratio_sweep import check_options, sweep
    from paperhooks_mathneuro.selection.set_algebra import set_names

    ratios, references = ratio or [0.05], _named(reference)
    check_options(ratios, reference_ratio=reference_ratio, max_isolated=max_isolated)
    if expression is not None:
        set_names(expression, ["target", *references])
    local_path(out)
    sides = {name: _statistics(Path(path)) for name, path in {"target": str(target), **references}.items()}
    loaded = load_model(model, device, dtype)
    found = sweep(
        loaded, sides.pop("target"), sides, ratios=ratios, reference_ratio=reference_ratio,
        expression=expression, combine=combine, granularity=granularity, aggregate=aggregate,
        mode=mode, max_isolated=max_isolated, force=force,
    )  # fmt: skip
    for one, selection in found.items():
        file = selection.save(out / f"selection-{one:g}")
        if masks and mode == "exact":
            selection.masks(loaded).save(out / f"masks-{one:g}")
        total = shares(selection.matrices, selection.about["counts"]).total
        say(f"{file}: {selection.label}, {total:.3%} of the entries")


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
    from paperhooks_mathneuro.surgery import check_scale

    _refuse_existing(out)
    check_scale(scale)
    chosen = load_selection(selection)
    loaded = load_model(model, "cpu", dtype)
    with run(loaded, chosen, scale, rounding=rounding, seed=seed, force=force) as surgery:
        surgery.reversal().save(out / "undo.safetensors")
        _save(loaded, model, out)
        say(f"{out}: {surgery.entries} entries times {scale:g}; undo.safetensors takes it back")


def undo(
    edited: Annotated[Path, typer.Argument(help="Folder that apply wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the restored model.")],
    dtype: Dtype = "auto",
) -> None:
    """Write the model as it was before apply, bit for bit."""
    from paperhooks import Artefact

    _refuse_existing(out)
    reversal = Artefact.load(edited / "undo.safetensors")
    loaded = load_model(str(edited), "cpu", dtype)
    reversal.apply(loaded)
    _save(loaded, str(edited), out)
    say(f"{out}: restored")


def evaluate(
    model: Model,
    selection: Annotated[list[Path], typer.Argument(help="Files that select wrote; the first one gets controls.")],
    target: Annotated[str, typer.Option("--target", help=f"Items of the target: {_DATA}")],
    reference: Annotated[list[str], typer.Option("--reference", help="Items, or NAME=items; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for effects.json and a report.")],
    scale: Annotated[list[float] | None, typer.Option("--scale", help="Factors, 0 by default; repeatable.")] = None,
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Measure the controls too.")] = True,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=0, help="Let the model answer; 0 does not.")
    ] = 0,
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
    from paperhooks_mathneuro.surgery import check_scale
    from paperhooks_mathneuro.texts import TEMPLATE, check_template, read_records

    for factor in scale or []:
        check_scale(factor)
    check_template(template or TEMPLATE)
    selections = {file.stem: load_selection(file) for file in selection}
    data = {name: read_records(path) for name, path in {"target": target, **_named(reference)}.items()}
    with FolderLock(local_path(out)):
        effects = run(
            load_model(model, device, dtype), selections, data, scales=scale or [0.0], with_controls=controls,
            template=template or TEMPLATE, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
            out=out / "effects.json",
        )  # fmt: skip
    say(f"report: {write(out, selections=selections, effects={next(iter(selections)): effects})}")


def report(folder: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """Write a study's report anew from its files."""
    from paperhooks_mathneuro.experiment.study_report import report as write

    say(f"report: {write(folder)}")


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
    from paperhooks_mathneuro.experiment.protocol import check_study, split_texts
    from paperhooks_mathneuro.experiment.protocol import study as run
    from paperhooks_mathneuro.texts import TEMPLATE, read_records

    ratios, scales, template = ratio or [0.01, 0.05], scale or [], template or TEMPLATE
    check_study(ratios, scales, template)
    if (out / "result.json").exists():
        RunFolder.open(out, "mathneuro-study")
    sides = {"target": read_records(target), "reference": read_records(reference)}
    for name, records in sides.items():
        split_texts(name, records, samples=samples, items=items, repeats=repeats, scales=scales, seed=seed)
    run(
        load_model(model, device, dtype), sides["target"], sides["reference"], out, ratios=ratios, scales=scales,
        samples=samples, items=items, repeats=repeats, template=template, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    say(f"report: {out / 'report.html'}")


def compare(
    model: Model,
    first: Annotated[Path, typer.Argument(help="A file that select wrote.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same model.")],
    dtype: Dtype = "auto",
) -> None:
    """How far two selections agree: Jaccard index overall, by layer and by kind of module."""
    from paperhooks_mathneuro.selection.overlaps import overlap
    from paperhooks_mathneuro.selection.selections import load_selection

    pair = load_selection(first), load_selection(second)
    found = overlap(load_model(model, "cpu", dtype), *pair)
    say(str(found))
    for name, group in found.groups.items():
        say(f"{name:<24} Jaccard {group.jaccard:.3f}   {group.first:>9} {group.second:>9} {group.common:>9}")


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


def _refuse_existing(out: Path) -> None:
    if local_path(out).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty; choose a new folder")


def _save(model: Any, source: str, out: Path) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(out)
    try:
        AutoTokenizer.from_pretrained(source).save_pretrained(out)
    except (OSError, ValueError):
        return  # a model without a tokenizer is as usable as before
