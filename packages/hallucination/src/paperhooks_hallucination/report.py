"""Metrics with intervals, and how the hallucination tasks write them into tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from paperhooks.reports import bar_figure, bootstrap_interval, wilson_interval
from paperhooks_evaluation import FigureSpec, Metric

__all__ = ["bar_spec", "cluster_metric", "share_metric", "with_interval"]

_RESAMPLES: Final = 1000
_SEED: Final = 0
# Not "wilson": the trials are images, not the n of the metric.
_BY_IMAGE: Final = "wilson over clusters"


def share_metric(name: str, hits: int, n: int, **more: Any) -> Metric:
    """A share of ``n`` with Wilson's interval; 0 without interval for n = 0. ``more`` are further fields of Metric."""
    if not n:
        return Metric(name, 0.0, 0, **more)
    low, high = wilson_interval(hits, n)
    return Metric(name, hits / n, n, low, high, interval="wilson", **more)


def cluster_metric(name: str, statistic: Callable[[Any], float], units: Any, *, n: int, **more: Any) -> Metric:
    """A figure with the interval that resampling whole images gives (percentile bootstrap).

    ``units`` are numbers [images, k]; ``statistic`` turns the sums [k] over a sample of images into the figure.
    ``more`` are further fields of Metric. No images give None. Where all resamples are alike the bootstrap says
    nothing: a figure at 0 or at its largest value then gets Wilson's interval with images as trials, any other none.
    """
    rows = np.asarray(units, dtype=np.float64)
    if not len(rows):
        return Metric(name, None, 0, **more)

    def of_sample(sample: Any) -> float:
        return float(statistic(np.asarray(sample).sum(axis=0)))

    value, scale = of_sample(rows), float(more.get("scale", 1.0))
    low, high = bootstrap_interval(of_sample, rows, seed=_SEED, resamples=_RESAMPLES)
    if low < high:
        return Metric(name, value, n, low, high, interval="bootstrap", **more)
    if value not in (0.0, scale):
        return Metric(name, value, n, **more)
    bounds = wilson_interval(len(rows) if value else 0, len(rows))
    return Metric(name, value, n, scale * bounds[0], scale * bounds[1], interval=_BY_IMAGE, **more)


def with_interval(metric: Metric, digits: int = 3) -> str:
    """``"0.850 [0.831, 0.867]"``; a dash for an undefined figure."""
    if metric.value is None:
        return "-"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.{digits}f}"
    return f"{metric.value:.{digits}f} [{metric.low:.{digits}f}, {metric.high:.{digits}f}]"


def bar_spec(name: str, title: str, metrics: Sequence[Metric], labels: Sequence[str], axis: str) -> FigureSpec:
    """Bars with whiskers; metrics without a value are left out."""
    shown = [(label, one) for label, one in zip(labels, metrics, strict=True) if one.value is not None]
    values = [float(one.value or 0.0) for _, one in shown]
    bounds = [one.bounds for _, one in shown]
    words = "; ".join(f"{label} {_spoken(one)}" for label, one in shown)
    draw = partial(bar_figure, [label for label, _ in shown], values, intervals=bounds, title=title, x=axis)
    return FigureSpec(name, f"{title}. {words}", "Whiskers are 95 % intervals.", draw)


def _spoken(metric: Metric) -> str:
    low, high = metric.bounds
    return f"{metric.value or 0.0:.3g} ({low:.3g} to {high:.3g}, n = {metric.n})"
