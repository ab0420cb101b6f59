"""Fits of test loss against training compute (section 2.11) to checkpoints, and the paper's table of them.

Three constants from a few checkpoints are a weak basis for extrapolation: read the residuals, and mind that A_c and
alpha_c move together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from paperhooks import DataError

from paperhooks_miniplm.algorithm import Array, ScalingLaw, nearest_law

__all__ = ["PUBLISHED", "PublishedLaw", "ScalingFit", "fit_scaling", "published_table"]


@dataclass(frozen=True, slots=True, eq=False)
class ScalingFit:
    """A fitted law and how well it fits.

    residuals
        Observed minus fitted loss of every point, float64 [n], in the order given.
    compute
        Smallest and largest compute of the points: outside of them the law extrapolates.
    """

    law: ScalingLaw
    residuals: Array
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
    law, residuals = nearest_law(compute, losses)
    return ScalingFit(law, residuals, (float(compute.min()), float(compute.max())))


def _checked(points: Sequence[tuple[float, float]]) -> tuple[Array, Array]:
    values = np.asarray(list(points), dtype=np.float64)
    if values.ndim != 2 or values.shape[1:] != (2,):
        raise DataError(f"points are {list(values.shape)}; expected pairs of compute and loss [n, 2]")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise DataError("a point has a compute or loss that is not finite and above 0")
    different = len(np.unique(values[:, 0]))
    if different < 4:
        raise DataError(f"{different} points of different compute do not hold three constants; give at least 4")
    return values[:, 0], values[:, 1]


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
    printed_1t: float
    printed_10t: float

    @property
    def loss_1t(self) -> tuple[float, float]:
        """Loss after 1T tokens, as the constants give it and as printed."""
        return self.law.loss(self.compute_1t), self.printed_1t

    @property
    def loss_10t(self) -> tuple[float, float]:
        """The same after 10T tokens."""
        return self.law.loss(10 * self.compute_1t), self.printed_10t

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


def published_table() -> tuple[PublishedLaw, ...]:
    """The paper's table, each line computed anew from its constants; it agrees with the printed losses to 0.015."""
    return PUBLISHED
