"""Test loss against training compute: L(C) = L_inf + A_c / C^alpha_c (section 2.11), fitted, inverted and tabulated.

Also the arithmetic by which the paper compares methods at equal training FLOPs. Three constants from a few checkpoints
are a weak basis for extrapolation: read the residuals, and mind that A_c and alpha_c move together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from paperhooks import DataError

__all__ = [
    "PUBLISHED",
    "PublishedLaw",
    "ScalingFit",
    "ScalingLaw",
    "TableRow",
    "compute_to_reach",
    "fit_scaling",
    "flops_matched_steps",
    "published_table",
]

#: Exponents among which the fit looks for its own.
_EXPONENTS: Final = np.geomspace(1e-3, 10.0, 400)
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """L(C) = ``l_inf`` + ``a_c`` / C ** ``alpha_c``, in nats per token and FLOPs."""

    l_inf: float
    a_c: float
    alpha_c: float

    def loss(self, compute: float) -> float:
        """Loss at ``compute`` FLOPs. Raises ValueError unless it is above 0."""
        if not compute > 0:
            raise ValueError(f"compute is {compute}; it must be above 0 FLOPs")
        return self.l_inf + self.a_c / compute**self.alpha_c


@dataclass(frozen=True, slots=True, eq=False)
class ScalingFit:
    """A fitted law and how well it fits.

    residuals
        Observed minus fitted loss of every point, float64 [n], in the order given.
    compute
        Smallest and largest compute of the points: outside of them the law extrapolates.
    """

    law: ScalingLaw
    residuals: np.ndarray[Any, Any]
    compute: tuple[float, float]

    @property
    def rmse(self) -> float:
        """Root of the mean squared residual, over n - 3 degrees of freedom."""
        return float(np.sqrt((self.residuals**2).sum() / (len(self.residuals) - 3)))

    @property
    def worst(self) -> float:
        """Largest absolute residual."""
        return float(np.abs(self.residuals).max())


def fit_scaling(points: Sequence[tuple[float, float]]) -> ScalingFit:
    """The law nearest to ``points`` in least squares of the loss.

    :param points: (compute, loss) pairs, at least four with different compute.
    :raises DataError: too few points, values that are not finite and positive, or losses that no falling and
        flattening curve describes.
    """
    compute, losses = _checked(points)
    centre = float(np.exp(np.log(compute).mean()))
    scaled = compute / centre

    def error(exponent: float) -> float:
        return float((_solve(scaled, losses, exponent)[1] ** 2).sum())

    exponent = _minimum(error)
    (l_inf, slope), residuals = _solve(scaled, losses, exponent)
    if slope <= 0:
        raise DataError(f"the losses do not fall with compute (fitted A_c {slope:.3g}); a law of this form needs that")
    law = ScalingLaw(float(l_inf), float(slope * centre**exponent), exponent)
    return ScalingFit(law, residuals, (float(compute.min()), float(compute.max())))


def compute_to_reach(law: ScalingLaw, loss: float) -> float:
    """FLOPs at which ``law`` gives ``loss``.

    :raises ValueError: a loss that the law never reaches, since it stays above its ``l_inf``.
    """
    if not loss > law.l_inf:
        raise ValueError(f"loss {loss} is never reached: this law stays above {law.l_inf:.4g}, whatever the compute")
    return float((law.a_c / (loss - law.l_inf)) ** (1 / law.alpha_c))


def flops_matched_steps(
    steps: float, student: float, teacher: float, method: Literal["vanilla_kd", "minillm"] = "vanilla_kd"
) -> float:
    """Steps that cost as many FLOPs as ``steps`` of plain training (section 2.9).

    A step of plain training costs 3 N_s, of vanilla KD 3 N_s + N_t (the teacher's forward), of MiniLLM 4 N_s + 2 N_t.
    Scoring a corpus once is not counted, since all students share it.

    >>> round(flops_matched_steps(100_000, 0.5e9, 1.8e9))
    45455

    :param student, teacher: parameters N_s and N_t. :raises ValueError: an unknown method, or numbers not above 0.
    """
    costs = {"vanilla_kd": 3 * student + teacher, "minillm": 4 * student + 2 * teacher}
    if method not in costs:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(costs)}")
    if not min(steps, student, teacher) > 0:
        raise ValueError(f"steps, student and teacher are {steps}, {student}, {teacher}; all must be above 0")
    return steps * 3 * student / costs[method]


# -- the paper's table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishedLaw:
    """One line of the paper's table: constants, and the losses it prints for 1T and 10T tokens.

    compute_1t
        FLOPs of training on 1T tokens, 6 N * 1e12, as printed. 10T tokens cost ten times that; for the two larger
        models the paper prints the same number twice, which its own losses contradict.
    """

    student: str
    method: str
    law: ScalingLaw
    compute_1t: float
    loss_1t: float
    loss_10t: float


@dataclass(frozen=True, slots=True)
class TableRow:
    """A line of the table computed from its constants: (computed, printed) losses for 1T and 10T tokens."""

    student: str
    method: str
    loss_1t: tuple[float, float]
    loss_10t: tuple[float, float]

    @property
    def difference(self) -> float:
        """Larger of the two absolute differences; the constants are printed to three digits, the losses to 0.01."""
        return max(abs(computed - printed) for computed, printed in (self.loss_1t, self.loss_10t))


PUBLISHED: Final = (
    PublishedLaw("200M", "plain", ScalingLaw(3.30, 2.19e7, 0.41), 1.26e21, 3.35, 3.32),
    PublishedLaw("200M", "vanilla_kd", ScalingLaw(3.34, 9.77e7, 0.44), 1.26e21, 3.39, 3.35),
    PublishedLaw("200M", "miniplm", ScalingLaw(3.25, 8.56e10, 0.59), 1.26e21, 3.28, 3.26),
    PublishedLaw("500M", "plain", ScalingLaw(3.06, 2.73e8, 0.45), 3.14e21, 3.12, 3.08),
    PublishedLaw("500M", "vanilla_kd", ScalingLaw(3.05, 3.14e8, 0.45), 3.14e21, 3.12, 3.07),
    PublishedLaw("500M", "miniplm", ScalingLaw(3.03, 6.64e9, 0.52), 3.14e21, 3.06, 3.04),
    PublishedLaw("1.2B", "plain", ScalingLaw(2.91, 1.88e8, 0.43), 7.30e21, 2.98, 2.94),
    PublishedLaw("1.2B", "vanilla_kd", ScalingLaw(2.90, 1.10e10, 0.52), 7.30e21, 2.95, 2.91),
    PublishedLaw("1.2B", "miniplm", ScalingLaw(2.86, 4.29e8, 0.45), 7.30e21, 2.92, 2.88),
)


def published_table() -> list[TableRow]:
    """The paper's table computed anew from :data:`PUBLISHED`; it agrees with the printed losses to 0.015."""
    return [
        TableRow(
            line.student,
            line.method,
            (line.law.loss(line.compute_1t), line.loss_1t),
            (line.law.loss(10 * line.compute_1t), line.loss_10t),
        )
        for line in PUBLISHED
    ]


# -- the fit ---------------------------------------------------------------------------------------------------------


def _checked(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    values = np.asarray(list(points), dtype=np.float64)
    if values.ndim != 2 or values.shape[1:] != (2,):
        raise DataError(f"points are {list(values.shape)}; expected pairs of compute and loss [n, 2]")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise DataError("a point has a compute or loss that is not finite and above 0")
    different = len(np.unique(values[:, 0]))
    if different < 4:
        raise DataError(f"{different} points of different compute do not hold three constants; give at least 4")
    return values[:, 0], values[:, 1]


def _solve(
    compute: np.ndarray[Any, Any], losses: np.ndarray[Any, Any], exponent: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """With the exponent given the law is linear: its two constants, and the residuals."""
    design = np.stack([np.ones_like(compute), compute**-exponent], 1)
    constants = np.linalg.lstsq(design, losses, rcond=None)[0]
    return constants, losses - design @ constants


def _minimum(error: Callable[[float], float]) -> float:
    """The exponent of least error: the best of a grid, then a golden-section search between its neighbours.

    Raises DataError where the error still falls at an end of the grid.
    """
    best = int(np.argmin([error(float(exponent)) for exponent in _EXPONENTS]))
    if not 0 < best < len(_EXPONENTS) - 1:
        raise DataError(
            f"no exponent between {_EXPONENTS[0]:g} and {_EXPONENTS[-1]:g} fits best: the losses do not flatten as "
            "L_inf + A_c / C^alpha_c does; give points over a wider range of compute, or fewer early ones"
        )
    low, high = float(_EXPONENTS[best - 1]), float(_EXPONENTS[best + 1])
    while high - low > 1e-12 * high:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if error(left) <= error(right):
            high = right
        else:
            low = left
    return (low + high) / 2
