"""How well a model does on texts, item by item: negative log-likelihood, choices by likelihood, numbers in answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from paperhooks import DataError, ModelView
from paperhooks.logprobs import Head, LogLikelihood
from paperhooks.models import evaluation_mode
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from paperhooks_mathneuro.texts import Sample, check_vocabulary

__all__ = ["Items", "Scored", "choose_by_likelihood", "generated_numbers", "last_number", "nll"]

#: Which tokens an item's likelihood is about: those of its answer, given its question, or all but the first.
Scored: TypeAlias = Literal["answer", "text"]

_NUMBER: Final = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_MARKED: Final = re.compile(r"(?:####|[Tt]he answer is)\s*(-?\$?\d[\d,]*(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Texts that a model is measured on, and which of their tokens count."""

    samples: Sequence[Sample]
    scored: Scored = "text"


@torch.no_grad()
def nll(
    model: nn.Module, items: Items, *, head: Head | None = None, batch_size: int = 8, batch_tokens: int = 4096
) -> list[float]:
    """Mean negative log-likelihood a token of every item, in nats.

    :param head: from ``Head.from_model(model)``; made when missing.
    :raises DataError: an item without a token to predict.
    """
    sums = _answer_logprobs(model, items.samples, items.scored, head, batch_size, batch_tokens)
    for number, (_, count) in enumerate(sums):
        if not count:
            name = items.samples[number].place or f"item {number}"
            raise DataError(f"{name} has no token to predict: its {items.scored} is too short")
    return [-total / count for total, count in sums]


@torch.no_grad()
def choose_by_likelihood(
    model: nn.Module, items: Items, *, head: Head | None = None, batch_size: int = 8, batch_tokens: int = 4096
) -> list[bool | None]:
    """Whether the right choice is the likeliest (by the sum over its tokens); None for items without choices."""
    flat = [replace(choice, place=sample.place) for sample in items.samples for choice in sample.choices]
    if not flat:
        return [None] * len(items.samples)
    sums = iter(_answer_logprobs(model, flat, "answer", head, batch_size, batch_tokens))
    found: list[bool | None] = []
    for sample in items.samples:
        totals = [next(sums)[0] for _ in sample.choices]
        found.append(totals.index(max(totals)) == sample.right if totals else None)
    return found


@torch.no_grad()
def generated_numbers(
    model: Any, tokenizer: Any, items: Items, *, max_new_tokens: int = 256, batch_size: int = 8
) -> list[bool | None]:
    """Whether the last number of a greedy answer to each question is the reference answer's; None without one.

    Nothing that a model writes is ever run; numbers are read off the text.
    """
    check_vocabulary(items.samples, model)
    found: list[bool | None] = []
    with evaluation_mode(model):
        for start in range(0, len(items.samples), batch_size):
            batch = items.samples[start : start + batch_size]
            inputs, width = _prompts(batch, model, tokenizer)
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
            for sample, text in zip(batch, texts, strict=True):
                wanted = last_number(tokenizer.decode(list(sample.ids[sample.answer_start :])))
                found.append(None if wanted is None or not sample.answer_start else last_number(text) == wanted)
    return found


def last_number(text: str) -> float | None:
    """The number that a worked answer ends with: the one behind "####" or "the answer is", else the last one.

    >>> last_number("18 - 4 = 14, so $1,200.50 are left. The answer is 14. Good.")
    14.0
    >>> last_number("so there are 1,200 of them.")
    1200.0
    >>> last_number("none") is None
    True
    """
    found = _MARKED.findall(text) or _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("$", "")) if found else None


def _prompts(batch: Sequence[Sample], model: Any, tokenizer: Any) -> tuple[dict[str, Tensor], int]:
    """Questions padded on the left."""
    rows = [sample.ids[: sample.answer_start] or sample.ids[:1] for sample in batch]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = pad_sequence([torch.tensor(row) for row in rows], True, pad, "left")
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], True, 0, "left")
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}, ids.shape[1]


def _answer_logprobs(
    model: nn.Module, samples: Sequence[Sample], scored: Scored, head: Head | None, batch_size: int, batch_tokens: int
) -> list[tuple[float, int]]:
    """Sum of log-probabilities and number of scored tokens of every sample, in their order."""
    view = ModelView.from_model(model)
    check_vocabulary(samples, view.model)
    ids = [np.asarray(sample.ids, dtype=np.int64) for sample in samples]
    starts = [sample.answer_start if scored == "answer" else 0 for sample in samples]
    longest = max(max(map(len, ids), default=0) - 1, 1)
    likelihood = LogLikelihood(
        model, max_length=longest, batch_tokens=batch_tokens, batch_rows=batch_size, head=head
    )  # fmt: skip
    counted = [np.arange(len(own)) >= start for own, start in zip(ids, starts, strict=True)]
    found = likelihood.score(ids, counted=counted)
    return list(zip((-found.nll).tolist(), found.count.tolist(), strict=True))
