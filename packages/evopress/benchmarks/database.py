"""All levels of matrices at once, against one level at a time: five sparsities, and five widths of codes.

The matrices of one layer of SmolLM2's size (width 576, inner width 1536), random, with Hessians of random inputs. In
``sparsity`` and ``bits`` both sides have the factors of the Hessians already: they differ in the sweeps over columns
alone. In ``sparsity_build`` and ``bits_build`` a model of two such layers reads calibration data too, and the levels of
its modules are prepared as a search does: by one method with five levels, against five methods with one. Seconds are of
the processor, in one process, in turn. Levels of both sides have the same bits, or the run fails.

    python packages/evopress/benchmarks/database.py [--quick] [--rounds N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Final

import torch
from paperhooks import CompressionRequest, ModelView
from paperhooks.hooks import Levels
from paperhooks_evopress.levels import GPTQ, SparseGPT
from paperhooks_evopress.levels.feedback import Feedback
from paperhooks_evopress.levels.gptq import quantise
from paperhooks_evopress.levels.grids import Grid
from paperhooks_evopress.levels.sparsegpt import prune
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

SPARSITIES: Final = (0.4, 0.5, 0.6, 0.7, 0.8)
WIDTHS: Final = (2, 3, 4, 5, 6)
GROUP: Final = 64
#: Inputs and outputs of q, o, k, v, gate, up and down.
MATRICES: Final = ((576, 576), (576, 576), (576, 192), (576, 192), (576, 1536), (576, 1536), (1536, 576))
TOKENS: Final = 512


def known_inputs() -> dict[int, Feedback]:
    """Number of inputs to the factor of a Hessian."""
    generator = torch.Generator().manual_seed(0)
    rows = {inputs: torch.randn(2 * inputs, inputs, generator=generator) for inputs in (576, 1536)}
    return {inputs: Feedback.of(each.T @ each) for inputs, each in rows.items()}


def pruned(weight: Tensor, feedback: Feedback, shares: Sequence[float]) -> list[Tensor]:
    return [values for values, _ in prune(weight, feedback, [round(share * weight.numel()) for share in shares])]


def quantised(weight: Tensor, feedback: Feedback, widths: Sequence[int]) -> list[Tensor]:
    found = quantise(weight, feedback, widths, Grid(), group=GROUP)
    return [torch.cat([each.codes.float(), each.scales, each.zeros]) for each in found]


def sweeps(work: Callable[..., list[Tensor]], levels: Sequence[float], rounds: int) -> dict[str, float]:
    """Median seconds of both sides for the matrices of a layer."""
    generator, known = torch.Generator().manual_seed(1), known_inputs()
    weights = [torch.randn(*shape, generator=generator) for shape in MATRICES]

    def together() -> list[Tensor]:
        return [one for weight in weights for one in work(weight, known[len(weight)], levels)]

    def alone() -> list[Tensor]:
        return [one for weight in weights for level in levels for one in work(weight, known[len(weight)], [level])]

    return sides(together, alone, rounds)


def builds(make: Callable[[Sequence[Any]], Any], levels: Sequence[float], layers: int, rounds: int) -> dict[str, float]:
    """Median seconds of both sides with calibration and packing."""
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=1024, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        view = ModelView.from_model(LlamaForCausalLM(config).eval())
    generator = torch.Generator().manual_seed(0)
    data = [torch.randint(0, 1024, (TOKENS,), generator=generator) for _ in range(4)]
    names = [name for name, _ in view.modules(r".*layers\.\d+\.(self_attn|mlp)\.\w+_proj")]

    def prepared(own: Sequence[float]) -> dict[tuple[str, str], Tensor]:
        request = CompressionRequest("database", data=data, offers=[make(own).compression_levels], progress=False)
        found: Levels = request.levels(view, names)
        found.prepare(progress=False)
        values = {(n, each.label): found.packed(n, each.label) for n in names for each in found[n]}
        return {
            key: torch.cat([t.flatten().float() for t in p["weight"].tensors().values()]) for key, p in values.items()
        }

    def together() -> list[Tensor]:
        return listed(prepared(levels))

    def alone() -> list[Tensor]:
        parts: dict[tuple[str, str], Tensor] = {}
        for level in levels:
            parts |= prepared([level])
        return listed(parts)

    return sides(together, alone, rounds)


def listed(values: Mapping[tuple[str, str], Tensor]) -> list[Tensor]:
    return [values[key] for key in sorted(values)]


def sides(together: Callable[[], list[Tensor]], alone: Callable[[], list[Tensor]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {"together": [], "alone": []}
    for _ in range(rounds):
        results = []
        for name, work in (("together", together), ("alone", alone)):
            begin = time.process_time()
            results.append(work())
            seconds[name].append(time.process_time() - begin)
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True)), "other levels side by side"
    figures = {f"{name}_s": median(each) for name, each in seconds.items()}
    pairs = zip(seconds["together"], seconds["alone"], strict=True)
    return {**figures, "ratio": median(one / other for one, other in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one layer, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default: 5, quick: 1)")
    options = parser.parse_args()
    rounds, layers = options.rounds or (1 if options.quick else 5), 1 if options.quick else 2
    torch.set_num_threads(1)
    parts = {
        "sparsity": lambda: sweeps(pruned, SPARSITIES, rounds),
        "bits": lambda: sweeps(quantised, WIDTHS, rounds),
        "sparsity_build": lambda: builds(
            lambda own: SparseGPT(sparsities=tuple(own)), SPARSITIES, layers, max(1, rounds // 2)
        ),
        "bits_build": lambda: builds(
            lambda own: GPTQ(widths=tuple(own), group=GROUP), WIDTHS, layers, max(1, rounds // 2)
        ),
    }
    figures: dict[str, Any] = {"quick": options.quick, "rounds": rounds, "layers": layers}
    with torch.no_grad():
        for part, work in parts.items():
            figures |= {f"{part}_{name}": value for name, value in work().items()}
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in figures.items()}))


if __name__ == "__main__":
    main()
