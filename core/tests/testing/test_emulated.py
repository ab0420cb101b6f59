"""The emulated accelerator: devices told apart, waits counted, models, autograd, checkpointing, autocast and files."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from paperhooks.errors import LibraryBroken
from paperhooks.io import model_digest, tensor_digest
from paperhooks.testing import compat, emulated_accelerator, fingerprint, host_waits, tiny_text
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

pytest_plugins = ["paperhooks.testing.fixtures"]

OTHER = "emulated:1"


def refused(action) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        action()


def test_tensors_say_where_they_lie(emulated) -> None:
    made = [
        torch.tensor([1, 2], device=OTHER),
        torch.as_tensor([1, 2], device=OTHER),
        torch.zeros(2, device=OTHER),
        torch.zeros(2).to(OTHER),
        torch.zeros(2, device=emulated).to(OTHER),
        torch.zeros(2, device=emulated).to(OTHER, torch.float16),
        torch.zeros(2, device=emulated).to(torch.zeros(1, device=OTHER)),
        torch.zeros(2, device=OTHER).new_tensor([1.0]),
        torch.zeros(2, device=OTHER).new_zeros(3),
        torch.zeros_like(torch.zeros(2, device=OTHER)).double(),
        torch.zeros_like(torch.zeros(2, device=emulated), device=OTHER),
    ]
    assert [str(each.device) for each in made] == [OTHER] * len(made)
    assert made[5].dtype == torch.float16
    assert torch.zeros(2, device=OTHER).to(emulated).device == torch.zeros(2, device="emulated").device == emulated
    assert torch.zeros(2, device=OTHER).cpu().device.type == "cpu"
    same = torch.zeros(2, device=OTHER)
    assert same.to(OTHER) is same
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(2, device="emulated:2")


def test_devices_do_not_mix(emulated) -> None:
    here, there, host = torch.ones(3, device=emulated), torch.ones(3, device=OTHER), torch.ones(3)
    refused(lambda: here + host)
    refused(lambda: here + there)
    refused(lambda: here + there.sum())  # a number of another device is no number on the host
    refused(lambda: host.add_(here))
    refused(lambda: torch.tensor(1.0).add_(here[0]))
    refused(lambda: torch.stack([here[0], torch.tensor(1.0)]))
    refused(lambda: host[here.long()])
    refused(lambda: here[there.long()])
    refused(lambda: here.scatter(0, torch.tensor([0]), 1.0))
    assert (here + torch.tensor(2.0)).tolist() == [3.0, 3.0, 3.0]
    assert here[torch.tensor([0, 1])].tolist() == [1.0, 1.0]
    assert here.copy_(there).device == emulated
    assert host.copy_(here).device.type == "cpu"
    assert torch.where(here > 0, torch.tensor(5.0), here).tolist() == [5.0] * 3


def test_what_a_gpu_refuses(emulated) -> None:
    here = torch.ones(3, device=emulated)
    with pytest.raises(TypeError, match=r"Tensor.cpu\(\)"):
        here.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator(), device=emulated)
    with pytest.raises(TypeError, match="must be one of that device"):
        here.data = torch.ones(3)


def test_waits_are_those_of_a_gpu(emulated) -> None:
    x = torch.arange(4, device=emulated)
    mask = x > 1
    waiting = {
        "item": lambda: x[0].item(),
        "bool": lambda: bool(mask.any()),
        "tolist": lambda: x.tolist(),
        "cpu": lambda: x.cpu(),
        "to": lambda: x.to("cpu", non_blocking=True),
        "nonzero": lambda: mask.nonzero(),
        "mask": lambda: x[mask],
        "values under a mask": lambda: x.__setitem__(mask, x[2:].clone()),
        "unique": lambda: x.unique(),
        "equal": lambda: torch.equal(x, x),
        "bincount": lambda: x.bincount(),
        "mask on the host": lambda: x[torch.tensor([True, False, True, False])],
        "number in a list": lambda: torch.tensor([x[1], 2]),
        "repeat": lambda: x.repeat_interleave(x),
        "repeat rows": lambda: x.repeat_interleave(x, 0),
        "list": lambda: x[[0, 1]],
        "from a list": lambda: torch.tensor([1, 2], device=emulated),
        "from the host": lambda: torch.ones(2).to(emulated),
        "into": lambda: torch.ones(2).copy_(x[:2]),
        "number as index": lambda: x[x[0]],
        "format": lambda: f"{x.sum()}",
    }
    for name, action in waiting.items():
        with host_waits() as waits:
            action()
        assert waits.total == 1, (name, str(waits))
        assert waits.at("test_emulated.py") == 1, str(waits)
    idle = {
        "arithmetic": lambda: (x + 1).cumsum(0).argmax(),
        "number under a mask": lambda: x.__setitem__(mask, 0),
        "gather": lambda: x.gather(0, x % 4),
        "not blocking": lambda: torch.ones(2).to(emulated, non_blocking=True),
        "pinned": lambda: torch.ones(2).pin_memory().to(emulated, non_blocking=True),
        "nothing": lambda: torch.tensor([], device=emulated),
        "repeat, length known": lambda: x.repeat_interleave(torch.ones_like(x), output_size=4),
        "device to device": lambda: x.to(OTHER),
        "where": lambda: torch.where(mask, x, 0),
    }
    for name, action in idle.items():
        with host_waits() as waits:
            action()
        assert waits.total == 0, (name, str(waits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_numbers_of_the_device_in_a_list(emulated, dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1], dtype=dtype, device=emulated)
    for make in (torch.tensor, torch.as_tensor, torch.ones(1, dtype=dtype).new_tensor):
        with host_waits() as waits:
            made = make([x[0], x[1]])
        assert (made.device.type, made.dtype, made.tolist()) == ("cpu", dtype, [0, 1])
        assert waits.total == waits.at("test_emulated.py") == 2, str(waits)
        there = make([[x[0]], [1]], device=OTHER)
        assert there.device == torch.device(OTHER)
        assert there.tolist() == [[0], [1]]


def test_memory_that_is_to_be_pinned(emulated) -> None:
    host = torch.ones(2)
    assert host.pin_memory() is host
    assert torch.ones(2, pin_memory=True).to(emulated, non_blocking=True).tolist() == [1, 1]
    assert [batch.tolist() for batch in torch.utils.data.DataLoader([1, 2], pin_memory=True)] == [[1], [2]]
    with pytest.raises(RuntimeError, match="cannot pin a tensor of emulated:0"):
        host.to(emulated).pin_memory()


def test_the_report_names_places_and_subtracts(emulated) -> None:
    x = torch.ones(2, device=emulated)
    with host_waits() as plain:
        x.tolist()
    with host_waits() as waits:
        for _ in range(3):
            x.sum().item()
    assert waits.beyond(plain).total == 3
    assert waits.beyond(waits).total == 0
    first, line = str(waits).splitlines()
    assert first == "3 waits of the host"
    assert line.startswith("     3  aten._local_scalar_dense at ")
    assert "test_emulated.py:" in line


def test_waits_of_a_backward_pass_and_of_threads(emulated) -> None:
    class Peeks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            gradient.sum().item()
            return gradient

    x = torch.ones(2, device=emulated, requires_grad=True)
    with host_waits() as waits:
        Peeks.apply(x).sum().backward()
        thread = threading.Thread(target=lambda: x.detach().tolist())
        thread.start()
        thread.join()
    assert waits.total == waits.at("test_emulated.py") == 2


def test_a_module_keeps_its_parameters(emulated) -> None:
    layer = nn.Linear(3, 3)
    layer.tied = layer.weight
    known, optimiser = layer.weight, torch.optim.AdamW(layer.parameters())
    layer.to(emulated)
    assert layer.weight is known is layer.tied
    assert isinstance(known, nn.Parameter)
    twin = copy.deepcopy(layer)
    assert twin.weight is twin.tied
    assert twin.weight.device == emulated
    before = known.detach().clone()
    layer(torch.ones(1, 3, device=emulated)).sum().backward()
    assert known.grad.device == emulated
    optimiser.step()
    assert not torch.equal(before, known)
    assert torch.equal(before, twin.weight)
    layer.half().cpu()
    assert layer.weight is known
    assert (type(known), known.dtype, known.device.type) == (nn.Parameter, torch.float16, "cpu")


def test_gradients_cross_devices(emulated) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.randn(2, 3)
    second(first(x)).sum().backward()
    expected = [p.grad.clone() for p in (*first.parameters(), *second.parameters())]
    first.zero_grad()
    second.zero_grad()
    first.to(emulated)
    second.to(OTHER)
    second(first(x.to(emulated)).to(OTHER)).to("cpu").sum().backward()
    for p, gradient in zip((*first.parameters(), *second.parameters()), expected, strict=True):
        assert p.grad.device == p.device
        torch.testing.assert_close(p.grad.cpu(), gradient)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("device", ["emulated:0", OTHER])
def test_checkpointing_draws_the_same_random_numbers(emulated, reentrant: bool, device: str) -> None:
    found = []
    for place in ("cpu", device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer, x = nn.Linear(8, 8).to(place), torch.randn(4, 8).to(place).requires_grad_()
            out = checkpoint(lambda y, f=layer: torch.dropout(f(y), 0.5, True), x, use_reentrant=reentrant)
            out.sum().backward()
            found.append((x.grad.cpu(), layer.weight.grad.cpu()))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_autocast_casts(emulated) -> None:
    layer, x = nn.Linear(4, 4).to(emulated), torch.ones(2, 4, device=emulated)
    with torch.autocast("emulated", torch.bfloat16):
        out = layer(x)
        assert (out.dtype, out.softmax(-1).dtype) == (torch.bfloat16, torch.float32)
        out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer(x).dtype == torch.float32


def test_files_of_a_model(emulated, tmp_path) -> None:
    model = tiny_text(layers=1)
    digest, before = model_digest(model), [tensor_digest(p) for p in model.parameters()]
    model.to(emulated)
    assert model_digest(model) == digest
    assert [tensor_digest(p) for p in model.parameters()] == before
    model.save_pretrained(tmp_path)
    assert model_digest(AutoModelForCausalLM.from_pretrained(tmp_path)) == digest
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    for place, expected in ((None, "emulated"), ("cpu", "cpu")):
        file.seek(0)
        state = torch.load(file, weights_only=True, map_location=place)
        assert {each.device.type for each in state.values()} == {expected}
        assert torch.equal(state["lm_head.weight"].cpu(), model.lm_head.weight.cpu())
    fresh = tiny_text(layers=1, seed=1).to(emulated)
    fresh.load_state_dict(model.state_dict())
    assert model_digest(fresh) == digest
    assert fingerprint(model).differences(fingerprint(model)) == []


def test_outside_of_the_block_the_device_is_not_offered() -> None:
    with emulated_accelerator():
        assert torch.accelerator.is_available()
        assert torch.__future__.get_swap_module_params_on_conversion()
    assert not torch.accelerator.is_available()
    assert not torch.__future__.get_swap_module_params_on_conversion()


def test_an_older_torch_is_told(monkeypatch) -> None:
    monkeypatch.setattr(compat, "_SETUP", "of_a_later_version")
    with pytest.raises(LibraryBroken, match=r"needs torch 2.10 or newer; this is torch"):
        compat.register_backend(object(), object)
