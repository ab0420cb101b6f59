"""The demo: rings in figures, where a small vision-language model looks with them, and what it answers."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paperhooks
import torch
from paperhooks.authoring import DemoContext
from paperhooks.errors import MissingExtra, require
from paperhooks.io import atomic_path, write_text
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table
from torch import Tensor

from paperhooks_cca.figures import mask_figure, ring_figure
from paperhooks_cca.method import CCA
from paperhooks_cca.report import flow_blocks, geometry_figures, observe_flow, text_distances

if TYPE_CHECKING:
    from paperhooks import EvaluationResult

__all__ = ["run", "testbed", "write_pope_folder"]

UNTRAINED = (
    "This model was trained with raster positions. CCA is a method of training: attached to a model that never saw it, "
    "it changes positions and mask under its feet, and the scores below are those of that untrained change, not the "
    "method's. paperhooks claims cca has the scores of models trained with it."
)
#: POPE's splits, as the published files are named.
SPLITS = ("random", "popular", "adversarial")
#: Tokens before and behind the 24 x 24 patches of LLaVA-1.5 in the paper's example of distances.
PAPER_PROMPT = ((24, 24), 35, 40)
_FLOWS: dict[str, dict[str, Any] | None] = {
    "raster": None,
    "concentric": {},
    "positions only": {"apply_mask": False},
    "mask only": {"apply_positions": False},
}
_METRICS = ("accuracy", "f1", "yes_ratio")


def testbed() -> Any:
    """The package paperhooks_testbed.

    :raises MissingExtra: it is not installed.
    """
    return require("paperhooks_testbed", "paperhooks-cca[demo]", "to run the demo")


def _check_tasks() -> None:
    """POPE is a task of a package that the extra ``demo`` brings; raises MissingExtra without it."""
    toolkit = require("paperhooks_evaluation", "paperhooks-cca[demo]", "to run the demo")
    if "pope" not in toolkit.available_tasks():
        raise MissingExtra("paperhooks-hallucination", "paperhooks-cca[demo]", "to run the demo")


def run(context: DemoContext) -> None:
    """Draw the geometry, look at the information flow, ask POPE's questions, and write report.html."""
    _check_tasks()
    model, processor = testbed().load_vlm()
    with RunFolder(context.out) as folder:
        _clear(context.out)
        asked = 6 if context.quick else 30
        folder.start("cca-demo", inputs={"questions": asked}, seed=context.seed)
        blocks = [*_geometry(context, folder)]
        with folder.timed("pope"):
            blocks += _pope(context, folder, model, processor, asked)
        with folder.timed("flow"):
            blocks += _flow(context, folder, model, processor, 2 if context.quick else 6)
        html = folder.report("Concentric Causal Attention on the test bed", blocks)
        folder.finish()
        context.echo(f"report: {html}")


def _clear(out: Path) -> None:
    """A demo is made anew every time."""
    for old in ("result.json", "report.html", "report.md"):
        (out / old).unlink(missing_ok=True)
    for old in ("pope", "raster", "concentric", "difference"):
        shutil.rmtree(out / old, ignore_errors=True)


def _geometry(context: DemoContext, folder: RunFolder) -> list[Block]:
    grid, before, after = PAPER_PROMPT
    (far, mean), (plain_far, plain_mean) = (text_distances(grid, after, s) for s in ("concentric", "raster"))
    context.echo(
        f"{grid[0]} x {grid[1]} patches on 12 positions instead of {grid[0] * grid[1]}; from text behind to a patch at "
        f"most {plain_far} -> {far} positions, on average {plain_mean:.0f} -> {mean:.0f}"
    )
    drawn = {"schemes": ring_figure((6, 6)), "mask": mask_figure((6, 6), 3, 4), **geometry_figures(*PAPER_PROMPT)}
    for name, figure in drawn.items():
        folder.figure(name, figure)
    folder.record(longest_distance=[plain_far, far], mean_distance=[plain_mean, mean])
    return [
        Paragraph(
            "Patches are placed by concentric rings, the border first: those of one ring share a position. A patch "
            "sees its own ring and those outside it; text behind sees all patches, from about as far away."
        ),
        Heading("Schemes"),
        Figure("schemes", alt="levels of a 6 x 6 grid under each scheme", caption="The numbers are positions."),
        Figure("mask", alt="who attends to whom", caption="3 tokens, 6 x 6 patches, 4 tokens; lines frame the image."),
        Heading("Positions and distances"),
        Paragraph(f"{before} tokens, {grid[0]} x {grid[1]} patches, {after} tokens: the paper's setting."),
        Figure("positions", alt="position of every token, raster and concentric"),
        Figure("distances", alt=f"distances fall from at most {plain_far} to at most {far}"),
        Figure("decay", alt="rotary decay of attention, and where the patches lie on it"),
    ]


# -- answers -----------------------------------------------------------------------------------------------------------


def write_pope_folder(folder: Path, n: int, seed: int = 0) -> None:
    """``n`` questions a split about generated images, in the form of the published files.

    :param folder: gets ``testbed_pope_<split>.json`` and the images.
    """
    for split in SPLITS:
        questions = testbed().pope_questions("test", split, n, seed)
        lines = []
        for number, question in enumerate(questions):
            image = folder / "images" / f"{question.scene_index}.png"
            if not image.exists():
                with atomic_path(image) as temporary:
                    question.image().save(temporary, format="PNG")
            row = {"question_id": number, "image": image.name, "text": question.text, "label": question.answer}
            lines.append(json.dumps(row) + "\n")
        write_text(folder / f"testbed_pope_{split}.json", "".join(lines))


def _pope(context: DemoContext, folder: RunFolder, model: Any, processor: Any, asked: int) -> list[Block]:
    write_pope_folder(context.out / "pope", asked, context.seed)
    found: dict[str, EvaluationResult] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "cca: this model was not trained with CCA")  # the report says so
        for name, methods in (("raster", []), ("concentric", [CCA()])):
            found[name] = paperhooks.evaluate(
                model, processor, "pope", data=context.out / "pope", out=context.out / name, methods=methods,
                options={"instruction": "", "max_new_tokens": 2}, modes=["official"], batch_size=15,
            )  # fmt: skip
    images = len(list((context.out / "pope" / "images").iterdir()))
    difference = paperhooks.compare(context.out / "raster", context.out / "concentric", out=context.out / "difference")
    context.echo(f"POPE on generated images, {asked} questions a split. {UNTRAINED}")
    for name, result in found.items():
        context.echo(f"{name:<11} " + ", ".join(f"{m} {result.metric(m).value:.3f}" for m in _METRICS))
    folder.record(pope={name: {m: result.metric(m).value for m in _METRICS} for name, result in found.items()})
    return [
        Heading("Answers"),
        Paragraph(UNTRAINED, "note"),
        Table(("setting", "split", "metric", "questions", "value", "low", "high", "interval"), _rows(found)),
        Paragraph(
            f"All splits ask about the same images, {images} of them. Intervals are 95 %: wilson takes every question "
            "by itself; bootstrap draws whole images, and so does wilson over clusters where all draws give 0 or 1 "
            "(where all give another value there is no interval). Few images say less than many questions seem to, "
            "which is why the interval of a mean over splits can be wider than that of each split."
        ),
        Paragraph(f"Paired by question, {difference}. The folders raster, concentric and difference have reports."),
    ]


def _rows(found: dict[str, EvaluationResult]) -> list[tuple[Any, ...]]:
    rows = []
    for name, result in found.items():
        for group in ("", *SPLITS):
            for one in (result.metric(metric, group=group) for metric in _METRICS):
                label = group or "mean over splits"
                rows.append((name, label, one.name, one.n, one.value, one.low, one.high, one.interval))
    return rows


# -- information flow --------------------------------------------------------------------------------------------------


def _flow(context: DemoContext, folder: RunFolder, model: Any, processor: Any, images: int) -> list[Block]:
    model.set_attn_implementation("eager")  # the only kernel that returns its weights
    maps = {name: flow / images for name, flow in _summed(context, model, processor, images).items()}
    blocks: list[Block] = [
        Heading("Where questions look"),
        Paragraph(
            f"Attention from the question to every patch, mean over {images} images and over heads. Positions "
            "alone and the mask alone are an ablation that the paper lacks."
        ),
    ]
    blocks += flow_blocks(folder, "flow-first", {k: v[0] for k, v in maps.items()}, "First layer, as in the paper.")
    return blocks + flow_blocks(folder, "flow-all", {k: v.mean(0) for k, v in maps.items()}, "Mean over all layers.")


def _summed(context: DemoContext, model: Any, processor: Any, images: int) -> dict[str, Tensor]:
    """Information flow [layers, H, W] of each setting, summed over images."""
    questions = testbed().question_set("test", images, kinds=["existence"], seed=context.seed)
    total: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "cca: this model was not trained with CCA")
        for question in questions:
            methods = {name: None if options is None else CCA(**options) for name, options in _FLOWS.items()}
            text = testbed().prompt(question)
            for name, flow in observe_flow(model, processor, question.image(), text, methods).items():
                total[name] = total.get(name, torch.zeros_like(flow)) + flow
    return total
