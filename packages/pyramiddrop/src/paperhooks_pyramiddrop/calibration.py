"""Find out how early a given model can drop: divergence of the next-token distribution after one drop at each depth.

The paper's 8/16/24 schedule suits LLaVA-1.5. Other models read their images at other depths; this measures where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from paperhooks import ModelView, attach
from paperhooks.logprobs import divergence_of
from torch import Tensor
from tqdm import tqdm

from paperhooks_pyramiddrop.method import PyramidDrop
from paperhooks_pyramiddrop.policies import Policy
from paperhooks_pyramiddrop.schedule import Schedule

__all__ = ["Calibration", "calibrate"]


@dataclass(frozen=True)
class Calibration:
    """Mean KL divergence (nats) from the undropped next-token distribution, by drop layer and keep ratio.

    divergence
        ``{(layer, ratio): mean KL}`` of one drop at that layer, everything after it included.
    prompts
        How many prompts each mean is over.
    """

    divergence: Mapping[tuple[int, float], float]
    prompts: int

    def earliest(self, ratio: float, budget: float) -> int | None:
        """The first layer from which on every measured drop to ``ratio`` stays within ``budget`` nats."""
        layers = sorted(layer for layer, r in self.divergence if r == ratio)
        good: int | None = None
        for layer in reversed(layers):
            if self.divergence[layer, ratio] > budget:
                break
            good = layer
        return good

    def schedule(self, ratios: Sequence[float], budget: float) -> Schedule:
        """The schedule that drops to each of ``ratios`` as early as ``budget`` nats allow.

        :raises ValueError: some ratio stays above the budget at every measured layer; names it and its best value.
        """
        layers: list[int] = []
        for ratio in ratios:
            found = self.earliest(ratio, budget)
            if found is None:
                best = min((kl for (_, r), kl in self.divergence.items() if r == ratio), default=float("nan"))
                raise ValueError(f"dropping to {ratio} costs at least {best:.3g} nats; the budget is {budget}")
            layers.append(max(found, layers[-1] + 1 if layers else 1))
        return Schedule(tuple(layers), tuple(ratios))


@torch.no_grad()
def calibrate(
    model: Any,
    prompts: Iterable[Mapping[str, Any]],
    *,
    ratios: Sequence[float] = (0.5, 0.25, 0.125),
    layers: Sequence[int] | None = None,
    rank: str | Policy = "last_token",
    progress: bool = True,
) -> Calibration:
    """Drop once, at every layer and to every ratio, and compare the next-token distribution with the undropped one.

    :param model: a stock vision-language model that nothing is attached to. :param prompts: keyword arguments of model
        calls, left-padded or single (the last position is compared).
    :param layers: candidate drop layers; default all from 1 on.
    :return: mean divergences over all prompts. Costs ``1 + len(layers) * len(ratios)`` forwards a prompt.
    """
    candidates = list(layers) if layers is not None else range(1, len(ModelView.from_model(model).layers))
    batches = list(prompts)
    total: dict[tuple[int, float], float] = {(layer, ratio): 0.0 for layer in candidates for ratio in ratios}
    plain = [_distribution(model, batch) for batch in batches]
    count = sum(len(p) for p in plain)
    for layer, ratio in tqdm(total, desc="drops", disable=not progress):
        with attach(model, PyramidDrop(stages={layer: ratio}, rank=rank)):
            for batch, expected in zip(batches, plain, strict=True):
                total[layer, ratio] += float(divergence_of(expected, _distribution(model, batch)).sum())
    return Calibration({key: value / count for key, value in total.items()}, count)


def _distribution(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Log-probabilities of the next token, float32 [B, V]."""
    logits: Tensor = model(**dict(batch), use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.float().log_softmax(-1)
