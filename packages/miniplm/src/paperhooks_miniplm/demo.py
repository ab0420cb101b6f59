"""The demo: a small corpus with noise in it, two tiny models, and the half that is worth reading; in half a minute."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paperhooks import MissingExtra, attach
from paperhooks.demo import DemoContext
from paperhooks.loss import LossContext, compute_loss

from paperhooks_miniplm.collating import collate
from paperhooks_miniplm.differing import diff
from paperhooks_miniplm.distilling import Distil
from paperhooks_miniplm.packing import pack
from paperhooks_miniplm.records import Document
from paperhooks_miniplm.reporting import kept_by_domain, report
from paperhooks_miniplm.schedule import lr_at
from paperhooks_miniplm.selecting import choose, duplicates_of
from paperhooks_miniplm.shards import Shards
from paperhooks_miniplm.units import score

__all__ = ["run"]

_LENGTH = 96
_BATCH = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:()[]<>=+-*/"


def run(context: DemoContext) -> None:
    """Train a teacher and a reference for a moment, score, select, and write report.html."""
    steps = 60 if context.quick else 260
    clean, mixed = _documents(60_000 if context.quick else 160_000, context.seed)
    tokenizer = _tokenizer([document.text for document in clean])
    _clear(context.out)
    for name, some in (("trained-on", clean), ("corpus", mixed)):
        pack(some, tokenizer, context.out / name, max_length=_LENGTH)
    rows = Shards(context.out / "corpus")
    context.echo(
        f"{len(rows)} rows of {_LENGTH + 1} tokens; a fifth of the documents is noise, one stands there 40 times"
    )
    for role, width, layers in (("teacher", 96, 3), ("reference", 32, 1)):
        model = _model(len(tokenizer), width, layers, context.seed)
        _train(model, Shards(context.out / "trained-on"), steps, context.seed)
        found = score(model, rows, context.out / role, end=0, max_length=_LENGTH, progress=False)
        if found is not None:
            context.echo(
                f"{role:<10} {model.num_parameters():>8} parameters, mean loss {np.nanmean(found.values()):.3f}"
            )
    difference = diff(context.out / "teacher", context.out / "reference")
    choice = choose(difference, ratio=0.5)
    context.echo(f"kept {len(choice)} of {choice.total} rows, those with a difference of {choice.cut:.3f} and more")
    for one in kept_by_domain(choice, difference, rows):
        context.echo(
            f"  {one.domain:<10} {one.share:>6.1%} kept of {one.rows:>4} rows, mean difference {one.mean:+.3f}"
        )
    repeated = duplicates_of(rows)
    html = report(context.out, choice, difference, rows, tokenizer=tokenizer, duplicates=repeated)
    context.echo(
        "Noise goes, for neither model can read it; what stands there again and again stays: look at duplicates."
    )
    context.echo(f"report: {html}")


def _documents(characters: int, seed: int) -> tuple[list[Document], list[Document]]:
    """Clean text to train on, and other clean text with noise and copies in it."""
    try:
        from paperhooks_testbed import documents
    except ImportError as error:
        raise MissingExtra("paperhooks-testbed", "paperhooks-miniplm[demo]", "to run the demo") from error
    chance = random.Random(seed)
    pieces = [
        Document(document.text[start : start + 1500], domain)
        for domain in ("topics", "docstrings")
        for document in documents(domain=domain)
        for start in range(0, min(len(document.text), 9000), 1500)
    ]
    chance.shuffle(pieces)
    found: list[list[Document]] = [[], []]
    for part in found:
        while pieces and sum(len(document.text) for document in part) < characters:
            part.append(pieces.pop())
    clean, mixed = found
    noise = len(mixed) // 5
    mixed += [Document("".join(chance.choices(_LETTERS, k=700)), "noise") for _ in range(noise)]
    mixed += [Document(clean[0].text[:300], "copies")] * 40
    chance.shuffle(mixed)
    return clean, mixed


def _tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def _model(vocabulary: int, width: int, layers: int, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32), max_position_embeddings=_LENGTH, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _train(model: Any, rows: Shards, steps: int, seed: int) -> None:
    """The official recipe in small: mean of row means, warm-up and cosine."""
    chance = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=0.01)
    with attach(model.train(), Distil(weight=0.0)) as session:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step + 1, 5e-3, 5e-4, steps // 20, steps)
            chosen = chance.choice(len(rows), _BATCH, replace=False).tolist()
            ready = collate([row.ids for row in rows.read(chosen)], max_length=_LENGTH, pad_id=0)
            labels = ready["label"].masked_fill(ready["loss_mask"] == 0, -100)
            batch = {"input_ids": ready["input_ids"], "attention_mask": ready["attention_mask"], "shift_labels": labels}
            compute_loss(session, LossContext(model, batch)).backward()
            optimizer.step()
            optimizer.zero_grad()


def _clear(out: Path) -> None:
    """A demo is made anew every time: take away what an earlier one left, and nothing else."""
    (out / "result.json").unlink(missing_ok=True)
    for part in ("trained-on", "corpus", "teacher", "reference"):
        for file in (out / part).glob("**/*"):
            if file.suffix in (".bin", ".idx", ".json", ".safetensors"):
                file.unlink()
