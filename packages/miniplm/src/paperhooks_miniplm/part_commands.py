"""``paperhooks miniplm parts``, ``score --parts`` and ``merge``: a corpus that several machines score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from paperhooks.cli import say, writable_folder
from paperhooks.errors import require
from tqdm import tqdm

if TYPE_CHECKING:
    from paperhooks_miniplm.scoring.runs import ScoringRun
    from paperhooks_miniplm.scoring.spec import ScoringSpec

__all__ = ["ENGINES", "merge", "parts", "score_parts"]

#: Modules that hand units to an engine, and their functions.
ENGINES: Final = {
    "datatrove": ("paperhooks_miniplm.on_datatrove", "score_on_datatrove"),
    "ray": ("paperhooks_miniplm.on_ray", "score_on_ray"),
}


def parts(
    source: Annotated[str, typer.Argument(help="Folder of shards, or .jsonl, .parquet, a folder, hub:NAME:SPLIT.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or address, such as s3://bucket/corpus.")],
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Folder or hub name, for texts.")] = None,
    unit_rows: Annotated[int, typer.Option("--unit-rows", min=1, help="Rows of a unit of work.")] = 8192,
    part_units: Annotated[int, typer.Option("--part-units", min=1, help="Units a file.")] = 64,
    text_field: Annotated[str, typer.Option("--text-field", help="Where texts are in a record.")] = "text",
    domain_field: Annotated[str, typer.Option("--domain-field", help="Where domains are in a record.")] = "domain",
) -> None:
    """Write a corpus as Parquet parts with row numbers, for several machines to score. Killed, it goes on."""
    from paperhooks_miniplm.corpus.part_files import write_parts
    from paperhooks_miniplm.scoring.spec import named_tokenizer

    known = None if tokenizer is None else named_tokenizer(tokenizer)
    with tqdm(desc="parts", unit="row") as bar:
        found = write_parts(
            source, out, tokenizer=known, unit_rows=unit_rows, part_units=part_units, text_field=text_field,
            domain_field=domain_field, progress=lambda rows: bar.update(rows - bar.n),
        )  # fmt: skip
    say(f"{found.name}: {len(found)} rows in {found.units} units of {unit_rows} rows")


def score_parts(
    spec: ScoringSpec, corpus: str, out: str, *, engine: str | None, workers: int, device: str, name: str,
    most_bad: float,
) -> None:  # fmt: skip
    """Score what is missing of a corpus in parts, in this process or by an engine."""
    from paperhooks_miniplm.scoring.runs import ScoringRun

    if engine is None and workers > 1:
        raise typer.BadParameter(f"--workers {workers} needs an engine that starts them: --on {' or '.join(ENGINES)}")
    engine_of(engine)  # before the model is loaded
    run = ScoringRun.begin(spec, corpus, out, device=device, name=name, most_bad=most_bad)
    missing = run.missing()
    say(f"{run.out}: {len(missing)} of {run.units} units are to be scored")
    if missing:
        engine_of(engine)(run, workers)
    say(f"{run.out}: done; put the scores together with: paperhooks miniplm merge {run.out} --parts {corpus} -o FOLDER")


def engine_of(engine: str | None) -> Any:
    """The function that gets a run and a number of workers. Raises MissingExtra without the engine's library."""
    if engine is None:
        return _score_here
    module, function = ENGINES[engine]
    require(engine, f"paperhooks-miniplm[{engine}]", f"for --on {engine}")
    return getattr(require(module, f"paperhooks-miniplm[{engine}]", f"for --on {engine}"), function)


def _score_here(run: ScoringRun, workers: int) -> None:
    from paperhooks_miniplm.scoring.jobs import launched_here

    index, count = launched_here()
    for number in tqdm(run.missing(), desc="score", unit="unit", disable=index > 0):
        if number % count == index:  # by its number, for others may be done meanwhile
            run.score(number)


def merge(
    scores: Annotated[str, typer.Argument(help="Folder or address that score --parts wrote to.")],
    parts: Annotated[str, typer.Option("--parts", help="Folder or address of the corpus in parts.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=writable_folder, help="Scoring folder on this machine.")],
    most_bad: Annotated[
        float, typer.Option("--most-bad", min=0, max=1, help="Share of rows that may give NaN or infinity.")
    ] = 0.001,
) -> None:
    """Put scores in parts together as a scoring folder, every row once; says which rows are missing or differ."""
    from paperhooks_miniplm.scoring.merge import merge_parts

    found = merge_parts(scores, parts, out, most_bad=most_bad)
    say(
        f"{out}: {found.rows} rows, {found.unscored} without a score, {found.cut} cut, {found.duplicates} stood twice "
        "and agree"
    )
