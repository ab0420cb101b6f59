"""Reference values: what the official code gives on a tiny Llama and on single layers, and plain formulas beside it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paperhooks_mathneuro import Coverage, Matrix, Statistics
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "reference"
SIDES = ("math", "general")


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """Every tensor of one file."""
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def facts() -> dict[str, Any]:
    """Counts and outcomes of edge cases."""
    return json.loads((FOLDER / "golden.json").read_text())


@cache
def samples() -> dict[str, list[list[int]]]:
    """Token ids of both sides, and a probe."""
    return json.loads((FOLDER / "tiny_samples.json").read_text())


def model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The tiny Llama with tied embeddings that the values were computed on."""
    config = LlamaConfig(**json.loads((FOLDER / "tiny_tied_config.json").read_text()))
    config._attn_implementation = "eager"
    made = LlamaForCausalLM(config)
    made.load_state_dict(tensors("tiny_tied_weights"), strict=False)
    made.tie_weights()
    return made.to(dtype).eval()


def unpacked(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A stored mask; numpy alone, so that the package's own unpacking is not what is trusted."""
    flat = np.unpackbits(packed.numpy(), count=int(np.prod(shape)), bitorder="big")
    return torch.from_numpy(flat.reshape(shape).astype(bool))


def one_matrix(norms: Tensor, shape: tuple[int, int], *, input_dim: int = 1) -> Statistics:
    """Statistics of a single matrix called ``w`` with given per-sample norms [N, D]."""
    matrix = Matrix("w", "w", "", shape, input_dim)
    n = len(norms)
    return Statistics(
        Coverage((matrix,), ()), {"w": "w"}, {"w": norms.float()}, torch.ones(n, dtype=torch.int64), torch.arange(n)
    )
