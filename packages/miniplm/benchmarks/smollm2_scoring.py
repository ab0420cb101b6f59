"""Scoring real text with a real model: SmolLM2-135M-Instruct as teacher, a small model of its tokenizer as reference.

Docstrings, help topics and licences that every machine has are packed into rows of 513 tokens. A part of them trains
the reference for a moment; the others are scored by both and selected from. Printed are tokens a second, what is kept
of each domain, and what bfloat16 gains and costs. With ``--out`` the corpus, the scores and a report stay, and an
interrupted run goes on.

    python packages/miniplm/benchmarks/smollm2_scoring.py [--quick] [--tokens 320000] [--out FOLDER]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paperhooks_miniplm import (
    Distil,
    LogLikelihood,
    Shards,
    TextRecord,
    diff,
    duplicates_of,
    pack,
    plan,
    report,
    score,
    select,
    small_llama,
)
from paperhooks_miniplm.demo_models import train as run_training
from paperhooks_miniplm.demo_models import training_batch
from paperhooks_miniplm.reports import kept_by_domain
from paperhooks_testbed import documents, load_smollm2
from tqdm import tqdm
from transformers import LlamaForCausalLM

LENGTH = 512
BATCH = 4


def texts(seed: int) -> Iterator[TextRecord]:
    """All documents in a shuffled order, the long ones in pieces, so that a part of them is a sample of all."""
    pieces = [
        TextRecord(found.text[start : start + 6000], found.domain)
        for found in documents(min_chars=400)
        for start in range(0, len(found.text), 6000)
    ]
    random.Random(seed).shuffle(pieces)
    return iter(pieces)


def taken(source: Iterator[TextRecord], characters: int) -> Iterator[TextRecord]:
    """The next documents, up to so many characters."""
    while characters > 0 and (document := next(source, None)) is not None:
        characters -= len(document.text)
        yield document


def reference_of(tokenizer: Any, teacher: Any, seed: int) -> LlamaForCausalLM:
    """A model of 3.3 million parameters, most of them the embeddings of 49,152 tokens."""
    return small_llama(
        teacher.config.vocab_size, 64, 2, inner=192, positions=LENGTH + 1, seed=seed,
        bos=tokenizer.bos_token_id, end=tokenizer.eos_token_id,
    )  # fmt: skip


def train(model: LlamaForCausalLM, rows: Shards, end: int, steps: int, seed: int) -> float:
    """A moment of ordinary training; returns the last losses' mean."""
    chance = np.random.default_rng(seed)
    draws = (chance.choice(len(rows), min(BATCH, len(rows)), replace=False) for _ in range(steps))
    batches = (training_batch(rows, draw, LENGTH, end) for draw in draws)
    method = Distil(weight=0.0, eos_token_id=end)
    trained = run_training(model, batches, steps=steps, rate=3e-3, warmup=max(1, steps // 20), method=method)
    losses = [float(loss) for _, loss in tqdm(trained, desc="reference", total=steps, leave=False)]
    model.eval()
    return float(np.mean(losses[-20:]))


def half_precision(model: Any, rows: Shards, end: int, count: int) -> dict[str, float]:
    """Rate and error of bfloat16 on some rows, beside float32 in turn."""
    ids = [row.ids for row in rows.read(np.unique(np.linspace(0, len(rows) - 1, count).astype(int)).tolist())]
    ways = {"float32": model, "bfloat16": copy.deepcopy(model).to(torch.bfloat16)}
    means, seconds = {}, dict.fromkeys(ways, 0.0)
    for name, each in ways.items():
        likelihood = LogLikelihood(each, end, LENGTH)
        likelihood.score(ids[:1])
        begin = time.process_time()
        found = likelihood.score(ids)
        seconds[name] = time.process_time() - begin
        means[name] = found.nll / found.count
    errors = means["bfloat16"] - means["float32"]
    return {
        "bfloat16, rate over float32": seconds["float32"] / seconds["bfloat16"],
        "bfloat16, root mean square of the error": float(np.sqrt((errors**2).mean())),
        "bfloat16, largest error": float(np.abs(errors).max()),
    }


def measure(folder: Path, tokens: int, steps: int, seed: int, keep_report: bool) -> dict[str, Any]:
    """Pack, train the reference, score with both, select, report."""
    teacher, tokenizer = load_smollm2()
    end, source = tokenizer.convert_tokens_to_ids("<|endoftext|>"), texts(seed)
    tokenizer.eos_token = "<|endoftext|>"
    if not (folder / "corpus" / "corpus.json").exists():
        # About four characters a token in this text.
        pack(taken(source, 4 * tokens), tokenizer, folder / "corpus", max_length=LENGTH)
        pack(taken(source, 4 * tokens), tokenizer, folder / "trained-on", max_length=LENGTH)
    rows, other = Shards(folder / "corpus"), Shards(folder / "trained-on")
    reference, saved = reference_of(tokenizer, teacher, seed), folder / "reference"
    if (saved / "config.json").exists():
        reference = LlamaForCausalLM.from_pretrained(saved).eval()
    else:
        train(reference, other, end, steps, seed)
        reference.save_pretrained(saved)
    models = {"teacher": teacher, "reference": reference}
    print(plan(models, rows, tokenizer=tokenizer, max_length=LENGTH, sample_rows=4))
    result: dict[str, Any] = {"rows": len(rows), "tokens": int(rows.lengths().sum()), "parameters": {}}
    for name, model in models.items():
        begin = time.process_time()
        found = score(
            model, rows, folder / f"scores-{name}", tokenizer=tokenizer, end=end, max_length=LENGTH, unit_rows=64,
            name=name,
        )  # fmt: skip
        seconds = time.process_time() - begin
        if found is not None:
            result[f"{name}, mean loss"] = float(np.nanmean(found.values()))
            result[f"{name}, unscored"] = int((~found.usable).sum())
        result[f"{name}, tokens a CPU second"] = result["tokens"] / seconds
        result["parameters"][name] = model.num_parameters()
    result |= half_precision(teacher, rows, end, min(len(rows), 40))
    difference = diff(folder / "scores-teacher", folder / "scores-reference")
    selection, repeated = select(difference, ratio=0.5), duplicates_of(rows)
    kept = kept_by_domain(selection, difference, rows)
    result |= {"kept": len(selection), "cut": selection.cut, "duplicates": int(repeated.sum())}
    result["kept by domain"] = {one.domain: [one.kept_rows, one.rows] for one in kept}
    if keep_report:
        report(folder / "report", selection, difference, rows, tokenizer=tokenizer, duplicates=repeated)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=320_000, help="tokens to score")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder that keeps everything")
    parser.add_argument("--quick", action="store_true", help="few tokens and steps: under a minute")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.tokens, options.steps = 6_000, 5
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        result = measure(folder, options.tokens, options.steps, options.seed, options.out is not None)
    for name, value in result.items():
        print(f"{name:<36} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
