"""Does training with Concentric Causal Attention help? Four arms, same budget, on the test bed's model.

Arms: raster (stock), concentric (positions and mask), positions alone, mask alone. Every seed starts all arms from the
same weights and shows them the same images and questions in the same order. Three starts, all from the test bed's
model, which learnt with raster positions:

- shipped: as it is, so that the other arms have to be learnt anew in a few steps;
- shaken: noise of the size of the weights' own spread is added to every matrix of the decoder, which answers at random
  then, so that all arms have to find their way back;
- battered: the same with 1.4 times the noise, from which the budget does not suffice to recover in full.

Then POPE-style questions (random, popular, adversarial), with the method attached as a user would, and single objects
put in each of the 49 cells of the image in turn. Interrupted runs go on where they were.

    python packages/cca/benchmarks/testbed_training.py --out FOLDER [--quick] [--start battered|shaken|shipped]
        [--seeds 0,1,2] [--arms raster,concentric,positions,mask] [--report]

Several processes may share a folder if their seeds or arms differ; --report puts together what is there. The last line
is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from paperhooks import attach
from paperhooks.io import write_json
from paperhooks_cca import CCA, allowed_mask, positions
from paperhooks_hallucination import pope_scores
from paperhooks_testbed import (
    COLOURS,
    FORMS,
    GRID,
    PATCHES,
    STRATEGIES,
    Question,
    Scene,
    Shape,
    generate_scene,
    load_vlm,
    pope_questions,
    prompt,
    questions_for,
)
from paperhooks_testbed.training import IGNORE, PREFIX, Batch, load_checkpoint, pack, save_checkpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from training_report import report

#: Arm to (positions, mask).
ARMS = {"raster": (False, False), "concentric": (True, True), "positions": (True, False), "mask": (False, True)}
IMAGES = 4
#: Start to noise, as a multiple of the standard deviation of each matrix.
NOISE = {"shipped": 0.0, "shaken": 1.0, "battered": 1.4}
TRAIN_SCENES = 20_000_000


@dataclass(frozen=True)
class Budget:
    """How long a run of one start is, and how fast it learns."""

    steps: int
    rate: float
    rise: int
    fall: int
    pope: int = 300
    probes: int = 12


BUDGETS = {
    "shaken": Budget(150, 1e-3, 10, 40),
    "shipped": Budget(40, 1e-3, 5, 15),
    "battered": Budget(200, 1e-3, 10, 50),
}
QUICK = {"shaken": Budget(6, 1e-3, 2, 2, 24, 1), "shipped": Budget(2, 1e-3, 1, 1, 24, 1)}


# -- one run -----------------------------------------------------------------------------------------------------------


def starting_model(start: str, seed: int) -> Any:
    """The model that all arms of a seed start from. Its vision tower is not trained."""
    model, _ = load_vlm(attn_implementation="eager")
    if NOISE[start]:
        generator = torch.Generator().manual_seed(1000 + seed)
        with torch.no_grad():
            for parameter in model.model.language_model.layers.parameters():
                if parameter.ndim == 2:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(NOISE[start] * parameter.std() * noise)
    for parameter in model.model.vision_tower.parameters():
        parameter.requires_grad_(False)
    return model.train()


def optimizers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for the rest."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inside = [p for n, p in named if p.ndim == 2 and (".layers." in n or "multi_modal_projector" in n)]
    known = {id(p) for p in inside}
    rest = [p for _, p in named if id(p) not in known]
    return [
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(inside, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]


def lesson(seed: int, step: int) -> Batch:
    """The images and questions of a step: existence (half of it about absent objects), colours, places."""
    rng = random.Random(f"cca study {seed} {step}")
    first = TRAIN_SCENES + seed * 1_000_000 + step * 100
    scenes = [generate_scene("train", first + i, rng.randint(4, 6)) for i in range(IMAGES)]
    kinds = ["existence"] * 14 + ["colour"] * 6 + ["place"] * 4
    return pack(scenes, [list(questions_for(scene, rng, kinds)) for scene in scenes])


def _existence(scene: Scene, colour: str, form: str) -> Question:
    answer = "yes" if scene.matching(form, colour) else "no"
    return Question("existence", f"is there a {colour} {form} ?", answer, scene)


@cache
def prefix() -> tuple[Tensor, Tensor]:
    """Positions [T] and mask [T, T] of a start token and an image, by rings."""
    ids = torch.tensor([[0] + [1] * (PATCHES * PATCHES)])
    placed = positions(ids, None, 1, (PATCHES, PATCHES))
    return placed[0], allowed_mask(placed)[0]


def arranged(batch: Batch, arm: str) -> tuple[Tensor, Tensor]:
    """Positions [B, T] and mask [B, 1, T, T] of packed rows under an arm.

    The same as attaching the method to each question alone, for all questions of an image at once.
    """
    placed, seen = prefix()
    use_positions, use_mask = ARMS[arm]
    where, mask = batch.position_ids.clone(), batch.attention_mask.clone()
    if use_positions:
        behind = where[:, PREFIX:]
        where[:, PREFIX:] = torch.where(behind > 0, behind - PREFIX + int(placed.max()) + 1, 0)
        where[:, :PREFIX] = placed
    if use_mask:
        mask[:, 0, :PREFIX, :PREFIX] = seen
    return where, mask


def train(start: str, arm: str, seed: int, budget: Budget, out: Path) -> Any:
    """Train one arm, going on from its checkpoint if there is one."""
    model = starting_model(start, seed)
    makers = optimizers(model, budget.rate)
    path = out / f"{start}-{arm}-{seed}.safetensors"
    step = load_checkpoint(path, {"model": model}, makers) if path.exists() else 0
    began, first = time.monotonic(), step
    for number in tqdm(range(step, budget.steps), initial=step, total=budget.steps, desc=f"{start} {arm} {seed}"):
        batch = lesson(seed, number)
        where, mask = arranged(batch, arm)
        added = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -1e4)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                input_ids=batch.input_ids, pixel_values=batch.pixel_values, attention_mask=added,
                position_ids=where, use_cache=False,
            ).logits.float()  # fmt: skip
        loss = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        for optimizer in makers:
            for group in optimizer.param_groups:
                group["lr"] = budget.rate * min(1.0, (number + 1) / budget.rise, (budget.steps - number) / budget.fall)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (number + 1) % 100 == 0 or number + 1 == budget.steps:
            save_checkpoint(path, number + 1, {"model": model}, makers)
    model.seconds = time.monotonic() - began if first < budget.steps else 0.0
    return model.eval()


# -- measuring ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(model: Any, processor: Any, questions: Sequence[Question], batch: int = 60) -> list[str]:
    """The more likely first word of every answer, the whole vocabulary allowed."""
    found: list[str] = []
    for at in range(0, len(questions), batch):
        part = questions[at : at + batch]
        inputs = processor(
            images=[q.image() for q in part], text=[prompt(q) for q in part], return_tensors="pt", padding=True,
            padding_side="left",
        )  # fmt: skip
        top = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1)
        found += processor.tokenizer.batch_decode(top[:, None])
    return [word.strip() for word in found]


@cache
def probes(each: int) -> list[Question]:
    """``each`` questions about a lone object in every cell, all answered by yes."""
    rng = random.Random("cca study places")
    asked = []
    for cell in range(GRID * GRID):
        for number in range(each):
            colour, form = rng.choice(COLOURS), rng.choice(FORMS)
            shape = Shape(form, colour, cell // GRID, cell % GRID)
            scene = Scene("test", 900_000_000 + cell * 1_000 + number, (shape,))
            asked.append(_existence(scene, colour, form))
    return asked


def measure(model: Any, processor: Any, arm: str, budget: Budget) -> dict[str, Any]:
    """Scores by split with the arm's method attached, and the share of yes for every cell."""
    use_positions, use_mask = ARMS[arm]
    method = CCA(apply_positions=use_positions, apply_mask=use_mask) if arm != "raster" else None
    found: dict[str, Any] = {"pope": {}}
    with attach(model, method) if method else nullcontext():
        for strategy in STRATEGIES:
            questions = pope_questions("test", strategy, budget.pope)
            said = answers(model, processor, questions)
            scores = pope_scores(said, [question.answer for question in questions])
            found["pope"][strategy] = {
                "accuracy": scores.accuracy, "f1": scores.f1, "recall": scores.recall, "yes_ratio": scores.yes_ratio,
            }  # fmt: skip
        said = answers(model, processor, probes(budget.probes))
    each = budget.probes
    found["places"] = [sum(word == "yes" for word in said[c * each : (c + 1) * each]) for c in range(GRID * GRID)]
    found |= {"questions": budget.pope, "probes": each}
    return found


def run(start: str, arm: str, seed: int, budget: Budget, out: Path) -> None:
    """One arm of one seed, unless its result is there."""
    path = out / f"{start}-{arm}-{seed}.json"
    if path.exists():
        return
    _, processor = load_vlm()
    untouched = start == "shipped" and seed == 0  # the same for every seed
    before = measure(starting_model(start, seed).eval(), processor, arm, budget) if untouched else None
    model = train(start, arm, seed, budget, out)
    model.set_attn_implementation("sdpa")
    result = {"start": start, "arm": arm, "seed": seed, "steps": budget.steps, "seconds": round(model.seconds)}
    write_json(path, {**result, "before": before, "after": measure(model, processor, arm, budget)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    parser.add_argument("--start", choices=sorted(BUDGETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--report", action="store_true", help="only put together what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    budgets = QUICK if options.quick else BUDGETS
    for start in [options.start] if options.start else list(budgets):
        for seed in map(int, options.seeds.split(",")):
            for arm in options.arms.split(","):
                if not options.report:
                    run(start, arm, seed, budgets[start], options.out)
    found = report(options.out, list(ARMS))
    print(
        json.dumps(
            {s: {a: {k: v for k, v in f.items() if k != "places"} for a, f in p.items()} for s, p in found.items()}
        )
    )


if __name__ == "__main__":
    main()
