"""Methods with loss hooks, and a small training run, for the tests of the loss in one and in two processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paperhooks
import torch
from paperhooks import HooksTrainerMixin, Traits, hookimpl
from paperhooks.logprobs import Head, next_token_labels, sequence_logprobs
from paperhooks.testing import tiny_llama
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments


class HooksTrainer(HooksTrainerMixin, Trainer):
    """What a user writes."""


@dataclass(eq=False)
class TokenLoss:
    """Replaces the loss: cross-entropy times a factor, a mean over target tokens, without the model's own loss."""

    factor: float = 2.0
    head: Any = field(default=None, init=False)
    traits = Traits(writes=frozenset({"objective"}), parallel=("ddp",))

    @hookimpl
    def setup(self, view):
        self.head = Head.from_model(view)

    @hookimpl
    def compute_loss(self, context):
        found = sequence_logprobs(context.model, context.inputs, head=self.head)
        targets = next_token_labels(context.view, context.inputs) != -100
        return -self.factor * context.token_mean(found.tokens, targets)


@dataclass(eq=False)
class SequenceLoss(TokenLoss):
    """Replaces the loss: a mean over sequences of a curved function of their mean log-probability."""

    traits = Traits(writes=frozenset({"objective"}), parallel=("ddp",))

    @hookimpl
    def compute_loss(self, context):
        found = sequence_logprobs(context.model, context.inputs, head=self.head)
        return context.example_mean(torch.nn.functional.softplus(-found.mean))


@dataclass(eq=False)
class PartLoss(TokenLoss):
    """That of SequenceLoss, a sequence after another: gradients of all but the last are made at once."""

    traits = Traits(writes=frozenset({"objective"}), parallel=("ddp",))

    @hookimpl
    def compute_loss(self, context):
        *early, last = range(len(context.inputs["input_ids"]))
        made = []
        with context.unsynchronised():
            for at in early:
                part = self._share(context, at)
                context.backward(part)
                made.append(part.detach())
        return sum(made, self._share(context, last))

    def _share(self, context, at):
        number = len(context.inputs["input_ids"])
        row = {name: value[at : at + 1] for name, value in context.inputs.items()}
        mean = sequence_logprobs(context.model, row, head=self.head).mean
        return context.example_mean(torch.nn.functional.softplus(-mean).expand(number)) / number


@dataclass(eq=False)
class PackedLoss(TokenLoss):
    """Replaces the loss: a mean over sequences, of which several may lie in one row of the batch; logs what it sees."""

    traits = Traits(writes=frozenset({"objective"}), parallel=("ddp",))

    @hookimpl
    def count_examples(self, batch):
        return int(batch["sequence"].max()) + 1

    @hookimpl
    def compute_loss(self, context):
        here = {name: context.inputs[name] for name in ("input_ids", "position_ids")}
        labels = context.inputs["targets"]
        tokens = sequence_logprobs(context.model, {**here, "shift_labels": labels}, head=self.head).tokens.flatten()
        at = context.inputs["sequence"].flatten()
        number = self.count_examples(context.inputs)
        sums = torch.zeros(number).index_add(0, at, tokens)
        means = sums / torch.zeros(number).index_add(0, at, (labels != -100).float().flatten())
        context.log("mean", means)
        context.log("long", means, torch.bincount(at, minlength=number) > 6)
        return context.example_mean(torch.nn.functional.softplus(-means))


@dataclass(eq=False)
class Penalties:
    """Adds two terms: squared log-partition per token, and the spread of each sequence's logits."""

    traits = Traits(parallel=("ddp",))

    @hookimpl
    def loss_terms(self, context):
        labels = next_token_labels(context.view, context.inputs)
        partition = context.logits.float().logsumexp(-1)
        spread = (context.logits.float().std(-1) * (labels != -100)).sum(1)
        return {"z": 0.1 * context.token_mean(partition**2, labels != -100), "spread": context.example_mean(spread)}


@dataclass(eq=False)
class Bystander:
    """Takes no part in the loss."""

    traits = Traits(parallel=("ddp",))

    @hookimpl
    def post_layer(self, hidden_states):
        return None


METHODS: dict[str, list[type]] = {
    "stock": [],
    "bystander": [Bystander],
    "token": [TokenLoss],
    "sequence": [SequenceLoss],
    "parts": [PartLoss],
    "terms": [Penalties],
    "both": [SequenceLoss, Penalties],
    "packed": [PackedLoss],
}


def examples(lengths=(12, 5, 9, 3, 7, 11, 4, 8)) -> list[dict[str, list[int]]]:
    """Sequences of very unequal lengths."""
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 90, (n,), generator=generator).tolist()} for n in lengths]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Right padding, labels equal to the ids."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def pack(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """All sequences in one row, without labels: what a token predicts is in ``targets``, and which sequence it is of in
    ``sequence``."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": torch.tensor([[token for own in ids for token in own]]),
        "position_ids": torch.tensor([[place for own in ids for place in range(len(own))]]),
        "targets": torch.tensor([[token for own in ids for token in (*own[1:], -100)]]),
        "sequence": torch.tensor([[at for at, own in enumerate(ids) for _ in own]]),
    }


def trainer(
    model: Any,
    out: Path,
    *,
    batch: int = 8,
    steps: int = 1,
    accumulation: int = 1,
    kind: type = HooksTrainer,
    **options: Any,
) -> Any:
    """A Trainer on the CPU with plain SGD, so that weights show the gradient."""
    arguments = {
        "output_dir": str(out),
        "use_cpu": True,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 3,
    }
    data = examples()
    return kind(
        model=model,
        args=TrainingArguments(**{**arguments, **options}),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate,
    )


def packs() -> list[list[dict[str, list[int]]]]:
    """The sequences in rows of 3 and of 1."""
    rows = examples()
    return [rows[:3], rows[3:4], rows[4:7], rows[7:]] * 2


def fresh() -> Any:
    """The model that all runs start from."""
    return tiny_llama(layers=2)


def train(name: str, out: str) -> list[dict[str, Any]]:
    """One of two processes: train on a share of each batch; the first one leaves the weights. Returns the log."""
    model, folder = fresh(), Path(out)
    with paperhooks.attach(model, *[cls() for cls in METHODS[name]]):
        run = trainer(model, folder, batch=2, accumulation=2, average_tokens_across_devices=True)
        if name == "packed":  # 3 + 1 sequences, and evaluation of 7, of which the last process has one twice
            run = trainer(model, folder, batch=1, accumulation=4, average_tokens_across_devices=True)
            run.train_dataset, run.data_collator = packs(), lambda rows: pack(rows[0])
            run.eval_dataset = [[row] for row in examples()[:7]]
        run.train()
        if name == "packed":
            run.evaluate()
        if run.is_world_process_zero():
            save_file({n: p.detach().clone() for n, p in model.named_parameters()}, folder / "weights.safetensors")
    return run.state.log_history
