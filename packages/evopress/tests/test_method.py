"""A search from the call to the artefact: every kind of target, interrupted, resumed, undone."""

from __future__ import annotations

import json
from pathlib import Path

import paperhooks
import pytest
import torch
from paperhooks import Artefact, DataError, Level, Traits, hookimpl
from paperhooks.testing import fingerprint, tiny_llama, tiny_text
from paperhooks.weights import Dense
from paperhooks_evopress import (
    GPTQ,
    EvoPress,
    SparseGPT,
)
from paperhooks_evopress import (
    SublayerDrop as Drop,
)
from torch import nn

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def texts(n: int = 12, length: int = 24) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (length + i,), generator=generator).tolist() for i in range(n)]


def search(**options) -> EvoPress:
    return EvoPress(**{"schedule": "quick", "generations": 2, "check_model": False, **options})


def compressed(model: nn.Module, target: str, **options) -> Artefact:
    given = {"data": texts(), "target": target, "progress": False, **options}
    return paperhooks.compress(model, given.pop("method", None) or search(), **given)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("target", "methods"),
    [
        ("depth=0.5", {"drop"}),
        ("sparsity=0.5", {"sparsegpt"}),
        ("bits=3", {"gptq"}),
        ("bits=2.5", {"gptq"}),
        ("bytes=52kB", None),
        ("parameters=0.7", None),
        ("flops=0.7", {"drop"}),
    ],
)
def test_every_target_ends_in_an_artefact_within_its_budget(tmp_path: Path, target: str, methods) -> None:
    model, fresh = tiny_llama(layers=3), tiny_llama(layers=3)
    before = fingerprint(model)
    artefact = compressed(model, target, out=tmp_path / "run")
    told = artefact.data
    if methods is not None:
        assert {each["method"] for each in told["levels"].values()} == methods
    budgets = told["budget"] if isinstance(told["budget"], dict) else {"": told["budget"]}
    assert told["cost"] <= sum(budgets.values()) * (1 + 1e-9)
    assert told["final"] <= told["first"] + 1e-6
    wanted = model(IDS).logits
    Artefact.load(tmp_path / "run").apply(fresh)
    assert torch.equal(fresh(IDS).logits, wanted)
    artefact.undo()
    assert fingerprint(model) == before


def test_depths_leave_out_equally_many_attentions_and_mlps() -> None:
    model = tiny_llama(layers=4)
    artefact = compressed(model, "depth=0.5")
    assert sum(name.endswith("self_attn") for name in artefact.skipped) == 2
    assert sum(name.endswith("mlp") for name in artefact.skipped) == 2
    artefact.undo()
    artefact = compressed(model, "depth=1", method=search(whole_layers=True))
    assert [name.rpartition(".")[0] for name in artefact.skipped] == ["model.layers"]
    artefact.undo()


def test_the_sum_of_zeros_is_that_of_the_target() -> None:
    model = tiny_llama(layers=2)
    artefact = compressed(model, "sparsity=0.5")
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in artefact.edits)
    size = sum(model.get_parameter(name).numel() for name in artefact.edits)
    assert zeros == size // 2
    artefact.undo()


def test_fused_matrices_have_one_level() -> None:
    model = tiny_llama(layers=3)
    artefact = compressed(model, "bits=3", method=search(fuse="vllm", generations=4))
    labels = {name: each["label"] for name, each in artefact.data["levels"].items()}
    for layer in range(3):
        for together in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ):
            assert len({labels[f"model.layers.{layer}.{name}"] for name in together}) == 1
    artefact.undo()


def test_an_interrupted_search_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paperhooks_evopress import algorithm

    whole = compressed(tiny_llama(layers=3), "bits=3", out=tmp_path / "whole")
    real, count = algorithm.Evolution._step, [0]

    def late(self):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return real(self)

    model = tiny_llama(layers=3)
    before = fingerprint(model)
    monkeypatch.setattr(algorithm.Evolution, "_step", late)
    with pytest.raises(KeyboardInterrupt):
        compressed(model, "bits=3", out=tmp_path / "cut")
    monkeypatch.undo()
    assert fingerprint(model) == before
    assert len(json.loads((tmp_path / "cut" / "search.json").read_text())["history"]) == 2
    resumed = compressed(model, "bits=3", out=tmp_path / "cut")
    for key in ("levels", "final", "first", "cost"):
        assert resumed.data[key] == whole.data[key], key
    one, two = (tmp_path / name / "artefact.safetensors" for name in ("whole", "cut"))
    assert Artefact.load(one).edits.keys() == Artefact.load(two).edits.keys()
    resumed.undo()


class LowRank:
    """A fourth kind of levels, of which the search knows nothing: the weight by its largest singular values."""

    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression_levels(self, modules):
        def made(module: nn.Linear, rank: int):
            u, s, v = torch.linalg.svd(module.weight.detach(), full_matrices=False)
            return {"weight": Dense((u[:, :rank] * s[:rank]) @ v[:rank])}

        found = {}
        for name, module in modules.items():
            if isinstance(module, nn.Linear):
                rows, columns = module.weight.shape
                found[name] = [
                    Level(
                        "lowrank", f"rank {r}", {"parameters": r * (rows + columns)}, lambda m=module, r=r: made(m, r)
                    )
                    for r in (2, 4, 8)
                ]
        return found


def test_levels_of_another_kind_are_searched_without_a_change() -> None:
    model = tiny_llama(layers=2)
    artefact = compressed(model, "parameters=0.5", levels_from=[LowRank()])
    assert {each["method"] for each in artefact.data["levels"].values()} == {"lowrank"}
    assert artefact.data["cost"] <= artefact.data["budget"]
    artefact.undo()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "mixtral", "gemma3"])
def test_other_families_are_searched(family: str) -> None:
    model = tiny_text(family, layers=2)
    before = fingerprint(model)
    for target in ("depth=0.5", "bits=3"):
        artefact = compressed(model, target)
        assert artefact.applicable
        artefact.undo()
        assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("target", "levels", "said"),
    [
        ("bits=1.5", (), "cannot be met"),
        ("bits=7", (), "above what the levels that are offered reach"),
        ("bytes=10kB", (), "parts without levels"),
        ("depth=0.5", (GPTQ(),), "nobody offers"),
        ("depth=9", (), "leaves out 9 of 2 modules of the kind 'attention', and 2 can be"),
        ("nothing", (), "expected one of: depth="),
    ],
)
def test_targets_outside_of_what_levels_allow_are_refused(target: str, levels, said: str) -> None:
    model = tiny_llama(layers=2)
    before = fingerprint(model)
    with pytest.raises(DataError, match=said):
        compressed(model, target, levels_from=levels)
    assert fingerprint(model) == before


def test_text_that_cannot_be_used_is_refused() -> None:
    for data, said in (([], "data"), ([[5]], "(no|fewer|token)")):
        with pytest.raises(DataError, match=said):
            compressed(tiny_llama(layers=2), "bits=3", data=data)
    with pytest.raises(DataError, match="itself has a perplexity of"):
        compressed(tiny_llama(layers=2), "bits=3", method=search(check_model=True))


def test_options_that_cannot_be_meant_are_refused() -> None:
    for options, said in (
        ({"schedule": "fast"}, "schedule is 'fast'"),
        ({"fitness": "loss"}, "fitness"),
        ({"generations": -1}, "generations"),
        ({"offspring": 0}, "offspring"),
        ({"fuse": True}, "fuse"),
    ):
        with pytest.raises(ValueError, match=said):
            EvoPress(**options)


def test_mixed_methods_share_one_budget() -> None:
    model = tiny_llama(layers=3)
    levels = [Drop(), GPTQ(widths=(2, 4)), SparseGPT(sparsities=(0.0, 0.5))]
    artefact = compressed(model, "bytes=50kB", levels_from=levels, method=search(generations=4))
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    assert artefact.data["cost"] <= artefact.data["budget"] < whole
    artefact.undo()
