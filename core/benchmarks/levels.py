"""Levels on a live model: one switch against one forward, and an artefact of levels against one pass over its bytes.

A random model of SmolLM2's size (30 layers of width 576, 540 MB). Seconds are of the processor; the sides in one
process, in turn. ``save_by_*`` is saving an artefact against one pass over its own bytes, which hashes or writes them,
``whole_by_*`` making and saving it against one over the bytes of the matrices in the model, and ``memory_ratio`` what
both take beside the matrices, as the peak of a process of its own.

    python core/benchmarks/levels.py [--quick] [--rounds N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import torch
from paperhooks import Artefact, Level, ModelView
from paperhooks.hooks import Levels
from paperhooks.testing import fresh_process, print_peak
from paperhooks.weights import Packed, Quantised, WeightJournal, packed_bytes
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS: Final = 128
GROUP: Final = 64
WIDTHS: Final = (3, 4)
MIB: Final = 2**20


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
    """Seconds of a forward, and of a switch of one module: the mean over the matrices of a layer and their levels."""
    ids = torch.arange(TOKENS)[None]
    names = [name for name in levels if ".layers.0." in name]
    found: dict[str, list[float]] = {"forward": [], "exchange": []}
    switched: dict[tuple[str, str], list[float]] = {}
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
                switched.setdefault((name, label), []).append(time.process_time() - begin)
            parameter = model.get_parameter(f"{names[0]}.weight")
            one, other = parameter.data, parameter.data.clone()
            begin = time.process_time()
            for _ in range(1000):
                parameter.data = other
                parameter.data = one
            found["exchange"].append((time.process_time() - begin) / 2000)
    found["switch"] = [mean(median(each) for each in switched.values())]
    return {f"{name}_s": median(each) for name, each in found.items()}


def written(model: LlamaForCausalLM, levels: Levels) -> tuple[WeightJournal, Mapping[str, Packed]]:
    """All matrices at 3 bits through a journal, and their packed values."""
    journal = WeightJournal(model)
    with levels:
        levels.switch(dict.fromkeys(levels, "3 bits"))
        levels.write(journal)
    return journal, levels.written


def saved(model: LlamaForCausalLM, levels: Levels, rounds: int) -> dict[str, float]:
    """Seconds to make and save an artefact of all matrices at 3 bits, packed and dense, and of passes over bytes."""
    journal, packed = written(model, levels)
    tensors = [change.parameter.detach() for change in journal.changed.values()]
    figures = {"artefact_mib": sum(p.nbytes for p in packed.values()) / MIB, "model_mib": nbytes(tensors) / MIB}
    sides: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = work()
        sides.setdefault(name, []).append(time.process_time() - begin)
        return result

    for _ in range(rounds):
        for prefix, values in (("", packed), ("dense_", {})):
            with tempfile.TemporaryDirectory() as folder:  # new files, so that no side has to free an old one
                make = partial(Artefact.from_journal, journal, method="bench", packed=values)
                artefact = timed(f"{prefix}made", make)
                timed(f"{prefix}save", partial(artefact.save, Path(folder, "artefact.safetensors")))
                own = [one for each in values.values() for one in each.tensors().values()] or tensors
                timed(f"{prefix}hashed", partial(passed, own, hashlib.sha256().update))
                with Path(folder, "pass").open("wb") as file:
                    timed(f"{prefix}written", partial(passed, own, file.write))
    journal.undo()
    for prefix in ("", "dense_"):
        made, save = sides[f"{prefix}made"], sides[f"{prefix}save"]
        for kind in ("hashed", "written"):
            own_passes, model_passes = sides[f"{prefix}{kind}"], sides[f"dense_{kind}"]
            figures[f"{prefix}save_by_{kind}"] = median(a / b for a, b in zip(save, own_passes, strict=True))
            whole = zip(made, save, model_passes, strict=True)
            figures[f"{prefix}whole_by_{kind}"] = median((a + b) / c for a, b, c in whole)
    return figures | {f"{name}_s": median(each) for name, each in sides.items()}


def passed(tensors: Iterable[Tensor], work: Callable[[Any], Any]) -> None:
    """One pass over the bytes of tensors, one tensor after another."""
    for tensor in tensors:
        work(tensor.reshape(-1).view(torch.uint8).numpy().data)


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.nbytes for each in tensors)


def peak(form: str, layers: int) -> None:
    """In a process of its own: the peak of making and saving an artefact, above model, journal and packed values."""
    model = model_of(layers)
    journal, packed = written(model, levels_of(ModelView.from_model(model)))
    size = nbytes(change.parameter for change in journal.changed.values())
    with tempfile.TemporaryDirectory() as folder:
        Artefact("bench", tensors={"warm": torch.zeros(1)}).save(Path(folder, "warm"))

        def work() -> dict[str, float]:
            artefact = Artefact.from_journal(journal, method="bench", packed=packed if form == "packed" else {})
            artefact.save(Path(folder, "artefact"))
            return {"model_mib": size / MIB}

        print_peak(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four layers, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default: 9, quick: 1)")
    parser.add_argument("--child", choices=("packed", "dense"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds, layers = options.rounds or (1 if options.quick else 9), 4 if options.quick else 30
    torch.set_num_threads(1)
    if options.child:
        peak(options.child, layers)
        return
    model = model_of(layers)
    levels = levels_of(ModelView.from_model(model))
    figures: dict[str, Any] = {"quick": options.quick, "rounds": rounds, "tokens": TOKENS}
    figures |= switches(model, levels, rounds)
    figures["switch_ratio"] = figures["switch_s"] / figures["forward_s"]
    figures |= saved(model, levels, max(1, rounds // 3))
    for prefix, form in (("", "packed"), ("dense_", "dense")):
        found = fresh_process(__file__, "--child", form, *(["--quick"] if options.quick else []))
        figures[f"{prefix}peak_mib"] = found["mib"]
        figures[f"{prefix}memory_ratio"] = found["mib"] / found["model_mib"]
    print(json.dumps({name: round(v, 7) if isinstance(v, float) else v for name, v in figures.items()}))


if __name__ == "__main__":
    main()
