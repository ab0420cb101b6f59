"""A task, a tiny model and a tokenizer for the tests of evaluation. Imports torch only where it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from paperhooks.generation import Backend, Prompt, Request, Response
from paperhooks_evaluation import Document, Parsed, Task

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "</s>", *(f"w{i}" for i in range(18))]
LIMIT = 6


def tiny_model() -> LlamaForCausalLM:
    """A tiny random Llama over `WORDS`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=1, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def word_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """One token a word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({word: i for i, word in enumerate([*WORDS, *more])}, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="w0")


def direct(model: Any, tokenizer: Any, prompt: str, limit: int = LIMIT) -> str:
    """The greedy response, by stock calls for a single prompt."""
    import torch

    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.eval().generate(**inputs, max_new_tokens=limit, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@dataclass(frozen=True)
class Echo(Task):
    """Questions from a JSON file; right when the response begins with the answer.

    Mode "strict" cannot read responses of fewer than ``least`` different words and gives them nothing.
    """

    least: int = 3
    name: ClassVar[str] = "echo"
    version: ClassVar[str] = "1"
    modes: ClassVar[tuple[str, ...]] = ("official", "strict")
    metric: ClassVar[str] = "accuracy"

    def documents(self, source: str) -> Sequence[Document]:
        rows = json.loads(Path(source).read_text())
        return [Document(row["id"], {"kind": row.get("group", "")}, row) for row in rows]

    def request(self, document: Document) -> Request:
        return Request(prompt=document.data["prompt"], max_new_tokens=LIMIT)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        if mode == "strict" and len(set(response.split())) < self.least:
            return Parsed(None, "short", fallback=True)
        return Parsed(response, "whole")

    def score(self, document: Document, parsed: Parsed) -> float:
        return float(parsed.value is not None and parsed.value.startswith(document.data["answer"]))


class Counting(Backend):
    """Another backend, with what it was asked on record; dies at a given document, or when a batch is too large."""

    def __init__(self, inner: Backend, dies_at: str = "", fits: int = 10**6) -> None:
        self.inner, self.dies_at, self.fits = inner, dies_at, fits
        self.batches: list[list[str]] = []

    @property
    def asked(self) -> list[str]:
        """Ids in the order of asking."""
        return [one for batch in self.batches for one in batch]

    def describe(self) -> dict[str, Any]:
        return dict(self.inner.describe())

    def about(self) -> dict[str, Any]:
        return dict(self.inner.about())

    def opened(self) -> Any:
        return self.inner.opened()

    def prompt(self, document_id: str, request: Request) -> Prompt:
        return self.inner.prompt(document_id, request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        ids = [prompt.id for prompt in prompts]
        if self.dies_at in ids:
            raise KeyboardInterrupt
        if len(ids) > self.fits:
            raise MemoryError(f"{len(ids)} do not fit")
        self.batches.append(ids)
        return self.inner.answer(prompts)


def write_questions(file: Path, model: Any, tokenizer: Any) -> Path:
    """Ten questions of several lengths; the answers of the even ones are what the model says."""
    rows = []
    for i in range(10):
        prompt = " ".join(f"w{(i * j + j) % 18}" for j in range(1, 2 + i % 4))
        right = direct(model, tokenizer, prompt) if i % 2 == 0 else "never"
        rows.append({"id": f"q{i}", "prompt": prompt, "answer": right, "group": "even" if i % 2 == 0 else "odd"})
    file.write_text(json.dumps(rows))
    return file


def rows_of(folder: Path, name: str = "samples.jsonl") -> list[dict[str, Any]]:
    """The samples of a run."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by id, without what the clock says, and the sums over that."""
    told = ({key: value for key, value in row.items() if key not in ("seconds", "crc32")} for row in rows)
    return sorted(told, key=lambda row: row["id"])


def untimed(folder: Path) -> str:
    """results.json without its two times, as text, so that the order of keys counts."""
    content = json.loads((folder / "results.json").read_text())
    assert content.pop("date") > 0
    assert float(content.pop("total_evaluation_time_seconds")) >= 0
    return json.dumps(content)
