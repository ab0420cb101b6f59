"""What the weight W does: with its gradient, detached, and without, under DPO and IPO.

A Llama of 35 thousand parameters, whose answers have a mean log-probability near -0.9 so that W is not saturated, takes
60 steps of plain descent on each of three batches of one to three prompts. Told is by how much the mean
log-probabilities of both plain answers change.

    python packages/sso/benchmarks/weight.py [--quick] [--steps 60]

A few seconds. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import torch
from paperhooks import attach
from paperhooks.training import AccumulatedCounts, compute_loss
from paperhooks_sso import SSO
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

REFERENCE: Final = Path(__file__).resolve().parents[1] / "tests" / "reference"
WAYS: Final = {"without": {"weight": False}, "detached": {"detach_weight": True}, "with gradient": {}}
BATCHES: Final = ("b1", "b2", "b3")
#: IPO leaves its answers behind at ten times as much.
RATE: Final = 0.003


def tiny(which: str) -> Any:
    """The reference model and a policy near it."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(REFERENCE / "tiny_llama"))
    model.load_state_dict(load_file(REFERENCE / "tiny_llama" / f"{which}.safetensors"))
    return model.eval()


def changes(preset: str, options: dict[str, Any], batch: dict[str, Any], steps: int) -> tuple[float, float]:
    """By how much a(y+|x) and a(y-|x) change."""
    model, method = tiny("policy"), SSO(preset, reference=tiny("reference"), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    seen = []
    with attach(model, method) as session:
        counts = AccumulatedCounts.of(session, [batch])
        for _ in range(steps + 1):
            context = counts.context(model, batch)
            loss = compute_loss(session, context)
            seen.append([float(context.figures[f"loss/sso/plain_{name}"].mean) for name in ("chosen", "rejected")])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten steps")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensors = load_file(REFERENCE / "tiny_batches.safetensors")
    line: dict[str, Any] = {}
    print(f"{'loss':8} {'batch':6} {'W':14} {'a(y+|x)':>9} {'a(y-|x)':>9}")
    for preset in ("v1-dpo", "v1-ipo"):
        for name in BATCHES:
            batch = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
            for way, given in WAYS.items():
                chosen, rejected = changes(preset, given, batch, 10 if options.quick else options.steps)
                print(f"{preset:8} {name:6} {way:14} {chosen:+9.3f} {rejected:+9.3f}")
                line[f"{preset} {name} {way}"] = [round(chosen, 4), round(rejected, 4)]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
