"""Models with levels made by hand, a plain evaluator beside the fast one, and the reference values of fitness."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from paperhooks import Level, ModelView
from paperhooks.hooks import Levels
from paperhooks.weights import Dense
from paperhooks_evopress.evaluator.minibatches import chunks, minibatch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "reference"
LETTERS = {"a": ("self_attn",), "m": ("mlp",), "b": ("self_attn", "mlp"), "n": ()}


@cache
def facts() -> dict[str, Any]:
    """Fitness of each state of the tiny Llama."""
    return json.loads((FOLDER / "metrics.json").read_text())


@cache
def texts() -> dict[str, Tensor]:
    """The sequences that it was measured on, int64 [T]."""
    return {name: ids[0] for name, ids in load_file(FOLDER / "metrics.safetensors").items()}


def reference_model() -> LlamaForCausalLM:
    """The tiny Llama that the values were measured on."""
    options = json.loads((FOLDER / "tiny_llama_config.json").read_text())
    theta = options.pop("rope_theta")
    options |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "max_position_embeddings": 2048}
    model = LlamaForCausalLM(LlamaConfig(**options, attn_implementation="eager")).eval()
    model.load_state_dict(load_file(FOLDER / "tiny_llama.safetensors"))
    return model


def drop_levels(view: ModelView, kinds: tuple[str, ...] = ("attention", "mlp")) -> Levels:
    """Each sublayer of these kinds, kept or left out."""
    costs = {"bytes": 1}
    return Levels(
        view,
        {
            name: [Level("drop", "kept", costs), Level("drop", "out", {"bytes": 0}, skip=True)]
            for name, sublayer in view.sublayers.items()
            if sublayer.kind in kinds and not sublayer.refusal
        },
    )


def rounded(module: nn.Module, steps: int) -> dict[str, Dense]:
    """The weight on a grid of so many steps from 0 to its largest value."""
    weight = module.weight.detach()
    size = weight.abs().max() / steps
    return {"weight": Dense((weight / size).round() * size)}


def rounding(module: nn.Module) -> list[Level]:
    """A matrix as it is, on a fine grid, or on a coarse one."""
    costs = {"bytes": module.weight.nbytes}
    return [
        Level("grid", "as it is", costs),
        Level("grid", "fine", costs, lambda: rounded(module, 6)),
        Level("grid", "coarse", costs, lambda: rounded(module, 2)),
    ]


def letters(view: ModelView, state: str) -> dict[str, str]:
    """A choice from one letter a layer: n nothing, a attention, m MLP, b both are left out."""
    return {f"model.layers.{layer}.{child}": "out" for layer, letter in enumerate(state) for child in LETTERS[letter]}


def random_choices(levels: Levels, number: int, seed: int = 0, share: float = 0.25) -> list[dict[str, str]]:
    """Choices that have something done to that share of the modules, each near the one before."""
    draw = random.Random(seed)
    names, found = list(levels), []
    choice = {name: levels[name][0].label for name in names}
    for name in draw.sample(names, round(share * len(names))):
        choice[name] = draw.choice(levels[name][1:]).label
    while len(found) < number:
        child = dict(choice)
        for name in draw.sample(names, 2):
            child[name] = draw.choice(levels[name]).label
        if child not in found:
            found.append(child)
    return found


@torch.no_grad()
def plain_score(
    model: Any, levels: Levels, sequences: list[Tensor], choices: Any, tokens: int, seed: int
) -> list[float]:
    """KL by a full pass of each candidate over one sequence at a time, whole logits and two log-softmaxes."""
    drawn = [each for chunk in chunks(minibatch([len(s) for s in sequences], tokens, seed), 1) for each in chunk]
    totals, positions = [0.0] * len(choices), 0
    for number, read in drawn:
        ids = sequences[number][None, :read]
        levels.switch({})
        teacher = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        positions += len(teacher)
        for place, choice in enumerate(choices):
            levels.switch(choice)
            student = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
            totals[place] += float((teacher.exp() * (teacher - student)).sum())
    levels.switch({})
    return [total / positions for total in totals]


def sequences_of(lengths: list[int], vocabulary: int = 90, seed: int = 0) -> list[Tensor]:
    """Random ids [T] of each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (length,), generator=generator) for length in lengths]
