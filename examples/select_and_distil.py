"""Select training data with two models, train a student on it with the stock Trainer, then with the teacher beside it.

python examples/select_and_distil.py
"""

from __future__ import annotations

import random
import string
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import paperhooks
from paperhooks import HooksTrainerMixin
from paperhooks_miniplm import (
    Distil,
    SelectedDataset,
    TextRecord,
    TrainingCollator,
    byte_tokenizer,
    diff,
    duplicates_of,
    open_rows,
    pack,
    score,
    select,
    small_llama,
)
from paperhooks_testbed import documents
from transformers import PrinterCallback, Trainer, TrainingArguments

LENGTH = 64


class HooksTrainer(HooksTrainerMixin, Trainer):
    """A Trainer that asks the attached methods for the loss."""


def corpora() -> tuple[list[TextRecord], list[TextRecord]]:
    """Real text to train teacher and reference on, and other text to select from, a part of it noise."""
    chance = random.Random(0)
    texts = [TextRecord(each.text[:800], "text") for each in islice(documents(min_chars=800), 240)]
    chance.shuffle(texts)
    noise = [TextRecord("".join(chance.choices(string.printable, k=800)), "noise") for _ in range(5)]
    return texts[40:], texts[:40] + noise


def trained(model: Any, data: SelectedDataset, folder: Path, steps: int, kind: type[Trainer] = Trainer) -> float:
    """Train a model for some steps; returns the last loss."""
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=4e-3, use_cpu=True,
        report_to="none", save_strategy="no", logging_steps=steps, disable_tqdm=True, seed=0,
    )  # fmt: skip
    collator = TrainingCollator(eos_id=0, max_length=LENGTH)
    run = kind(model=model, args=arguments, train_dataset=data, data_collator=collator)
    run.remove_callback(PrinterCallback)
    run.train()
    return float(run.state.log_history[0]["loss"])


def main() -> None:
    """Two models score a corpus; a student trains on what is kept, alone and with the teacher beside it."""
    clean, mixed = corpora()
    tokenizer = byte_tokenizer([each.text for each in clean])
    sizes = {"teacher": (128, 2), "reference": (32, 1)}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, part in (("seen", clean), ("corpus", mixed)):
            pack(part, tokenizer, folder / name, max_length=LENGTH)
        seen, rows = open_rows(folder / "seen"), open_rows(folder / "corpus")
        models = {}
        for name, (width, layers) in sizes.items():
            models[name] = small_llama(len(tokenizer), width, layers, inner=2 * width, positions=LENGTH + 1, seed=0)
            trained(models[name], SelectedDataset(seen), folder / "trainer", steps=300)
            score(models[name], rows, folder / name, tokenizer=tokenizer, max_length=LENGTH, progress=False)
        difference = diff(folder / "teacher", folder / "reference")
        chosen = select(difference, ratio=0.5, drop=duplicates_of(rows, known=seen))
        noise = rows.domains() == "noise"
        print(f"kept {len(chosen)} of {len(rows)} rows; noise is {noise.mean():.0%} of the corpus, ", end="")
        print(f"{noise[chosen.rows].mean():.0%} of what is kept")
        data = SelectedDataset(rows, chosen)
        student = small_llama(len(tokenizer), 48, 1, inner=96, positions=LENGTH + 1, seed=2)
        print(f"a student's loss, stock Trainer: {trained(student, data, folder / 'trainer', steps=20):.2f}")
        with paperhooks.attach(student, Distil(models["teacher"], weight=0.5)):
            loss = trained(student, data, folder / "trainer", steps=20, kind=HooksTrainer)
        print(f"with the teacher in the loop:    {loss:.2f}")


if __name__ == "__main__":
    main()
