"""The method in figures and numbers: what it does to distances, and where a question looks in one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paperhooks import ModelView, attach
from paperhooks.errors import DataError
from paperhooks.models import image_runs
from paperhooks.reports import Block, Code, Figure, Heading, Paragraph, RunFolder, Table
from torch import Tensor

from paperhooks_cca.algorithm import Grid
from paperhooks_cca.figures import (
    decay_figure,
    distance_figure,
    flow_figure,
    position_figure,
    prompt_positions,
    ring_figure,
)
from paperhooks_cca.flow import information_flow
from paperhooks_cca.images import split_runs
from paperhooks_cca.method import CCA
from paperhooks_cca.schemes import Scheme, scheme_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure
    from PIL.Image import Image

__all__ = [
    "FLOW_COLUMNS",
    "flow_blocks",
    "flow_report",
    "flow_rows",
    "geometry_figures",
    "observe_flow",
    "text_distances",
]

#: Columns of :func:`flow_rows`.
FLOW_COLUMNS = ("", "reaches the image", "bottom / top quarter", "centre / border")


def text_distances(grid: Grid, after: int, scheme: str | Scheme = "concentric") -> tuple[int, float]:
    """The longest and the mean distance, in positions, from the text behind an image to its patches.

    >>> [text_distances((24, 24), 40, scheme)[0] for scheme in ("raster", "concentric")]
    [615, 51]

    :param after: how many text tokens stand behind the image.
    :raises ValueError: a grid without patches, or no text behind it.
    """
    if after < 1:
        raise ValueError(f"after={after}; distances need at least one text token behind the image")
    size = grid[0] * grid[1]
    placed = prompt_positions(grid, 0, after, scheme)[0]
    distances = placed[size:, None] - placed[None, :size]
    return int(distances.max()), float(distances.double().mean())


def geometry_figures(
    grid: Grid, before: int, after: int, schemes: Sequence[str | Scheme] = ("raster", "concentric")
) -> dict[str, MatplotlibFigure]:
    """Figures of rings, positions, distances and decay for a prompt with one image, by name."""
    return {
        "rings": ring_figure(grid, schemes),
        "positions": position_figure(grid, before, after, schemes),
        "distances": distance_figure(grid, after, schemes),
        "decay": decay_figure(grid, after),
    }


@torch.no_grad()
def observe_flow(
    model: Any, processor: Any, image: Image, text: str, methods: Mapping[str, CCA | None] | None = None
) -> dict[str, Tensor]:
    """Attention from the question to the patches of the first image, in every layer, plain and attached.

    :param model: a stock vision-language model with the eager kernel that nothing is attached to.
    :param text: the prompt with the image placeholder, as ``processor`` takes it.
    :param methods: setting to method, None for the model as it is; by default raster and concentric.
    :return: float32 [layers, H, W] a setting.
    :raises DataError: the prompt has no image token or too little text behind it, the grid is not known, or the kernel
        returns no attention weights.
    """
    placeholder = getattr(processor, "image_token", None)
    if placeholder is not None and placeholder not in text:
        raise DataError(f"the prompt {text!r} holds no image token; write {placeholder!r} where the image belongs")
    inputs = processor(images=image, text=text, return_tensors="pt").to(model.device, model.dtype)
    found = {}
    for name, method in (methods or {"raster": None, "concentric": CCA()}).items():
        with attach(model, method) if method is not None else nullcontext():
            attentions = model(**inputs, use_cache=False, output_attentions=True).attentions or (None,)
        spans = _images(model, inputs, method)[:1]
        found[name] = torch.stack([information_flow(layer, spans)[0].cpu() for layer in attentions])
    return found


def _images(model: Any, inputs: Any, method: CCA | None) -> Any:
    """The images of a prompt: by the method's own grid, or as core knows them."""
    view = ModelView.from_model(model)
    if method is not None and isinstance(method.grid, tuple):
        runs = image_runs(view.image_mask(inputs["input_ids"]))
        return [(row, start, *grid) for row, start, grid in split_runs(runs, method.grid)]
    return view.image_spans(inputs["input_ids"], inputs)


def flow_rows(flows: Mapping[str, Tensor]) -> list[tuple[str, float, float, float]]:
    """One row a setting [H, W]: how much attention reaches the image, and where it goes (see ``FLOW_COLUMNS``).

    The last two are ratios of means: the lowest quarter of the rows to the highest, the innermost cells to the border.
    """
    rows = []
    for name, flow in flows.items():
        height, width = flow.shape
        quarter, inner = max(1, height // 4), _centre(height, width)
        border = torch.ones_like(flow, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        lean = float(flow[-quarter:].mean() / flow[:quarter].mean())
        rows.append((name, float(flow.sum()), lean, float(flow[inner].mean() / flow[border].mean())))
    return rows


def _centre(height: int, width: int) -> tuple[slice, slice]:
    """The innermost cell or cells of a grid along each side."""
    return slice((height - 1) // 2, height // 2 + 1), slice((width - 1) // 2, width // 2 + 1)


def flow_blocks(run: RunFolder, name: str, flows: Mapping[str, Tensor], caption: str) -> list[Block]:
    """Draw flow maps [H, W] into the run folder: the figure, and the table of where attention goes."""
    run.figure(name, flow_figure(flows))
    alt = f"attention from the question to every patch: {', '.join(flows)}"
    return [Figure(name, alt=alt, caption=caption), Table(FLOW_COLUMNS, flow_rows(flows))]


def flow_report(
    model: Any, processor: Any, image: Image, text: str, out: str | Path, method: CCA | None = None, layer: int = 0
) -> Path:
    """Write ``report.html``, ``report.md`` and figures of the information flow of one image into ``out``.

    :param method: what the model is compared with; the default is the paper's. :param layer: which layer is shown
        beside the mean over all; the paper shows the first, 0.
    :return: the path of report.html. Other arguments and errors as for :func:`observe_flow`.
    """
    method = method or CCA()
    depth = len(ModelView.from_model(model).layers)
    if not 0 <= layer < depth:
        raise DataError(f"layer {layer} is not there; the model's decoder has layers 0 to {depth - 1}")
    with RunFolder(out) as run:
        run.start("cca-flow", inputs={"text": text, "image_size": list(image.size), "layer": layer, **method.settings})
        with run.timed("forward"):
            name = scheme_name(method.scheme) if method.scheme != "raster" else "attached"
            flows = observe_flow(model, processor, image, text, {"as it is": None, name: method})
        image.convert("RGB").save(run.path / "image.png")
        blocks: list[Block] = [Heading("Question"), Code(text), Paragraph(method.describe(model))]
        shown = {f"Layer {layer}": {k: v[layer] for k, v in flows.items()}}
        shown["Mean over all layers"] = {k: v.mean(0) for k, v in flows.items()}
        for number, (title, maps) in enumerate(shown.items()):
            caption = "Rows of the text behind the image, its last left out; every panel has its own scale."
            blocks += [Heading(title), *flow_blocks(run, f"flow-{number}", maps, caption)]
            run.record(
                **{title: [dict(zip(("setting", *FLOW_COLUMNS[1:]), row, strict=True)) for row in flow_rows(maps)]}
            )
        html = run.report("Where a question looks", blocks)
        run.finish()
        return html
