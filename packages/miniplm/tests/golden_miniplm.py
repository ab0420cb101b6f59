"""Reference values: what the official code gives on a small corpus, two tokenizers and two tiny models.

Everything here is cached and shared between tests: nothing that comes out of it may be changed in place.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parent / "reference"
CORPUS = FOLDER / "corpus.jsonl"
#: The chunks of ``packing()["a_no_bos"]`` as the official builder wrote them, 100 a shard, for a vocabulary of 512.
SHARDS = FOLDER / "shards_uint16"
#: Four chunks, two a shard, and an empty ``data_2.bin`` that belongs to nothing.
SHARDS_INT32 = FOLDER / "shards_int32"
#: Inputs of a model; a chunk has one id more.
MAX_LENGTH = 64


def read_json(name: str) -> Any:
    """One JSON file of the reference."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """Every tensor of one file."""
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def corpus() -> list[dict[str, str]]:
    """The 142 documents in file order: ``text`` and ``label``."""
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").split("\n") if line]


@cache
def packing() -> dict[str, Any]:
    """Chunks, leftovers and end tokens: ``a_no_bos``, ``b_bos``, and small cases in ``hand_made_a``."""
    return read_json("packing.json")


@cache
def chunks(name: str = "a_no_bos") -> list[np.ndarray]:
    """The official chunks, int64 arrays of at most 65 ids."""
    return [np.array(chunk, dtype=np.int64) for chunk in packing()[name]["chunks"]]


@cache
def reader() -> list[tuple[dict[str, Any], int, dict[int, list[int]]]]:
    """Arguments of the official reader (with its own names), the length it reports, and some of its rows."""
    return [
        (json.loads(arguments), found["length"], {int(row): ids for row, ids in found["items"].items()})
        for arguments, found in read_json("reader.json").items()
    ]


@cache
def quirks() -> dict[str, Any]:
    """Small rules of the official code, such as ``best_fitting_dtype``."""
    return read_json("official_quirks.json")


@cache
def tokenizer(name: str = "tok_a") -> Any:
    """``tok_a`` (512 ids, end of sequence 0, no beginning) or ``tok_b`` (384 ids, beginning 0, end 1)."""
    return AutoTokenizer.from_pretrained(FOLDER / name)


@cache
def _model(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32).eval()


def teacher() -> Any:
    """A Qwen2 with 3 layers of 64, float32, made once."""
    return _model("teacher")


def ref() -> Any:
    """A Qwen2 with 1 layer of 32, float32, made once."""
    return _model("ref")


def fresh(name: str) -> Any:
    """A new copy of ``teacher`` or ``ref``, for tests that change it."""
    return AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32)


def scores() -> dict[str, Tensor]:
    """``teacher_nll``, ``ref_nll``, ``diff`` [1506] float32, ``scored_tokens``, ``lengths`` int32 and checks."""
    return tensors("scores")


@cache
def collate_inputs() -> dict[str, Any]:
    """``pad_id``, ``max_length`` and ``rows``: pairs of a row number and its ids."""
    return read_json("collate_inputs.json")


def collate() -> dict[str, Tensor]:
    """Official batches of ``collate_inputs``: ``fixed.*``, ``ada.*`` and ``ada_gpt2.*`` (rows 1 and 2)."""
    return tensors("collate")


def kd_loss() -> dict[str, Tensor]:
    """Cases ``CASE.student_logits`` and so on, results ``CASE.rRATIO.mean.loss`` and so on, and gradients."""
    return tensors("kd_loss")


@cache
def selection() -> dict[str, Any]:
    """``n`` and, in ``ratios``, for every ratio ``k``, ``indices``, ``cut_score`` and ``stable_indices``."""
    return read_json("selection.json")


def stable_indices(ratio: str) -> list[int]:
    """The rows to select from the stored ``diff``, ties to the lower row."""
    found = selection()["ratios"][ratio]
    return found["indices"] if isinstance(found["stable_indices"], str) else found["stable_indices"]
