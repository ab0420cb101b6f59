"""Hessians of the inputs of all matrices: one for each tensor that is read, against one for each matrix.

A random model of SmolLM2's size (30 layers of width 576) reads calibration data once; q, k and v read one tensor, gate
and up another. Seconds are of the processor, both sides in one process, in turn, with and without those of the model's
own forwards; the peak is that of a process of its own.

    python core/benchmarks/hessians.py [--quick] [--rounds N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any, Final

import torch
from paperhooks import ModelView
from paperhooks.models import CalibrationBatch, InputMoments, calibrate
from paperhooks.testing import fresh_process, print_peak
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS: Final = 512
MATRICES: Final = r".*layers\.\d+\.(self_attn|mlp)\.\w+_proj"
MIB: Final = 2**20


class EachMatrix:
    """A sum of x x^T for every matrix."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def receive(self, name: str, module: nn.Module, hidden: Tensor, batch: CalibrationBatch) -> None:
        rows = hidden.flatten(0, -2)
        if name not in self.sums:
            self.sums[name] = torch.zeros(rows.shape[1], rows.shape[1])
        self.sums[name].addmm_(rows.T, rows)

    def __getitem__(self, name: str) -> Tensor:
        return self.sums[name]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.sums.values())


def view_of(layers: int) -> ModelView:
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ModelView.from_model(LlamaForCausalLM(config).eval())


def batches(n: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 49_152, (1, TOKENS), generator=generator)} for _ in range(n)]


def collected(view: ModelView, n: int, *, shared: bool) -> InputMoments | EachMatrix:
    hessians = InputMoments() if shared else EachMatrix()
    names = [name for name, _ in view.modules(MATRICES)]
    calibrate(view, batches(n), names, hessians.receive, progress=False)
    return hessians


def timed(view: ModelView, n: int, rounds: int) -> dict[str, float]:
    """Seconds of each side, and what their Hessians take; raises AssertionError where these differ."""
    names = [name for name, _ in view.modules(MATRICES)]
    seconds: dict[str, list[float]] = {"forward": [], "shared": [], "each": []}
    held: dict[str, InputMoments | EachMatrix] = {}
    for _ in range(rounds):
        held.clear()
        begin = time.process_time()
        calibrate(view, batches(n), names, lambda *_: None, progress=False)
        seconds["forward"].append(time.process_time() - begin)
        for side in ("shared", "each"):
            begin = time.process_time()
            held[side] = collected(view, n, shared=side == "shared")
            seconds[side].append(time.process_time() - begin)
    for name in names:
        torch.testing.assert_close(held["shared"][name], held["each"][name])
    rows = list(zip(seconds["forward"], seconds["shared"], seconds["each"], strict=True))
    figures: dict[str, float] = {f"{name}_s": median(each) for name, each in seconds.items()}
    ours = held["shared"]
    assert isinstance(ours, InputMoments)
    figures |= {"shared_hessians": len(set(ours.readers.values())), "each_hessians": len(names)}
    figures |= {f"{side}_mib": each.nbytes / MIB for side, each in held.items()}
    figures["memory_ratio"] = held["shared"].nbytes / held["each"].nbytes
    figures["time_ratio"] = median(shared / each for _, shared, each in rows)
    figures["time_ratio_without_forward"] = median((shared - plain) / (each - plain) for plain, shared, each in rows)
    return figures


def peak(side: str, layers: int) -> None:
    """In a process of its own: by how much collecting raises the peak."""
    view = view_of(layers)
    calibrate(view, batches(1), [], lambda *_: None, progress=False)
    kept = []
    print_peak(lambda: kept.append(collected(view, 1, shared=side == "shared")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four layers, one batch, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default: 3, quick: 1)")
    parser.add_argument("--child", choices=("shared", "each"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds, layers, n = options.rounds or (1 if options.quick else 3), *((4, 1) if options.quick else (30, 4))
    torch.set_num_threads(1)
    if options.child:
        peak(options.child, layers)
        return
    figures: dict[str, Any] = {"quick": options.quick, "rounds": rounds, "tokens": n * TOKENS}
    figures |= timed(view_of(layers), n, rounds)
    for side in ("shared", "each"):
        found = fresh_process(__file__, "--child", side, *(["--quick"] if options.quick else []))
        figures[f"{side}_peak_mib"] = found["mib"]
    figures["peak_ratio"] = figures["shared_peak_mib"] / figures["each_peak_mib"]
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in figures.items()}))


if __name__ == "__main__":
    main()
