"""The formulas by themselves; against the official program they are held by the tests of what uses them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from paperhooks_miniplm.algorithm import (
    ScalingLaw,
    blended_loss,
    counted_inputs,
    difference_scores,
    distillation_divergence,
    entropy,
    flops_matched_steps,
    log_probabilities,
    lr_at,
    negative_log_likelihood,
    per_unit,
)


def test_a_score_is_a_mean_over_counted_predictions() -> None:
    assert counted_inputs(torch.tensor([[5, 0, 6], [9, 7, 7]]), (0, 9)).tolist() == [[1, 0, 1], [0, 1, 1]]
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert negative_log_likelihood(logits, torch.tensor([1, 0])).tolist() == pytest.approx(
        [math.log(4 / 3), math.log(2)]
    )
    found = per_unit(np.array([6.0, np.inf, np.nan, 1.0]), np.array([3, 1, 1, 0]))
    assert found.tolist() == pytest.approx([2.0, np.nan, np.nan, np.nan], nan_ok=True)


def test_a_difference_is_large_where_the_teacher_is_ahead() -> None:
    found = difference_scores(np.array([1.26, 3.0, np.nan]), np.array([4.20, 3.0, 1.0]))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([2.94, 0.0, np.nan], nan_ok=True)


def test_divergences_differ_by_the_teachers_entropy_and_meet_at_the_ends_of_jsd() -> None:
    p, q = (log_probabilities(torch.randn(4, 9, generator=torch.Generator().manual_seed(s))) for s in (0, 1))
    forward, reverse = (distillation_divergence(p, q, kind) for kind in ("forward", "reverse"))
    assert torch.allclose(forward, distillation_divergence(p, q, "cross_entropy") - entropy(p), atol=1e-6)
    assert torch.allclose(forward, (p.exp() * (p - q)).sum(-1), atol=1e-6)
    assert torch.allclose(reverse, (q.exp() * (q - p)).sum(-1), atol=1e-6)
    assert torch.equal(distillation_divergence(p, q, "jsd", 0.0), forward)
    assert torch.equal(distillation_divergence(p, q, "jsd", 1.0), reverse)
    middle = (0.5 * (p.exp() + q.exp())).log()
    wanted = 0.5 * ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1))
    assert torch.allclose(distillation_divergence(p, q, "jsd", 0.5), wanted, atol=1e-6)


def test_a_loss_without_weight_has_no_part() -> None:
    one, lost = torch.tensor(2.0), torch.tensor(math.inf)
    assert [float(blended_loss(one, lost, 0.0)), float(blended_loss(lost, one, 1.0))] == [2.0, 2.0]
    assert float(blended_loss(one, torch.tensor(4.0), 0.25)) == 2.5


def test_the_schedule_is_linear_then_a_cosine() -> None:
    rates = [lr_at(step, 6e-4, 6e-5, 2000, 100_000) for step in range(0, 100_001, 500)]
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(1.5e-4, rel=1e-12)
    assert max(rates) == rates[4] == pytest.approx(6e-4, rel=1e-12)
    assert lr_at(26_500, 6e-4, 6e-5, 2000, 100_000) == pytest.approx(
        6e-5 + 2.7e-4 * (1 + math.cos(math.pi / 4)), rel=1e-9
    )
    assert rates[-1] == pytest.approx(6e-5, rel=1e-12) == lr_at(200_000, 6e-4, 6e-5, 2000, 100_000)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert lr_at(0, 1.0, 0.1, 0, 10) == 1.0


@pytest.mark.parametrize(("warmup", "total"), [(10, 10), (-1, 10), (5, 0)])
def test_schedules_that_make_no_sense_are_refused(warmup: int, total: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= warmup < total"):
        lr_at(0, 1.0, 0.1, warmup, total)


def test_a_law_needs_compute() -> None:
    with pytest.raises(ValueError, match="above 0 FLOPs"):
        ScalingLaw(3.0, 2e8, 0.45).loss(0)


@pytest.mark.parametrize(("student", "kd", "minillm"), [(0.2e9, 25.0, 13.6), (0.5e9, 45.5, 26.8), (1.2e9, 66.7, 42.9)])
def test_steps_at_equal_flops(student: float, kd: float, minillm: float) -> None:
    assert flops_matched_steps(100, student, 1.8e9) == pytest.approx(kd, abs=0.05)
    assert flops_matched_steps(100, student, 1.8e9, "minillm") == pytest.approx(minillm, abs=0.05)
    with pytest.raises(ValueError, match="expected one of vanilla_kd"):
        flops_matched_steps(100, student, 1.8e9, "seqkd")
    with pytest.raises(ValueError, match="all must be above 0"):
        flops_matched_steps(100, 0, 1.8e9)
