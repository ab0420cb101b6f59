"""Commands around evaluation: evaluate, rescore, compare, export, tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from paperhooks.cli import (
    BatchSize,
    Device,
    Dtype,
    Model,
    build_methods,
    load_model,
    load_processor,
    parse_value,
    say,
    writable_folder,
)
from paperhooks.errors import counted
from paperhooks.generation import Layout
from paperhooks.io import printable
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paperhooks_evaluation.harness.outline import Harness

__all__ = ["add_commands"]

Run = Annotated[Path, typer.Argument(help="Run folder of an evaluation.")]
Options = Annotated[list[str] | None, typer.Option("--option", help="Option of the task, k=v.")]
KeepReasoning = Annotated[
    bool | None,
    typer.Option("--keep-reasoning/--no-keep-reasoning", help="Read answers with the reasoning in tags before them."),
]
Modes = Annotated[list[str] | None, typer.Option("--mode", help="Way of reading responses; all without it.")]


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    for command in (evaluate, rescore, compare, export, tasks):
        app.command()(command)


def evaluate(
    model: Model,
    task: Annotated[str, typer.Argument(help="Task offered by a plugin, see: paperhooks tasks.")],
    data: Annotated[str, typer.Option("--data", help="Folder, file or hub name of the task's data.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", callback=writable_folder, help="Run folder, TASK-run without it; an interrupted run goes on."
        ),
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--plugin", "-p", help="METHOD[:k=v,...] to attach.")] = None,
    option: Options = None,
    mode: Modes = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first documents.")] = None,
    limit_per: Annotated[
        str | None, typer.Option("--limit-per", help="The limit is of each group of this grouping: subject.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="Only this group: subset=CA.")] = None,
    batch_size: BatchSize = 1,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", min=1, help="Tokens of a batch with padding; 16384 without it.")
    ] = None,
    layout: Annotated[Layout | None, typer.Option(help="Where images go; the task's own without it.")] = None,
    max_pixels: Annotated[int | None, typer.Option("--max-pixels", min=1, help="Scale larger images down.")] = None,
    image_memory: Annotated[
        int, typer.Option("--image-memory", min=1, help="MiB that images opened ahead of the model may take.")
    ] = 512,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Not the task's own.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="String that ends a response.")] = None,
    shard: Annotated[str | None, typer.Option("--shard", help="INDEX/COUNT: answer this share only.")] = None,
    keep_reasoning: KeepReasoning = None,
    server: Annotated[
        str | None, typer.Option("--server", help="URL of an OpenAI-compatible server that knows MODEL by this name.")
    ] = None,
    replay: Annotated[
        list[Path] | None, typer.Option("--replay", help="File or folder of responses that MODEL gave elsewhere.")
    ] = None,
    force_new: Annotated[bool, typer.Option("--force-new", help="Begin anew; keep the old files aside.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Recorded with the run.")] = 0,
) -> None:
    """Run an evaluation task on a model, with methods attached where asked, and write a report."""
    from paperhooks_evaluation.evaluator import ModelLoader
    from paperhooks_evaluation.evaluator import evaluate as run

    part, options, methods = _shard(shard), _task_options(option), build_methods(method or [])
    loader = ModelLoader(lambda: _loaded(model, device, dtype, server, replay))
    result = run(
        loader, None, task, data=data, out=out or f"{task}-run", methods=methods,
        options=options, modes=mode, limit=limit, limit_per=limit_per, groups=group, batch_size=batch_size,
        batch_tokens=batch_tokens, layout=layout, max_pixels=max_pixels, image_memory=image_memory,
        max_new_tokens=max_new_tokens, stop=stop or None, seed=seed, shard=part, keep_reasoning=bool(keep_reasoning),
        force_new=force_new, progress=True,
    )  # fmt: skip
    _show(result)


def rescore(
    run: Run,
    task: Annotated[str | None, typer.Option("--task", help="Task to score with; the run's own without it.")] = None,
    option: Options = None,
    mode: Modes = None,
    keep_reasoning: KeepReasoning = None,
) -> None:
    """Score the responses of a run again; needs neither model nor images."""
    from paperhooks_evaluation.evaluator import rescore as again

    options = _task_options(option) if option else None
    _show(again(run, task, options=options, modes=mode, keep_reasoning=keep_reasoning))


def compare(
    a: Run,
    b: Run,
    metric: Annotated[str | None, typer.Option("--metric", help="Show this metric of the task only.")] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="Way of reading responses; the first without it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=writable_folder, help="Folder for a report and comparison.json."),
    ] = None,
    allow: Annotated[list[str] | None, typer.Option("--allow", help="Input that may differ, such as layout.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare two runs, paired by document: what differs, difference, interval, exact McNemar test."""
    from paperhooks_evaluation.comparison import compare as paired

    result = paired(a, b, metric, mode=mode, out=out, allow=allow or (), seed=seed)
    for one in result.differences:
        say(str(one))
    say(str(result))
    if out is not None:
        say(f"report: {out / 'report.html'}")


def export(
    task: Annotated[str, typer.Argument(help="Task offered by a plugin, see: paperhooks tasks.")],
    data: Annotated[str, typer.Option("--data", help="Folder, file or hub name of the task's data.")],
    to: Annotated[Harness, typer.Option("--to", help="The harness that is to run it.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=writable_folder, help="Folder for its --include_path.")],
    option: Options = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="Way of reading responses; the first that fits without it.")
    ] = None,
    layout: Annotated[Layout | None, typer.Option(help="Where images go; the task's own without it.")] = None,
    max_pixels: Annotated[int | None, typer.Option("--max-pixels", min=1, help="Scale larger images down.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Not the task's own.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="String that ends a response.")] = None,
) -> None:
    """Write a folder by which lm-eval or lmms-eval runs a task with its own requests, parsers and scores."""
    from paperhooks_evaluation.harness.folder import export_task

    written = export_task(
        task, data=data, to=to, out=out, options=_task_options(option), mode=mode, layout=layout,
        max_pixels=max_pixels, max_new_tokens=max_new_tokens, stop=stop or None,
    )  # fmt: skip
    say(str(written))


def tasks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the evaluation tasks of the installed plugins."""
    from paperhooks_evaluation.task import available_tasks

    found = available_tasks()
    if as_json:
        rows = [{"name": one.name, "needs": list(one.needs), "summary": one.summary} for one in found.values()]
        say(json.dumps(rows, indent=2))
        return
    if not found:
        say("No installed plugin offers a task.")
        return
    table = Table("task", "needs", "what it measures", box=None, pad_edge=False)
    for one in found.values():
        table.add_row(one.name, ", ".join(one.needs), escape(printable(one.summary)))
    Console().print(table)


def _show(result: Any) -> None:
    """Print the result; exit code 1 where documents have no score, or no answer says anything.

    Documents of shards that are not done are none of these: whoever is last has the results.
    """
    untried = set(result.untried)
    if untried:
        count = counted(len(untried), "document is", "documents are")
        say(f"{result.path}: this shard is done, {count} left to other shards; the last one writes the results")
    else:
        say(str(result))
    for note in result.notes:
        say(note)
    if result.first.records and result.first.empty == len(result.first.records):
        raise typer.Exit(1)  # the log has said so
    failures = {key: error for key, error in result.first.failures.items() if key not in untried}
    if failures:
        key, error = next(iter(failures.items()))
        count = counted(len(failures), "document has", "documents have")
        say(f"{count} no score, the first is {key!r}: {error}", err=True)
        raise typer.Exit(1)


def _task_options(texts: list[str] | None) -> dict[str, Any]:
    """``k=v`` each: a Python literal, or else text as it stands, such as a path."""
    found: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise typer.BadParameter(f"the option {text!r} is not of the form k=v")
        found[name.strip()] = parse_value(value)
    return found


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise typer.BadParameter(f"--shard is {text!r}; expected INDEX/COUNT with INDEX below COUNT, such as 0/2")
    return int(index), int(count)


def _loaded(model: str, device: str, dtype: str, server: str | None, replay: list[Path] | None) -> tuple[Any, Any]:
    """Model and processor, or what answers in their place and None."""
    if server is not None and replay:
        raise typer.BadParameter("--server and --replay both give responses; leave one of them out")
    if replay:
        from paperhooks.generation import ReplayBackend

        return ReplayBackend(*replay, model=model), None
    if server is None:
        return load_model(model, device, dtype), load_processor(model)
    from paperhooks.generation import ServerBackend

    return ServerBackend(model, base_url=server), None
