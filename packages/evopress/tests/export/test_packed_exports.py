"""Quantised models as compressed-tensors stores them, read back by transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
import transformers
from paperhooks import Artefact, ArtefactError, DataError, Traits, hookimpl
from paperhooks.errors import MissingExtra
from paperhooks.testing import tiny_text
from paperhooks_evopress.export import compressed_tensors, load_packed
from paperhooks_evopress.levels import (
    GPTQ,
    SparseGPT,
)
from paperhooks_evopress.levels import (
    SublayerDrop as Drop,
)
from safetensors.torch import load_file
from torch import Tensor, nn

IDS = torch.tensor([[5, 6, 7, 8, 9, 41, 12, 3], [9, 3, 44, 51, 60, 2, 2, 7]])
DATA = [list(range(3, 40)), list(range(20, 64))]


def holds_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


class InTurn:
    """Brings modules to their levels in turn, and leaves out those that are named."""

    traits = Traits(writes=frozenset({"weights"}))

    def __init__(self, left_out: Sequence[str] = ()) -> None:
        self.left_out = tuple(left_out)

    @hookimpl
    def compression(self, view, request):
        names = [n for n, m in view.modules(r".*(layers|h)\.\d+\..*") if holds_matrices(m)]
        with request.levels(view, [*names, *self.left_out]) as levels:
            choice = {n: levels[n][i % len(levels[n])].label for i, n in enumerate(names) if levels[n]}
            inside = tuple(f"{name}." for name in self.left_out)
            choice = {n: label for n, label in choice.items() if not n.startswith(inside)}
            levels.switch({**choice, **dict.fromkeys(self.left_out, "dropped")})
            levels.write(view.journal)
            return request.artefact(view, levels=levels)


def quantised(model: nn.Module, *providers: Any, left_out: Sequence[str] = ()) -> Artefact:
    methods = [*providers, *([Drop()] if left_out else [])]
    return paperhooks.compress(model, InTurn(left_out), levels_from=methods, data=DATA, progress=False)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def read(folder: Path, transformers_reads: bool = False) -> Any:
    if not transformers_reads:
        return load_packed(folder).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("compressed_tensors")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("widths", [(2, 3, 4), (5, 6, 7, 8)])
def test_every_width_comes_back(tmp_path: Path, library: Any, symmetric: bool, widths: tuple[int, ...]) -> None:
    model = tiny_text("llama", layers=2)
    artefact = quantised(model, GPTQ(widths=widths, group=16, symmetric=symmetric))
    folder = compressed_tensors(model, artefact, tmp_path / "out")
    assert torch.allclose(logits(read(folder, symmetric)), logits(model), atol=1e-5, rtol=0)
    assert torch.allclose(logits(load_packed(folder)), logits(model), atol=1e-5, rtol=0)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    groups = told["config_groups"].values()
    assert {g["weights"]["num_bits"] for g in groups} == set(widths)
    assert {g["weights"]["symmetric"] for g in groups} == {symmetric}
    assert sorted(t for g in groups for t in g["targets"]) == sorted(n.removesuffix(".weight") for n in artefact.edits)
    stored = load_file(folder / "model.safetensors")
    for name, edit in artefact.edits.items():
        assert name not in stored
        codes = stored[f"{name.removesuffix('.weight')}.weight_packed"]
        assert codes.numel() * 32 == edit.entries * edit.packed.width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_half_precision_and_whole_rows(tmp_path: Path, library: Any, dtype: torch.dtype, symmetric: bool) -> None:
    tiny_text("qwen2", layers=2).to(dtype).save_pretrained(tmp_path / "model")
    model = read(tmp_path / "model", True)
    artefact = quantised(model, GPTQ(widths=(3, 4, 8), group=None, symmetric=symmetric))
    folder = compressed_tensors(model, artefact, tmp_path / "out")
    assert torch.equal(logits(read(folder, symmetric)), logits(model))
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert {g["weights"]["strategy"] for g in told["config_groups"].values()} == {"channel"}


@pytest.mark.parametrize("left_out", [["model.layers.1"], ["model.layers.0.self_attn", "model.layers.2"]])
def test_bits_and_drops_together(tmp_path: Path, library: Any, left_out: list[str]) -> None:
    model = tiny_text("llama", layers=3)
    artefact = quantised(model, GPTQ(widths=(3, 4), group=32, symmetric=True), left_out=left_out)
    found = read(compressed_tensors(model, artefact, tmp_path / "out"), True)
    assert found.config.num_hidden_layers == (2 if len(left_out) == 1 else 3)
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)


def test_fused_matrices(tmp_path: Path, library: Any) -> None:
    model = tiny_text("phi3", layers=2)
    artefact = quantised(model, GPTQ(widths=(4,), group=16))
    found = read(compressed_tensors(model, artefact, tmp_path / "out"))
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("llama", {"widths": (1,), "group": 16}, "codes of 1 bit"),
        ("llama", {"widths": (4,), "group": 24}, "32 columns in groups of 24"),
        ("gpt2", {"widths": (4,), "group": 16}, "belongs to a Conv1D"),
        ("mixtral", {"widths": (4,), "group": 16}, "belongs to a MixtralExperts"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, library: Any, family: str, options: dict[str, Any], said: str
) -> None:
    model = tiny_text(family, layers=1)
    artefact = quantised(model, GPTQ(**options))
    with pytest.raises(ArtefactError, match=said):
        compressed_tensors(model, artefact, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_transformers_reads_zeros_before_5_23_alone(tmp_path: Path, library: Any) -> None:
    """Once it does again, the loader of packed weights is of no use any more."""
    model = tiny_text("llama", layers=1)
    folder = compressed_tensors(model, quantised(model, GPTQ(widths=(4,), group=16)), tmp_path / "out")
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        assert torch.allclose(logits(read(folder, True)), logits(model), atol=1e-5, rtol=0)
    else:
        with pytest.raises(RuntimeError, match="ismatch"):
            read(folder, True)


def test_other_folders_are_refused(tmp_path: Path, library: Any) -> None:
    with pytest.raises(DataError, match="holds no weights in the format pack-quantized"):
        load_packed(tmp_path)


def test_without_codes_there_is_nothing_to_pack(tmp_path: Path, library: Any) -> None:
    model = tiny_text("llama", layers=1)
    artefact = quantised(model, SparseGPT(sparsities=(0.5,)))
    with pytest.raises(ArtefactError, match="nothing in this artefact is quantised"):
        compressed_tensors(model, artefact, tmp_path / "out")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "compressed_tensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    model = tiny_text("llama", layers=1)
    with pytest.raises((MissingExtra, ImportError), match="compressed"):
        compressed_tensors(model, quantised(model, GPTQ(widths=(4,), group=16)), tmp_path / "out")
