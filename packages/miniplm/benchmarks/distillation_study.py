"""The whole method in small: does a student learn more from the half of a corpus that difference sampling keeps?

A corpus of Python's own source, prose and licences, with a third of random noise and a licence repeated hundreds of
times, is packed and scored by a teacher and a smaller reference, both trained on other text of the same kinds without
noise. Students start alike and read as many rows each: a random half, the half with the largest difference, the same
without duplicates, the half that the teacher finds likeliest (perplexity filtering), and a random half with the teacher
in the loop (Vanilla KD), for as many steps and for as many operations. On the clean part alone: random, difference, and
difference with a quota for each domain, since a selection also shifts the mix. The loss is that of held-out clean text.

    python packages/miniplm/benchmarks/distillation_study.py [--quick] [--seeds 3] [--out FOLDER]

The last line is one JSON object with every figure. Models of a fifth to one million parameters show that the machinery
does what it says and that noise is removed; they say nothing on the paper's scores.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from paperhooks.data import Selection
from paperhooks.reports import PALETTE, Block, Figure, Heading, Paragraph, RunFolder, Table, new_figure, style_axes
from paperhooks_miniplm import (
    Difference,
    Distil,
    Shards,
    TextRecord,
    byte_tokenizer,
    diff,
    duplicates_of,
    pack,
    score,
    select,
    small_llama,
)
from paperhooks_miniplm.algorithm import flops_matched_steps
from paperhooks_miniplm.demo_models import train as run_training
from paperhooks_miniplm.demo_models import training_batch
from paperhooks_miniplm.figures import kept_figure, scatter_figure, score_figure
from paperhooks_miniplm.reports import kept_by_domain
from paperhooks_testbed import documents
from tqdm import tqdm
from transformers import LlamaForCausalLM

LENGTH = 128
BATCH = 16
WIDTHS = {"teacher": (128, 5), "reference": (32, 1), "student": (64, 4)}
RATES = {"teacher": 3e-3, "reference": 6e-3, "student": 4e-3}
DOMAINS = ("code", "prose", "licences", "noise", "copies")


@dataclass(frozen=True)
class Scale:
    """Characters of clean text to score, and training steps of teacher, reference and students."""

    characters: int
    teacher_steps: int
    reference_steps: int
    student_steps: int


def clean_texts() -> dict[str, list[str]]:
    """Pieces of about two thousand characters by domain, the same on one installation of Python."""
    root = Path(sysconfig.get_path("stdlib"))
    code = [file.read_text(encoding="utf-8", errors="ignore") for file in sorted(root.glob("*.py"))]
    found = {"code": code, "prose": [d.text for d in documents(domain="topics")]}
    found["prose"] += [d.text for d in documents(domain="docstrings")]
    found["licences"] = [d.text for d in documents(domain="licences")]
    return {name: [piece for text in texts for piece in _pieces(text)] for name, texts in found.items()}


def _pieces(text: str, size: int = 2000) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, max(1, len(text) - size // 2), size))


def split_corpora(texts: dict[str, list[str]], scale: Scale, seed: int) -> dict[str, list[TextRecord]]:
    """Documents to train teacher and reference on, to hold out, and to score (with noise and copies), all disjoint."""
    chance = random.Random(seed)
    parts: dict[str, list[TextRecord]] = {"train": [], "held out": [], "clean": []}
    mix = {"code": 0.5, "prose": 0.45, "licences": 0.05}
    for domain, share in mix.items():
        pieces = texts[domain][1:] if domain == "licences" else list(texts[domain])
        chance.shuffle(pieces)
        left = iter(pieces)
        for part, wanted in (("held out", 0.08), ("clean", 1.0), ("train", 0.7)):
            budget = share * wanted * scale.characters
            while budget > 0 and (piece := next(left, None)) is not None:
                parts[part].append(TextRecord(piece, domain))
                budget -= len(piece)
    size = sum(len(d.text) for d in parts["clean"])
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:()[]{}<>=+-*/_\n"
    # Characters at random make many more tokens a character than text does.
    noise = ["".join(chance.choices(letters, k=700)) for _ in range(int(0.28 * size / 700))]
    copy = texts["licences"][0]
    parts["scored"] = [*parts["clean"], *(TextRecord(each, "noise") for each in noise)]
    parts["scored"] += [TextRecord(copy, "copies") for _ in range(int(0.05 * size / len(copy)))]
    chance.shuffle(parts["scored"])
    return parts


def model_of(role: str, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama of the role's size with random weights."""
    width, layers = WIDTHS[role]
    return small_llama(vocabulary, width, layers, inner=(11 * width) // 4, positions=LENGTH, seed=seed)


def train(
    model: LlamaForCausalLM, source: Shards, rows: np.ndarray, steps: int, rate: float, seed: int,
    teacher: LlamaForCausalLM | None = None, probe: Sequence[Any] = (), label: str = "",
) -> list[tuple[int, float]]:  # fmt: skip
    """The official recipe (section 2.7): mean of row means, warm-up and cosine; held-out losses on the way."""
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(rows) for _ in range(1 + steps * BATCH // max(1, len(rows)))])
    batches = (batch_of(source, order[step * BATCH : (step + 1) * BATCH]) for step in range(steps))
    method, curve = Distil(teacher, weight=0.5 if teacher is not None else 0.0), []
    trained = run_training(
        model, batches, steps=steps, rate=rate, warmup=max(1, steps // 25), method=method, eps=1e-6, clip=1.0
    )
    for step, _ in tqdm(trained, desc=label, total=steps, leave=False):
        if probe and step % max(1, steps // 5) == 0:
            curve.append((step, held_out(model, probe)))
    return curve


def batch_of(source: Shards, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Inputs with labels that are not moved any more."""
    return training_batch(source, rows, LENGTH)


@torch.no_grad()
def held_out(model: LlamaForCausalLM, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    """Mean loss of row means."""
    model.eval()
    losses = []
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits, labels = model(**inputs).logits, batch["shift_labels"]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        losses += (each.sum(1) / (labels != -100).sum(1).clamp(min=1)).tolist()
    return fmean(losses)


def arms_of(
    source: Shards, difference: Difference, domains: np.ndarray, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Selection]]:
    """Rows that each student reads; half of the corpus, or of its clean part."""
    n = len(source)
    clean = ~np.isin(domains, ["noise", "copies"])
    repeated = duplicates_of(source)
    chance = np.random.default_rng(seed)
    likely = -difference.teacher.astype(np.float32)
    selections = {
        "difference": select(difference, ratio=0.5),
        "difference, no duplicates": select(difference, ratio=0.5, drop=repeated),
        "perplexity": select(likely, ratio=0.5),
        "clean: difference": select(difference, count=int(clean.sum()) // 2, drop=~clean),
        "clean: difference by domain": select(
            np.where(clean, difference.values, np.nan).astype(np.float32), ratio=0.5, domains=domains, quota="domain"
        ),
    }
    rows = {name: selection.rows for name, selection in selections.items()}
    rows["random"] = np.sort(chance.permutation(n)[: n // 2])
    where = np.flatnonzero(clean)
    rows["clean: random"] = np.sort(chance.permutation(where)[: len(where) // 2])
    return rows, selections


def one_seed(scale: Scale, seed: int, folder: Path) -> dict[str, Any]:
    """Everything for one seed: corpora, models, scores, students."""
    texts = clean_texts()
    parts = split_corpora(texts, scale, seed)
    tokenizer = byte_tokenizer([d.text for d in parts["train"]])
    for part, some in parts.items():
        pack(some, tokenizer, folder / part, max_length=LENGTH)
    source, train_rows = Shards(folder / "scored"), Shards(folder / "train")
    probe_rows = Shards(folder / "held out")
    probe = [batch_of(probe_rows, np.arange(s, min(s + 64, len(probe_rows)))) for s in range(0, len(probe_rows), 64)]
    models = {}
    for role, steps in (("teacher", scale.teacher_steps), ("reference", scale.reference_steps)):
        models[role] = model_of(role, len(tokenizer), seed)
        train(models[role], train_rows, np.arange(len(train_rows)), steps, RATES[role], seed, label=role)
    for role, model in models.items():
        score(model, source, folder / f"scores-{role}", end=0, max_length=LENGTH, progress=False)
    difference = diff(folder / "scores-teacher", folder / "scores-reference")
    domains = source.domains()
    rows, selections = arms_of(source, difference, domains, seed)
    curves, seconds = {}, {}
    for name, chosen in rows.items():
        begin = time.process_time()
        student = model_of("student", len(tokenizer), seed)
        curves[name] = train(student, source, chosen, scale.student_steps, RATES["student"], seed, None, probe, name)
        seconds[name] = time.process_time() - begin
    sizes = {role: sum(p.numel() for p in model_of(role, len(tokenizer), seed).parameters()) for role in WIDTHS}
    equal_cost = int(flops_matched_steps(scale.student_steps, sizes["student"], sizes["teacher"]))
    for name, steps in (("vanilla KD, equal steps", scale.student_steps), ("vanilla KD, equal operations", equal_cost)):
        begin = time.process_time()
        student = model_of("student", len(tokenizer), seed)
        curves[name] = train(
            student, source, rows["random"], steps, RATES["student"], seed, models["teacher"], probe, name
        )
        seconds[name] = time.process_time() - begin
    kept = {name: selection.mask() for name, selection in selections.items()}
    return {
        "curves": curves,
        "seconds": seconds,
        "sizes": sizes,
        "rows": len(source),
        "held out": {role: held_out(model, probe) for role, model in models.items()},
        "kept": {
            name: {d: [int((mask & (domains == d)).sum()), int((domains == d).sum())] for d in DOMAINS}
            for name, mask in kept.items()
        },
        "kd step": (seconds["vanilla KD, equal steps"]) / seconds["random"],
        "material": (source, difference, selections["difference"]),
    }


def figures(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Final losses with their spread over seeds, differences to random seed by seed, and what was kept."""
    result: dict[str, Any] = {"seeds": len(found), "rows": [one["rows"] for one in found], "sizes": found[0]["sizes"]}
    for name in found[0]["curves"]:
        last = [one["curves"][name][-1][1] for one in found]
        result[f"loss, {name}"] = spread(last)
        base = "clean: random" if name.startswith("clean") else "random"
        if name != base:
            gains = [one["curves"][base][-1][1] - loss for one, loss in zip(found, last, strict=True)]
            result[f"gain over {base}, {name}"] = spread(gains)
    for name in found[0]["kept"]:
        result[f"kept, {name}"] = {
            domain: sum(one["kept"][name][domain][0] for one in found)
            / max(1, sum(one["kept"][name][domain][1] for one in found))
            for domain in DOMAINS
        }
    noise = [one["kept"]["difference"]["noise"] for one in found]
    result["noise rows kept"] = [sum(k for k, _ in noise), sum(n for _, n in noise)]
    result["KD step / plain step"] = spread([one["kd step"] for one in found])
    result["held out, teacher"] = spread([one["held out"]["teacher"] for one in found])
    result["held out, reference"] = spread([one["held out"]["reference"] for one in found])
    return result


def spread(values: Sequence[float]) -> list[float]:
    """Mean, and a 95 % interval of Student's t over the seeds."""
    mean = fmean(values)
    if len(values) < 2:
        return [mean, mean, mean]
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 2.262)
    half = t * stdev(values) / len(values) ** 0.5
    return [mean, mean - half, mean + half]


def loss_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]]) -> Any:
    """Loss curves: name to steps and one list of losses a seed; thin lines for seeds, a thick one for their mean."""
    figure, (axes,) = new_figure()
    for number, (name, (along, losses)) in enumerate(curves.items()):
        colour = PALETTE[number % len(PALETTE)]
        for each in losses:
            axes.plot(along, each, color=colour, linewidth=0.8, alpha=0.4)
        axes.plot(along, np.mean(losses, axis=0), color=colour, linewidth=2.0, label=name)
    style_axes(axes, "Students", "steps", "held-out loss")
    axes.legend(frameon=False, labelcolor="#7b8696", fontsize=9)
    return figure


def write_report(out: Path, found: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    """Curves, tables, and the selection of the first seed."""
    run = RunFolder(out)
    run.start("miniplm-distillation-study", inputs={"seeds": len(found), "rows": result["rows"]})
    source, difference, selection = found[0]["material"]
    names = list(found[0]["curves"])
    noisy = [n for n in names if not n.startswith("clean") and "equal operations" not in n]
    for figure, group in (("losses", noisy), ("losses-clean", [n for n in names if n.startswith("clean")])):
        curves = {
            n: ([s for s, _ in found[0]["curves"][n]], [[v for _, v in one["curves"][n]] for one in found])
            for n in group
        }
        run.figure(figure, loss_figure(curves))
    run.figure("scores", score_figure(difference.values, selection.cut, kept=selection.mask()))
    run.figure("models", scatter_figure(difference.teacher, difference.reference, source.domains()))
    kept = kept_by_domain(selection, difference, source)
    run.figure("domains", kept_figure({one.domain: one.share for one in kept}, 0.5))
    losses = [(n, *(f"{v:.3f}" for v in result[f"loss, {n}"])) for n in names]
    kept_rows = [(n, *(f"{result[f'kept, {n}'][d]:.1%}" for d in DOMAINS)) for n in found[0]["kept"]]
    blocks: list[Block] = [
        Paragraph(
            f"{len(found)} seeds; students of {result['sizes']['student']} parameters on rows of {LENGTH + 1} ids."
        ),
        Heading("Losses on held-out clean text"),
        Figure("losses", alt="held-out loss of students on the noisy corpus"),
        Figure("losses-clean", alt="held-out loss of students on the clean part"),
        Table(("rows read", "loss", "low", "high"), losses, "At the last step; 95 % interval over seeds."),
        Heading("What is kept"),
        Table(("selection", *DOMAINS), kept_rows),
        Figure("scores", alt="difference scores of the first seed"),
        Figure("models", alt="teacher against reference, first seed"),
        Figure("domains", alt="share kept by domain, first seed"),
    ]
    run.record(**result)
    run.report("Difference sampling in small", blocks)
    run.finish()


def main() -> None:
    """Run all seeds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for a report")
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps: under a minute")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scale = Scale(1_600_000, 1200, 600, 500)
    if options.quick:
        scale, options.seeds = Scale(80_000, 40, 30, 20), 1
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(options.seeds):
            begin = time.perf_counter()
            found.append(one_seed(scale, seed, Path(scratch) / str(seed)))
            last = {name: round(curve[-1][1], 3) for name, curve in found[-1]["curves"].items()}
            print(f"seed {seed}: {time.perf_counter() - begin:.0f} s, {last}", flush=True)
        result = figures(found)
        if options.out is not None:
            write_report(options.out, found, result)
    for name, value in result.items():
        print(f"{name:<48} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
