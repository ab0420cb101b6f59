"""The losses of Self-Steering Optimization (arXiv 2410.17131) on sums of log-probabilities: no model, no trainer.

One prompt x makes three pairs. With a good principle p+ and its opposite p- as system messages, x+ = (p+, x) and
x- = (p-, x); y+ was sampled for x+, y- for x-, yo for x:

    group   prompt  chosen  rejected
    plain   x       y+      y-        steer towards good answers
    good    x+      y+      y-        the good principle keeps good and bad apart
    bad     x-      yo      y+        the bad principle gives ordinary answers, never y-

S(y|x) is the sum over the response's tokens of log pi, R(y|x) that of the reference, |y| the number of tokens, and
a(y|x) = S(y|x) / |y|. B is the number of prompts. Numbers of equations are those of this table:

    (1) W = sigmoid(-(alpha a(y+|x) + (1 - alpha) a(y-|x)))
    (2) G = L(good) + L(bad)
    (3) v1 = mean W [L(plain) + beta_G G + gamma (-a(y+|x) + beta_G (-a(y+|x+) - a(yo|x-)))]
    (4) head = mean L(plain) + gamma (...) + W beta_G G
    (5) v2 = mean L(good) + L(bad) + gamma (-a(y+|x+) - a(yo|x-))

(1) to (3) are the first version of the paper as its code (24b43fa) computes it, (4) the code's last state, (5) the
second version of the paper. Base losses L of a pair are in :mod:`paperhooks_sso.base_losses`. W carries gradient: see
:class:`Objective`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch
from paperhooks import DataError
from paperhooks.io import choice, flag, number
from torch import Tensor

from paperhooks_sso.base_losses import PairLoss, PairSums, pair_loss

__all__ = ["GROUPS", "PRESETS", "Group", "Objective", "SSOLoss", "Variant", "preference_weight", "sso_loss"]

Group: TypeAlias = Literal["plain", "good", "bad"]
Variant: TypeAlias = Literal["v1", "head", "v2"]

#: The groups in the order of their rows in a batch: of each, B chosen and then B rejected.
GROUPS: Final[tuple[Group, ...]] = get_args(Group)
#: Up to here the official code takes the likelihood term for switched off.
_NO_LIKELIHOOD: Final = 1e-6
#: Of a label: it says nothing any more.
_MOST_SMOOTHING: Final = 0.5


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised, and its constants.

    loss
        Base loss of a pair, by name: "sigmoid" (DPO), "hinge", "ipo", "simpo", "orpo", or a registered one.
    variant
        "v1", "head" or "v2": equations (3) to (5).
    beta
        Of the base loss, above 0.
    alpha
        Share of y+ in W, between 0 and 1.
    beta_g
        Weight of G (not in "v2").
    gamma
        Weight of the likelihood terms, from 0 on.
    weight, gap
        Whether W and G take part (not in "v2").
    detach_weight
        Whether W is a constant for the gradient. By default it is none: minimising W L also makes both plain answers
        likelier, in proportion to the loss, which is most of what W does. Detached, unlikely pairs would just weigh
        more.
    smoothing
        Label smoothing of "sigmoid", from 0 to below 0.5.
    simpo_margin
        Margin that "simpo" asks for.
    official_head
        Of "head": lose G where W is switched off, as the official code does.

    :raises ValueError: an option that cannot be meant; names it, its value and what is expected.
    """

    loss: str = "sigmoid"
    variant: Variant = "v1"
    beta: float = 0.1
    alpha: float = 0.66
    beta_g: float = 0.1
    gamma: float = 0.0
    weight: bool = True
    gap: bool = True
    detach_weight: bool = False
    smoothing: float = 0.0
    simpo_margin: float = 0.5
    official_head: bool = False

    def __post_init__(self) -> None:
        checked = {
            "variant": choice("variant", self.variant, get_args(Variant)),
            "beta": number("beta", self.beta, above=0),
            "alpha": number("alpha", self.alpha, low=0, high=1),
            "smoothing": number("smoothing", self.smoothing, low=0, high=_MOST_SMOOTHING),
            **{name: number(name, getattr(self, name), low=0) for name in ("beta_g", "gamma", "simpo_margin")},
            **{n: flag(n, getattr(self, n)) for n in ("weight", "gap", "detach_weight", "official_head")},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "loss", self.pair.name)
        if self.smoothing == _MOST_SMOOTHING:
            raise ValueError("smoothing is 0.5, which makes both answers alike; expected a number below 0.5")
        if self.smoothing and self.loss != "sigmoid":
            raise ValueError(f"smoothing is {self.smoothing:g}, which {self.loss!r} has no use for; only 'sigmoid' has")
        if self.official_head and self.variant != "head":
            raise ValueError(f"official_head=True belongs to variant 'head', and this is {self.variant!r}")

    @property
    def pair(self) -> PairLoss:
        """The base loss."""
        return pair_loss(self.loss)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that take part."""
        if self.variant == "v2":
            return ("good", "bad")
        return GROUPS if self.gap else ("plain",)


#: The paper's settings as options: version 1 with IPO (its tables) and with DPO, and version 2.
PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "v1-ipo": {"loss": "ipo", "variant": "v1", "beta": 0.2, "alpha": 0.66, "beta_g": 0.1},
    "v1-dpo": {"loss": "sigmoid", "variant": "v1", "beta": 0.1, "alpha": 0.66, "beta_g": 0.1},
    "v2": {"loss": "sigmoid", "variant": "v2", "beta": 0.1, "gamma": 0.1},
}


@dataclass(frozen=True, slots=True, eq=False)
class SSOLoss:
    """What :func:`sso_loss` gives, of B prompts.

    examples
        Loss of every prompt, [B] with gradient; the loss is their mean.
    weight
        W, [B]; 1 where it takes no part.
    parts
        ``L_plain``, ``L_good``, ``L_bad``: base losses, and ``likelihood``: the terms of gamma without it; [B] each, of
        those that take part.
    figures
        Of every group that is there, [B] each, without gradient: ``<group>_margin`` and ``<group>_accuracy`` (1 where
        the margin is above 0) of the rewards beta (S - R), or of their means per token where the base loss has these;
        ``<group>_chosen`` and ``<group>_rejected``, a of both answers.
    """

    examples: Tensor
    weight: Tensor
    parts: Mapping[str, Tensor]
    figures: Mapping[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """The mean over prompts, a scalar."""
        return self.examples.mean()


def sso_loss(groups: Mapping[Group, PairSums], objective: Objective) -> SSOLoss:
    """The loss of B prompts, equations (1) to (5).

    A pair one of whose answers has no token adds nothing and gets no gradient; other pairs are as they were.

    :param groups: sums of the groups of :attr:`Objective.groups`; others only add figures.
    :raises DataError: a group is missing, numbers of prompts differ, or reference sums are missing or not wanted.
    """
    wide = {name: pairs.wide() for name, pairs in groups.items()}
    _check(wide, objective)
    parts = {f"L_{name}": objective.pair(wide[name], objective) for name in objective.groups}
    if objective.gamma > _NO_LIKELIHOOD:
        parts["likelihood"] = _likelihood(wide, objective)
    weight = preference_weight(wide["plain"], objective) if "plain" in objective.groups else None
    examples = _combined(parts, weight, objective)
    figures = {key: value for name, pairs in wide.items() for key, value in _figures(name, pairs, objective).items()}
    return SSOLoss(examples, torch.ones_like(examples) if weight is None else weight, parts, figures)


def preference_weight(plain: PairSums, objective: Objective) -> Tensor | None:
    """W of every prompt, [B] between 0.5 and 1, equation (1); None where it takes no part."""
    if not objective.weight or objective.variant == "v2":
        return None
    mean = objective.alpha * plain.chosen_mean + (1 - objective.alpha) * plain.rejected_mean
    weight = torch.sigmoid(-mean)
    if objective.detach_weight:
        return weight.detach()
    return torch.where(plain.counted, weight, weight.detach())  # a pair without tokens pulls at nothing


def _combined(parts: Mapping[str, Tensor], weight: Tensor | None, objective: Objective) -> Tensor:
    """The loss of every prompt from its parts, equations (3) to (5)."""
    none = torch.zeros((), device=next(iter(parts.values())).device)
    likelihood = objective.gamma * parts.get("likelihood", none)
    gap = parts.get("L_good", none) + parts.get("L_bad", none)
    if objective.variant == "v2":
        return gap + likelihood
    plain, gap = parts["L_plain"], objective.beta_g * gap
    factor = 1.0 if weight is None else weight
    if objective.variant == "v1":
        return factor * (plain + gap + likelihood)
    if not objective.gap:
        return factor * plain + likelihood
    if weight is None and objective.official_head:
        return plain + likelihood
    return plain + likelihood + factor * gap


def _likelihood(groups: Mapping[Group, PairSums], objective: Objective) -> Tensor:
    """The likelihood terms without gamma, [B]: minus the mean log-probability of what is to be likely."""
    own = {n: torch.where(groups[n].counted, -groups[n].chosen_mean, 0.0) for n in objective.groups}
    if objective.variant == "v2":
        return own["good"] + own["bad"]
    return own["plain"] + (objective.beta_g * (own["good"] + own["bad"]) if objective.gap else 0.0)


@torch.no_grad()
def _figures(name: Group, pairs: PairSums, objective: Objective) -> dict[str, Tensor]:
    chosen, rejected = objective.pair.rewards(pairs, objective.beta)
    return {
        f"{name}_margin": chosen - rejected,
        f"{name}_accuracy": (chosen > rejected).to(chosen.dtype),
        f"{name}_chosen": pairs.chosen_mean,
        f"{name}_rejected": pairs.rejected_mean,
    }


def _check(groups: Mapping[Group, PairSums], objective: Objective) -> None:
    missing = [name for name in objective.groups if name not in groups]
    if missing:
        raise DataError(
            f"the objective {objective.variant!r} needs the pairs of group {missing[0]!r}, and there are those of "
            f"{', '.join(groups) or 'none'}"
        )
    sizes = {name: len(pairs.chosen) for name, pairs in groups.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"the groups hold pairs of different numbers of prompts: {sizes}")
    for name in objective.groups:
        objective.pair.check_reference(groups[name], name)
