"""The methods that offer levels: their contract, families, costs, and the pass over the data behind the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from paperhooks import CompressionRequest, DataError, HookError, ModelView, UnsupportedModel
from paperhooks.hooks import Levels
from paperhooks.models import InputMoments, LayerCalls, calibrate
from paperhooks.testing import LevelsContract, fingerprint, tiny_llama, tiny_text
from paperhooks.weights import Masked, Quantised
from paperhooks_evopress.levels import (
    GPTQ,
    Gguf,
    SparseGPT,
)
from paperhooks_evopress.levels import (
    SublayerDrop as Drop,
)
from paperhooks_evopress.levels.feedback import Feedback
from paperhooks_evopress.levels.gptq import quantise
from paperhooks_evopress.levels.grids import Grid
from paperhooks_evopress.levels.sparsegpt import prune
from torch import Tensor, nn

FAMILIES = ("llama", "gpt2", "phi3", "gpt_neox", "mixtral")
DATA = [[5, 6, 7, 8], [9, 10], [11, 12, 13], list(range(20, 44))]
UNITS = r".*(layers|h)\.\d+(\..*)?"
METHODS = {
    "gptq": lambda: GPTQ(widths=(2, 3, 4), group=16),
    "gptq rows": lambda: GPTQ(widths=(3, 8), group=None, calibration_width=None, act_order=True),
    "gptq ragged": lambda: GPTQ(widths=(4, 5), group=12, symmetric=True, calibration_width=2),
    "sparsegpt": lambda: SparseGPT(sparsities=(0.0, 0.5, 0.77, 1.0)),
    "sparsegpt steps": lambda: SparseGPT(around=0.6, step=300, steps=2),
    "gguf": lambda: Gguf(),
    "drop": lambda: Drop(),
}


class TestGPTQ(LevelsContract):
    def make(self) -> object:
        return GPTQ(widths=(2, 3, 6), group=16)


class TestSparseGPT(LevelsContract):
    def make(self) -> object:
        return SparseGPT()


class TestGguf(LevelsContract):
    def make(self) -> object:
        return Gguf()


class TestDrop(LevelsContract):
    modules = r"model\.layers\.\d+(\.(self_attn|mlp))?"

    def make(self) -> object:
        return Drop()


class TestGPTQOfExperts(TestGPTQ):
    modules = UNITS

    def model(self) -> nn.Module:
        return tiny_text("mixtral", layers=2)


class TestSparseGPTOfFusedMatrices(TestSparseGPT):
    modules = UNITS

    def model(self) -> nn.Module:
        return tiny_text("phi3", layers=2)


def levels_of(model: nn.Module, method: Any, data: Any = DATA, pattern: str = UNITS) -> Levels:
    """What a method offers for the modules in a model's layers."""
    view, offer = ModelView.from_model(model), method.compression_levels
    if isinstance(method, Drop):
        offer = lambda view, modules, request: method.compression_levels(view, modules)  # noqa: E731
    request = CompressionRequest("test", data=data, offers=[offer], progress=False)
    return request.levels(view, [name for name, _ in view.modules(pattern)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, method: str) -> None:
    """Every matrix has its levels, at the exact cost; the whole model stands at them, and is as before afterwards."""
    model = tiny_text(family, layers=2)
    before, own = fingerprint(model), logits(model)
    levels = levels_of(model, METHODS[method]())
    offered = {name: each for name, each in levels.items() if each}
    if method == "gguf" and family == "gpt2":
        assert not offered
        return
    linear = [n for n, m in model.named_modules() if n in levels and type(m).__name__ in ("Linear", "Conv1D")]
    experts = [n for n, _ in model.named_modules() if n.endswith("mlp.experts")]
    if method == "drop":
        assert len(offered) == 6
    else:
        assert sorted(offered) == sorted([*linear, *experts])
        assert len(experts) == (2 if family == "mixtral" else 0)
    with levels:
        levels.prepare(progress=False)
        for name, each in offered.items():
            for level in each:
                if level.prepare is not None:
                    held = sum(values.nbytes for values in levels.packed(name, level.label).values())
                    assert level.cost["bytes"] == held + rest_of(model, name, levels, level)
        for choose in (0, -1):
            levels.switch({name: each[choose].label for name, each in offered.items()})
            assert bool(logits(model).isfinite().all())
        assert not torch.equal(logits(model), own)
    assert fingerprint(model) == before
    assert torch.equal(logits(model), own)


def rest_of(model: nn.Module, name: str, levels: Levels, level: Any) -> int:
    """Bytes of a module's parameters that a level has no values for."""
    packed = levels.packed(name, level.label)
    return sum(p.nbytes for n, p in model.get_submodule(name).named_parameters() if n not in packed)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for method in (GPTQ(widths=(3,), group=16), SparseGPT(sparsities=(0.5,)), Gguf()):
        model = tiny_llama(layers=1).to(dtype)
        levels = levels_of(model, method)
        for name, own in levels.items():
            for level in own:
                (packed,) = levels.packed(name, level.label).values()
                assert packed.unpack().dtype == dtype
                assert bool(packed.unpack().isfinite().all())
                assert level.cost["bytes"] == packed.nbytes


def test_costs() -> None:
    model = tiny_llama(layers=1)
    name = "model.layers.0.mlp.up_proj"
    n = model.get_submodule(name).weight.numel()
    levels = levels_of(model, SparseGPT(sparsities=(0.0, 0.3)))
    assert levels[name][0].cost == {"bytes": 4 * n, "codes": 4 * n, "parameters": n, "flops": 2 * n, "zeros": 0}
    zeros = round(0.3 * n)
    assert levels[name][1].cost == {
        "bytes": 4 * (n - zeros) + n // 8, "codes": 4 * (n - zeros), "parameters": n - zeros,
        "flops": 2 * (n - zeros), "zeros": zeros,
    }  # fmt: skip
    packed = levels.packed(name, "sparsity 0.3")["weight"]
    assert isinstance(packed, Masked)
    assert len(packed.values) == n - zeros
    assert levels[name][0].prepare is None
    levels = levels_of(model, GPTQ(widths=(3,), group=16))
    assert levels[name][0].cost == {
        "bytes": 3 * n // 8 + 5 * (n // 16), "codes": 3 * n // 8, "parameters": n, "flops": 2 * n,
    }  # fmt: skip


def test_levels_of_one_step_trade_exactly() -> None:
    levels = levels_of(tiny_llama(layers=2), SparseGPT(around=0.7, step=100, steps=3))
    for name in (name for name, own in levels.items() if own):
        own, n = levels[name], levels.own_cost(name)["parameters"]
        zeros = {level.label: level.cost["zeros"] for level in own}
        assert zeros["sparsity 0.7"] == round(0.7 * n)
        assert {b - a for a, b in pairwise(zeros.values())} == {100}
        assert len(own) == min(round(0.7 * n) // 100, 3) + min((n - round(0.7 * n)) // 100, 3) + 1


# -- what the values are made from ------------------------------------------------------------------------------------


@contextmanager
def counted_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Layers that are run one by one."""
    runs: list[tuple[int, int]] = []
    run = LayerCalls.run

    def note(self: LayerCalls, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        runs.append((start, stop or len(self)))
        return run(self, hidden, start, stop)

    with monkeypatch.context() as patched:
        patched.setattr(LayerCalls, "run", note)
        yield runs


def moments_of(model: nn.Module, names: list[str]) -> InputMoments:
    moments, view = InputMoments(), ModelView.from_model(model)
    calibrate(view, CompressionRequest("test", data=DATA).batches(), names, moments.receive, progress=False)
    return moments


def test_pruned_with_hessians_of_the_dense_model() -> None:
    model = tiny_llama(layers=3)
    levels = levels_of(model, SparseGPT(sparsities=(0.6,)))
    names = [name for name, own in levels.items() if own]
    moments = moments_of(model, names)
    for name in names:
        weight = model.get_submodule(name).weight.detach()
        ((wanted, _),) = prune(weight.T, Feedback.of(moments[name]), [round(0.6 * weight.numel())])
        found = levels.packed(name, "sparsity 0.6")["weight"].unpack()
        assert float(((found == 0) != (wanted.T == 0)).float().mean()) < 0.002
        close = (found - wanted.T).abs() < 1e-4
        assert float(close.float().mean()) > 0.99


@pytest.mark.parametrize("width", [None, 2])
def test_quantised_with_hessians_of_the_layers_before_at_the_calibration_width(width: int | None) -> None:
    model, stepped = tiny_llama(layers=3), tiny_llama(layers=3)
    levels = levels_of(model, GPTQ(widths=(2, 4), group=16, calibration_width=width))
    names = [name for name, own in levels.items() if own]
    for layer in range(3):
        inside = [name for name in names if name.startswith(f"model.layers.{layer}.")]
        moments = moments_of(stepped, inside)
        for name in inside:
            weight = model.get_submodule(name).weight.detach()
            for bits, codes in zip(
                (2, 4), quantise(weight.T, Feedback.of(moments[name]), (2, 4), Grid(), group=16), strict=True
            ):
                found = levels.packed(name, f"{bits} bits")["weight"]
                assert isinstance(found, Quantised)
                assert float((found.codes() != codes.codes.T).float().mean()) < 0.005
                if bits == width:
                    stepped.get_submodule(name).weight.data.copy_(found.unpack())


def test_each_expert_has_its_own_hessian() -> None:
    model = tiny_text("mixtral", layers=1)
    levels = levels_of(model, SparseGPT(sparsities=(0.5,)))
    name = "model.layers.0.mlp.experts"
    values = levels.packed(name, "sparsity 0.5")
    experts, rows = model.get_submodule(name), {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        hidden, index = args[0], args[1]
        for expert in range(experts.num_experts):
            rows.setdefault(expert, []).append(hidden[(index == expert).any(-1)])

    hook = experts.register_forward_pre_hook(keep)
    with torch.no_grad():
        for ids in DATA:  # one by one: without padding
            model(input_ids=torch.tensor([ids]))
    hook.remove()
    for expert in range(experts.num_experts):
        read = torch.cat(rows[expert])
        weight = experts.gate_up_proj[expert].detach()
        zeros = int((values["gate_up_proj"].unpack()[expert] == 0).sum())
        assert abs(zeros - weight.numel() / 2) <= 1
        ((wanted, _),) = prune(weight.T, Feedback.of(read.T @ read), [zeros])
        close = (values["gate_up_proj"].unpack()[expert] - wanted.T).abs() < 1e-4
        assert float(close.float().mean()) > 0.99


def test_padding_counts_for_nothing() -> None:
    """One batch of padded rows, finished as a user may give it, against rows alone."""
    for family in ("llama", "mixtral"):
        ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
        batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        found = []
        for data in ([[5, 6, 7, 8], [9, 10]], [batch]):
            levels = levels_of(tiny_text(family, layers=2), GPTQ(widths=(3,), group=16), data)
            found.append({n: levels.packed(n, "3 bits") for n, own in levels.items() if own})
        for name, values in found[0].items():
            for parameter, packed in values.items():
                other = found[1][name][parameter].unpack()
                assert float((packed.unpack() - other).abs().gt(1e-4).float().mean()) < 0.02, name


@pytest.mark.parametrize(
    ("make", "runs_of_layers"),
    [(lambda: SparseGPT(sparsities=(0.4, 0.6)), 4), (lambda: GPTQ(widths=(2, 3), group=16), 4 + 3)],
)
def test_data_are_read_once_in_order_and_twice_in_no_order(
    make: Any, runs_of_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = levels_of(tiny_llama(layers=4), make())
    names = [name for name, own in levels.items() if own]
    with counted_runs(monkeypatch) as runs:
        levels.prepare(progress=False)
    assert len(runs) == len(DATA) * runs_of_layers
    mixed = levels_of(tiny_llama(layers=4), make())
    with counted_runs(monkeypatch) as runs:
        for name in (*names[14:21], *names[3:5], *names[21:], *names[:14]):
            for level in mixed[name]:
                one, other = (each.packed(name, level.label)["weight"] for each in (levels, mixed))
                assert torch.equal(one.unpack(), other.unpack())
    assert len(runs) <= 2 * len(DATA) * runs_of_layers


def test_values_do_not_depend_on_what_is_asked_beside_them() -> None:
    """Nor on where the rest of the model stands when they are asked for first."""
    make = {"all": (2, 3, 4, 6), "one": (4,)}
    found = {}
    for side, widths in make.items():
        model = tiny_llama(layers=2)
        both = levels_of(model, SparseGPT(sparsities=(0.9,))) if side == "one" else None
        levels = levels_of(model, GPTQ(widths=widths, group=16))
        names = [name for name, own in levels.items() if own]
        if both is not None:
            both.switch({name: "sparsity 0.9" for name in names if ".layers.0.mlp" in name})
        found[side] = {name: levels.packed(name, "4 bits")["weight"].unpack() for name in names}
        if both is not None:
            assert set(both.choice) == {name for name in names if ".layers.0.mlp" in name}
            both.restore()
    assert all(torch.equal(found["all"][name], found["one"][name]) for name in found["all"])


def test_prepared_levels_are_kept_and_gone_on_with(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(layers=3)
    before = fingerprint(model)
    whole = levels_of(model, GPTQ(widths=(2, 3), group=16))
    whole.prepare(progress=False)
    levels = levels_of(model, GPTQ(widths=(2, 3), group=16))
    names = [name for name, own in levels.items() if own]
    packed, asked = Levels.packed, []

    def until(self: Levels, name: str, label: str) -> Any:
        asked.append(name)
        if name == names[9]:
            raise KeyboardInterrupt
        return packed(self, name, label)

    with monkeypatch.context() as patched:
        patched.setattr(Levels, "packed", until)
        with pytest.raises(KeyboardInterrupt):
            levels.prepare(tmp_path, progress=False)
    assert fingerprint(model) == before
    again = levels_of(model, GPTQ(widths=(2, 3), group=16))
    again.prepare(tmp_path, progress=False)
    for name in names:
        for level in whole[name]:
            one, other = (each.packed(name, level.label)["weight"] for each in (whole, again))
            assert torch.equal(one.unpack(), other.unpack())
    assert fingerprint(model) == before


def test_an_interrupted_pass_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(layers=3)
    before, calls = fingerprint(model), []
    levels = levels_of(model, GPTQ(widths=(2, 3), group=16))
    names = [name for name, own in levels.items() if own]
    add = InputMoments.receive

    def interrupted(self: InputMoments, *read: Any) -> None:
        calls.append(read[0])
        if len(calls) == 60:
            raise KeyboardInterrupt
        add(self, *read)

    with monkeypatch.context() as patched:
        patched.setattr(InputMoments, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            levels.prepare(progress=False)
    assert fingerprint(model) == before
    levels.prepare(progress=False)
    whole = levels_of(tiny_llama(layers=3), GPTQ(widths=(2, 3), group=16))
    for name in names:
        assert torch.equal(
            levels.packed(name, "2 bits")["weight"].unpack(), whole.packed(name, "2 bits")["weight"].unpack()
        )


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_made_is_refused_by_name() -> None:
    model = tiny_llama(layers=1)
    with pytest.raises(DataError, match="needs calibration data"):
        levels_of(model, GPTQ(), None)
    with pytest.raises(DataError, match="calibration"):
        levels_of(model, SparseGPT(), {"heldout": DATA})
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[0, 0] = torch.nan
    for method in (GPTQ(widths=(3,)), SparseGPT(sparsities=(0.5,)), Gguf()):
        levels = levels_of(model, method)
        with pytest.raises(DataError, match=r"layers\.0\.mlp\.up_proj\.weight|second moments"):
            levels.prepare(progress=False)
    model = tiny_llama(layers=1)
    model.model.layers[0].mlp.up_proj.weight.data.abs_()
    levels = levels_of(model, GPTQ(widths=(3,), group=16, range_includes_zero=False, damping=100.0))
    model.model.layers[0].mlp.up_proj.weight.data.add_(1.0)
    with pytest.raises(DataError, match=r"up_proj\.weight: a group of weights of one sign .* range_includes_zero=True"):
        levels.packed("model.layers.0.mlp.up_proj", "3 bits")


def test_a_model_that_moved_since_is_refused() -> None:
    model = tiny_llama(layers=2)
    levels = levels_of(model, GPTQ(widths=(3,), group=16))
    model.to(torch.bfloat16)
    with pytest.raises(HookError, match=r"was torch.float32 on cpu when levels were offered, and is torch.bfloat16"):
        levels.packed("model.layers.0.mlp.up_proj", "3 bits")
    model = tiny_llama(layers=2)
    levels, drop = levels_of(model, GPTQ(widths=(3,), group=16)), levels_of(model, Drop())
    with drop:
        drop.switch({"model.layers.0.self_attn": "dropped"})
        with pytest.raises(HookError, match=r"model.layers.0.self_attn was skipped .* levels.prepare\(\)"):
            levels.packed("model.layers.0.mlp.up_proj", "3 bits")
    assert levels.packed("model.layers.0.mlp.up_proj", "3 bits")


def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"layers\.0\..* are on the device meta"):
        levels_of(tiny_llama(layers=1).to("meta"), GPTQ())


def test_matrices_outside_of_the_layers_have_no_level() -> None:
    for method in (GPTQ(), SparseGPT()):
        assert not any(levels_of(tiny_llama(layers=1), method, pattern="lm_head").values())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GPTQ(widths=(0,)), "widths"),
        (lambda: GPTQ(widths=(9,)), "widths"),
        (lambda: GPTQ(group=0), "group"),
        (lambda: GPTQ(calibration_width=9), "calibration_width"),
        (lambda: GPTQ(damping=0), "damping"),
        (lambda: GPTQ(symmetric="yes"), "symmetric"),
        (lambda: SparseGPT(sparsities=(1.5,)), "sparsities"),
        (lambda: SparseGPT(sparsities=(float("nan"),)), "sparsities"),
        (lambda: SparseGPT(around=-0.1), "around"),
        (lambda: SparseGPT(step=0), "step"),
        (lambda: Gguf(types=("Q4_K",)), "types is 'Q4_K'"),
    ],
)
def test_wrong_options(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
