"""Prompts that are longer than the model's context: one warning a run, and errors that say so where a model fails."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_tasks import Echo, tiny_model, word_tokenizer
from paperhooks.generation import CallableBackend
from paperhooks_evaluation import evaluate

quick = partial(evaluate, report=False)
CONTEXT = 16


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions of 1, 5, 9, ... 21 words; answers take up to 6 tokens more."""
    rows = [{"id": f"q{n}", "prompt": " ".join(["w3"] * n), "answer": "w1"} for n in range(1, 22, 4)]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows))
    return file


def rotary() -> Any:
    model = tiny_model()
    model.config.max_position_embeddings = CONTEXT
    return model


def learned(eos: int | None = None) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=eos,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


@pytest.mark.parametrize("size", [1, 8])
def test_models_that_go_on_are_asked_and_one_warning_says_it(data: Path, tmp_path: Path, size: int, caplog) -> None:
    with caplog.at_level(logging.WARNING, "paperhooks.evaluation"):
        run = {"data": data, "out": tmp_path / "run", "batch_size": size}
        result = quick(rotary(), word_tokenizer(), Echo(), **run)
        assert result.answered == 6
        quick(rotary(), word_tokenizer(), Echo(), **run)  # asks nothing
    told = [one.message for one in caplog.records if "context" in one.message]
    assert told == [
        "echo: 2 prompts are longer than the model's context, of up to 21 tokens (with those of images) where it was "
        "made for 16; answers to these may be the worse for it"
    ]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_models_with_learned_positions_fail_at_these_documents_alone(
    data: Path, tmp_path: Path, size: int, caplog
) -> None:
    with caplog.at_level(logging.WARNING, "paperhooks.evaluation"):
        result = quick(learned(), word_tokenizer(), Echo(), data=data, out=tmp_path / "run", batch_size=size)
    failures = result.first.failures
    assert list(failures) == ["q13", "q17", "q21"]
    assert "IndexError" in failures["q13"]
    assert failures["q13"].endswith(
        "; its prompt takes 13 tokens and its answer up to 6, together more than the model's context of 16"
    )
    for n in (17, 21):
        assert failures[f"q{n}"] == f"its prompt takes {n} tokens, and the model has 16 positions"
    assert sum("2 prompts are longer" in one.message for one in caplog.records) == 1
    alone = quick(learned(), word_tokenizer(), Echo(), data=data, out=tmp_path / "one", limit=3)
    assert alone.records == result.records


def test_other_errors_end_the_run_as_ever(data: Path, tmp_path: Path) -> None:
    class Broken(CallableBackend):
        def context(self) -> int:
            return CONTEXT

        def answer(self, prompts: Any) -> Any:
            raise IndexError("of another reason")

    with pytest.raises(IndexError, match="of another reason"):
        quick(Broken(lambda _: ""), None, Echo(), data=data, out=tmp_path / "run", batch_size=2)
