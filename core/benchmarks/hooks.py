"""What attached hooks cost: microseconds a layer for methods that do nothing, and their share of a decode step.

Plain and attached forwards alternate in one process; every figure is the median of pairwise differences of CPU time.
The layers are tiny, so that only the hook path counts; the decode step is SmolLM2-135M's (30 layers of width 576, with
its real weights where paperhooks-testbed finds them, else random ones of the same shape).

    python core/benchmarks/hooks.py [--quick]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from paperhooks import Traits, attach, hookimpl
from paperhooks.compat import cache_parameter
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

MODES = {"beams": True, "assisted": True, "static_cache": True, "chunked_prefill": True, "training": True}


@dataclass(eq=False)
class NoEntry:
    """An idle ``pre_attention``."""

    traits = Traits(**MODES)

    @hookimpl
    def pre_attention(self, site: Any, call: Any, inputs: Any) -> None:
        return None


@dataclass(eq=False)
class NoExit:
    """An idle ``post_layer``."""

    traits = Traits(**MODES)

    @hookimpl
    def post_layer(self, site: Any, call: Any, hidden_states: Any) -> None:
        return None


@dataclass(eq=False)
class NoBoth:
    """Both hooks idle."""

    traits = Traits(**MODES)

    @hookimpl
    def pre_attention(self, site: Any, call: Any, inputs: Any) -> None:
        return None

    @hookimpl
    def post_layer(self, site: Any, call: Any, hidden_states: Any) -> None:
        return None


@dataclass(eq=False)
class NoSelection:
    """An idle ``pre_attention`` that may drop tokens: the bookkeeping of token selection runs with it."""

    traits = Traits(writes=frozenset({"tokens"}), **MODES)

    @hookimpl
    def pre_attention(self, site: Any, call: Any, inputs: Any) -> None:
        return None


class Through(torch.nn.Module):
    """Stands in for a layer's inside and returns its input."""

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return x


def hollow(layers: int) -> LlamaForCausalLM:
    """A Llama whose layers do nothing but be called: only the hook path is left to measure."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=1
    )
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.forward = Through().forward
    return model


@contextmanager
def bare(model: Any) -> Iterator[None]:
    """Plain torch hooks that do nothing, of both kinds: what no library can undercut."""
    handles = []
    for layer in model.model.layers:
        handles.append(layer.register_forward_pre_hook(lambda *_: None, with_kwargs=True))
        handles.append(layer.register_forward_hook(lambda *_: None, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def per_layer(method: Any, layers: int, repeats: int) -> float:
    """Microseconds of CPU time a layer that ``method`` (None: bare torch hooks) adds."""
    model, ids = hollow(layers), torch.zeros(1, 1, dtype=torch.int64)

    def run() -> float:
        start = time.thread_time_ns()
        for _ in range(20):
            model(ids, use_cache=False)
        return (time.thread_time_ns() - start) / 20 / 1000

    run()
    differences = []
    for _ in range(repeats):
        plain = run()
        with attach(model, method) if method is not None else bare(model):
            run()
            differences.append((run() - plain) / layers)
    return statistics.median(differences)


def smollm2() -> tuple[Any, str]:
    try:
        from paperhooks_testbed import load_smollm2

        return load_smollm2()[0], "real weights"
    except Exception as error:  # neither installed nor reachable: the shape is what counts
        config = LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
        return LlamaForCausalLM(config).eval(), f"random weights ({type(error).__name__})"


@torch.no_grad()
def decode_share(method: Any, repeats: int) -> tuple[float, float, str]:
    """Milliseconds of a plain decode step over 64 cached tokens, and the share of it that ``method`` adds."""
    model, origin = smollm2()
    ids = torch.arange(100, 164)[None]

    def step(cache: DynamicCache) -> float:
        start = time.thread_time_ns()
        model(torch.tensor([[5]]), **{cache_parameter(model.forward): cache})
        return (time.thread_time_ns() - start) / 1e6

    plain_times, ratios = [], []
    for _ in range(repeats):
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for cache in caches:
            model(ids, **{cache_parameter(model.forward): cache})
            step(cache)
        plain = statistics.median(step(caches[0]) for _ in range(5))
        with attach(model, method):
            step(caches[1])
            attached = statistics.median(step(caches[1]) for _ in range(5))
        plain_times.append(plain)
        ratios.append(attached / plain - 1)
    return statistics.median(plain_times), statistics.median(ratios), origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 15 if options.quick else 61
    results: dict[str, Any] = {}
    for name, method in (
        ("pre_attention", NoEntry()),
        ("post_layer", NoExit()),
        ("both", NoBoth()),
        ("both_bare_torch_hooks", None),
        ("pre_attention_with_selection", NoSelection()),
    ):
        results[f"us_per_layer_{name}"] = round(per_layer(method, 32, repeats), 3)
        print(f"{name:<30} {results[f'us_per_layer_{name}']:>7.2f} us a layer")
    step, share, origin = decode_share(NoBoth(), 5 if options.quick else 21)
    computed = 30 * results["us_per_layer_both"] / 1000 / step
    print(
        f"SmolLM2-135M decode step ({origin}): {step:.1f} ms; both hooks idle add {share:+.2%} measured, "
        f"{computed:.2%} computed from the microseconds above"
    )
    results |= {
        "decode_step_ms": round(step, 3),
        "decode_share_measured": round(share, 5),
        "decode_share_computed": round(computed, 5),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
