"""Log-probabilities of chosen tokens from what output embeddings return, of which one copy is kept for gradients.

Autograd by itself keeps a float32 copy of the logits for every step between the two: the conversion from half
precision, the scale, the soft cap, the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["chosen_logprobs", "formed", "refuse_second_order"]


def formed(raw: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """Logits float32 of what output embeddings return: scaled, then capped by ``c * tanh(logits / c)``."""
    logits = raw.float()
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def chosen_logprobs(raw: Tensor, targets: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """Log-probabilities float32 [n] of ``targets`` int64 [n], from ``raw`` [n, V] of any floating dtype.

    With gradients it keeps ``raw``, as it is, and the row's sums; it can be differentiated once, as often as the graph
    is kept. A gradient of its gradient raises RuntimeError.
    """
    made: Tensor = _Chosen.apply(raw, targets, scale, softcap)  # type: ignore[no-untyped-call]
    return made


def refuse_second_order() -> None:
    """Raise RuntimeError in a backward pass whose own gradient is wanted, which formulas made by hand do not have."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "log-probabilities are differentiated once only; for a gradient of their gradient (create_graph=True) use "
            "the model's own logits"
        )


class _Chosen(torch.autograd.Function):
    """z[target] - logsumexp(z), whose derivative by z is the target's row of the identity minus softmax(z)."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, targets: Tensor, scale: float, softcap: float | None) -> Tensor:
        logits = formed(raw, scale, softcap)
        # logsumexp is far more exact than log_softmax over a large vocabulary on CPU.
        sums = logits.logsumexp(-1)
        ctx.save_for_backward(raw, targets, sums)
        ctx.scale, ctx.softcap = scale, softcap
        return logits.gather(-1, targets[:, None])[:, 0] - sums

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        refuse_second_order()
        raw, targets, sums = ctx.saved_tensors
        logits = formed(raw, ctx.scale, ctx.softcap)
        slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square()
        # In place where the logits are a copy already.
        made = (logits - sums[:, None]).exp_() if logits is raw else logits.sub_(sums[:, None]).exp_()
        (factor,) = upstream
        made.mul_(-factor[:, None])
        made[torch.arange(len(made), device=made.device), targets] += factor
        if slope is not None:
            made.mul_(slope)
        if ctx.scale != 1.0:
            made.mul_(ctx.scale)
        return made.to(raw.dtype), None, None, None
