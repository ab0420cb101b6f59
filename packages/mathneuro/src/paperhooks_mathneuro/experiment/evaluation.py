"""Measuring edits: every selection and control, at every factor, on the items of every side; undone after each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paperhooks import DataError, ModelError, active_session
from paperhooks.io import hash_json, model_digest, plain
from paperhooks.logprobs import Head
from paperhooks.models import find_tokenizer, running_model, view_of
from torch import nn
from tqdm import tqdm

from paperhooks_mathneuro.experiment.control_sets import controls
from paperhooks_mathneuro.experiment.effects import Effects, Measurement
from paperhooks_mathneuro.experiment.measures import Items, Scored, choose_by_likelihood, generated_numbers, nll
from paperhooks_mathneuro.selection.selections import WeightSelection
from paperhooks_mathneuro.surgery import EditWarning, apply, check_scale
from paperhooks_mathneuro.texts import TEMPLATE, needs_tokenizer, read_records, samples_digest, tokenized

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    selections: WeightSelection | Mapping[str, WeightSelection],
    data: Mapping[str, Any],
    *,
    scales: Sequence[float] = (0.0,),
    with_controls: bool = True,
    tokenizer: Any = None,
    scored: Mapping[str, Scored] | None = None,
    template: str = TEMPLATE,
    max_new_tokens: int = 0,
    seed: int = 0,
    batch_size: int = 8,
    base: Effects | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Effects:
    """What multiplying selections by factors does to the model, on items that were not used to find them.

    :param selections: one, or several by name.
    :param data: side name to records, a file of them or ``hub:NAME:SPLIT``; the target first. Items with choices are
        also asked which is likeliest.
    :param scales: factors; 0 prunes.
    :param with_controls: also measure the controls of the first selection, see
    :mod:`paperhooks_mathneuro.experiment.control_sets`.
    :param scored: side to "answer" (the answer given its question) or "text". By default "answer" for the first side,
        where its items have questions, and "text" for the others.
    :param max_new_tokens: also let the model answer the first side's questions, up to so many tokens, and compare the
        last number of its answer; 0 does not.
    :param base: an earlier evaluation; where it is of the same model on the same items, what it measured of the
        untouched model is taken over.
    :param out: a file for the measurements. It is written after each of them, and a run that was interrupted goes on.
    :raises DataError: items that cannot be used, or a file of another evaluation. :raises ModelError: a model that is
        attached or edited. What :func:`paperhooks_mathneuro.apply` raises. The model is left as it was in any case.
    """
    model = running_model(model)
    if active_session(model) is not None:
        raise ModelError("the model is attached to a session; close it before measuring edits")
    named = {selections.label: selections} if isinstance(selections, WeightSelection) else dict(selections)
    if not named or not data:
        raise DataError("evaluate needs at least one selection, and items of at least one side")
    for scale in scales:
        check_scale(scale)
    if with_controls:
        named = {**named, **controls(next(iter(named.values())), seed=seed)}
    bench = _Bench(model, tokenizer, _items(model, data, tokenizer, scored, template), max_new_tokens, batch_size)
    about = bench.about(seed, template)
    known = base.base if base is not None and base.about == about else None
    effects = _begun(out, about) or Effects(known or bench.measure("", 1.0, 0), [], about)
    done = {(one.selection, one.scale) for one in effects.edited}
    wanted = [(name, scale) for name in named for scale in scales if (name, scale) not in done]
    for name, scale in tqdm(wanted, desc="evaluate", unit="edit", disable=not progress):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditWarning)
            surgery = apply(model, named[name], scale)
        with surgery:
            effects.edited.append(bench.measure(name, scale, surgery.entries, named[name]))
        if out is not None:
            effects.save(out)
    if out is not None:
        effects.save(out)
    return effects


def _items(
    model: nn.Module, data: Mapping[str, Any], tokenizer: Any, scored: Mapping[str, Scored] | None, template: str
) -> dict[str, Items]:
    found = {}
    for number, (side, source) in enumerate(data.items()):
        records = read_records(source)
        if tokenizer is None and needs_tokenizer(records):
            tokenizer = find_tokenizer(model)
        samples = tokenized(records, tokenizer, template=template)
        asked = all(sample.answer_start for sample in samples)
        default: Scored = "answer" if number == 0 and asked else "text"
        found[side] = Items(samples, (scored or {}).get(side, default))
    unknown = sorted(set(scored or {}) - set(found))
    if unknown:
        raise DataError(f"scored names {unknown[0]!r}; the sides are {', '.join(found)}")
    return found


def _begun(out: str | Path | None, about: Mapping[str, Any]) -> Effects | None:
    if out is None or not Path(out).exists():
        return None
    effects = Effects.load(out)
    if effects.about != about:
        odd = next(key for key in about if effects.about.get(key) != about[key])
        raise DataError(f"{out} holds an evaluation with another {odd}; use another file, or delete it")
    return effects


@dataclass(eq=False)
class _Bench:
    """The items, and a model to measure on them."""

    model: nn.Module
    tokenizer: Any
    items: Mapping[str, Items]
    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        self.head = Head.from_model(view_of(self.model))
        if self.max_new_tokens and self.tokenizer is None:
            self.tokenizer = find_tokenizer(self.model)

    def about(self, seed: int, template: str) -> dict[str, Any]:
        found: dict[str, Any] = plain(
            {
                "model": model_digest(self.model),
                "items": {side: samples_digest(each.samples) for side, each in self.items.items()},
                "scored": {side: each.scored for side, each in self.items.items()},
                "max_new_tokens": self.max_new_tokens,
                "template": hash_json(template),
                "seed": seed,
            }
        )
        return found

    def measure(self, name: str, scale: float, entries: int, selection: WeightSelection | None = None) -> Measurement:
        total = sum(matrix.numel for matrix in selection.matrices) if selection is not None else 1
        values, correct = {}, {}
        for number, (side, items) in enumerate(self.items.items()):
            values[side] = nll(self.model, items, head=self.head, batch_size=self.batch_size)
            correct[side] = choose_by_likelihood(self.model, items, head=self.head, batch_size=self.batch_size)
            if number == 0 and self.max_new_tokens:
                correct[side] = generated_numbers(
                    self.model, self.tokenizer, items, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
                )
        return Measurement(name, scale, entries, entries / total, values, correct)
