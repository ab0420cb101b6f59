"""The contract's checks on an emulated accelerator: no devices are mixed, results are the CPU's, the host seldom waits.

They skip where torch is older than 2.10, which cannot emulate one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperhooks.models.view import ModelView
from paperhooks.sessions.session import attach
from paperhooks.testing import compat
from paperhooks.testing.contract_generation import ASK, GenerationChecks
from paperhooks.testing.contract_gradients import TrainingChecks
from paperhooks.testing.emulated import emulated_accelerator
from paperhooks.testing.waits import HostWaits, host_waits

__all__ = ["DeviceChecks"]


def _device_map(
    model: nn.Module, later: Sequence[nn.Module], first: torch.device, second: torch.device
) -> dict[str, torch.device]:
    """Modules by name, as accelerate takes them: those ``later`` on the second device, all others on the first."""
    found = {name: first for name, _ in model.named_parameters(recurse=False)}
    found |= {name: first for name, _ in model.named_buffers(recurse=False)}
    for name, child in model.named_children():
        inside = {id(part) for part in child.modules()}
        if any(child is layer for layer in later):
            found[name] = second
        elif any(id(layer) in inside for layer in later):
            below = _device_map(child, later, first, second)
            found |= {f"{name}.{inner}": place for inner, place in below.items()}
        else:
            found[name] = first
    return found


class DeviceChecks(GenerationChecks, TrainingChecks):
    """What holds on a device whose tensors may not meet those of the host."""

    @pytest.fixture
    def device(self) -> Iterator[torch.device]:
        """The emulated accelerator, for the length of a test."""
        lacking = compat.needed()
        if lacking:
            pytest.skip(lacking)
        with emulated_accelerator() as device:
            yield device

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    def test_logits_on_an_accelerator(self, device: torch.device, attn: str) -> None:
        """Logits of padded batches, and of short prompts, are those on the CPU."""
        model, other = (self.model(attn_implementation=attn) for _ in range(2))
        other.to(device)
        with attach(model, self.make()):
            expected = self._forwards(model)
        with attach(other, self.make()):
            for found, known in zip(self._forwards(other), expected, strict=True):
                assert found.device == device, f"the logits are on {found.device}"
                self.assert_same(found.cpu(), known, "logits on an accelerator are not those on the CPU")

    def _forwards(self, model: Any) -> list[Tensor]:
        made = (self.inputs(model), self.inputs(model, pad="right"), self.short_inputs(model))
        return [self.logits(model, inputs) for inputs in made]

    def test_generation_on_an_accelerator(self, device: torch.device) -> None:
        """Tokens of a padded batch, and in every mode that the method declares, are those on the CPU."""
        model, other = self.model(), self.model().to(device)
        modes = {mode: ask for mode, ask in ASK.items() if getattr(self.traits, mode)}
        with attach(model, self.make()):
            batch = self.generate(model, self.inputs(model)).tolist()
            alone = {mode: self.generate(model, self.single(model, 1), **ask).tolist() for mode, ask in modes.items()}
        with attach(other, self.make()):
            assert self.generate(other, self.inputs(other)).tolist() == batch, "an accelerator generates other tokens"
            for mode, ask in modes.items():
                found = self.generate(other, self.single(other, 1), **ask).tolist()
                assert found == alone[mode], f"an accelerator generates other tokens in mode {mode}"

    @pytest.mark.filterwarnings("ignore:.*nobody asked for this session's loss:UserWarning")
    @pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "checkpointed"])
    def test_gradients_on_an_accelerator(self, device: torch.device, checkpointing: bool | None) -> None:
        """Gradients of a training step, and the weights after it, are those on the CPU; with checkpointing too."""
        if not self.traits.training:
            pytest.skip("declared: not for training")
        known, found = (self._stepped(place, checkpointing) for place in ("cpu", device))
        assert known.keys() == found.keys()
        for name, value in known.items():
            close = torch.allclose(found[name], value, atol=1e-5, rtol=1e-3)
            assert close, f"{name} after a training step on an accelerator is not what it is on the CPU"

    def _stepped(self, device: torch.device | str, checkpointing: bool | None) -> dict[str, Tensor]:
        """Gradients of one step, and the weights after it, on the CPU."""
        model = self.model().to(device).train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            model.enable_input_require_grads()
        with attach(model, self.make()):
            self._called(model).backward()  # inside: transformers before 5.23 calls layers with their hooks again
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        return gradients | {f"{n} (weights)": p.detach().cpu() for n, p in model.named_parameters()}

    def test_layers_on_two_devices(self, device: torch.device) -> None:
        """Of a model that accelerate spreads over two devices, logits and tokens are those on the CPU."""
        accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
        model, other = self.model(), self.model()
        layers = ModelView.from_model(other).layers
        places = _device_map(other, layers[len(layers) // 2 :], device, torch.device(device.type, 1))
        accelerate.dispatch_model(other, places, main_device=device)
        with attach(model, self.make()):
            expected, tokens = self._forwards(model), self.generate(model, self.inputs(model)).tolist()
        with attach(other, self.make()):
            for found, known in zip(self._forwards(other), expected, strict=True):
                self.assert_same(found.cpu(), known, "logits of layers on two devices are not those on the CPU")
            assert self.generate(other, self.inputs(other)).tolist() == tokens, "layers on two devices, other tokens"

    def test_the_host_seldom_waits(self, device: torch.device) -> None:
        """No more waits for the device, beyond those of the model alone, than the class allows: see its flags."""
        model = self.model().to(device)
        plain = self._waits(model)
        with attach(model, self.make()):
            attached = self._waits(model)
        allowed = {"prefill": self.prefill_waits, "decode step": self.decode_waits}
        for (what, most), before, after in zip(allowed.items(), plain, attached, strict=True):
            found = after.beyond(before)
            assert most is None or found.total <= most, (
                f"a {what} lets the host wait for the device more often than {most} times beyond the model alone: "
                f"{found}\nFetch all that the host must know in one copy, or leave it on the device"
            )

    def _waits(self, model: Any) -> tuple[HostWaits, HostWaits]:
        """The waits of a prefill, not the first one, and of a decode step behind it."""
        for _ in range(2):  # what is looked at once only has been looked at
            inputs = self.inputs(model)
            with host_waits() as prefill:
                cache, logits = self.read(model, inputs)
            for _ in range(2):
                tokens = logits.argmax(-1, keepdim=True)
                with host_waits() as decode:
                    self.follow(model, inputs["attention_mask"], cache, tokens)
        return prefill, decode
