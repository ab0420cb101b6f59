"""Accuracy of the test bed model against drop depth and keep schedule: ranked, random, and no dropping.

Two parts, both on held-out generated questions with Wilson 95 % intervals: one drop at every depth to several shares,
and pyramids. A finished setting is noted in the run folder; an interrupted run goes on with the next one.

    python packages/pyramiddrop/benchmarks/testbed_accuracy.py [--quick] [--questions N] [--out FOLDER]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from paperhooks import ModelView, attach
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table, line_figure, wilson_interval
from paperhooks_pyramiddrop import PaperPyramidDrop, PyramidDrop, RandomDrop
from paperhooks_testbed import load_vlm, prompt, question_set
from tqdm import tqdm

SHARES = (0.5, 0.25, 0.125, 0.0)
#: The even split of the paper on 8 layers, two later ones, and one that drops at once what the last stage keeps.
PYRAMIDS = {
    "even 2/4/6": {2: 0.5, 4: 0.25, 6: 0.125},
    "late 3/5/6": {3: 0.5, 5: 0.25, 6: 0.125},
    "later 4/5/6": {4: 0.5, 5: 0.25, 6: 0.125},
    "one early drop 1": {1: 0.125},
}


class Questions:
    """Held-out questions as left-padded batches with the image features computed once."""

    def __init__(self, model: Any, processor: Any, n: int, batch: int = 50) -> None:
        self.model = model
        questions = question_set("test", n)
        self.kinds = [q.kind for q in questions]
        words = [q.answer for q in questions]
        ids = processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        self.answers = torch.tensor([i[0] for i in ids])
        self.batches = []
        for start in tqdm(range(0, n, batch), desc="images"):
            part = questions[start : start + batch]
            inputs = processor(
                images=[q.image() for q in part],
                text=[prompt(q) for q in part],
                return_tensors="pt",
                padding=True,
                padding_side="left",
            )
            with torch.no_grad():
                features = model.get_image_features(pixel_values=inputs.pop("pixel_values"), return_dict=True)
            self.batches.append({**inputs, "mm_encoder_outputs": {"image": features}})

    @torch.no_grad()
    def right(self, method: Any | None) -> list[bool]:
        """For every question, whether the first generated word is the answer."""
        if method is None:
            return self._run()
        with attach(self.model, method):
            return self._run()

    def _run(self) -> list[bool]:
        tops = [self.model(**b, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1) for b in self.batches]
        hits: list[bool] = (torch.cat(tops) == self.answers).tolist()
        return hits


def settings(layers: int, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"no dropping": None}
    depths = (1, 4, 7) if quick else range(1, layers)
    for share in SHARES:
        for depth in depths:
            found[f"keep {share:g} at {depth}, ranked"] = PyramidDrop(stages={depth: share})
            if share:
                found[f"keep {share:g} at {depth}, random"] = RandomDrop(stages={depth: share})
    for name, stages in PYRAMIDS.items():
        found[f"{name}, ranked"] = PyramidDrop(stages=stages)
        found[f"{name}, ranked, renumbered"] = PaperPyramidDrop(stages=stages)
        found[f"{name}, random"] = RandomDrop(stages=stages)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 questions, three depths")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = 60 if options.quick else options.questions
    model, processor = load_vlm()
    layers = len(ModelView.from_model(model).layers)
    with tempfile.TemporaryDirectory() as temporary:
        run = RunFolder(options.out or temporary)
        run.start("pyramiddrop-testbed-accuracy", inputs={"questions": n, "quick": options.quick}, seed=0)
        questions = Questions(model, processor, n)
        for name, method in tqdm(settings(layers, options.quick).items(), desc="settings"):
            if name in run.result["results"]:
                continue
            hits = questions.right(method)
            kinds = sorted(set(questions.kinds))
            by_kind = {k: [h for h, q in zip(hits, questions.kinds, strict=True) if q == k] for k in kinds}
            figure = {"right": sum(hits), "n": n, **{k: round(sum(v) / len(v), 4) for k, v in by_kind.items()}}
            run.record(**{name: figure})
        results = run.result["results"]
        report(run, results, layers, n)
        run.finish()
    for name, figure in results.items():
        low, high = wilson_interval(figure["right"], figure["n"])
        print(f"{name:<36} {figure['right'] / figure['n']:>7.1%}  [{low:.1%}, {high:.1%}]")
    print(json.dumps({name: round(f["right"] / f["n"], 4) for name, f in results.items()}))


def report(run: RunFolder, results: dict[str, Any], layers: int, n: int) -> None:
    depths = [d for d in range(1, layers) if f"keep 0 at {d}, ranked" in results]
    blocks: list[Block] = [Paragraph(f"{n} held-out questions a setting, each about its own image.")]
    for share in SHARES:
        ways = ("ranked", "random") if share else ("ranked",)
        series = {
            way: (depths, [results[f"keep {share:g} at {d}, {way}"]["right"] / n for d in depths]) for way in ways
        }
        series["no dropping"] = (depths, [results["no dropping"]["right"] / n] * len(depths))
        name = f"one-drop-{share:g}".replace(".", "-")
        run.figure(name, line_figure(series, title=f"One drop to {share:.1%}", x="layer of the drop", y="accuracy"))
        blocks += [Heading(f"One drop to {share:.1%}"), Figure(name, alt=f"accuracy by layer of one drop to {share}")]
    kinds = [k for k in results["no dropping"] if k not in ("right", "n")]
    rows = []
    for name, figure in results.items():
        low, high = wilson_interval(figure["right"], n)
        interval = f"{low:.1%} to {high:.1%}"
        rows.append((name, f"{figure['right'] / n:.1%}", interval, *(f"{figure[k]:.1%}" for k in kinds)))
    blocks += [Heading("Every setting"), Table(("setting", "accuracy", "95 % interval", *kinds), rows)]
    run.report("PyramidDrop on the test bed: accuracy by depth and schedule", blocks)


if __name__ == "__main__":
    main()
