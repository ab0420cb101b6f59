"""Batches by count and by tokens: a long prompt among short ones is asked apart, with the same answers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from evaluation_tasks import Counting, Echo, rows_of, timeless, tiny_model, word_tokenizer
from paperhooks.errors import DataError
from paperhooks.generation import Request, TransformersBackend
from paperhooks_evaluation import Document, evaluate
from PIL import Image
from test_resuming import tiny_llava_with_processor

quick = partial(evaluate, report=False)
LONG = 400


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """63 short prompts, and a long one in their middle."""
    prompts = [" ".join(f"w{(i + j) % 18}" for j in range(LONG if i == 31 else 2 + i % 5)) for i in range(64)]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"id": f"q{i}", "prompt": p, "answer": "w1"} for i, p in enumerate(prompts)]))
    return file


def test_a_long_prompt_pads_no_short_ones(data: Path, tmp_path: Path) -> None:
    inner = TransformersBackend(tiny_model(), word_tokenizer())
    backend = Counting(inner)
    quick(backend, None, Echo(), data=data, out=tmp_path / "run", batch_size=64, batch_tokens=1024)
    lengths = {row["id"]: len(row["prompt"].split()) for row in json.loads(data.read_text())}
    assert [len(batch) for batch in backend.batches] == [63, 1]
    padded = sum(len(batch) * max(lengths[one] for one in batch) for batch in backend.batches)
    assert padded == 63 * 6 + LONG < 64 * LONG / 30
    whole = Counting(inner)
    quick(whole, None, Echo(), data=data, out=tmp_path / "whole", batch_size=64, batch_tokens=10**6)
    assert [len(batch) for batch in whole.batches] == [64]
    assert timeless(rows_of(tmp_path / "run")) == timeless(rows_of(tmp_path / "whole"))


def test_the_limit_holds_by_default_and_for_one_prompt_too(data: Path, tmp_path: Path) -> None:
    backend = Counting(TransformersBackend(tiny_model(), word_tokenizer()))
    quick(backend, None, Echo(), data=data, out=tmp_path / "run", batch_size=64, batch_tokens=12)
    sizes = [len(batch) for batch in backend.batches]
    assert (sum(sizes), max(sizes), sizes[-1]) == (64, 6, 1)
    default = Counting(TransformersBackend(tiny_model(), word_tokenizer()))
    quick(default, None, Echo(), data=data, out=tmp_path / "default", batch_size=64)
    assert [len(batch) for batch in default.batches] == [63, 1]  # 64 times 400 are more than 16,384
    with pytest.raises(DataError, match="batch_tokens = 0 must be at least 1"):
        quick(backend, None, Echo(), data=data, out=tmp_path / "none", batch_tokens=0)


def test_the_tokens_of_images_count() -> None:
    vlm, processor = tiny_llava_with_processor()
    backend = TransformersBackend(vlm, processor)
    for size in ((20, 20), (7, 31)):
        images = [Image.new("RGB", size)] * 2
        prompts = [backend.prompt("a", Request(prompt="<image> w1 <image> w2", images=images)) for _ in range(2)]
        expected = backend._inputs(prompts)["input_ids"].shape[1]
        assert [prompt.tokens for prompt in prompts] == [expected] * 2
        assert expected == 2 * 4 + 2


def test_many_documents_are_counted_while_others_are_asked(tmp_path: Path) -> None:
    """The tokenizer has one state for padding, which two threads share."""

    class Longer(Echo):
        def documents(self, source: str) -> list[Document]:
            return [Document(f"q{i}", data={"prompt": "w1 " * (1 + i % 9), "answer": "w1"}) for i in range(300)]

    model, tokenizer = tiny_model(), word_tokenizer()
    result = quick(model, tokenizer, Longer(), data="x", out=tmp_path / "run", batch_size=4)
    assert (result.headline.n, tokenizer.padding_side) == (300, word_tokenizer().padding_side)
