"""Quantised models as GGUF files, read back by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
import transformers
from paperhooks import Artefact, ArtefactError, Traits, hookimpl
from paperhooks.testing import tiny_text
from paperhooks_evopress.export import gguf
from paperhooks_evopress.levels import (
    GPTQ,
    Gguf,
)
from paperhooks_evopress.levels import (
    SublayerDrop as Drop,
)
from torch import Tensor, nn

IDS = torch.tensor([[5, 6, 7, 8, 9, 41, 12, 3], [9, 3, 44, 51, 60, 2, 2, 7]])
DATA = [list(range(3, 40)), list(range(20, 64))]
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},  # the reader takes no other
}


class InTurn:
    """Brings matrices to their levels in turn, and leaves out those that are named."""

    traits = Traits(writes=frozenset({"weights"}))

    def __init__(self, left_out: Sequence[str] = ()) -> None:
        self.left_out = tuple(left_out)

    @hookimpl
    def compression(self, view, request):
        inside = tuple(f"{name}." for name in self.left_out)
        names = [n for n, m in view.modules(r".*layers\.\d+\..*_proj") if not n.startswith(inside)]
        with request.levels(view, [*names, *self.left_out]) as levels:
            choice = {n: levels[n][i % len(levels[n])].label for i, n in enumerate(names)}
            levels.switch({**choice, **dict.fromkeys(self.left_out, "dropped")})
            levels.write(view.journal)
            return request.artefact(view, levels=levels)


def quantised(model: nn.Module, provider: Any, left_out: Sequence[str] = ()) -> Artefact:
    methods = [provider, *([Drop()] if left_out else [])]
    return paperhooks.compress(model, InTurn(left_out), levels_from=methods, data=DATA, progress=False)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=dtype).eval()


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("gguf")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_type_comes_back(tmp_path: Path, library: Any, family: str) -> None:
    model = tiny_text(family, layers=2, **FAMILIES[family])
    artefact = quantised(model, Gguf())
    folder = gguf(model, artefact, tmp_path / "out")
    found = read(folder)
    assert found.config.model_type == ("llama" if family == "mistral" else family)
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)
    types = {each.tensor_type.name for each in library.GGUFReader(folder / "model.gguf").tensors}
    assert types == {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_tied_heads(tmp_path: Path, library: Any, dtype: torch.dtype) -> None:
    tiny_text("llama", layers=2, tie_word_embeddings=True).to(dtype).save_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    artefact = quantised(model, Gguf())
    found = read(gguf(model, artefact, tmp_path / "out"), dtype)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(logits(found), logits(model))


@pytest.mark.parametrize("left_out", [["model.layers.1"], ["model.layers.0.self_attn", "model.layers.2"]])
def test_bits_and_drops_together(tmp_path: Path, library: Any, left_out: list[str]) -> None:
    model = tiny_text("llama", layers=3)
    artefact = quantised(model, Gguf(), left_out)
    found = read(gguf(model, artefact, tmp_path / "out"))
    assert found.config.num_hidden_layers == (2 if len(left_out) == 1 else 3)
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("llama", {"widths": (4,), "group": 16}, "in groups of 16; blocks of GGUF"),
        ("llama", {"widths": (3,), "group": 32}, "codes of 3 bits .* K-quants cannot be written"),
        ("llama", {"widths": (4,), "group": 32}, "half precision does not hold, as Q4_1"),
        ("gemma2", {"widths": (4,), "group": 32}, "gguf is written for llama, mistral, qwen2, qwen3"),
    ],
)
def test_what_the_file_cannot_hold_is_refused(
    tmp_path: Path, library: Any, family: str, options: dict[str, Any], said: str
) -> None:
    model = tiny_text(family, layers=1)
    artefact = quantised(model, GPTQ(**options))
    with pytest.raises(ArtefactError, match=said):
        gguf(model, artefact, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_sliding_windows_are_refused(tmp_path: Path, library: Any) -> None:
    model = tiny_text("mistral", layers=1, sliding_window=8)
    artefact = quantised(model, Gguf())
    with pytest.raises(ArtefactError, match="without sliding windows"):
        gguf(model, artefact, tmp_path / "out")


def test_other_positions_are_refused(tmp_path: Path, library: Any) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_text("llama", layers=1, rope_parameters=rope)
    artefact = quantised(model, Gguf())
    with pytest.raises(ArtefactError, match="plain rotary positions"):
        gguf(model, artefact, tmp_path / "out")
