"""The contract's checks of training: which gradients there are, and that they are the slope of the loss."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from paperhooks.compat import find_layers
from paperhooks.sessions.session import attach
from paperhooks.testing.contract_material import Material
from paperhooks.testing.tiny import IMAGE_TOKEN

__all__ = ["TrainingChecks"]

_CHECKPOINTS: Final = ("reentrant", "checkpointed", "wrapped", "wrapped-reentrant", "attached-wrapped")
_INSIDE: Final = "_checkpoint_wrapped_module."
_UNTRAINED: Final = "declared: not for training"
_STEPS: Final = (1e-2, 3e-3, 1e-3)


class TrainingChecks(Material):
    """What holds for gradients."""

    @pytest.mark.filterwarnings("ignore:.*nobody asked for this session's loss:UserWarning")
    @pytest.mark.parametrize("checkpointing", [None, *_CHECKPOINTS], ids=["plain", *_CHECKPOINTS])
    def test_gradients(self, checkpointing: str | None) -> None:
        """Gradients with the method are finite, and checkpointing changes none of them.

        Checkpointed by transformers, or by the wrapper of torch that accelerate puts around layers, which may call a
        layer's hooks again in the backward pass; before and after the method is attached.
        """
        if not self.traits.training:
            pytest.skip(_UNTRAINED)
        plain = self._gradients(None)
        got = plain if checkpointing is None else self._gradients(checkpointing)
        assert got, "no parameter has a gradient while the method is attached: all are cut"
        assert all(torch.isfinite(g).all() for g in got.values())
        for name, gradient in plain.items():
            assert name in got, f"{name} has a gradient, but none with checkpointing"
            close = torch.allclose(got[name], gradient, atol=1e-6, rtol=1e-4)
            assert close, f"the gradient of {name} is another with checkpointing"

    @pytest.mark.filterwarnings("ignore:.*nobody asked for this session's loss:UserWarning")
    def test_gradients_are_not_cut(self) -> None:
        """No parameter that moves the loss has lost its gradient, compared with the model unattached.

        Ranking without gradient is fine: what is chosen does not move with small steps. What a hook puts into the
        hidden states must not come from ``no_grad`` or ``detach``.
        """
        if not self.traits.training:
            pytest.skip(_UNTRAINED)
        model = self.model().train()
        self._loss(model, attached=False).backward()
        plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        model.zero_grad(set_to_none=True)
        self._loss(model).backward()
        cut = [n for n in plain if (g := model.get_parameter(n).grad) is None or not g.any()]
        assert len(cut) < len(plain), "no parameter has a gradient while the method is attached: all are cut"
        if cut and abs(self._slope(model, self._random(model, cut), _STEPS[0])) > 1e-4:
            pytest.fail(
                f"{len(cut)} of {len(plain)} gradients are cut while the method is attached, though the loss moves "
                f"with their parameters, such as {cut[0]}; a hook computes under no_grad or detaches what it returns"
            )
        if self.exact_gradients:
            self._check_slope(model, plain, _length(plain))
            several = sum(gradient.numel() for gradient in plain.values())
            self._check_slope(model, self._random(model, list(plain)), _length(plain) / math.sqrt(several))

    def _check_slope(self, model: Any, direction: dict[str, Tensor], usual: float) -> None:
        """The gradients along a direction are what two forwards say; ``usual``: how steep such a one often is."""
        pairs = ((model.get_parameter(n).grad, way) for n, way in _unit(direction).items())
        claimed = sum(float((g * way).sum()) for g, way in pairs if g is not None)
        allowed = 2e-4 + 0.02 * abs(claimed) + 0.002 * usual
        for step in _STEPS:  # a step may change what is chosen; then a smaller one tells
            slope = self._slope(model, direction, step)
            if abs(slope - claimed) <= allowed:
                return
        pytest.fail(
            f"gradients are not the slope of the loss while the method is attached: along one direction they say "
            f"{claimed:.5f}, and the loss itself changes by {slope:.5f}; a part of what a hook returns is cut off by "
            "no_grad or detach (declare exact_gradients = False where that is the method)"
        )

    def _slope(self, model: Any, direction: dict[str, Tensor], step: float) -> float:
        """How much the loss changes along a direction, by two forwards a small step to either side."""
        unit = _unit(direction)
        before = {name: model.get_parameter(name).detach().clone() for name in unit}
        losses = []
        with torch.no_grad():
            for side in (step, -step):
                for name, way in unit.items():
                    model.get_parameter(name).copy_(before[name] + side * way)
                losses.append(float(self._loss(model)))
            for name, value in before.items():
                model.get_parameter(name).copy_(value)
        return (losses[0] - losses[1]) / (2 * step)

    def _random(self, model: Any, names: list[str]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {n: torch.randn(model.get_parameter(n).shape, generator=generator) for n in names}

    def _loss(self, model: Any, attached: bool = True) -> Tensor:
        """The model's own loss on a right-padded batch, with the method or without."""
        if not attached:
            return self._called(model)
        with attach(model, self.make()):
            return self._called(model)

    def _called(self, model: Any) -> Tensor:
        """The loss of a model as it stands."""
        inputs = self.inputs(model, pad="right")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        if self.vision:
            labels = labels.masked_fill(labels == IMAGE_TOKEN, -100)
        labels[:, :2] = -100
        loss: Tensor = model(**inputs, labels=labels, use_cache=False).loss
        return loss

    def _gradients(self, checkpointing: str | None) -> dict[str, Tensor]:
        model = self.model().train()
        if checkpointing is None:
            self._loss(model).backward()  # after the session has closed
            return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.enable_input_require_grads()
        if checkpointing != "attached-wrapped":
            _checkpoint(model, checkpointing)
        with attach(model, self.make()):
            if checkpointing == "attached-wrapped":
                _checkpoint(model, checkpointing)
            self._loss(model, attached=False).backward()
        found = ((n.replace(_INSIDE, ""), p.grad) for n, p in model.named_parameters())
        return {name: gradient for name, gradient in found if gradient is not None}


def _checkpoint(model: Any, way: str) -> None:
    """Have the decoder's layers computed again in the backward pass."""
    if way in ("reentrant", "checkpointed"):
        model.gradient_checkpointing_enable({"use_reentrant": way == "reentrant"})
        return
    kind = CheckpointImpl.REENTRANT if way == "wrapped-reentrant" else CheckpointImpl.NO_REENTRANT
    layers = find_layers(model.get_decoder())
    wrapper = partial(checkpoint_wrapper, checkpoint_impl=kind, preserve_rng_state=False)  # as accelerate wraps
    apply_activation_checkpointing(model, checkpoint_wrapper_fn=wrapper, check_fn=lambda m: m in layers)


def _length(direction: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(way.pow(2).sum()) for way in direction.values()))


def _unit(direction: dict[str, Tensor]) -> dict[str, Tensor]:
    length = _length(direction)
    return {name: way / length for name, way in direction.items()}
