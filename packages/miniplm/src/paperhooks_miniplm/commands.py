"""``paperhooks miniplm ...``: pack, score with two models, take the difference, select, export; on files, in stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from paperhooks import DataError
from paperhooks.cli import Device, Dtype, Model, Seed, load_model, say, usage_errors, writable_folder
from paperhooks.io import local_path, read_json
from tqdm import tqdm

from paperhooks_miniplm.part_commands import merge, parts, score_parts

if TYPE_CHECKING:
    from paperhooks_miniplm.corpus.rows import RowSource

__all__ = ["add_commands"]

Corpus = Annotated[str, typer.Option("--corpus", help="Folder of shards, or .jsonl, .parquet, hub:NAME:SPLIT.")]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", help="Folder or hub name; that of the model without.")]
TextTokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Folder or hub name: to read texts, and to show rows as text.")
]
MaxLength = Annotated[int, typer.Option("--max-length", min=1, help="Most tokens that a model reads of a row.")]
BatchTokens = Annotated[
    int | None, typer.Option("--batch-tokens", min=1, help="Rows times longest row of a batch; as suits the device.")
]
TextField = Annotated[str, typer.Option("--text-field", help="Where texts are in a record; dots lead into objects.")]
DomainField = Annotated[str, typer.Option("--domain-field", help="Where domains are in a record.")]
Bos = Annotated[
    bool | None, typer.Option("--bos/--no-bos", help="Begin rows with it; as the tokenizer does by itself.")
]
OverLong = Annotated[
    Literal["truncate", "split", "error"], typer.Option("--over-long", help="What happens to rows longer than that.")
]
MaskAfterEnd = Annotated[
    bool, typer.Option("--mask-after-end/--count-after-end", help="Whether to leave out what follows an end token.")
]
Normalize = Annotated[
    Literal["mean", "sum", "per_byte"], typer.Option("--normalize", help="By counted tokens (official), or text bytes.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the command group ``miniplm`` to the application."""
    group = typer.Typer(
        name="miniplm", help="MiniPLM: score a corpus with two models, keep what teaches.", no_args_is_help=True
    )
    for command in (pack, plan, parts, score, merge, diff, select, export, convert):
        group.command()(usage_errors(command))
    group.command(name="fit-scaling")(usage_errors(fit_scaling))
    app.add_typer(group)


def pack(
    source: Annotated[
        str, typer.Argument(help="Documents: .jsonl, .json, .csv, .parquet, .txt, .gz, a folder, hub:NAME:SPLIT.")
    ],
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="Folder or hub name.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of shards.")],
    max_length: MaxLength = 1024,
    bos: Bos = None,
    flush_tail: Annotated[bool, typer.Option("--flush-tail/--drop-tail", help="Keep what is left at the end.")] = True,
    drop_duplicates: Annotated[bool, typer.Option("--drop-duplicates", help="Leave repeated chunks out.")] = False,
    text_field: TextField = "text",
    domain_field: DomainField = "domain",
) -> None:
    """Pack documents into chunks of max-length + 1 tokens that end where sentences end."""
    from paperhooks_miniplm.corpus.documents import read_documents
    from paperhooks_miniplm.corpus.packer import pack as run

    local_path(out)
    documents = read_documents(source, text_field=text_field, domain_field=domain_field)
    with tqdm(desc="pack", unit="row") as bar:
        report = run(
            documents, _tokenizer(tokenizer), out, max_length=max_length, bos=bos, flush_tail=flush_tail,
            drop_duplicates=drop_duplicates, progress=lambda now: bar.update(now.rows - bar.n),
        )  # fmt: skip
    say(
        f"{out}: {report.documents} documents, {report.rows} rows, {report.tokens_kept} of {report.tokens_in} tokens, "
        f"{report.tokens_lost} lost, {report.duplicates} duplicate rows left out"
    )
    if report.skipped:
        others = ", ".join(f"{count} {ending}" for ending, count in report.skipped.items())
        say(f"  read {report.files} files; left out are {others}")
    for domain, kept in sorted(report.by_domain.items()):
        say(f"  {domain or '(no domain)':<24} {kept['rows']:>9} rows {kept['tokens']:>12} tokens")


def plan(
    teacher: Annotated[str, typer.Option("--teacher", help="Model folder or hub name.")],
    reference: Annotated[str, typer.Option("--reference", help="Model folder or hub name.")],
    corpus: Corpus,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = 1024,
    over_long: OverLong = "truncate",
    mask_after_end: MaskAfterEnd = True,
    batch_tokens: BatchTokens = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many share the corpus.")] = 1,
    student: Annotated[int, typer.Option("--student", min=0, help="Parameters of a student to compare with.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    text_field: TextField = "text",
    domain_field: DomainField = "domain",
) -> None:
    """Operations, bytes and hours that scoring will take, from a measured rate."""
    from paperhooks_miniplm.scoring.cost import plan as run

    known = _tokenizer(tokenizer or teacher)
    rows = _rows(corpus, known, text_field, domain_field)
    models = {"teacher": load_model(teacher, device, dtype), "reference": load_model(reference, device, dtype)}
    say(
        str(
            run(
                models, rows, tokenizer=known, max_length=max_length, over_long=over_long,
                mask_after_end=mask_after_end, batch_tokens=batch_tokens, workers=workers, student=student,
            )
        )
    )  # fmt: skip


def score(
    model: Model,
    out: Annotated[str, typer.Option("--out", "-o", help="Scoring folder; with --parts also an address.")],
    corpus: Annotated[str | None, Corpus.__metadata__[0]] = None,
    parts: Annotated[str | None, typer.Option("--parts", help="Corpus in parts, for several machines.")] = None,
    on: Annotated[
        Literal["datatrove", "ray"] | None, typer.Option("--on", help="Engine that shares the parts out.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Workers of the engine.")] = 1,
    tokenizer: Tokenizer = None,
    name: Annotated[str, typer.Option("--name", help="Such as teacher or reference.")] = "",
    max_length: MaxLength = 1024,
    over_long: OverLong = "truncate",
    batch_tokens: BatchTokens = None,
    unit_rows: Annotated[int | None, typer.Option("--unit-rows", min=1, help="Rows a file; 8192 without.")] = None,
    trained_on: Annotated[
        str | None, typer.Option("--trained-on", help="Rows the model was trained on; warns of those it scores.")
    ] = None,
    mask_after_end: MaskAfterEnd = True,
    most_bad: Annotated[
        float, typer.Option("--most-bad", min=0, max=1, help="Share of rows that may give NaN or infinity.")
    ] = 0.001,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    text_field: TextField = "text",
    domain_field: DomainField = "domain",
) -> None:
    """Score every row with one model; prints the cost before it begins. Killed and started again, it goes on.

    The processes that torchrun or accelerate launch on one machine share the rows; more machines share a corpus in
    parts, see ``parts`` and ``merge``.
    """
    from paperhooks_miniplm.scoring.jobs import launched_here
    from paperhooks_miniplm.scoring.jobs import score as run
    from paperhooks_miniplm.scoring.spec import ScoringSpec

    if (corpus is None) == (parts is None):
        raise typer.BadParameter("name what is scored, by --corpus or by --parts")
    if corpus is None or parts is not None:
        if unit_rows is not None or trained_on is not None:
            raise typer.BadParameter("--unit-rows and --trained-on are of a --corpus; --parts have units of their own")
        spec = ScoringSpec(
            model, tokenizer=tokenizer, dtype=dtype, max_length=max_length, over_long=over_long,
            mask_after_end=mask_after_end, batch_tokens=batch_tokens,
        )  # fmt: skip
        score_parts(spec, str(parts), out, engine=on, workers=workers, device=device, name=name, most_bad=most_bad)
        return
    if on is not None or workers > 1:
        raise typer.BadParameter("--on and --workers share out --parts; write parts of the corpus with: miniplm parts")
    folder = Path(out)
    writable_folder(folder)
    index, count = launched_here()
    known = _tokenizer(tokenizer or model)
    rows = _rows(corpus, known, text_field, domain_field)
    loaded = load_model(model, device, dtype)
    if index == 0 and not (folder / "manifest.json").exists():
        settings = {"tokenizer": known, "max_length": max_length, "over_long": over_long, "workers": count}
        settings |= {"mask_after_end": mask_after_end, "batch_tokens": batch_tokens}
        say(_cost(name or "model", loaded, rows, settings))
    found = run(
        loaded, rows, folder, tokenizer=known, name=name, max_length=max_length, over_long=over_long,
        batch_tokens=batch_tokens, unit_rows=unit_rows or 8192, mask_after_end=mask_after_end, most_bad=most_bad,
        trained_on=None if trained_on is None else _rows(trained_on, known, text_field, domain_field),
    )  # fmt: skip
    if found is None:
        say(f"{out}: the units of this process are done; others are missing")
    else:
        mean = float(found.values()[found.usable].mean()) if found.usable.any() else float("nan")
        unscored, cut = int((~found.usable).sum()), 0 if found.cut is None else int(found.cut.sum())
        say(
            f"{out}: {len(found)} rows, {unscored} without a score, {cut} cut to {max_length} tokens, mean {mean:.4f} "
            "nats a token"
        )


def diff(
    teacher: Annotated[Path, typer.Argument(help="Scoring folder of the teacher.")],
    reference: Annotated[Path, typer.Argument(help="Scoring folder of the reference.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .safetensors file.")],
    normalize: Normalize = "mean",
) -> None:
    """Reference minus teacher, row by row."""
    from paperhooks_miniplm.difference import diff as run

    found = run(teacher, reference, normalize)
    say(f"{found.save(out)}: {len(found)} rows, {found.unscored} without a difference")


def select(
    difference: Annotated[Path, typer.Argument(help="A file that diff wrote.")],
    corpus: Corpus,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for selection.safetensors and a report.")],
    ratio: Annotated[float | None, typer.Option("--ratio", min=0, help="Share of the rows to keep.")] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Rows to keep.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="The best rows up to so many tokens.")] = None,
    quota: Annotated[str | None, typer.Option("--quota", help="domain, or NAME=RATIO,NAME=RATIO.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Gumbel noise; 0 takes the best.")] = 0.0,
    drop_duplicates: Annotated[bool, typer.Option("--drop-duplicates", help="Never take a repeated row.")] = False,
    upper: Annotated[float, typer.Option("--upper", min=0, max=1, help="Leave the top share out.")] = 0.0,
    tokenizer: TextTokenizer = None,
    seed: Seed = 0,
    text_field: TextField = "text",
    domain_field: DomainField = "domain",
) -> None:
    """Choose rows and report what is kept; another ratio later costs seconds."""
    from paperhooks_miniplm.corpus.duplicates import kept_duplicates
    from paperhooks_miniplm.corpus.exporter import export as write
    from paperhooks_miniplm.corpus.rows import check_corpus
    from paperhooks_miniplm.difference import Difference
    from paperhooks_miniplm.reports import report
    from paperhooks_miniplm.selection import select as run

    known = _tokenizer(tokenizer) if tokenizer else None
    found, rows = Difference.load(difference), _rows(corpus, known, text_field, domain_field)
    check_corpus(found.about, rows)
    repeated = kept_duplicates(rows, difference.with_suffix(".duplicates.safetensors"))
    chosen = run(
        found, ratio=ratio, count=count, tokens=tokens, lengths=rows.lengths() if tokens is not None else None,
        domains=rows.domains() if quota else None, quota=_quota(quota), temperature=temperature, seed=seed,
        drop=repeated if drop_duplicates else None, upper=upper,
    )  # fmt: skip
    file = write(chosen, rows, out / "selection")
    report(out, chosen, found, rows, tokenizer=known, duplicates=repeated)
    say(f"{file}: kept {len(chosen)} of {chosen.total} rows; report: {out / 'report.html'}")


def export(
    selection: Annotated[Path, typer.Argument(help="selection.safetensors of select.")],
    corpus: Corpus,
    out: Annotated[str, typer.Option("--out", "-o", help="File, or folder for shards.")],
    format: Annotated[
        Literal["index", "bitmap", "shards", "parquet", "jsonl"], typer.Option("--format", help="What is written.")
    ],
    tokenizer: TextTokenizer = None,
    text_field: TextField = "text",
    domain_field: DomainField = "domain",
) -> None:
    """Write a selection in another form; index and bitmap need no copy of the corpus."""
    from paperhooks_miniplm.corpus.exporter import export as run
    from paperhooks_miniplm.corpus.exporter import load_selection
    from paperhooks_miniplm.corpus.record_rows import vocabulary_size

    local_path(out)
    known = _tokenizer(tokenizer) if tokenizer else None
    rows = _rows(corpus, known, text_field, domain_field)
    chosen = load_selection(selection, rows)
    vocabulary = None if known is None else vocabulary_size(known)
    file = run(chosen, rows, out, format, tokenizer=known, vocabulary=vocabulary)
    say(f"{file}: {len(chosen)} rows")


def convert(
    corpus: Corpus,
    old: Annotated[str, typer.Option("--from", help="Tokenizer of the corpus.")],
    new: Annotated[str, typer.Option("--to", help="Tokenizer of the student.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of shards.")],
    selection: Annotated[Path | None, typer.Option("--selection", help="Only these rows.")] = None,
    max_length: MaxLength = 1024,
    repack: Annotated[bool, typer.Option("--repack/--row-by-row", help="Pack anew, so that no text is lost.")] = True,
    join: Annotated[
        bool | None, typer.Option("--join/--no-join", help="Rows go on where the last stopped; as the corpus says.")
    ] = None,
    bos: Bos = None,
    text_field: TextField = "text",
    domain_field: DomainField = "domain",
) -> None:
    """Write a corpus, or a selection of it, for a student with another tokenizer."""
    from paperhooks_miniplm.corpus.converter import convert as run
    from paperhooks_miniplm.corpus.exporter import read_index

    local_path(out)
    first, second = _tokenizer(old), _tokenizer(new)
    rows = _rows(corpus, first, text_field, domain_field)
    chosen = None if selection is None else read_index(selection, rows)
    found = run(rows, first, second, rows=chosen, max_length=max_length, bos=bos, repack=repack, join=join)
    with tqdm(desc="convert", unit="row") as bar:
        one = found.write(out, progress=lambda now: bar.update(now.rows_out - bar.n))
    say(f"{out}: {one.rows_in} rows in, {one.rows_out} out, {one.cut} cut, {one.damaged} texts with U+FFFD")


def fit_scaling(
    points: Annotated[
        Path | None, typer.Argument(help="JSON list of pairs of compute and loss; the paper's table without.")
    ] = None,
) -> None:
    """Fit L(C) = L_inf + A / C^alpha, or print the paper's constants and what they give."""
    from paperhooks_miniplm.scaling_law import fit_scaling as run
    from paperhooks_miniplm.scaling_law import published_table

    if points is None:
        say(f"{'student':<8} {'method':<11} {'1T tokens':>16} {'10T tokens':>16}   (computed, printed)")
        for row in published_table():
            cells = " ".join(f"{one:>9.3f} {two:>6.2f}" for one, two in (row.loss_1t, row.loss_10t))
            say(f"{row.student:<8} {row.method:<11} {cells}")
        return
    try:
        known = [(float(one), float(two)) for one, two in read_json(points, "list of pairs")]
    except (ValueError, TypeError) as error:
        raise DataError(f"{points} holds no JSON list of [compute, loss] pairs: {error}") from error
    found = run(known)
    law, (low, high) = found.law, found.compute
    say(f"L(C) = {law.l_inf:.4f} + {law.a_c:.4g} / C^{law.alpha_c:.4f}, fitted from {low:.3g} to {high:.3g} FLOPs")
    say(f"root mean square of the residuals {found.rmse:.4g}, largest {found.worst:.4g}, {len(known)} points")


def _tokenizer(name: str) -> Any:
    from paperhooks_miniplm.scoring.spec import named_tokenizer

    return named_tokenizer(name)


def _rows(source: str, tokenizer: Any, text_field: str, domain_field: str) -> RowSource:
    from paperhooks_miniplm.corpus.sources import open_rows

    return open_rows(source, tokenizer, text_field=text_field, domain_field=domain_field)


def _cost(name: str, model: Any, rows: RowSource, settings: Mapping[str, Any]) -> str:
    """What scoring will cost; of a stream, which would have to be read to its end, only its first rows."""
    from itertools import islice

    from paperhooks_miniplm.corpus.record_rows import StreamRows
    from paperhooks_miniplm.corpus.rows import MemoryRows
    from paperhooks_miniplm.scoring.cost import plan as estimate

    if not isinstance(rows, StreamRows):
        return str(estimate({name: model}, rows, **settings))
    first = MemoryRows(list(islice(rows.iterate(), 16)))
    return (
        f"{rows.name} is a stream of unknown length; of its first rows:\n{estimate({name: model}, first, **settings)}"
    )


def _quota(text: str | None) -> Any:
    if text is None or text == "domain":
        return text
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        return {name: float(share) for name, share in parts.items()}
    except ValueError as error:
        raise typer.BadParameter(f"--quota is {text!r}; expected domain, or NAME=RATIO,NAME=RATIO") from error
