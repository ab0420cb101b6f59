"""The mechanism on a pretrained language model: where a question looks, by scheme.

SmolLM2-135M-Instruct (30 layers, trained with none of these) reads a chat prefix, 576 random tokens of its vocabulary
that stand for a 24 x 24 image without content, and a question. Any difference between places is then the doing of
positions and mask alone. Attention of the question's rows, the last left out, to the image: between the bottom and the
top quarter, the last and the first row, the centre and the border ring, and how much of it reaches the image at all.

    python packages/cca/benchmarks/smollm2_attention.py [--quick] [--images N] [--out FOLDER]

The last line is one JSON object with every figure. With ``--out`` a report with figures is written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from paperhooks import attach
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table, mean_interval
from paperhooks_cca import CCA, information_flow, ring_table
from paperhooks_cca.figures import decay_figure, distance_figure, flow_figure
from paperhooks_testbed import load_smollm2
from torch import Tensor
from tqdm import tqdm

SIDE = 24
PREFIX = "<|im_start|>user\n"
QUESTION = (
    "\nIs there a dog in the image? Answer the question using a single word or phrase.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
SETTINGS: dict[str, dict[str, Any] | None] = {
    "raster": None,
    "reverse": {"scheme": "reverse"},
    "concentric": {},
    "positions only": {"apply_mask": False},
    "mask only": {"apply_positions": False},
    "manhattan": {"scheme": "manhattan"},
}


def inputs_for(tokenizer: Any, seed: int) -> tuple[dict[str, Tensor], int]:
    """A prompt around 576 random tokens, and the column of the first of them."""
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (PREFIX, QUESTION))
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(1000, tokenizer.vocab_size, (SIDE**2,), generator=generator)
    ids = torch.cat([torch.tensor(before), image, torch.tensor(after)])[None]
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, len(before) : len(before) + SIDE**2] = True
    return {"input_ids": ids, "visual_mask": where, "attention_mask": torch.ones_like(ids)}, len(before)


@torch.no_grad()
def flows(model: Any, given: dict[str, Tensor], start: int, options: dict[str, Any] | None) -> list[Tensor]:
    """Attention [24, 24] from the question to the image in every layer."""
    method = CCA(grid=(SIDE, SIDE), **options) if options is not None else None
    if method is None:
        given = {name: value for name, value in given.items() if name != "visual_mask"}
    with attach(model, method) if method else nullcontext():
        attentions = model(**given, use_cache=False, output_attentions=True).attentions
    return [information_flow(layer, [(0, start, SIDE, SIDE)])[0] for layer in attentions]


def ratios(flow: Tensor) -> dict[str, float]:
    """The figures of one flow map."""
    quarter, rings = SIDE // 4, ring_table(SIDE, SIDE)
    parts = {
        "bottom/top quarter": (flow[-quarter:], flow[:quarter]),
        "last/first row": (flow[-1], flow[0]),
        "centre/border ring": (flow[rings == rings.max()], flow[rings == 0]),
    }
    return {name: float(one.mean() / two.mean()) for name, (one, two) in parts.items()} | {"mass": float(flow.sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one image")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "cca: this model was not trained with CCA")
    model, tokenizer = load_smollm2()
    model.set_attn_implementation("eager")  # the only kernel that returns its weights
    images = 1 if options.quick else options.images
    maps: dict[str, dict[str, Tensor]] = {"layer 0": {}, "all layers": {}}
    found: dict[str, dict[str, dict[str, list[float]]]] = {where: {name: {} for name in SETTINGS} for where in maps}
    for seed in tqdm(range(images), desc="images"):
        given, start = inputs_for(tokenizer, seed)
        for name, setting in SETTINGS.items():
            layers = flows(model, given, start, setting)
            for where, flow in (("layer 0", layers[0]), ("all layers", torch.stack(layers).mean(0))):
                maps[where][name] = maps[where].get(name, torch.zeros(SIDE, SIDE)) + flow / images
                for key, value in ratios(flow).items():
                    found[where][name].setdefault(key, []).append(value)
    with tempfile.TemporaryDirectory() as temporary:
        figures = report(Path(options.out or temporary), found, maps, images)
    print(json.dumps({"images": images, **figures}))


def report(
    out: Path, found: dict[str, dict[str, dict[str, list[float]]]], maps: dict[str, dict[str, Tensor]], images: int
) -> dict[str, Any]:
    run = RunFolder(out)
    run.start("cca-smollm2-attention", inputs={"images": images}, seed=0)
    figures: dict[str, Any] = {}
    blocks: list[Block] = [
        Paragraph(
            f"{images} random images; means over images with 95 % intervals. The model has learnt none of the schemes: "
            "this shows what positions and masks do to attention, not what a model makes of it."
        )
    ]
    for where, settings in found.items():
        keys = list(next(iter(settings.values())))
        rows = []
        for name, values in settings.items():
            cells = []
            for key in keys:
                low, high = mean_interval(values[key])
                mean = sum(values[key]) / len(values[key])
                figures[f"{where}, {name}, {key}"] = [round(v, 4) for v in (mean, low, high)]
                cells.append(f"{mean:.3g} [{low:.3g}, {high:.3g}]")
            rows.append((name, *cells))
        label = where.replace(" ", "-")
        run.figure(label, flow_figure(maps[where]))
        blocks += [Heading(where), Table(("scheme", *keys), rows), Figure(label, f"attention by place, {where}")]
        for name, values in settings.items():
            print(f"{where:<11} {name:<15}" + "".join(f" {sum(values[k]) / images:>8.3f}" for k in keys))
    run.figure("distance", distance_figure((SIDE, SIDE), 40))
    run.figure("decay", decay_figure((SIDE, SIDE), 40, width=64, theta=100_000.0))
    blocks += [
        Heading("Distances"),
        Figure("distance", "share of question-patch pairs within a distance"),
        Figure("decay", "attention score by distance, with where the patches lie", "Head width 64, base 100,000."),
    ]
    run.record(**figures)
    run.report("Attention by place under rings, on SmolLM2-135M-Instruct", blocks)
    run.finish()
    return figures


if __name__ == "__main__":
    main()
