"""Evaluate with a replica of the model in every process: the documents are dealt out, one result comes of it.

torchrun --nproc-per-node 2 examples/several_gpus/evaluate_replicas.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import paperhooks
import torch
from paperhooks.generation import Request
from paperhooks_evaluation import Document, Parsed, Task
from paperhooks_testbed import load_vlm, prompt, question_set
from torch import distributed


@dataclass(frozen=True)
class Shapes(Task):
    """Questions about drawn scenes; right when the first word is the answer."""

    count: int = 24
    name: ClassVar[str] = "shapes"
    version: ClassVar[str] = "1"
    modes: ClassVar[tuple[str, ...]] = ("first-word",)
    metric: ClassVar[str] = "accuracy"

    def documents(self, source: str | None) -> Sequence[Document]:
        """The questions, as plain data."""
        questions = question_set("test", self.count)
        return [Document(f"q{n}", {"kind": one.kind}, {"answer": one.answer}) for n, one in enumerate(questions)]

    def request(self, document: Document) -> Request:
        """The picture and the question."""
        question = question_set("test", self.count)[int(document.id[1:])]
        return Request(prompt=prompt(question), images=(question.image(),), max_new_tokens=2)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        """The first word."""
        return Parsed((response.split() or [""])[0], "word")

    def score(self, document: Document, parsed: Parsed) -> float:
        """1 for the answer."""
        return float(parsed.value == document.data["answer"])


def main() -> None:
    """PyramidDrop's answers; the first process shows the result."""
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", distributed.get_rank()) if torch.cuda.is_available() else torch.device("cpu")
    model, processor = load_vlm()
    result = paperhooks.evaluate(model.to(device), processor, Shapes(), data=None, out="run", methods=["pyramiddrop"])
    if distributed.get_rank() == 0:
        print(result)
        print("files of responses:", ", ".join(sorted(file.name for file in Path("run").glob("samples*.jsonl"))))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
