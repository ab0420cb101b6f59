"""Compressed models in folders: read back by transformers, with the same logits, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
import transformers
from paperhooks import Artefact, ArtefactError, DataError, PluginConflict, Traits, hookimpl
from paperhooks.hooks import Levels
from paperhooks.testing import fingerprint, tiny_text, tiny_vlm
from paperhooks.weights import skipped_modules
from paperhooks_evopress.export import load_skipped, skip_list, sparse, stock, zeroed
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
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "mixtral", "gpt_neox")


class Chosen:
    """Brings modules to levels that are given."""

    traits = Traits(writes=frozenset({"weights"}))

    def __init__(self, choose: Callable[[Levels], dict[str, str]], pattern: str) -> None:
        self.choose, self.pattern = choose, pattern

    @hookimpl
    def compression(self, view, request):
        with request.levels(view, [name for name, _ in view.modules(self.pattern)]) as levels:
            levels.switch(self.choose(levels))
            levels.write(view.journal)
            return request.artefact(view, levels=levels)


class Attached:
    """Does nothing."""

    traits = Traits()

    @hookimpl
    def post_layer(self, site):
        return None


def dropped(model: nn.Module, names: Sequence[str]) -> Artefact:
    wanted = dict.fromkeys(names, "dropped")
    pattern = "|".join(names).replace(".", r"\.")
    return paperhooks.compress(model, Chosen(lambda levels: wanted, pattern), levels_from=[Drop()], data=DATA)


def leveled(model: nn.Module, provider: object, pattern: str = r".*layers\.\d+\..*_proj") -> Artefact:
    """Levels in turn."""

    def choose(levels: Levels) -> dict[str, str]:
        return {n: own[i % len(own)].label for i, (n, own) in enumerate(levels.items()) if own}

    return paperhooks.compress(model, Chosen(choose, pattern), levels_from=[provider], data=DATA, progress=False)


def parts(model: nn.Module) -> list[tuple[str, str, str]]:
    """Names of each layer, its attention and its MLP."""
    view = paperhooks.ModelView.from_model(model)
    found: dict[int, dict[str, str]] = {}
    for name, each in view.sublayers.items():
        if not each.refusal:
            found.setdefault(each.layer, {})[each.kind] = name
    return [(found[i]["layer"], found[i]["attention"], found[i]["mlp"]) for i in sorted(found)]


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def read(folder: Path, kernel: str = "sdpa") -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel).eval()


def kernel_of(model: Any) -> str:
    """gemma2 differs by its kernel, and which one is the default has changed."""
    return paperhooks.ModelView.from_model(model).attention_kernel


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_layers_leave_a_stock_model_with_fewer(tmp_path: Path, family: str) -> None:
    model = tiny_text(family)
    layers = parts(model)
    artefact = dropped(model, [layers[1][0], layers[2][1], layers[2][2]])  # the third one by its parts
    folder = stock(model, artefact, tmp_path / "out")
    found = read(folder, kernel_of(model))
    assert type(found) is type(model)
    assert found.config.num_hidden_layers == 2
    assert len(paperhooks.ModelView.from_model(found).layers) == 2
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)
    indices = [m.layer_idx for m in found.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    assert sorted(set(indices)) == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_layer_types_and_index_lists_are_cut(tmp_path: Path) -> None:
    model = tiny_text("gemma3", layers=5, sliding_window=4)
    kinds = list(model.config.layer_types)
    kinds[1] = "full_attention"
    model = tiny_text("gemma3", layers=5, sliding_window=4, layer_types=kinds)
    artefact = dropped(model, [parts(model)[0][0], parts(model)[3][0]])
    found = read(stock(model, artefact, tmp_path / "out"))
    assert found.config.layer_types == [kinds[1], kinds[2], kinds[4]]
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)


def test_index_lists_of_a_mixture_are_renumbered(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, moe_intermediate_size=16, num_experts=2, num_experts_per_tok=1,
        mlp_only_layers=[0, 3], max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    artefact = dropped(model, [parts(model)[1][0]])
    found = read(stock(model, artefact, tmp_path / "out"))
    assert found.config.mlp_only_layers == [0, 2]
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_drops_in_the_stock_architecture_and_as_a_list(tmp_path: Path, family: str) -> None:
    model = tiny_text(family)
    layers = parts(model)
    artefact = dropped(model, [layers[0][1], layers[1][2], layers[3][0]])
    with pytest.raises(ArtefactError, match=r"stock leaves out whole layers.*\.0 only"):
        stock(model, artefact, tmp_path / "stock")
    expected = logits(model)
    zero = read(zeroed(model, artefact, tmp_path / "zeroed"), kernel_of(model))
    assert torch.allclose(logits(zero), expected, atol=1e-5, rtol=0)
    folder = skip_list(model, artefact, tmp_path / "skips")
    found = load_skipped(folder, attn_implementation=kernel_of(model))
    assert set(skipped_modules(found)) == set(artefact.skipped)
    assert torch.allclose(logits(found), expected, atol=1e-5, rtol=0)
    stored = load_file(folder / "model.safetensors")
    assert not [n for n in stored for each in artefact.skipped if n.removeprefix("model.").startswith(f"{each}.")]
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))["per_layer_config"]
    child = layers[0][1].rpartition(".")[2]
    assert told["0"] == {"skip": [child]}
    assert len(told["3"]["skip"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["skips", "zeroed"]


def test_what_a_list_leaves_out_generates_and_holds_no_memory(tmp_path: Path) -> None:
    model = tiny_text("llama")
    layers = parts(model)
    artefact = dropped(model, [layers[0][1], layers[2][0]])
    found = load_skipped(skip_list(model, artefact, tmp_path / "out"))
    options = {"max_new_tokens": 6, "do_sample": False}
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    expected = model.generate(IDS, attention_mask=mask, **options)
    assert torch.equal(found.generate(IDS, attention_mask=mask, **options), expected)
    assert sum(p.numel() for m in skipped_modules(found).values() for p in m.parameters()) == 0
    found.to(torch.float64)
    assert logits(found).dtype == torch.float64


def test_transformers_builds_no_model_by_the_list_yet(tmp_path: Path) -> None:
    """Once it does, the loader of skip lists is of no use any more."""
    model = tiny_text("llama")
    artefact = dropped(model, [parts(model)[1][2]])
    found = read(skip_list(model, artefact, tmp_path / "out"))
    assert isinstance(found.model.layers[1].mlp, type(found.model.layers[0].mlp))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_zeros_are_plain_weights(tmp_path: Path, family: str) -> None:
    model = tiny_text(family, layers=2)
    artefact = leveled(model, SparseGPT(sparsities=(0.5, 0.7)), r".*(layers|h)\.\d+\..*")
    found = read(sparse(model, artefact, tmp_path / "out"), kernel_of(model))
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)
    for name in artefact.edits:
        assert float((found.get_parameter(name) == 0).float().mean()) > 0.45, name


def test_tied_heads_and_dtypes_stay(tmp_path: Path) -> None:
    cast = tiny_text("llama", tie_word_embeddings=True).to(torch.bfloat16)
    cast.save_pretrained(tmp_path / "model")
    model = read(tmp_path / "model")
    artefact = dropped(model, [parts(model)[1][0]])
    found = read(stock(model, artefact, tmp_path / "out"))
    assert found.dtype == torch.bfloat16
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(logits(found), logits(model))
    stock(cast, dropped(cast, [parts(cast)[1][0]]), tmp_path / "cast")  # whose rotary frequencies are rounded too


def test_the_text_part_of_a_vision_language_model(tmp_path: Path) -> None:
    model = tiny_vlm("llava")
    artefact = dropped(model, [parts(model)[0][0]])
    n = model.config.text_config.num_hidden_layers
    found = type(model).from_pretrained(stock(model, artefact, tmp_path / "out")).eval()
    assert found.config.text_config.num_hidden_layers == n - 1
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)


def test_the_model_and_the_random_state_are_as_before(tmp_path: Path) -> None:
    model = tiny_text("llama")
    before = fingerprint(model)
    artefact = dropped(model, [parts(model)[1][1]])
    config, state = model.config.to_dict(), torch.random.get_rng_state()
    zeroed(model, artefact, tmp_path / "a")
    load_skipped(skip_list(model, artefact, tmp_path / "b"))
    assert model.config.to_dict() == config
    assert torch.equal(torch.random.get_rng_state(), state)
    artefact.undo()
    assert fingerprint(model) == before


def test_what_is_not_the_artefacts_model_is_refused(tmp_path: Path) -> None:
    model = tiny_text("llama")
    artefact = dropped(model, [parts(model)[1][1]])
    with pytest.raises(ArtefactError, match=r"self_attn: the artefact skips it, the model does not"):
        zeroed(tiny_text("llama"), artefact, tmp_path / "out")
    with pytest.raises(ArtefactError, match="belongs to a LlamaForCausalLM, not to a GPT2"):
        zeroed(tiny_text("gpt2"), artefact, tmp_path / "out")
    with pytest.raises(ArtefactError, match=r"sparse holds weights alone, and model\.layers\.1\.self_attn"):
        sparse(model, artefact, tmp_path / "out")
    with paperhooks.attach(model, Attached()):
        logits(model)
        with pytest.raises(PluginConflict, match="close the session"):
            zeroed(model, artefact, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match="is there already"):
        zeroed(model, artefact, tmp_path / "full")
    with pytest.raises(DataError, match=r"has no skipped\.json"):
        load_skipped(tmp_path / "full")
    pruned = tiny_text("llama")
    edited = leveled(pruned, SparseGPT(sparsities=(0.5,)))
    with torch.no_grad():
        pruned.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ArtefactError, match=r"0\.mlp\.up_proj\.weight does not hold"):
        sparse(pruned, edited, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_layers_gone_is_refused(tmp_path: Path) -> None:
    model = tiny_text("llama", layers=2)
    artefact = dropped(model, [layer for layer, _, _ in parts(model)])
    with pytest.raises(ArtefactError, match="all layers are left out"):
        stock(model, artefact, tmp_path / "out")
    found = load_skipped(skip_list(model, artefact, tmp_path / "skips"))
    assert torch.allclose(logits(found), logits(model), atol=1e-5, rtol=0)


def test_a_branch_that_does_not_end_in_the_matrix_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny_text("llama")
    artefact = dropped(model, [parts(model)[1][1]])
    monkeypatch.setattr("paperhooks_evopress.export.depth._ENDS", ("q_proj",))
    with pytest.raises(ArtefactError, match=r"gives other logits .*model\.layers\.1\.self_attn"):
        zeroed(model, artefact, tmp_path / "out")
    monkeypatch.setattr("paperhooks_evopress.export.depth._ENDS", ("unknown",))
    with pytest.raises(ArtefactError, match=r"no matrix of model\.layers\.1\.self_attn is known to end it"):
        zeroed(model, artefact, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_rounded_values_of_bits_are_plain_weights_too(tmp_path: Path) -> None:
    model = tiny_text("llama", layers=2)
    artefact = leveled(model, GPTQ(widths=(3, 4), group=16))
    assert torch.allclose(logits(read(sparse(model, artefact, tmp_path / "out"))), logits(model), atol=1e-5, rtol=0)
