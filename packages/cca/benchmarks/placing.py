"""What the method costs: positions and mask of a batch, a whole prefill, a decode step.

Building positions and mask is compared with the way of the paper's code, written out here: ring by ring, index pairs
of every patch and what it sees, scattered into a float matrix. That code treats the first sample of a batch only; the
loop here is timed both so and for every sample. Prefill: attached against plain on one random LLaVA, in turn.

    python packages/cca/benchmarks/placing.py [--quick] [--batch 4] [--length 671]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from paperhooks import active_session, attach
from paperhooks.compat import cache_parameter, returned_cache
from paperhooks.models import image_runs
from paperhooks.testing import image_outputs
from paperhooks_cca import CCA, allowed_mask, positions, ring_table
from paperhooks_cca.algorithm import token_order
from paperhooks_cca.images import grouped, split_runs
from paperhooks_cca.masks import attention_mask, key_order
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

SIDE, BEFORE, IMAGE = 24, 35, 31_999


def by_scatter(length: int, start: int, samples: int, dtype: torch.dtype) -> Tensor:
    """Mask [samples, 1, T, T] built pair by pair, as the paper's code does."""
    masks = []
    for _ in range(samples):
        mask = torch.full((length, length), float("-inf")).triu(1)
        table = ring_table(SIDE, SIDE).flatten()
        for ring in range(SIDE // 2):
            queries = (table == ring).nonzero().flatten() + start
            seen = (table <= ring).nonzero().flatten() + start
            hidden = (table > ring).nonzero().flatten() + start
            pairs = torch.cartesian_prod(queries, seen)
            mask[pairs[:, 0], pairs[:, 1]] = 0
            if len(hidden):
                pairs = torch.cartesian_prod(queries, hidden)
                mask[pairs[:, 0], pairs[:, 1]] = float("-inf")
        masks.append(mask)
    return torch.stack(masks)[:, None].to(dtype)


def by_rule(ids: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """Positions [B, T] and mask [B, 1, T, T] of the whole batch, with finding the images: what a forward does."""
    found = split_runs(image_runs(ids == IMAGE), (SIDE, SIDE))
    real = torch.ones_like(ids, dtype=torch.bool)
    order, _ = token_order(grouped(found, "concentric", ids.device), real)
    keys = key_order(order, 0, ids.shape[1])
    return order, attention_mask(order, keys, real=None, kernel=kernel, dtype=torch.float32)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median of ``repeats`` runs after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return median(taken)


def in_turn(model: Any, work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Medians of a work on the plain and on the attached model, in turn, so that a busy machine slows both."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for into, session in zip(taken, (nullcontext, lambda: attach(model, CCA())), strict=True):
            with session():
                begin = time.perf_counter()
                work()
                into.append(time.perf_counter() - begin)
    return median(taken[0][1:]), median(taken[1][1:])


def llava(layers: int, width: int) -> LlavaForConditionalGeneration:
    """A random LLaVA of 24 x 24 patches with a decoder of the given size."""
    text = LlamaConfig(
        vocab_size=32_000, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=336, patch_size=14
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config).eval()


def whole_forward(batch: int, length: int, repeats: int, layers: int, width: int) -> dict[str, float]:
    """Prefill and decode steps, attached against plain."""
    model = llava(layers, width)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 30_000, (batch, length), generator=generator)
    ids[:, BEFORE : BEFORE + SIDE**2] = IMAGE
    features = [torch.randn(SIDE**2, width, generator=generator) for _ in range(batch)]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["mm_encoder_outputs"] = {"image": image_outputs(model, features)}
    token = torch.full((batch, 1), 5)

    def prefill() -> Any:
        return model(**given, use_cache=True, logits_to_keep=1)

    with torch.no_grad():
        plain, ringed = in_turn(model, prefill, repeats)
        caches = {False: returned_cache(prefill())}
        with attach(model, CCA()):
            caches[True] = returned_cache(prefill())

        def steps() -> Any:
            cache = caches[active_session(model) is not None]
            for _ in range(8):
                model(input_ids=token, **{cache_parameter(model.forward): cache})
            cache.crop(-8)

        step_plain, step_cca = in_turn(model, steps, repeats)
    return {
        "prefill_plain_ms": 1e3 * plain, "prefill_cca_ms": 1e3 * ringed, "prefill_ratio": ringed / plain,
        "decode_plain_ms": 1e3 * step_plain / 8, "decode_cca_ms": 1e3 * step_cca / 8,
        "decode_ratio": step_cca / step_plain,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, a smaller model")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=671)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "cca: this model was not trained with CCA")
    repeats = 5 if options.quick else 15
    ids = torch.full((options.batch, options.length), 5)
    ids[:, BEFORE : BEFORE + SIDE**2] = IMAGE
    slow = by_scatter(options.length, BEFORE, options.batch, torch.float32)
    order, mask = by_rule(ids, "eager")
    if not torch.equal(slow == 0, mask == 0) or not torch.equal(mask[:, 0] == 0, allowed_mask(order)):
        raise SystemExit("the two ways give different masks")
    if not torch.equal(order, positions(ids, None, IMAGE, (SIDE, SIDE))):
        raise SystemExit("the two ways give different positions")
    figures: dict[str, float] = {}
    for kernel in ("sdpa", "eager"):
        fast = seconds(lambda kernel=kernel: by_rule(ids, kernel), 4 * repeats)
        every = seconds(lambda: by_scatter(options.length, BEFORE, options.batch, torch.float32), repeats)
        first = seconds(lambda: by_scatter(options.length, BEFORE, 1, torch.float32), repeats)
        figures |= {
            f"{kernel}_rule_ms": 1e3 * fast, f"{kernel}_scatter_ms": 1e3 * every, f"{kernel}_speedup": every / fast,
            f"{kernel}_speedup_over_first_sample_only": first / fast,
        }  # fmt: skip
    layers, width = (2, 128) if options.quick else (8, 512)
    figures |= whole_forward(options.batch, options.length, 3 if options.quick else 7, layers, width)
    figures = {name: round(value, 4) for name, value in figures.items()}
    for name, value in figures.items():
        print(f"{name:<42} {value:>10.3f}")
    print(json.dumps({"batch": options.batch, "length": options.length, **figures}))


if __name__ == "__main__":
    main()
