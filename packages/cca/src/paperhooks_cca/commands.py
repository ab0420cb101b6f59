"""``paperhooks cca ...``: rings and distances, masks, what a model would get, and where its questions look."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from paperhooks.cli import Model, say, usage_errors, writable_folder

if TYPE_CHECKING:
    from paperhooks_cca.algorithm import Grid

__all__ = ["add_commands"]

#: Wider tables and masks are not printed.
_WIDEST = 120


def add_commands(app: typer.Typer) -> None:
    """Add the command group ``cca`` to the application."""
    group = typer.Typer(name="cca", help="CCA: rings, masks, models, information flow.", no_args_is_help=True)
    for command in (rings, mask, describe, flow):
        group.command()(usage_errors(command))
    app.add_typer(group)


def _grid(text: str) -> Grid:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise typer.BadParameter(f"{text!r} is no grid; expected rows x columns, such as 24x24")
    return int(height), int(width)


GridOption = Annotated[Any, typer.Option("--grid", help="Rows x columns of patches.", parser=_grid, metavar="HxW")]
#: The names of :data:`paperhooks_cca.SCHEMES`, which needs torch.
SchemeOption = Annotated[
    Literal["concentric", "reverse", "raster", "manhattan"], typer.Option("--scheme", help="Order of the patches.")
]
OptionsOption = Annotated[
    str, typer.Option("--options", help="Options of the method, such as scheme=manhattan,tiles=True.")
]


def rings(
    grid: GridOption = "24x24",
    scheme: SchemeOption = "concentric",
    before: Annotated[int, typer.Option(help="Text tokens before the image.", min=0)] = 35,
    after: Annotated[int, typer.Option(help="Text tokens behind the image.", min=1)] = 40,
    out: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="Folder for figures, as PNG and SVG.")
    ] = None,
) -> None:
    """Show the levels of a grid, and what they do to positions and distances."""
    from paperhooks_cca.report import geometry_figures, text_distances
    from paperhooks_cca.schemes import levels, order_table

    table, taken, size = order_table(scheme, *grid), levels(scheme, *grid), grid[0] * grid[1]
    cell = len(str(taken - 1)) + 1
    if cell * grid[1] <= _WIDEST:
        say("\n".join("".join(f"{n:>{cell}}" for n in row) for row in table.view(grid).tolist()))
    say(f"{scheme}: {size} patches on {taken} positions")
    counts = table.bincount().tolist()
    if len(counts) < size:
        say(f"patches a level   {' '.join(map(str, counts))}")
    (far, mean), (plain_far, plain_mean) = (text_distances(grid, after, name) for name in (scheme, "raster"))
    say(f"longest distance  {plain_far} -> {far} positions from the text behind to a patch")
    say(f"mean distance     {plain_mean:.1f} -> {mean:.1f}")
    say(f"last position     {before + size + after - 1} -> {before + taken + after - 1}")
    if out is not None:
        _save(out, geometry_figures(grid, before, after, tuple(dict.fromkeys(("raster", scheme)))))


def mask(
    grid: GridOption = "6x6",
    scheme: SchemeOption = "concentric",
    before: Annotated[int, typer.Option(help="Text tokens before the image.", min=0)] = 3,
    after: Annotated[int, typer.Option(help="Text tokens behind the image.", min=0)] = 4,
    out: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="Folder for the figure, as PNG and SVG.")
    ] = None,
) -> None:
    """Show who may attend to whom in a prompt with one image."""
    from paperhooks_cca.figures import mask_figure, mask_text

    if before + grid[0] * grid[1] + after <= _WIDEST:
        say(mask_text(grid, before, after, scheme))
        say("rows ask, columns are asked; # may attend, . may not")
    elif out is None:
        raise typer.BadParameter(f"more than {_WIDEST} tokens do not fit on a line; give --out for an image")
    if out is not None:
        _save(out, {"mask": mask_figure(grid, before, after, tuple(dict.fromkeys(("raster", scheme))))})


def describe(model: Model, options: OptionsOption = "") -> None:
    """Say what CCA does to a model, and whether it was trained with it; only its config is read.

    The model testbed is that of the demo.
    """
    from paperhooks import attach
    from paperhooks.cli import empty_model

    from paperhooks_cca.checkpoint import read_mark

    method = _method(options)
    empty = empty_model(_folder(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no hook ran, and what the lines below say anyway
        attach(empty, method).close()  # refuses what the method is not defined for
    say(method.describe(empty))
    trained = read_mark(empty)
    if trained is None:
        say("not marked: its config does not say that it was trained with CCA; train it with CCA attached")
        return
    other = [f"{name}={value!r}" for name, value in trained.items() if method.settings.get(name) != value]
    say(f"marked, with other settings: {', '.join(other)}" if other else "marked: trained with these settings")


def flow(
    model: Model,
    image: Annotated[Path, typer.Argument(help="Image file.", exists=True, dir_okay=False)],
    prompt: Annotated[str, typer.Argument(help="Question; the processor's image placeholder is added if missing.")],
    out: Annotated[Path, typer.Option(callback=writable_folder, help="Folder for report.html and the figures.")] = Path(
        "cca-flow"
    ),
    layer: Annotated[int, typer.Option(help="Decoder layer that is shown beside the mean.", min=0)] = 0,
    options: OptionsOption = "",
) -> None:
    """Draw where a question looks in an image, without and with CCA.

    The model testbed is that of the demo.
    """
    from paperhooks.cli import load_model, load_processor
    from paperhooks.io import read_image

    from paperhooks_cca.report import flow_report

    method, shown, folder = _method(options), read_image(image), _folder(model)
    loaded, processor = load_model(folder), load_processor(folder)
    loaded.set_attn_implementation("eager")  # the only kernel that returns its weights
    token = getattr(processor, "image_token", "<image>")
    text = prompt if token in prompt else f"{token} {prompt}"
    say(f"report: {flow_report(loaded, processor, shown, text, out, method, layer)}")


def _save(out: Path, figures: dict[str, Any]) -> None:
    from paperhooks.reports import save_figure

    for name, figure in figures.items():
        _, png = save_figure(figure, out / name)
        say(f"figure: {png}")


def _method(options: str) -> Any:
    from paperhooks.cli import build_methods

    return build_methods([f"cca:{options}"])[0]


def _folder(name: str) -> str:
    if name != "testbed":
        return name
    from paperhooks_cca.demo import testbed

    return str(testbed().vlm_folder())
