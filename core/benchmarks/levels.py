"""Levels on a live model: one switch against one forward, and an artefact of levels against one pass over its bytes.

A random model of SmolLM2's size (30 layers of width 576, 540 MB). Seconds are of the processor; the sides in one
process, in turn.

    python core/benchmarks/levels.py [--quick] [--rounds N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from paperhooks import Artefact, Level, ModelView
from paperhooks.hooks import Levels
from paperhooks.weights import Packed, Quantised, WeightJournal, packed_bytes
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS: Final = 128
GROUP: Final = 64
WIDTHS: Final = (3, 4)


def model_of(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def nearest(module: nn.Linear, width: int) -> Mapping[str, Packed]:
    """The weight in the nearest of 2 ** width values of its group."""
    weight = module.weight.detach()
    rows, columns = weight.shape
    parts = weight.view(rows, columns // GROUP, GROUP)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**width - 1)).clamp(min=1e-8)
    zeros = (-low / scales).round().clamp(0, 2**width - 1)
    codes = (parts / scales[..., None] + zeros[..., None]).round().clamp(0, 2**width - 1)
    return {"weight": Quantised.of(codes.view(rows, columns).int(), scales, zeros.int(), width, GROUP)}


def levels_of(view: ModelView) -> Levels:
    offers = {}
    for name, module in view.modules(r".*layers\.\d+\.(self_attn|mlp)\.\w+_proj"):
        assert isinstance(module, nn.Linear)
        shape = module.weight.shape
        offers[name] = [
            Level("nearest", f"{w} bits", packed_bytes(shape, width=w, group=GROUP, itemsize=4),
                  partial(nearest, module, w))
            for w in WIDTHS
        ]  # fmt: skip
    return Levels(view, offers)


def switches(model: LlamaForCausalLM, levels: Levels, rounds: int) -> dict[str, float]:
    """Seconds of a forward, and of a switch of one module, over the matrices of the first layer."""
    ids = torch.arange(TOKENS)[None]
    names = [name for name in levels if ".layers.0." in name]
    found: dict[str, list[float]] = {"forward": [], "switch": [], "exchange": []}
    for name in names:
        for width in WIDTHS:
            levels.packed(name, f"{width} bits")
    with levels, torch.no_grad():
        levels.switch(dict.fromkeys(names, "3 bits"))
        model(ids)
        for number in range(rounds):
            begin = time.process_time()
            model(ids)
            found["forward"].append(time.process_time() - begin)
            label = f"{WIDTHS[(number + 1) % 2]} bits"
            for name in names:
                begin = time.process_time()
                levels.switch({**levels.choice, name: label})
                found["switch"].append(time.process_time() - begin)
            parameter = model.get_parameter(f"{names[0]}.weight")
            one, other = parameter.data, parameter.data.clone()
            begin = time.process_time()
            for _ in range(1000):
                parameter.data = other
                parameter.data = one
            found["exchange"].append((time.process_time() - begin) / 2000)
    return {f"{name}_s": median(each) for name, each in found.items()}


def saved(model: LlamaForCausalLM, levels: Levels, rounds: int) -> dict[str, float]:
    """Seconds to save an artefact of all matrices at 3 bits, and to write as many bytes."""
    journal = WeightJournal(model)
    with levels:
        levels.switch(dict.fromkeys(levels, "3 bits"))
        levels.write(journal)
    begin = time.process_time()
    artefact = Artefact.from_journal(journal, method="bench", packed=levels.written)
    made = time.process_time() - begin
    size = sum(edit.packed.nbytes for edit in artefact.edits.values() if edit.packed is not None)
    sides: dict[str, list[float]] = {"save": [], "pass": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            begin = time.process_time()
            file = artefact.save(Path(folder, "a.safetensors"))
            sides["save"].append(time.process_time() - begin)
            content = file.read_bytes()
            begin = time.process_time()
            Path(folder, "b").write_bytes(content)
            sides["pass"].append(time.process_time() - begin)
    journal.undo()
    ratio = median(a / b for a, b in zip(sides["save"], sides["pass"], strict=True))
    return {"artefact_mib": size / 2**20, "made_s": made, "save_s": median(sides["save"]), "save_ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four layers, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default: 9, quick: 1)")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 9)
    torch.set_num_threads(1)
    model = model_of(4 if options.quick else 30)
    levels = levels_of(ModelView.from_model(model))
    figures: dict[str, Any] = {"quick": options.quick, "rounds": rounds, "tokens": TOKENS}
    figures |= switches(model, levels, rounds)
    figures["switch_ratio"] = figures["switch_s"] / figures["forward_s"]
    figures |= saved(model, levels, max(1, rounds // 3))
    print(json.dumps({name: round(v, 7) if isinstance(v, float) else v for name, v in figures.items()}))


if __name__ == "__main__":
    main()
