"""Commands that run something: demo, compress, select."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paperhooks.authoring.demo import DEFAULT_OUT, run_demo
from paperhooks.cli.arguments import BatchSize, Device, Dtype, Model, RunOut, Seed
from paperhooks.cli.options import build_methods, load_model, load_records
from paperhooks.cli.output import error_line, say

__all__ = ["add_commands"]

#: Records of a corpus that are looked at before a model is loaded; all of a large one would take longer than that.
_LOOKED_AT = 1000
Method = Annotated[str, typer.Argument(help="METHOD or METHOD:k=v,k=v.")]


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    for command in (demo, compress, select):
        app.command()(command)


def demo(
    name: Annotated[str | None, typer.Argument(help="Plugin name; all plugins without it.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the reports go.")] = DEFAULT_OUT,
    quick: Annotated[bool, typer.Option("--quick", help="The shortest run that still shows something.")] = False,
    seed: Seed = 0,
) -> None:
    """Run a plugin's demo, or all of them: small, offline, with a report at the end."""
    results = run_demo(name, out, echo=say, quick=quick, seed=seed)
    for result in results:
        ending = f"failed: {error_line(result.error, {})}" if result.error else f"report: {result.report or result.out}"
        say(f"{result.plugin}: {result.seconds:.1f} s, {ending}", err=result.error is not None)
    if any(result.error for result in results):
        raise typer.Exit(1)


def compress(
    model: Model,
    method: Method,
    data: Annotated[list[str], typer.Option("--data", help="Calibration data: records or text; PART=FILE, repeated.")],
    out: RunOut,
    target: Annotated[str | None, typer.Option("--target", help="What to reach, such as bits=3.0.")] = None,
    levels_from: Annotated[
        list[str] | None, typer.Option("--levels-from", help="METHOD whose levels a search may use; repeated.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Read the first so many records, as of hub:NAME:SPLIT."),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Compress a model's weights with a plugin and leave an artefact and a report.

    Processes that torchrun or accelerate launch on one machine do it together, as far as the method deals its work out.
    """
    from paperhooks.compression import compress as run
    from paperhooks.io.processes import joined

    _refuse_other(out, "compress")
    chosen, *further = build_methods([method, *(levels_from or [])])
    records = _parts(data, limit)
    given: dict[str, Any] = {"levels_from": further} if further else {}
    with joined() as ranks:
        if not ranks.first:
            given["progress"] = False  # one bar is enough
        artefact = run(
            load_model(model, device, dtype), chosen, data=records, target=target, out=out, seed=seed, **given
        )  # fmt: skip
    if ranks.first:
        say(f"{out}: {artefact}")


def select(
    method: Method,
    corpus: Annotated[str, typer.Option("--corpus", help="Examples: a file or folder of records.")],
    ratio: Annotated[float, typer.Option("--ratio", min=0.0, max=1.0, help="Share of the corpus to keep.")],
    out: RunOut,
    teacher: Annotated[str | None, typer.Option("--teacher", help="Model folder or hub name.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Model folder or hub name.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Score a corpus with a plugin and write the best part of it."""
    from paperhooks.data.selector import select as run
    from paperhooks.io.corpus import Corpus

    _refuse_other(out, "select")
    (chosen,), opened = build_methods([method]), Corpus(corpus)
    opened.examples(range(min(len(opened), _LOOKED_AT)))
    named = {"teacher": teacher, "reference": reference}
    models = {role: load_model(path, device, dtype) for role, path in named.items() if path is not None}
    tokenizer = _tokenizer(teacher or reference)
    found = run(
        chosen, corpus=opened, ratio=ratio, out=out, models=models, tokenizer=tokenizer,
        batch_size=batch_size, seed=seed, progress=True,
    )  # fmt: skip
    say(f"{found.file}: kept {len(found)} of {found.total} examples")


def _refuse_other(out: Path, kind: str) -> None:
    """Raise DataError for a folder with a run of another kind, before a model is loaded for it."""
    from paperhooks.reports.run_folder import RunFolder

    if (out / "result.json").exists():
        RunFolder.open(out, kind)


def _parts(data: list[str], limit: int | None) -> Any:
    """The records of one file, or of several that are parts by name (``target=a.jsonl``, ``reference=b.jsonl``)."""
    named = dict(text.split("=", 1) for text in data if text.partition("=")[0].isidentifier() and "=" in text)
    if len(named) == len(data):
        return {name: load_records(path, limit) for name, path in named.items()}
    if len(data) > 1:
        raise typer.BadParameter("several --data must be PART=FILE each, with different parts")
    return load_records(data[0], limit)


def _tokenizer(model: str | None) -> Any:
    if model is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError):
        return None  # a corpus of token ids needs none; one of texts is refused later, by name
