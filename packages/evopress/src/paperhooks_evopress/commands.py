"""Commands under ``paperhooks evopress``: baselines, front, export, show."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from paperhooks import DataError
from paperhooks.cli import Device, Dtype, Model, Seed, build_methods, load_model, say, usage_errors, writable_folder
from paperhooks.io import local_path, read_records

__all__ = ["add_commands"]

Form = Literal["stock", "zeroed", "skip-list", "sparse", "compressed-tensors", "gguf"]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", callback=writable_folder, help="Run folder for report and artefact.")
]

#: How what each export writes is read.
_READERS: Final = {
    "stock": "from_pretrained, vLLM and llama.cpp's converter read it as any checkpoint of its architecture",
    "zeroed": "from_pretrained reads it as any checkpoint of its architecture",
    "skip-list": "read it with paperhooks_evopress.export.load_skipped",
    "sparse": "from_pretrained reads it as any checkpoint of its architecture",
    "compressed-tensors": "from_pretrained reads symmetric codes with compressed-tensors installed, load_packed all",
    "gguf": "from_pretrained(..., gguf_file='model.gguf') reads it",
}


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    group = typer.Typer(
        name="evopress",
        help="EvoPress: compare a search with simple choices, look at it, export what it found.",
        no_args_is_help=True,
    )
    for command in (baselines, front, export, show):
        group.command()(usage_errors(command))
    app.add_typer(group)


def baselines(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="Calibration text: records or text.")],
    target: Annotated[str | None, typer.Option("--target", help="Such as bits=3.0; that of --run without it.")] = None,
    levels_from: Annotated[
        list[str] | None, typer.Option("--levels-from", help="METHOD whose levels are chosen from; repeated.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", help="Only this one; repeated. All of the target without it.")
    ] = None,
    search: Annotated[
        str, typer.Option("--search", help="evopress:k=v,...: whose problem it is (fuse, exchange, whole_layers, ...).")
    ] = "",
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of a search, whose problem it is and whose winner is compared.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="Text that nothing was chosen on, to measure on.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The first so many records, as many as the search read.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="That a pass or a candidate reads.")] = 2048,
    random_tokens: Annotated[
        int | None, typer.Option("--random-tokens", min=2, help="Of all random candidates; 32 passes without it.")
    ] = None,
    out: Out = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Measure all simple choices for a target, and a search's winner beside them."""
    import paperhooks

    from paperhooks_evopress.report import SearchRun, text_table
    from paperhooks_evopress.simple_choices import BestBaseline

    found = None if run is None else SearchRun.open(run)
    wanted = target or (None if found is None else found.result["inputs"]["target"])
    if wanted is None:
        raise typer.BadParameter("give --target, or --run with the folder of a search")
    if search and found is not None:
        raise typer.BadParameter("--search says what --run has told already; give one of them")
    method = BestBaseline(
        baselines=baseline or (), tokens=tokens, random_tokens=random_tokens, run="" if run is None else str(run),
        **_problem(search, found),
    )  # fmt: skip
    levels = build_methods(levels_from or [])
    records: Any = _records(data, limit)
    if held_out is not None:
        records = {"calibration": records, "held_out": _records(held_out, limit)}
    artefact = paperhooks.compress(
        load_model(model, device, dtype), method, data=records, target=wanted, levels_from=levels, out=out, seed=seed
    )
    for line in text_table(artefact.data):
        say(line)
    for name, why in artefact.data["left_out"].items():
        say(f"{name} could not answer: {why}")
    passes = f"a pass or candidate of a baseline read {artefact.data['pass_tokens']:,} tokens"
    say(f"best simple choice on the calibration text: {artefact.data['baseline']}; {passes}")
    if out is not None:
        say(f"report: {out / 'report.html'}")


def front(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders that baselines wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=writable_folder, help="Folder for a report.")],
) -> None:
    """Draw comparisons at several budgets as one front of sizes and losses."""
    from paperhooks_evopress.report import write_front

    for row in write_front(folders, out):
        if row["front"]:
            say(f"{row['size'] / 1e6:,.4g} MB: {row['name']} at {row['target']}, {row['lost']:.4g}")
    say(f"report: {out / 'report.html'}")


def export(
    model: Model,
    artefact: Annotated[Path, typer.Argument(help="Run folder or artefact of what was done to this model.")],
    form: Annotated[Form, typer.Option("--format", help="What is written.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=writable_folder, help="New folder.")],
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Write a compressed model as others read it, and read it back."""
    from paperhooks import Artefact

    if local_path(out).exists() and any(out.iterdir()):
        raise DataError(f"{out} is there already; choose a new folder for the export")
    loaded = Artefact.load(artefact)
    whole = load_model(model, device, dtype)
    loaded.apply(whole)
    written = _writer(form)(whole, loaded, out, tokenizer=_tokenizer(model))
    size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    say(f"{written}: {form}, {size / 1e6:,.1f} MB; it was read back and gives the logits of the compressed model")
    say(_READERS[form])


def show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a search, finished or under way.")],
) -> None:
    """What a search found: facts, levels by layer, fitness by generation, when the winner came."""
    from paperhooks_evopress.report import SearchRun, described

    for line in described(SearchRun.open(folder)):
        say(line)


def _problem(search: str, run: Any) -> dict[str, Any]:
    """Options of a search that say what its problem is."""
    from paperhooks_evopress.groundwork import SHARED
    from paperhooks_evopress.method import EvoPress

    if run is not None:
        return {name: run.options[name] for name in SHARED}
    if not search:
        return {}
    (method,) = build_methods([search])
    if not isinstance(method, EvoPress):
        raise typer.BadParameter(f"--search is {search!r}; expected evopress, with options behind a colon")
    return {name: getattr(method, name) for name in SHARED}


def _records(source: str, limit: int | None) -> list[Any]:
    """Records or texts of a source, of text files a text a block between blank lines; the first ones with a limit."""
    found = [record for _, record in islice(read_records(source, text="blocks"), limit)]
    if not found:
        raise DataError(f"{source} holds no record")
    return found


def _writer(form: Form) -> Callable[..., Path]:
    from paperhooks_evopress import export as room

    found: Callable[..., Path] = getattr(room, form.replace("-", "_"))
    return found


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError):
        return None  # a model without a tokenizer is exported as well
