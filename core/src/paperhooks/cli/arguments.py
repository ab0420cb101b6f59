"""Arguments and options that commands of core and of plugins share, so that each is named and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["BatchSize", "Device", "Dtype", "Model", "RunOut", "Seed"]

Model = Annotated[str, typer.Argument(help="Model folder or hub name.")]
RunOut = Annotated[Path, typer.Option("--out", "-o", help="Run folder; an interrupted run in it goes on.")]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda:1, or cuda: under torchrun or accelerate a GPU for each process.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the model's weights.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Most rows at once.")]
