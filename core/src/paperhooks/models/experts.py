"""Routed experts: what every expert of a mixture reads, although its weights are slices of one 3-D parameter.

Stock models keep the experts of a layer in one module (``gate_up_proj`` [E, 2 I, D], ``down_proj`` [E, D, I]) whose
forward takes hidden states [N, D], expert ids [N, K] and their weights [N, K]. No torch hook sees what one expert
multiplies, so it is computed here from those three. The module's layout is described by attributes that transformers
does not promise; :meth:`Experts.of` therefore proves its reading on random inputs against the module itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Experts"]

_TOKENS = 5
#: Share of the largest output that the proof tolerates.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 3e-2


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of one layer.

    module
        The module that holds them; its forward is ``(hidden [N, D], index int64 [N, K], weights [N, K])``.
    count
        Number of experts E.
    up, down
        Names of its 3-D parameters: the first matrix of every expert (gate and up together, where gated) and the last.
    transposed
        Whether slices are stored as [in, out] and not as [out, in].
    """

    module: nn.Module
    count: int
    up: str
    down: str
    transposed: bool

    @classmethod
    def of(cls, module: nn.Module) -> Experts | None:
        """The experts in ``module``, or None where it holds none, or none of a layout that can be proven."""
        found = cls._described(module)
        return found if found is not None and found._proven() else None

    @classmethod
    def _described(cls, module: nn.Module) -> Experts | None:
        own = {name for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
        up = next((name for name in ("gate_up_proj", "up_proj") if name in own), None)
        count = getattr(module, "num_experts", None)
        if up is None or "down_proj" not in own or not isinstance(count, int):
            return None
        return cls(module, count, up, "down_proj", bool(getattr(module, "is_transposed", False)))

    def inputs(self, hidden: Tensor, index: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """What every expert that is used reads.

        :param hidden: [N, D]. :param index: int64 [N, K], the experts of every row; ids from ``count`` on are none.
        :return: expert, its rows int64 [n], the input of its first matrix [n, D] and that of its last one [n, I].
        """
        for expert in index.unique().tolist():
            if expert < self.count:
                rows = (index == expert).any(-1).nonzero().squeeze(1)
                yield expert, rows, hidden[rows], self._inner(hidden[rows], expert)

    def _inner(self, rows: Tensor, expert: int) -> Tensor:
        module: Any = self.module
        projected = self._linear(rows, self.up, expert)
        gate = module._apply_gate if getattr(module, "has_gate", True) else module.act_fn
        inner: Tensor = gate(projected)
        return inner

    def _linear(self, rows: Tensor, name: str, expert: int) -> Tensor:
        weight = getattr(self.module, name)[expert]
        out: Tensor = rows @ (weight if self.transposed else weight.T)
        bias = getattr(self.module, f"{name}_bias", None)
        return out if bias is None else out + bias[expert]

    @torch.no_grad()
    def _proven(self) -> bool:
        """Whether the sum over experts, as read here, is what the module's own forward gives."""
        module: Any = self.module
        weight = getattr(module, self.up)
        if weight.is_meta or not weight.is_floating_point():
            return False
        width = weight.shape[1] if self.transposed else weight.shape[2]
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(_TOKENS, width, generator=generator).to(weight.device, weight.dtype)
        index = torch.stack([torch.randperm(self.count, generator=generator)[:2] for _ in range(_TOKENS)])
        index = index.to(weight.device)
        shares = torch.rand(index.shape, generator=generator).to(weight.device, weight.dtype)
        try:
            wanted = module.forward(hidden, index, shares)
            found = self._mixed(hidden, index, shares)
        except Exception:
            return False  # another signature or layout: not what is described above
        allowed = _TOLERANCE.get(weight.dtype, _LOW_PRECISION_TOLERANCE) * float(wanted.abs().max())
        return found.shape == wanted.shape and float((found - wanted).abs().max()) <= allowed

    def _mixed(self, hidden: Tensor, index: Tensor, shares: Tensor) -> Tensor:
        module: Any = self.module
        mixed = torch.zeros_like(hidden)
        for expert, rows, _, inner in self.inputs(hidden, index):
            out = self._linear(inner, self.down, expert)
            if getattr(module, "has_post_expert_norm", False):
                out = module.post_expert_norm(out)
            mixed[rows] += out * (shares * (index == expert)).sum(-1)[rows, None]
        return mixed
