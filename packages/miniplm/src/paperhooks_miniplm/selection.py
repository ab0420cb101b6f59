"""Which rows are kept, by their difference: :func:`paperhooks.data.choose` for what :func:`diff` gives.

By default the official rule (section 2.6): the k = floor(ratio * N) rows with the largest difference over the whole
corpus, written in corpus order. Here ties go to the lower row and NaN is never taken.
"""

from __future__ import annotations

from typing import Any

from paperhooks.data import Selection, choose

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.difference import Difference

__all__ = ["select"]


def select(scores: Difference | Array, **options: Any) -> Selection:
    """The best rows of difference scores.

    :param scores: what :func:`~paperhooks_miniplm.diff` gives, or float32 [N].
    :param options: ``ratio``, ``count`` or ``tokens`` and the others of :func:`paperhooks.data.choose`.
    :raises DataError: as it does.
    """
    if isinstance(scores, Difference):
        return choose(scores.values, corpus=scores.about.get("corpus"), **options)
    return choose(scores, **options)
