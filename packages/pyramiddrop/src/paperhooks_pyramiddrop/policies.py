"""What may rank the tokens alive: the paper's score and its rivals, as functions of a :class:`Ranking`.

B batch, n tokens alive, m rows that rank, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from paperhooks import HookError, Site
from paperhooks.io import function_or_choice
from paperhooks.models import (
    ModelView,
    attention_parts,
    causal_attention,
    from_every_rank,
    full_precision,
    mean_over_heads,
    queries_and_keys,
)
from torch import Tensor

from paperhooks_pyramiddrop.algorithm import importance

__all__ = ["POLICIES", "Policy", "Ranking", "key_norm", "last_token", "policy_of", "ranked", "states_of"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a policy may look at when it scores the tokens alive at the entry of layer ``layer``.

    hidden_states [B, n, D]; position_embeddings (cos, sin) or None; query_rows int64 [B, m] and query_valid bool
    [B, m] (the instruction tokens that rank); real bool [B, n] (False: padding or an empty slot); visual bool [B, n].
    """

    view: ModelView
    layer: int
    hidden_states: Tensor
    position_embeddings: tuple[Tensor, Tensor] | None
    query_rows: Tensor
    query_valid: Tensor
    real: Tensor
    visual: Tensor
    generator: torch.Generator


#: How far scores of processes that hold one model may lie apart by rounding, as a share of the largest.
_AGREE: Final = 1e-3

#: Gives every token alive a score [B, n]; the visual tokens with the largest are kept.
Policy: TypeAlias = Callable[[Ranking], Tensor]


def last_token(ranking: Ranking) -> Tensor:
    """The paper's score: attention of the last instruction token in the layer about to run (section 3.2).

    float32 [B, n]; see :func:`paperhooks_pyramiddrop.algorithm.importance`.
    """
    states, tables, rows = ranking.hidden_states, ranking.position_embeddings, ranking.query_rows
    attention = causal_attention(ranking.view, ranking.layer, states, tables, rows, ranking.real)  # [B, m, n]
    return importance(attention, ranking.query_valid)


def random(ranking: Ranking) -> Tensor:
    """A control: every visual token is as likely to stay as any other. Seeded by the method's ``seed``."""
    scores = torch.rand(ranking.visual.shape, generator=ranking.generator)
    return scores.to(ranking.hidden_states.device, non_blocking=True)


def mean_text(ranking: Ranking) -> Tensor:
    """Cosine similarity to the mean of the text tokens' hidden states. Needs no projection."""
    x = ranking.hidden_states.float()
    text = (ranking.real & ~ranking.visual).to(x)[..., None]
    mean = (x * text).sum(1, keepdim=True) / text.sum(1, keepdim=True).clamp(min=1)
    return torch.cosine_similarity(x, mean, dim=-1)


def key_norm(ranking: Ranking) -> Tensor:
    """Small keys first: tokens whose key has a small norm tend to be attended to. Needs no query."""
    _, k = queries_and_keys(ranking.view, ranking.layer, ranking.hidden_states, None, ranking.query_rows[:, :1])
    return -mean_over_heads(ranking.view, k.norm(dim=-1), attention_parts(ranking.view, ranking.layer).key_heads)


POLICIES: Final[dict[str, Policy]] = {
    "last_token": last_token,
    "random": random,
    "mean_text": mean_text,
    "key_norm": key_norm,
}


def policy_of(rank: str | Policy) -> Policy:
    """A policy by name, or whatever can be called.

    :raises ValueError: it is neither; names the known ones.
    """
    found = function_or_choice("rank", rank, tuple(POLICIES))
    return POLICIES[found] if isinstance(found, str) else found


def states_of(site: Site, hidden_states: Tensor) -> Tensor:
    """What a layer is about to receive, without gradient and under autocast in no lower precision than its weights."""
    states = hidden_states.detach()
    if not torch.is_autocast_enabled(states.device.type):
        return states
    dtypes = (p.dtype for p in site.layer.parameters() if p.ndim > 1 and p.is_floating_point() and p.element_size() > 1)
    return states.to(torch.promote_types(states.dtype, next(dtypes, states.dtype)))


def ranked(policy: Policy, ranking: Ranking) -> Tensor:
    """The scores that a policy gives, float [B, n], without gradient and in full precision.

    Autocast around the model's forward does not reach into a policy: the same states rank alike with it and without.
    The processes of a tensor-parallel model get the same scores.

    :raises HookError: the policy gives anything but a number for every token, or other scores on other processes of
        one model, because it looks at the heads of one.
    """
    with torch.no_grad(), full_precision(ranking.hidden_states.device):
        scores: Any = policy(ranking)
    expected = list(ranking.real.shape)
    if isinstance(scores, Tensor) and list(scores.shape) == expected and not scores.is_complex():
        return _agreed(policy, ranking, scores if scores.is_floating_point() else scores.float())
    tensor = isinstance(scores, Tensor)
    found = f"{str(scores.dtype).removeprefix('torch.')} {list(scores.shape)}" if tensor else type(scores).__name__
    raise HookError(
        f"pyramiddrop: rank at layer {ranking.layer} returned {found}; expected float {expected}, a score a token"
    )


def _agreed(policy: Policy, ranking: Ranking, scores: Tensor) -> Tensor:
    """The scores that all processes of a tensor-parallel model go on with: those of the first."""
    if policy is last_token or policy is key_norm:
        return scores  # they were added up for all
    first, *others = from_every_rank(ranking.view, scores.detach())
    if policy is random:
        return first
    allowed = _AGREE * float(first.nan_to_num(0.0, 0.0, 0.0).abs().max())
    for rank, other in enumerate(others, start=1):
        if not torch.allclose(other, first, rtol=0.0, atol=allowed, equal_nan=True):
            raise HookError(
                f"pyramiddrop: rank at layer {ranking.layer} gives other scores in process {rank} of this "
                "tensor-parallel model than in the first; take the mean of what each head says by "
                "paperhooks.models.mean_over_heads, and draw random numbers from ranking.generator"
            )
    return first
