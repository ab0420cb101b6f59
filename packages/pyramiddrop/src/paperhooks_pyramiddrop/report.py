"""One image and one question, with and without PyramidDrop: answers, tokens kept, cost; as report.html and PNG."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paperhooks import DataError, ModelView, attach
from paperhooks.models import GridPart
from paperhooks.reports import Block, Code, Figure, Heading, Paragraph, RunFolder, Table

from paperhooks_pyramiddrop.drops import Drop
from paperhooks_pyramiddrop.figures import cost_figure, overlay_figure, staircase_figure
from paperhooks_pyramiddrop.method import PyramidDrop
from paperhooks_pyramiddrop.schedule import DecoderShape, Savings

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Illustration", "decoder_shape", "figure_blocks", "illustrate", "observe"]


@dataclass(frozen=True, slots=True)
class Illustration:
    """What :func:`observe` saw: both answers, seconds of both, the drops, the cost of the image, and its grid of tokens
    (None when they form no known grid)."""

    plain_answer: str
    answer: str
    plain_seconds: float
    seconds: float
    drops: tuple[Drop, ...]
    savings: Savings
    text_tokens: int
    grid: GridPart | None


def decoder_shape(view: ModelView) -> DecoderShape:
    """The sizes of an attached model's decoder that its cost depends on."""
    config = view.text_config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return DecoderShape(
        layers=len(view.layers),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
    )


def observe(
    model: Any, processor: Any, image: Image, text: str, method: PyramidDrop | None = None, max_new_tokens: int = 16
) -> Illustration:
    """Answer ``text`` about ``image`` without and with ``method``.

    :param model: a stock vision-language model that nothing is attached to. :param processor: its processor.
    :param text: the prompt with the image placeholder, as the processor takes it.
    :param method: the schedule and options; the default is the paper's four stages. It is copied, not changed.
    :raises DataError: the prompt has no image placeholder, so there is nothing to drop.
    """
    placeholder = getattr(processor, "image_token", None)
    if placeholder is not None and placeholder not in text:
        raise DataError(f"the prompt {text!r} holds no image token; write {placeholder!r} where the image belongs")
    inputs = processor(images=image, text=text, return_tensors="pt").to(model.device)
    view = ModelView.from_model(model)
    visual = int(view.image_mask(inputs["input_ids"]).sum())
    drops: list[Drop] = []
    chosen = replace(method or PyramidDrop(), record=drops)
    _answer(model, processor, inputs, 1)  # transformers installs its recorders at the first forward
    plain, plain_seconds = _answer(model, processor, inputs, max_new_tokens)
    with attach(model, chosen):
        answer, seconds = _answer(model, processor, inputs, max_new_tokens)
    text_tokens = inputs["input_ids"].shape[1] - visual
    element = model.dtype.itemsize
    savings = chosen.schedule_for(len(view.layers)).savings(
        visual, decoder_shape(view), text_tokens=text_tokens, kv_element_bytes=element
    )
    spans = view.image_spans(inputs["input_ids"], inputs)
    grid = spans[0].parts[0] if spans[0].parts else None
    return Illustration(plain, answer, plain_seconds, seconds, tuple(drops), savings, text_tokens, grid)


@torch.no_grad()
def _answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> tuple[str, float]:
    start = time.perf_counter()
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    seconds = time.perf_counter() - start
    new = out[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip(), seconds


def figure_blocks(run: RunFolder, name: str, image: Image, seen: Illustration) -> list[Block]:
    """Draw the overlay of one observation into the run folder; empty when the image tokens form no known grid."""
    if not seen.drops or seen.grid is None:
        return []
    run.figure(name, overlay_figure(image, seen.drops, seen.grid))
    kept = ", ".join(str(drop.kept_visual()) for drop in seen.drops)
    alt = f"the image as each stage sees it: {kept} image tokens kept"
    return [Figure(name, alt=alt, caption="Dark: dropped. Framed: the three tokens with the most attention.")]


def illustrate(
    model: Any,
    processor: Any,
    image: Image,
    text: str,
    out: str | Path,
    method: PyramidDrop | None = None,
    max_new_tokens: int = 16,
) -> Path:
    """Write ``report.html``, ``report.md``, SVG and PNG figures about one image and question into ``out``.

    :return: the path of report.html. Arguments as for :func:`observe`.
    """
    with RunFolder(out) as run:
        run.start("pyramiddrop-illustration", inputs={"text": text, "image_size": list(image.size)})
        with run.timed("answers"):
            seen = observe(model, processor, image, text, method, max_new_tokens)
        blocks: list[Block] = [Heading("Question"), Code(text), Heading("Answers")]
        blocks += [Table(("", "answer", "seconds"), _rows(seen)), Heading("What each stage sees")]
        blocks += figure_blocks(run, "overlay", image, seen)
        blocks += [Heading("What it costs"), *cost_blocks(run, seen)]
        run.record(plain=seen.plain_answer, attached=seen.answer, flops_ratio=seen.savings.flops_ratio)
        html = run.report("PyramidDrop on one image", blocks)
        run.finish()
        return html


def _rows(seen: Illustration) -> list[tuple[str, str, float]]:
    return [
        ("every token", seen.plain_answer, round(seen.plain_seconds, 3)),
        ("PyramidDrop", seen.answer, round(seen.seconds, 3)),
    ]


def cost_blocks(run: RunFolder, seen: Illustration) -> list[Block]:
    """Staircase and cost figures, and what they count."""
    run.figure("staircase", staircase_figure(seen.savings, seen.text_tokens))
    run.figure("cost", cost_figure(seen.savings))
    counts, saved = seen.savings.tokens_per_layer, 1 - seen.savings.flops_ratio
    return [
        Figure("staircase", alt=f"image tokens per layer: {counts}", caption="Image tokens alone, text left out."),
        Figure("cost", alt=f"{saved:.1%} of the prefill's multiply-adds saved, text counted"),
        Paragraph(
            f"The cost is that of the decoder for the image's {counts[0]} tokens and the {seen.text_tokens} text "
            "tokens, which every layer computes. The vision tower and the output head cost what they did."
        ),
    ]
