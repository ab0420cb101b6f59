"""The demo: a small vision-language model answers questions about images, with every image token and with few."""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from paperhooks import ModelView, attach
from paperhooks.authoring import DemoContext
from paperhooks.errors import require
from paperhooks.reports import Block, Heading, Image, Paragraph, RunFolder, Table

from paperhooks_pyramiddrop.method import PyramidDrop, RandomDrop
from paperhooks_pyramiddrop.report import cost_blocks, figure_blocks, observe

__all__ = ["STAGES", "load_testbed", "run"]

#: Drops for the test bed model, which reads its images in the middle of its 8 layers (see claims.toml).
STAGES = {4: 0.5, 5: 0.25, 6: 0.125}


@dataclass(frozen=True, slots=True)
class _Answers:
    """Answers to all questions in one setting, the seconds they took, and image tokens a layer on average."""

    setting: str
    texts: list[str]
    seconds: float
    tokens: float


def load_testbed() -> tuple[Any, Any]:
    """Model and processor of paperhooks-testbed.

    :raises MissingExtra: it is not installed.
    """
    model, processor = require("paperhooks_testbed", "paperhooks-pyramiddrop[demo]", "to run the demo").load_vlm()
    return model, processor


def run(context: DemoContext) -> None:
    """Ask some twenty questions about a few generated images, plain and attached, and write report.html."""
    model, processor = load_testbed()
    from paperhooks_testbed import prompt

    questions = _questions(2 if context.quick else 5, context.seed)
    prompts, images = [prompt(q) for q in questions], [q.image() for q in questions]
    context.echo(f"{len(questions)} questions about {len({q.scene_index for q in questions})} images")
    settings = [
        ("every image token", None),
        ("PyramidDrop", PyramidDrop(stages=STAGES)),
        ("random tokens", RandomDrop(stages=STAGES, seed=context.seed)),
    ]
    found = [_ask(model, processor, images, prompts, name, method) for name, method in settings]
    right = [[t == q.answer for t, q in zip(a.texts, questions, strict=True)] for a in found]
    _print(context, questions, found, right)
    _report(context, model, processor, questions, found, right)


def _questions(images: int, seed: int) -> list[Any]:
    """Four questions or so about each of a few test images, of every kind."""
    from paperhooks_testbed import generate_scene, questions_for

    chosen = []
    for index in range(images):
        scene = generate_scene("test", 1000 * seed + index)
        chosen += questions_for(scene, random.Random(f"{seed}-{index}"))
    return chosen


@torch.no_grad()
def _ask(model: Any, processor: Any, images: list[Any], prompts: list[str], name: str, method: Any) -> _Answers:
    """All questions as one left-padded batch; the seconds are the best of three runs after a first one."""
    inputs = processor(images=images, text=prompts, return_tensors="pt", padding=True, padding_side="left")
    visual = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    seconds = []
    with attach(model, method) if method is not None else nullcontext():
        for _ in range(4):
            start = time.perf_counter()
            out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
            seconds.append(time.perf_counter() - start)
    new = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    layers = len(ModelView.from_model(model).layers)
    average = method.schedule_for(layers).average_tokens(visual, layers) if method is not None else visual
    return _Answers(name, [text.strip() for text in new], min(seconds[1:]), average)


def _print(context: DemoContext, questions: list[Any], found: list[_Answers], right: list[list[bool]]) -> None:
    width = max(len(q.text) for q in questions)
    context.echo(f"{'image':>7}  {'question':<{width}}  {'right':<12} " + " ".join(f"{a.setting:<18}" for a in found))
    for i, question in enumerate(questions):
        cells = [f"{a.texts[i]}{'' if r[i] else '  (wrong)'}" for a, r in zip(found, right, strict=True)]
        line = " ".join(f"{c:<18}" for c in cells)
        context.echo(f"{question.scene_index:>7}  {question.text:<{width}}  {question.answer:<12} {line}".rstrip())
    for answers, hits in zip(found, right, strict=True):
        context.echo(
            f"{answers.setting:<18} {sum(hits):>3} of {len(hits)} right, {answers.tokens:.4g} image tokens a layer, "
            f"{answers.seconds:.2f} s ({found[0].seconds / answers.seconds:.2f}x)"
        )
    context.echo("Times of a model this small are an impression; benchmarks/prefill.py measures a larger one.")


def _report(
    context: DemoContext,
    model: Any,
    processor: Any,
    questions: list[Any],
    found: list[_Answers],
    right: list[list[bool]],
) -> None:
    from paperhooks_testbed import prompt

    with RunFolder(context.out) as run:
        for old in ("result.json", "report.html", "report.md"):  # a demo is made anew every time
            (context.out / old).unlink(missing_ok=True)
        run.start("pyramiddrop-demo", inputs={"questions": len(questions), "stages": STAGES}, seed=context.seed)
        summary = [
            (a.setting, f"{sum(r)} of {len(r)}", round(a.tokens, 1), round(a.seconds, 3))
            for a, r in zip(found, right, strict=True)
        ]
        blocks: list[Block] = [
            Paragraph(
                f"A vision-language model of {model.num_parameters() / 1e6:.1f} million parameters answers questions "
                "about generated images: once with all 196 image tokens in every layer, once with PyramidDrop, once "
                "with as many tokens chosen at random. So few questions only show how it looks; "
                "the claims table (paperhooks claims pyramiddrop) has the measured accuracies."
            ),
            Table(("", "right", "image tokens a layer", "seconds"), summary),
        ]
        shown = [questions[i] for i in (0, len(questions) // 2, len(questions) - 1)]
        for number, question in enumerate(shown):
            seen = observe(model, processor, question.image(), prompt(question), PyramidDrop(stages=STAGES), 2)
            question.image().save(context.out / f"image-{number}.png")
            blocks += [
                Heading(question.text),
                Image(f"image-{number}.png", alt=f"generated image {question.scene_index}"),
                Paragraph(f"Right: {question.answer}. All tokens: {seen.plain_answer}. PyramidDrop: {seen.answer}."),
                *figure_blocks(run, f"overlay-{number}", question.image(), seen),
            ]
        blocks += [Heading("What it costs"), *cost_blocks(run, seen), Heading("Every question")]
        rows = [
            (q.scene_index, q.kind, q.text, q.answer, *(a.texts[i] for a in found)) for i, q in enumerate(questions)
        ]
        blocks.append(Table(("image", "kind", "question", "right", *(a.setting for a in found)), rows))
        run.record(settings=summary, flops_ratio=seen.savings.flops_ratio)
        html = run.report("PyramidDrop on the test bed", blocks)
        run.finish()
        context.echo(f"report: {html}")
