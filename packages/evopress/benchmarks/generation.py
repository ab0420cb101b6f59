"""One generation of a depth search: shared prefixes, one-pass divergences and early stop against full passes.

24 offspring of one parent with a quarter of its attentions and a quarter of its MLPs left out, and the parent in the
last of three stages. The other side is an evaluator in the official style: a full pass a candidate and sequence, whole
logits, two log-softmaxes; both have made what the teacher says beforehand. Nothing is remembered of earlier
generations. Seconds are of the processor; both sides in one process, a stage in turn. Both have to choose the same
survivors.

A random model of SmolLM2's size (540 MB), whose layers weigh differently, as a trained one's do; ``--smollm2`` for
the trained one (of the test bed), which reads this repository's pages.

    python packages/evopress/benchmarks/generation.py [--quick] [--smollm2]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from paperhooks import Level, ModelView
from paperhooks.hooks import Levels
from paperhooks_evopress.evaluator import Evaluator, minibatch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS: Final = 128  # of a sequence
SEQUENCES: Final = 24
OFFSPRING: Final = 24
#: Survivors and tokens of each stage.
STAGES: Final = ((4, 512), (2, 1024), (1, 2048))
SHARE: Final = 0.25
#: Deviation of the logarithm of the size of layers' outputs, so that some offspring are better than others.
SPREAD: Final = 0.35

#: Which attentions and which MLPs are left out.
State: TypeAlias = tuple[frozenset[int], frozenset[int]]
Choice: TypeAlias = Mapping[str, str]


def random_model(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight.mul_(float((SPREAD * torch.randn(())).exp()))
        return model


def material(options: argparse.Namespace) -> tuple[LlamaForCausalLM, list[Tensor]]:
    """A model and its calibration text."""
    if options.smollm2:
        from paperhooks_testbed import load_smollm2

        model, tokenizer = load_smollm2()
        root = Path(__file__).parents[3]
        text = "\n".join(file.read_text(encoding="utf-8") for file in sorted((root / "docs").glob("*.md")))
        ids = torch.tensor(tokenizer(text[:40_000])["input_ids"])
    else:
        model = random_model(6 if options.quick else 30)
        ids = torch.randint(49_152, (TOKENS * SEQUENCES,), generator=torch.Generator().manual_seed(0))
    return model, [ids[n * TOKENS : (n + 1) * TOKENS] for n in range(SEQUENCES)]


def levels_of(view: ModelView) -> Levels:
    return Levels(
        view,
        {
            name: [Level("drop", "kept", {"layers": 1}), Level("drop", "out", {"layers": 0}, skip=True)]
            for name, each in view.sublayers.items()
            if each.kind in ("attention", "mlp")
        },
    )


def choice_of(state: State) -> Choice:
    return {
        f"model.layers.{layer}.{name}": "out"
        for name, gone in zip(("self_attn", "mlp"), state, strict=True)
        for layer in gone
    }


def first_parent(layers: int, draw: random.Random) -> State:
    few = int(SHARE * layers)
    return frozenset(draw.sample(range(layers), few)), frozenset(draw.sample(range(layers), few))


def child_of(parent: State, layers: int, draw: random.Random) -> State:
    """One to three times a sublayer comes back and another of its kind goes."""
    gone = [set(parent[0]), set(parent[1])]
    for _ in range(min(draw.randint(1, 3), draw.randint(1, 3))):
        kind = draw.choice(gone)
        back, out = draw.choice(sorted(kind)), draw.choice(sorted(set(range(layers)) - kind))
        kind.symmetric_difference_update((back, out))
    return frozenset(gone[0]), frozenset(gone[1])


def offspring_of(parent: State, layers: int, draw: random.Random) -> list[State]:
    found: dict[State, None] = {}
    while len(found) < OFFSPRING:
        if (child := child_of(parent, layers, draw)) != parent:
            found[child] = None
    return list(found)


class FullPasses:
    """The official way: a full pass a candidate and sequence."""

    def __init__(self, model: nn.Module, levels: Levels, sequences: Sequence[Tensor]) -> None:
        self.model, self.levels, self.sequences = model, levels, sequences
        self.taught = [self._logits(ids) for ids in sequences]

    @torch.no_grad()
    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids[None], use_cache=False).logits[0, :-1].float()
        return logits

    @torch.no_grad()
    def score(self, choices: Sequence[Choice], tokens: int, seed: int, survivors: int) -> list[float]:
        drawn, found = minibatch([len(ids) for ids in self.sequences], tokens, seed), []
        for choice in choices:
            self.levels.switch(choice)
            total = 0.0
            for number, read in drawn:
                student = self._logits(self.sequences[number][:read]).log_softmax(-1)
                teacher = self.taught[number][: read - 1].log_softmax(-1)
                total += float(nn.functional.kl_div(student, teacher, reduction="sum", log_target=True))
            found.append(total / sum(read - 1 for _, read in drawn))
        return found


def best(fitness: Sequence[float], survivors: int) -> list[int]:
    return sorted(range(len(fitness)), key=lambda n: fitness[n])[:survivors]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    return work(), time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six layers")
    parser.add_argument("--smollm2", action="store_true", help="the trained model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, sequences = material(options)
    view, draw, layers = ModelView.from_model(model), random.Random(0), len(model.model.layers)
    figures: dict[str, Any] = {"quick": options.quick, "smollm2": options.smollm2, "layers": layers}
    with levels_of(view) as levels:
        plain, figures["teacher_plain_s"] = timed(lambda: FullPasses(model, levels, sequences))
        most = None if options.smollm2 else math.inf
        fast, seconds = timed(lambda: Evaluator(view, levels, sequences, most_perplexity=most))
        figures["teacher_s"] = seconds + timed(lambda: fast.score([{}], SEQUENCES * TOKENS, 0))[1]
        before = fast.counters.layers
        parent = first_parent(layers, draw)
        if options.smollm2:  # a random parent is broken; the search soon has one that is not
            for seed in range(4):
                children = offspring_of(parent, layers, draw)[:8]
                parent = children[best(fast.score([choice_of(c) for c in children], TOKENS, seed), 1)[0]]
            before = fast.counters.layers
        left, same, worst = offspring_of(parent, layers, draw), True, 0.0
        figures |= {"plain_s": 0.0, "fast_s": 0.0}
        for stage, (survivors, tokens) in enumerate(STAGES):
            last = stage == len(STAGES) - 1
            choices = [choice_of(state) for state in [*left, *([parent] if last else [])]]
            seed = 100 + stage
            wanted, plain_s = timed(lambda: plain.score(choices, tokens, seed, survivors))  # noqa: B023
            found, fast_s = timed(lambda: fast.score(choices, tokens, seed, survivors))  # noqa: B023
            chosen = best(wanted, survivors)
            same = same and best(found, survivors) == chosen
            worst = max(worst, *(abs(f / w - 1) for f, w in zip(found, wanted, strict=True) if math.isfinite(f)))
            figures["plain_s"] += plain_s
            figures["fast_s"] += fast_s
            figures[f"stage{stage + 1}_ratio"] = fast_s / plain_s
            figures[f"stage{stage + 1}_spread"] = sorted(wanted)[len(wanted) // 2] / min(wanted)
            left = [[*left, parent][place] for place in chosen]
    scored = (OFFSPRING, STAGES[0][0], STAGES[1][0] + 1)
    full = layers * sum(n * t // TOKENS for n, (_, t) in zip(scored, STAGES, strict=True))
    figures |= {
        "layers_run_share": (fast.counters.layers - before) / full,
        "dropped": fast.counters.dropped,
        "same_survivors": same,
        "largest_difference": worst,
        "ratio": figures["fast_s"] / figures["plain_s"],
    }
    print(json.dumps({name: round(v, 7) if isinstance(v, float) else v for name, v in figures.items()}))


if __name__ == "__main__":
    main()
