"""The fit of the scaling law, and the paper's table."""

from __future__ import annotations

import numpy as np
import pytest
from paperhooks import DataError
from paperhooks_miniplm import ScalingLaw, fit_scaling, published_table
from paperhooks_miniplm.scaling_law import PUBLISHED


@pytest.mark.parametrize("line", PUBLISHED, ids=lambda line: f"{line.student}-{line.method}")
def test_the_fit_recovers_known_constants(line) -> None:
    compute = np.geomspace(1e17, 1e20, 6)
    fit = fit_scaling([(c, line.law.loss(c)) for c in compute])
    assert fit.law.l_inf == pytest.approx(line.law.l_inf, rel=0.02)
    assert fit.law.alpha_c == pytest.approx(line.law.alpha_c, rel=0.02)
    assert fit.law.a_c == pytest.approx(line.law.a_c, rel=0.02)
    assert fit.rmse < 1e-6
    assert fit.compute == pytest.approx((1e17, 1e20))


def test_the_fit_reports_what_it_leaves_over() -> None:
    law, compute = ScalingLaw(3.0, 2e8, 0.45), np.geomspace(1e17, 1e20, 12)
    noise = np.random.default_rng(0).normal(0, 0.01, 12)
    fit = fit_scaling([(c, law.loss(c) + e) for c, e in zip(compute, noise, strict=True)])
    wanted = [law.loss(c) + e - fit.law.loss(c) for c, e in zip(compute, noise, strict=True)]
    assert fit.residuals == pytest.approx(wanted, abs=1e-9)
    assert fit.worst == pytest.approx(max(map(abs, wanted)))
    assert 0.004 < fit.rmse < 0.02
    better = [(fit.residuals**2).sum() <= ((np.array(wanted) + shift) ** 2).sum() for shift in (-0.002, 0.002)]
    assert all(better)
    assert fit.law.l_inf == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(1e18, 3.5), (1e19, 3.2), (1e20, 3.1)], "3 points of different compute"),
        ([(1e18, 3.5), (1e18, 3.4), (1e19, 3.2), (1e20, 3.1)], "3 points of different compute"),
        ([(1e18, 3.5), (1e19, 3.2), (1e20, float("nan")), (1e21, 3.0)], "not finite"),
        ([(-1e18, 3.5), (1e19, 3.2), (1e20, 3.1), (1e21, 3.0)], "not finite and above 0"),
        ([(1e18, 3.5, 1), (1e19, 3.2, 1)], r"expected pairs of compute and loss"),
        ([(1e18, 3.0), (1e19, 3.2), (1e20, 3.3), (1e21, 3.32)], "do not fall with compute"),
        ([(1e18, 3.5), (1e19, 3.4), (1e20, 3.2), (1e21, 2.8)], "do not flatten"),
    ],
)
def test_points_that_hold_no_law_are_refused(points, words) -> None:
    with pytest.raises(DataError, match=words):
        fit_scaling(points)


def test_the_papers_table_follows_from_its_constants() -> None:
    table = published_table()
    assert len(table) == 9
    assert max(row.difference for row in table) < 0.015
    assert table[0].loss_1t == (pytest.approx(3.3489, abs=1e-4), 3.35)
    assert all(row.loss_10t[0] < row.loss_1t[0] for row in table)
