"""Numbers that were silently wrong: p values of few pairs, batches without targets, batches of one long row, memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import paperhooks
import pytest
import torch
from paperhooks.errors import DataError
from paperhooks.reports import paired_p, smallest_p
from paperhooks.testing import run_python, tiny_text
from paperhooks.training import HooksTrainerMixin
from paperhooks_miniplm import Distil, DistilTerm
from transformers import Trainer, TrainingArguments


@pytest.mark.parametrize("n", [4, 6, 10, 20, 30])
def test_under_the_null_few_p_values_are_small(n: int) -> None:
    draws = 2000 if n < 20 else 300 if n == 20 else 1000
    rng = np.random.default_rng(n)
    found = np.array([paired_p(rng.standard_normal(n), seed=i, resamples=999) for i in range(draws)])
    slack = 2 * (0.05 * 0.95 / draws) ** 0.5 if draws < 2000 else 0.01
    assert (found < 0.05).mean() <= 0.05 + slack
    assert found.min() >= smallest_p(n, resamples=999)


def test_six_pairs_cannot_go_below_what_their_signs_allow() -> None:
    assert paired_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 64)
    assert smallest_p(6) == pytest.approx(2 / 64)


class HooksTrainer(HooksTrainerMixin, Trainer):
    """A stock trainer that asks the hooks for losses."""


def trained(rows: list[Any], accumulate: int, folder: Any, method: Any = None) -> dict[str, torch.Tensor]:
    """By how much one optimiser step over all rows moves the weights."""
    student = tiny_text(layers=2, vocab_size=128)
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=len(rows) // accumulate, gradient_accumulation_steps=accumulate,
        max_steps=1, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0, dataloader_drop_last=False,
    )  # fmt: skip
    before = {name: each.detach().clone() for name, each in student.named_parameters()}
    trainer = HooksTrainer(student, arguments, train_dataset=rows)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    with paperhooks.attach(student, method) if method is not None else _nothing():
        trainer.train()
    return {name: before[name] - each.detach() for name, each in student.named_parameters()}


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def row(seed: int, targets: bool = True) -> dict[str, list[int]]:
    ids = [1 + (seed * 7 + i) % 100 for i in range(8)]
    return {"input_ids": ids, "labels": ids if targets else [-100] * 8}


@pytest.mark.parametrize("method", ["none", "Distil", "DistilTerm"])
def test_a_micro_batch_without_targets_contributes_nothing(tmp_path: Any, method: str) -> None:
    made = {"none": lambda: None, "Distil": lambda: Distil(tiny_text(layers=2, seed=3, vocab_size=128)),
            "DistilTerm": lambda: DistilTerm(tiny_text(layers=2, seed=3, vocab_size=128))}[method]  # fmt: skip
    rows = [row(0), row(1), row(2, targets=False), row(3, targets=False)]
    whole, parts = (trained(rows, n, tmp_path / str(n), made()) for n in (1, 2))
    scale = max(float(each.abs().max()) for each in whole.values())
    assert scale > 0
    for name, each in whole.items():
        torch.testing.assert_close(parts[name], each, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("method", ["Distil", "DistilTerm"])
def test_a_step_without_targets_is_refused(tmp_path: Any, method: str) -> None:
    made = {"Distil": Distil, "DistilTerm": DistilTerm}[method](tiny_text(layers=2, seed=3, vocab_size=128))
    with pytest.raises(DataError, match=r"predict|target|learn"):
        trained([row(0, targets=False), row(1, targets=False)], 2, tmp_path, made)


def test_the_cut_of_ten_million_scores_is_exact_and_small() -> None:
    code = """
import resource, numpy as np
from paperhooks.data import choose
choose(np.arange(10, dtype=np.float32), ratio=0.5)
scores = np.random.default_rng(0).standard_normal(10_000_000, dtype=np.float32)
scores[:: 1000] = scores[5]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = choose(scores, ratio=0.5)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
bar = np.sort(scores)[len(scores) // 2 - 1 + (len(scores) % 2)]
print(len(found), bool((scores[found.rows] >= found.cut).all()), int((scores > found.cut).sum()) <= len(found))
"""
    done = run_python("-c", code)
    first, second = done.stdout.splitlines()
    assert int(first) < 200, "megabytes beyond the scores"
    assert second == "5000000 True True"


def test_one_long_row_does_not_make_a_long_batch() -> None:
    """64 short prompts and one of 2,000 tokens in batches of 64: the longest batch is no 64 x 2,000."""
    from paperhooks.generation import Request
    from test_identity import words

    shapes: list[tuple[int, int]] = []
    own = tiny_text(layers=2, vocab_size=320, max_position_embeddings=4096)

    def seen(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("input_ids") is not None:
            shapes.append(tuple(kwargs["input_ids"].shape))

    handle = own.register_forward_pre_hook(seen, with_kwargs=True)
    import tempfile
    from pathlib import Path

    from paperhooks_evaluation import Document, Parsed, Task, evaluate

    class Lengths(Task):
        version = "1"
        modes = ("official",)

        def documents(self, source: str) -> list[Any]:
            return [Document(f"d{i}", {}, {"n": 2000 if i == 30 else 9}) for i in range(64)]

        def request(self, document: Any) -> Any:
            text = {"type": "text", "text": "a" * document.data["n"]}
            return Request(messages=[{"role": "user", "content": [text]}], max_new_tokens=1)

        def parse(self, document: Any, response: str, mode: str) -> Any:
            return Parsed(response)

        def score(self, document: Any, parsed: Any) -> float:
            return 1.0

    evaluate(own, words(), Lengths(), data="x", out=Path(tempfile.mkdtemp()) / "run", batch_size=64, report=False)
    handle.remove()
    assert max(rows * tokens for rows, tokens in shapes) < 64 * 2000 / 4
    assert max(rows for rows, _ in shapes) > 16, "short ones still go together"
