"""Log-probabilities with gradients by three ways: one result, whatever is kept."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from paperhooks import ModelView
from paperhooks.logprobs import Head, next_token_labels, rows_in_chunks, sequence_logprobs, token_logprobs
from paperhooks.testing import TEXT_FAMILIES, tiny_llama, tiny_text
from torch import Tensor, nn

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

#: Limits that let a learning head keep all logits, or none.
LIMITS = {"kept": 2**30, "again": 0}
FORMS = {"plain": (False, 1.0, None), "bias": (True, 1.0, None), "scale": (False, 0.5, None), "cap": (True, 1.5, 3.0)}


def ids_of(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(0))


def upstream(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(5))


def exact(hidden: Tensor, module: nn.Linear, targets: Tensor, scale: float, cap: float | None) -> list[Tensor]:
    """Values and gradients by hidden states and parameters, read off the formula in float64."""
    h = hidden.detach().double().requires_grad_()
    parameters = [p.detach().double().requires_grad_() for p in module.parameters()]
    logits = nn.functional.linear(h, *parameters) * scale
    logits = logits if cap is None else cap * (logits / cap).tanh()
    values = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return [values.detach(), *torch.autograd.grad(values @ upstream(len(values)).double(), [h, *parameters])]


def near(found: Tensor, wanted: Tensor, share: float) -> None:
    """Within a share of the largest entry."""
    error, largest = float((found.double() - wanted.double()).abs().max()), float(wanted.abs().max())
    assert error <= share * largest, f"{error / largest:.3g} of the largest"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", [*LIMITS, "made on the way"])
def test_every_way_is_the_formula(way: str, form: str, dtype: torch.dtype) -> None:
    bias, scale, cap = FORMS[form]
    torch.manual_seed(0)
    module = nn.Linear(16, 200, bias=bias).to(dtype)
    hidden, targets = torch.randn(20, 16).to(dtype).requires_grad_(), torch.randint(0, 200, (20,))
    wanted = exact(hidden, module, targets, scale, cap)
    parameters = list(module.parameters())
    if way == "made on the way":
        module.requires_grad_(False)
        parameters = []
    found = token_logprobs(hidden, Head(module, scale, cap), targets, chunk=7, limit=LIMITS.get(way, 0))
    assert found.dtype == torch.float32
    made = torch.autograd.grad(found @ upstream(20), [hidden, *parameters])
    # In half precision the logits themselves are rounded, before anything here sees them.
    shares = {torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
    for one, other in zip([found, *made], wanted, strict=False):
        near(one, other, shares[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_the_ways_differ_by_its_rounding_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, hidden = nn.Linear(16, 200).to(dtype), torch.randn(20, 16).to(dtype).requires_grad_()
    found = []
    for frozen, limit in ((False, 2**30), (False, 0), (True, 0)):
        module.requires_grad_(not frozen)
        values = token_logprobs(hidden, Head(module), torch.arange(20), chunk=7, limit=limit)
        found.append([values.detach(), *torch.autograd.grad(values @ upstream(20), hidden)])
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][1], found[1][1])
    near(found[2][1], found[0][1], 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_gradients_of_every_family_are_those_of_full_logits(family: str) -> None:
    model = tiny_text(family).double().float()
    batch = {"input_ids": ids_of(), "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4])}
    labels = next_token_labels(ModelView.from_model(model), batch)
    wide = copy.deepcopy(model).double()
    if family == "mixtral":
        wide.set_experts_implementation("eager")  # the grouped products know no float64
    logits = wide(**batch, use_cache=False).logits.double()
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    (chosen.where(labels != -100, 0.0).sum(-1) @ upstream(2).double()).backward()
    wanted = {name: p.grad for name, p in wide.named_parameters()}
    for limit in LIMITS.values():
        check_gradients(model, batch, limit, wanted)
    model.get_output_embeddings().requires_grad_(False)  # a tied one with it
    check_gradients(model, batch, 0, wanted)


def check_gradients(model: Any, batch: dict[str, Tensor], limit: int, wanted: dict[str, Tensor]) -> None:
    model.zero_grad()
    (sequence_logprobs(model, batch, chunk=3, limit=limit).sum.float() @ upstream(2)).backward()
    learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    largest = max(float(each.abs().max()) for each in wanted.values() if each is not None)
    for name, found in learning.items():
        if wanted[name] is not None:
            error = float((found.double() - wanted[name].double()).abs().max())
            assert error <= 4e-6 * largest, f"{name}: {error / largest:.3g} of the largest"


def kept_for_backward(work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What ``work`` gives, and the numbers in the different tensors that its graph holds."""
    packed: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = work()
    alive = (each for ref in packed if (each := ref()) is not None and not isinstance(each, nn.Parameter))
    return made, sum({each.data_ptr(): each.numel() for each in alive}.values())


@pytest.mark.parametrize(
    ("frozen", "limit", "copies"),
    [(False, 2**30, 1), (False, 100 * 500 * 4, 1), (False, 100 * 500 * 4 - 1, 0), (True, 2**30, 0), (True, 0, 0)],
)
def test_what_is_kept_is_one_copy_within_the_limit(frozen: bool, limit: int, copies: int) -> None:
    module = nn.Linear(8, 500)
    module.requires_grad_(not frozen)
    hidden, head = torch.randn(100, 8, requires_grad=True), Head(module, 2.0, 5.0)
    found, numbers = kept_for_backward(lambda: token_logprobs(hidden, head, torch.arange(100), chunk=10, limit=limit))
    few = module.weight.numel() + 100 * 8 * 4  # the weight, and hidden states with their gradient
    assert copies * 100 * 500 <= numbers <= copies * 100 * 500 + few
    assert found.requires_grad


def test_a_head_that_nothing_learns_from_runs_once_and_holds_a_chunk() -> None:
    class Counted(nn.Linear):
        rows = 0

        def forward(self, x: Tensor) -> Tensor:
            Counted.rows += len(x)
            return super().forward(x)

    module = Counted(8, 50).requires_grad_(False)
    hidden = torch.randn(40, 8, requires_grad=True)
    token_logprobs(hidden, Head(module), torch.arange(40), chunk=7).sum().backward()
    assert Counted.rows == 41  # and one to see whether anything learns
    Counted.rows = 0
    token_logprobs(hidden.detach(), Head(module), torch.arange(40), chunk=7)
    assert Counted.rows == 41


def test_what_a_hook_adds_to_a_frozen_head_learns() -> None:
    torch.manual_seed(0)
    module, shift = nn.Linear(8, 50).requires_grad_(False), torch.zeros(50, requires_grad=True)
    hidden, targets = torch.randn(5, 8, requires_grad=True), torch.arange(5)
    module.register_forward_hook(lambda _, __, logits: logits + shift)
    head = Head(module)
    assert head.takes_gradient(hidden)
    found = torch.autograd.grad(token_logprobs(hidden, head, targets).sum(), shift)[0]
    wanted = torch.autograd.grad(head.logits(hidden).log_softmax(-1)[range(5), targets].sum(), shift)[0]
    torch.testing.assert_close(found, wanted)


def ways() -> list[tuple[Head, int]]:
    torch.manual_seed(0)
    learning, frozen = Head(nn.Linear(8, 50)), Head(nn.Linear(8, 50).requires_grad_(False))
    return [(learning, 2**30), (learning, 0), (frozen, 0)]


@pytest.mark.parametrize("number", range(3))
def test_a_graph_that_is_kept_is_differentiated_again_and_a_gradient_of_the_gradient_refused(number: int) -> None:
    head, limit = ways()[number]
    hidden = torch.randn(5, 8, requires_grad=True)
    found = token_logprobs(hidden, head, torch.arange(5), limit=limit).sum()
    first = torch.autograd.grad(found, hidden, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(found, hidden, retain_graph=True)[0])
    with pytest.raises(RuntimeError, match=r"create_graph=True.*the model's own logits"):
        torch.autograd.grad(found, hidden, create_graph=True)


@pytest.mark.parametrize("number", range(3))
def test_no_targets_are_part_of_the_graph(number: int) -> None:
    head, limit = ways()[number]
    hidden = torch.randn(2, 3, 8, requires_grad=True)
    found = token_logprobs(hidden, head, torch.full((2, 3), -100), limit=limit)
    assert not bool(found.any())
    assert not bool(torch.autograd.grad(found.sum(), hidden)[0].any())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("limit", LIMITS.values())
def test_gradient_checkpointing_changes_nothing(reentrant: bool, frozen: bool, limit: int) -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny_llama().train()
        model.lm_head.requires_grad_(not frozen)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        sequence_logprobs(model, {"input_ids": ids_of()}, chunk=3, limit=limit).sum.sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, each in found[0].items():
        torch.testing.assert_close(found[1][name], each, msg=name)


@pytest.mark.parametrize("on_head", [True, False])
def test_adapters_learn_the_same(on_head: bool) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    targets = ["q_proj"] + ["lm_head"] * on_head
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    found = []
    for limit in LIMITS.values():
        model.zero_grad()
        sequence_logprobs(model, {"input_ids": ids_of()}, chunk=3, limit=limit).sum.sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    ids = ids_of()
    model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).sum().backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for each in found:
        assert each.keys() == wanted.keys()
        for name, grad in wanted.items():
            torch.testing.assert_close(each[name], grad, rtol=1e-4, atol=1e-5, msg=name)


def test_autocast_and_a_limit_that_cannot_be_meant() -> None:
    hidden, head = torch.randn(5, 8, requires_grad=True), ways()[0][0]
    with torch.autocast("cpu", torch.bfloat16):
        kept, again = (token_logprobs(hidden, head, torch.arange(5), limit=limit) for limit in (2**30, 0))
    one, other = (torch.autograd.grad(each.sum(), hidden)[0] for each in (kept, again))
    assert torch.equal(kept, again)
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="limit is -1"):
        token_logprobs(hidden, head, torch.arange(5), limit=-1)
    with pytest.raises(ValueError, match="chunk is 0"):
        rows_in_chunks(head.logprobs, 0, hidden, torch.arange(5))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("limit", LIMITS.values())
def test_on_an_accelerator(emulated: Any, frozen: bool, limit: int) -> None:
    found = []
    for place in ("cpu", emulated):
        model = tiny_llama().to(place)
        model.lm_head.requires_grad_(not frozen)
        batch = {"input_ids": ids_of().to(place), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).to(place)}
        values = sequence_logprobs(model, batch, chunk=3, limit=limit).sum
        assert values.device.type == torch.device(place).type
        values.sum().backward()
        found.append([values.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0][0]) == 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-4, atol=1e-5)
