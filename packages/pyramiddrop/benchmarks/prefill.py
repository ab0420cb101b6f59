"""Prefill and generation, plain against PyramidDrop, in one run; beside the speed-up that the multiply-adds allow.

A Llama-shaped decoder with random weights, large enough that its layers dominate (16 layers of width 512), gets 64 text
tokens and 576 or 2,304 visual ones. Plain and attached runs alternate; the ratio is that of their medians. What the
multiply-adds allow is counted two ways: with full attention (the paper's formula) and with the half that a causal
kernel computes.

    python packages/pyramiddrop/benchmarks/prefill.py [--quick] [--threads N] [--repeats N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from paperhooks import ModelView, attach
from paperhooks_pyramiddrop import DecoderShape, PyramidDrop, Ranking, Schedule
from paperhooks_pyramiddrop.policies import last_token
from transformers import LlamaConfig, LlamaForCausalLM

TEXT = 64
NEW_TOKENS = 16


def build(layers: int, hidden: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.75),
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def allowed(schedule: Schedule, shape: DecoderShape, visual: int, attention_share: float) -> float:
    """Speed-up by multiply-adds; ``attention_share`` 1.0 counts all of n x n, 0.5 its causal half."""

    def layer(n: int) -> float:
        square = 2 * n * n * shape.hidden
        return shape.flops(n) - (1 - attention_share) * square

    counts = schedule.tokens_per_layer(visual, shape.layers)
    return shape.layers * layer(visual + TEXT) / sum(layer(c + TEXT) for c in counts)


@torch.no_grad()
def measure(model: LlamaForCausalLM, method: PyramidDrop, visual: int, repeats: int) -> dict[str, float]:
    ids = torch.randint(3, 990, (1, visual + TEXT), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, TEXT // 2 : TEXT // 2 + visual] = True

    def prefill(**more):
        model(ids, logits_to_keep=1, **more)

    def generate(**more):
        model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, **more)

    found: dict[str, float] = {}
    for name, run in (("prefill", prefill), ("generate", generate)):
        plain, attached = [], []
        run()
        for _ in range(repeats):
            plain.append(_seconds(run))
            with attach(model, method):
                attached.append(_seconds(run, visual_mask=mask))
        pairs = [a / b for a, b in zip(plain, attached, strict=True)]
        found |= {
            f"{name}_plain_s": statistics.median(plain),
            f"{name}_attached_s": statistics.median(attached),
            f"{name}_speedup": statistics.median(plain) / statistics.median(attached),
            f"{name}_speedup_min": min(pairs),
            f"{name}_speedup_max": max(pairs),
        }
    return found


@torch.no_grad()
def ranking(model: LlamaForCausalLM, tokens: int, repeats: int) -> dict[str, float]:
    """Milliseconds of ranking ``tokens`` tokens by the last one, and of one whole decoder layer on them."""
    view, layer = ModelView.from_model(model), model.model.layers[1]
    hidden = torch.randn(1, tokens, model.config.hidden_size)
    tables = model.model.rotary_emb(hidden, position_ids=torch.arange(tokens)[None])
    everyone = torch.ones(1, tokens, dtype=torch.bool)
    row = torch.tensor([[tokens - 1]])
    given = Ranking(view, 1, hidden, tables, row, everyone[:, :1], everyone, everyone, torch.Generator())
    rank, whole = [], []
    for _ in range(repeats + 1):
        rank.append(_seconds(lambda: last_token(given)))
        whole.append(_seconds(lambda: layer(hidden, attention_mask=None, position_embeddings=tables)))
    ms = {"rank_ms": 1000 * statistics.median(rank[1:]), "layer_ms": 1000 * statistics.median(whole[1:])}
    return {**ms, "rank_share_of_layer": ms["rank_ms"] / ms["layer_ms"]}


def _seconds(run, **more) -> float:
    start = time.perf_counter()
    run(**more)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer layers and repeats, 576 tokens only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers = 8 if options.quick else 16
    model = build(layers, 512)
    shape = DecoderShape(layers, 512, model.config.intermediate_size)
    method = PyramidDrop(stages=4, ratio=0.5)
    schedule = method.schedule_for(layers)
    results: dict[str, float] = {}
    print(
        f"{layers} layers, width 512, {TEXT} text tokens, drops {schedule.layers} to {schedule.ratios}, "
        f"{options.threads} thread(s), torch {torch.__version__}"
    )
    header = f"{'visual':>7} {'phase':<9} {'plain s':>8} {'attached':>9} {'speed-up':>9} {'pairs':>13}"
    print(f"{header} {'full bound':>11} {'causal bound':>13} {'reached':>8}")
    for visual in (576,) if options.quick else (576, 2304):
        found = measure(model, method, visual, 3 if options.quick else options.repeats)
        bounds = {k: allowed(schedule, shape, visual, share) for k, share in (("full", 1.0), ("causal", 0.5))}
        for name in ("prefill", "generate"):
            speedup = found[f"{name}_speedup"]
            pairs = f"{found[f'{name}_speedup_min']:.2f}-{found[f'{name}_speedup_max']:.2f}"
            row = f"{visual:>7} {name:<9} {found[f'{name}_plain_s']:>8.3f} {found[f'{name}_attached_s']:>9.3f} "
            row += f"{speedup:>8.2f}x {pairs:>13}"
            if name == "prefill":
                row += f" {bounds['full']:>10.2f}x {bounds['causal']:>12.2f}x {speedup / bounds['causal']:>8.2f}"
            print(row)
        results |= {f"{k}_{visual}": round(v, 4) for k, v in found.items()}
        results |= {
            f"flops_bound_full_{visual}": round(bounds["full"], 4),
            f"flops_bound_causal_{visual}": round(bounds["causal"], 4),
            f"reached_of_full_bound_{visual}": round(found["prefill_speedup"] / bounds["full"], 4),
            f"reached_of_causal_bound_{visual}": round(found["prefill_speedup"] / bounds["causal"], 4),
        }
    found = ranking(model, 1024, 5 if options.quick else 21)
    print(f"ranking 1,024 tokens: {found['rank_ms']:.1f} ms, {found['rank_share_of_layer']:.1%} of one layer on them")
    results |= {f"{k}_1024": round(v, 4) for k, v in found.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
