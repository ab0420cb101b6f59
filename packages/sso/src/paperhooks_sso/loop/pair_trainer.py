"""One epoch over the pairs of a round: transformers' Trainer with SSO attached, and nothing left behind."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paperhooks import HooksTrainerMixin, attach
from paperhooks.io import refused
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.method import SSO

__all__ = ["train_pairs"]


def train_pairs(
    model: Any, records: Sequence[Mapping[str, Any]], method: SSO, options: LoopOptions, pace: Pace, folder: Path
) -> list[dict[str, float]]:
    """Train the model in place; returns what was logged, a step each, under names without ``loss/sso/``.

    The global random state, dropout and which parameters learn are as before afterwards; without dropout the policy is
    what its reference was.

    :param records: of a pairs file, with the column ``reference`` where the loss has one.
    :param folder: where temporary files may lie.
    """
    logged = _Logged()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trainer-") as temporary, _random_state(), _undropped(model):
        with attach(model, method):
            trainer = _PairTrainer(
                model, _arguments(model, len(records), options, pace, temporary), train_dataset=list(records),
                data_collator=method.collator(), callbacks=[logged],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            if trainer.pop_callback(ProgressCallback) is not None:
                trainer.add_callback(_Bar)
            trainer.train()
        model.zero_grad(set_to_none=True)
    model.eval()
    return logged.steps


class _PairTrainer(HooksTrainerMixin, Trainer):  # type: ignore[misc, unused-ignore]
    """The Trainer with the loss of what is attached."""


class _Bar(ProgressCallback):  # type: ignore[misc, unused-ignore]
    """A line of progress without the figures of every step, which are written down."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class _Logged(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Keeps what is logged at every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            found = {name.removeprefix("loss/sso/"): float(value) for name, value in logs.items()}
            self.steps.append({"step": state.global_step, **found})


def _arguments(model: Any, pairs: int, options: LoopOptions, pace: Pace, folder: str) -> TrainingArguments:
    # A divisor, so that the memory there is does not change what a step is.
    micro = max(size for size in range(1, min(pace.micro_batch, options.batch) + 1) if options.batch % size == 0)
    accumulated = options.batch // micro
    # Rounded down: the first step of a warm-up has rate 0, and would be the only one of a short run.
    warmup = int(options.warmup * math.ceil(pairs / options.batch))
    given = {
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulated, "num_train_epochs": 1,
        "learning_rate": options.learning_rate, "weight_decay": options.weight_decay, "optim": "adamw_torch",
        "adam_beta1": 0.9, "adam_beta2": 0.95, "lr_scheduler_type": "cosine", "logging_steps": 1,
        "warmup_steps": warmup,
        "seed": options.seed, "data_seed": options.seed, "use_cpu": model.device.type == "cpu",
        "disable_tqdm": not pace.progress, "dataloader_pin_memory": model.device.type != "cpu",
    }  # fmt: skip
    fixed = {
        "output_dir": folder, "save_strategy": "no", "report_to": "none", "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
    }  # fmt: skip
    try:
        return TrainingArguments(**{**given, **options.trainer, **fixed})
    except TypeError as error:
        raise refused("trainer", dict(options.trainer), f"arguments of TrainingArguments ({error})") from error


@contextmanager
def _random_state() -> Iterator[None]:
    """The Trainer seeds everything; afterwards it is as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _undropped(model: nn.Module) -> Iterator[None]:
    """No dropout, though in training mode: that of modules, and that which attention takes from its own attribute."""
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and value and ("dropout" in name or (name == "p" and _drops(module)))
    ]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def _drops(module: nn.Module) -> bool:
    return "Dropout" in type(module).__name__
