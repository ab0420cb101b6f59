"""Arguments and options that commands of core and of plugins share, so that each is named and explained once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from paperhooks.errors import DataError
from paperhooks.io.files import local_path

__all__ = ["BatchSize", "Device", "Dtype", "Model", "RunOut", "Seed", "writable_folder"]


def writable_folder(out: Path | None) -> Path | None:
    """The callback of options that name a folder to write to: whether that is possible is known before the work."""
    if out is None:
        return None
    try:
        local_path(out)
        place = next(each for each in (out, *out.absolute().parents) if each.exists())
    except (DataError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    if not place.is_dir():
        raise typer.BadParameter(f"{place} is a file; expected a folder to write to")
    if not os.access(place, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"{place} cannot be written to")
    return out


Model = Annotated[str, typer.Argument(help="Model folder or hub name.")]
RunOut = Annotated[
    Path, typer.Option("--out", "-o", callback=writable_folder, help="Run folder; an interrupted run in it goes on.")
]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda:1, or cuda: under torchrun or accelerate a GPU for each process.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the model's weights.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Most rows at once.")]
