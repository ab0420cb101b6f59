"""The depth claim on a real language model, with text in place of an image. Text is not an image: read it as a hint.

SmolLM2-135M-Instruct (30 layers) reads short generated contexts and looks up one fact. The context's tokens count as
visual. They are dropped once, at one layer, to one share; the divergence (KL, nats) from the undropped next-token
distribution says how much the deeper layers still needed them. Ranked by the last token, and at random.

    python packages/pyramiddrop/benchmarks/smollm2_depth.py [--quick] [--prompts N] [--out FOLDER]

The last line is one JSON object with every figure. With ``--out`` a report with the figure is written.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from typing import Any

import torch
from paperhooks import attach
from paperhooks.reports import mean_interval
from paperhooks_pyramiddrop import PaperPyramidDrop, PyramidDrop, RandomDrop
from paperhooks_testbed import load_smollm2
from torch import Tensor
from tqdm import tqdm

NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Frank", "Greta", "Hugo", "Irene", "Jonas")
THINGS = ("bicycle", "hat", "lamp", "guitar", "sofa", "kite", "boat", "scarf", "clock", "vase")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "grey")
PLACES = ("the kitchen", "the garden", "the attic", "the garage", "the cellar", "the hall", "the office", "the shed")


def prompts(n: int, seed: int = 0) -> Iterator[tuple[str, str, str, str]]:
    """(before, context, question, answer) with four facts in the context and a question about one of them."""
    rng = random.Random(seed)
    for _ in range(n):
        names, things = rng.sample(NAMES, 4), rng.sample(THINGS, 4)
        colours, places = rng.sample(COLOURS, 4), rng.sample(PLACES, 4)
        facts = [f"{a} keeps a {c} {t} in {p}." for a, t, c, p in zip(names, things, colours, places, strict=True)]
        which = rng.randrange(4)
        question = f" Question: What colour is the {things[which]}? Answer: The colour of the {things[which]} is"
        yield "Read this:", " " + " ".join(facts), question, " " + colours[which]


def encode(tokenizer: Any, parts: list[tuple[str, str, str, str]]) -> dict[str, Tensor]:
    """A left-padded batch: ``input_ids``, ``attention_mask`` and ``visual_mask`` (the context), each [B, T]."""
    pieces = [[tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompt[:3]] for prompt in parts]
    width = max(sum(map(len, piece)) for piece in pieces)
    batch = {name: torch.zeros(len(parts), width, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    visual = torch.zeros(len(parts), width, dtype=torch.bool)
    for row, (before, context, question) in enumerate(pieces):
        start = width - len(before) - len(context) - len(question)
        batch["input_ids"][row, start:] = torch.tensor([*before, *context, *question])
        batch["attention_mask"][row, start:] = 1
        visual[row, start + len(before) : width - len(question)] = True
    return {**batch, "visual_mask": visual}


@torch.no_grad()
def distribution(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the next token, float32 [B, V]."""
    logits: Tensor = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.float().log_softmax(-1)


def divergences(model: Any, batches: list[dict[str, Tensor]], plain: list[Tensor], method: Any) -> list[float]:
    """KL(plain || dropped) of every prompt, in nats."""
    found = []
    with attach(model, method):
        for batch, expected in zip(batches, plain, strict=True):
            got = distribution(model, batch)
            found += torch.nn.functional.kl_div(got, expected, log_target=True, reduction="none").sum(1).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="6 prompts, three depths")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--out", help="folder for report.html")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    n = 6 if options.quick else options.prompts
    depths = (10, 20, 25) if options.quick else (2, 5, 10, 15, 18, 20, 22, 25, 28)
    parts = list(prompts(n))
    batches = [encode(tokenizer, parts[i : i + 10]) for i in range(0, n, 10)]
    plain = [distribution(model, {k: v for k, v in b.items() if k != "visual_mask"}) for b in batches]
    right = [tokenizer(p[3], add_special_tokens=False)["input_ids"][0] for p in parts]
    correct = sum(int(top) == want for top, want in zip(torch.cat(plain).argmax(-1), right, strict=True))
    settings: dict[str, Any] = {}
    for ratio in (0.5, 0.2):
        for depth in depths:
            settings[f"keep {ratio:.0%} at {depth}, ranked"] = PyramidDrop(stages={depth: ratio})
            settings[f"keep {ratio:.0%} at {depth}, random"] = RandomDrop(stages={depth: ratio})
    for early in ({8: 0.5, 15: 0.25, 22: 0.125}, {20: 0.5, 24: 0.25, 27: 0.125}):
        label = "pyramid " + "/".join(map(str, early))
        settings[f"{label}, ranked"] = PyramidDrop(stages=early)
        settings[f"{label}, ranked, renumbered"] = PaperPyramidDrop(stages=early)
        settings[f"{label}, random"] = RandomDrop(stages=early)
    found = {name: divergences(model, batches, plain, method) for name, method in tqdm(settings.items())}
    figures = {name: (sum(kl) / n, *mean_interval(kl)) for name, kl in found.items()}
    context = sum(int(b["visual_mask"].sum()) for b in batches) / n
    print(f"{n} prompts, {context:.0f} context tokens on average; the undropped model answers {correct} of {n} right")
    print("KL in nats, 95 % interval of the mean")
    for name, (mean, low, high) in figures.items():
        print(f"{name:<42} {mean:>7.3f}  [{low:.3f}, {high:.3f}]")
    if options.out:
        report(options.out, figures, depths, n)
    print(json.dumps({name: [round(v, 4) for v in values] for name, values in figures.items()}))


def report(out: str, figures: dict[str, tuple[float, float, float]], depths: tuple[int, ...], n: int) -> None:
    from paperhooks.reports import Figure, Paragraph, RunFolder, Table, line_figure

    run = RunFolder(out)
    run.start("pyramiddrop-smollm2-depth", inputs={"prompts": n, "depths": list(depths)}, seed=0)
    series = {
        f"keep {ratio}, {how}": (list(depths), [figures[f"keep {ratio} at {d}, {how}"][0] for d in depths])
        for ratio in ("50%", "20%")
        for how in ("ranked", "random")
    }
    title = "Divergence after one drop, by the layer of the drop"
    run.figure("depth", line_figure(series, title=title, x="layer", y="KL, nats"))
    rows = [(name, *(round(v, 3) for v in values)) for name, values in figures.items()]
    run.record(figures=figures)
    run.report(
        "Dropping context at one depth of SmolLM2-135M",
        [
            Paragraph(f"{n} fact look-ups; the context's text stands in for an image.", kind="note"),
            Figure("depth", alt="KL by layer, ranked and random"),
            Table(("setting", "KL", "low", "high"), rows),
        ],
    )
    run.finish()


if __name__ == "__main__":
    main()
