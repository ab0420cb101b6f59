"""Measuring a vision-language model on generated questions: exact match, noise images and the depth profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from paperhooks.reports import wilson_interval
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from paperhooks_testbed.questions import Question, prompt
from paperhooks_testbed.visibility import attention_form, hide_from_text, hide_image
from paperhooks_testbed.world import IMAGE_PIXELS

__all__ = ["Share", "accuracy", "answer", "depth_profile", "noise_image", "score"]


@dataclass(frozen=True, slots=True)
class Share:
    """``right`` of ``total``, with the bounds of the Wilson 95 % interval."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; NaN for an empty set."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at 95 % (Wilson 1927); (0, 1) for an empty set."""
        if not self.total:
            return (0.0, 1.0)
        return wilson_interval(self.right, self.total)


def noise_image(seed: int = 0) -> Image.Image:
    """A 224 x 224 RGB image of independent uniform noise."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (IMAGE_PIXELS, IMAGE_PIXELS, 3), dtype=np.uint8))


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    batch_size: int = 32,
) -> list[str]:
    """Generate greedily and return the text of each answer.

    :raises ValueError: if there are not as many images as prompts.
    """
    if len(images) != len(prompts):
        raise ValueError(f"every prompt needs its image: got {len(images)} images and {len(prompts)} prompts")
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        inputs = _inputs(model, processor, images[start : start + batch_size], prompts[start : start + batch_size])
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def accuracy(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[Question],
    images: Sequence[Image.Image] | None = None,
    batch_size: int = 32,
) -> dict[str, Share]:
    """Exact-match accuracy by kind and, under ``"all"``, over all questions.

    :param images: images to show instead of the questions' own ones, for instance noise.
    """
    shown = images if images is not None else [question.image() for question in questions]
    return score(questions, answer(model, processor, shown, [prompt(q) for q in questions], batch_size))


def score(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Share]:
    """Compare answers with the right ones, by kind and in ``"all"``."""
    if len(questions) != len(answers):
        raise ValueError(f"got {len(answers)} answers to {len(questions)} questions")
    hits: dict[str, list[bool]] = {}
    for question, given in zip(questions, answers):
        for name in (question.kind, "all"):
            hits.setdefault(name, []).append(given == question.answer)
    return {name: Share(sum(values), len(values)) for name, values in sorted(hits.items())}


@torch.no_grad()
def depth_profile(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[Question],
    batch_size: int = 32,
) -> list[Share]:
    """How accuracy depends on the depth at which all image tokens are dropped.

    :returns: one ``Share`` for every r = 0 ... L over all questions: image tokens are seen in layers below r only.
        Entry 0 never sees the image; entry L is the model as it is.
    """
    layers = len(model.model.language_model.layers)
    right = [0] * (layers + 1)
    for start in range(0, len(questions), batch_size):
        part = questions[start : start + batch_size]
        inputs = _inputs(model, processor, [q.image() for q in part], [prompt(q) for q in part])
        wanted = processor.tokenizer([q.answer for q in part], add_special_tokens=False)["input_ids"]
        targets = torch.tensor([ids[0] for ids in wanted], device=model.device)
        for depth, best in enumerate(_answers_by_depth(model, inputs)):
            right[depth] += int((best == targets).sum())
    return [Share(hits, len(questions)) for hits in right]


def _answers_by_depth(model: LlavaForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """The most likely first answer token ``[B]`` with the image hidden from layer r on, for r = 0 ... L."""
    valid = inputs["attention_mask"].bool()  # [B, T]
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    own = torch.eye(length, dtype=torch.bool, device=valid.device)
    seen = ((causal & valid[:, None, :]) | own)[:, None]  # [B, 1, T, T]
    image = inputs["input_ids"] == model.config.image_token_id
    hidden = attention_form(model, hide_from_text(seen, image, torch.ones_like(valid[:, 0])))
    given = {
        "input_ids": inputs["input_ids"],
        "pixel_values": inputs["pixel_values"],
        "position_ids": (valid.long().cumsum(-1) - 1).clamp(min=0),
        "attention_mask": attention_form(model, seen),
        "use_cache": False,
        "logits_to_keep": 1,
    }

    def hidden_from(depth: int) -> Callable[[int], torch.Tensor | None]:
        return lambda layer: hidden if layer >= depth else None

    for depth in range(len(model.model.language_model.layers) + 1):
        with hide_image(model, hidden_from(depth)):
            yield model(**given).logits[:, -1].argmax(-1)


def _inputs(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
) -> dict[str, torch.Tensor]:
    batch = processor(images=list(images), text=list(prompts), padding=True, return_tensors="pt").to(model.device)
    return {**batch, "pixel_values": batch["pixel_values"].to(model.dtype)}
