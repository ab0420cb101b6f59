"""Mean log-probabilities of answers under the three prompts, for the filter and for probes (section 4.1, step 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from paperhooks.logprobs import LogLikelihood
from torch import nn

from paperhooks_sso.algorithm import GROUPS, Group
from paperhooks_sso.data.encoded import ROWS, EncodedPrompt, encoded_prompt

__all__ = ["ANSWERS", "answer_means", "reference_rows"]

#: Name to answer and group of its prompt: the six of the filter, and yo under x and x-.
ANSWERS: Final[Mapping[str, tuple[str, Group]]] = {
    **{f"{answer}_{group}": (answer, group) for answer in ("chosen", "rejected") for group in GROUPS},
    "ordinary_plain": ("ordinary", "plain"),
    "ordinary_bad": ("ordinary", "bad"),
}
_IGNORED: Final = -100


def answer_means(
    model: nn.Module, records: Sequence[Any], *, end: bool = True, batch_tokens: int | None = None
) -> list[dict[str, float]]:
    """Of every pair the mean log-probability a token of its answers, by the names of :data:`ANSWERS`.

    :param records: of a pairs file; where yo is missing, so are its means. :param end: count the end of the turn too;
        the official filter does not. :param batch_tokens: see :class:`paperhooks.logprobs.LogLikelihood`.
    """
    pairs = [encoded_prompt(record) for record in records]
    rows = [
        (at, name, pair.prompts[group], pair.answers[answer])
        for at, pair in enumerate(pairs)
        for name, (answer, group) in ANSWERS.items()
        if answer in pair.answers
    ]
    found: list[dict[str, float]] = [{} for _ in pairs]
    if not rows:
        return found
    ids = [np.array([*prompt, *(answer if end else _open(answer))]) for _, _, prompt, answer in rows]
    counted = [np.arange(len(row)) >= len(prompt) for row, (_, _, prompt, _) in zip(ids, rows, strict=True)]
    longest = max(map(len, ids))
    scorer = LogLikelihood(model, max_length=max(1, longest - 1), over_long="error", batch_tokens=batch_tokens)
    scores = scorer.score(ids, counted=counted)
    for (at, name, _, _), nll, count in zip(rows, scores.nll.tolist(), scores.count.tolist(), strict=True):
        found[at][name] = 0.0 - nll / max(1, count)
    return found


def reference_rows(pair: EncodedPrompt, groups: Sequence[Group] = GROUPS) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the rows of a pair, two a group, in their order; of those that can be built."""
    rows = []
    for group in groups:
        for answer in ROWS[group]:
            prompt, ids = pair.prompts[group], pair.answers.get(answer)
            # Without yo there is no row, but a place: what stands there is read by nobody.
            ids = pair.answers["chosen"] if ids is None else ids
            rows.append(([*prompt, *ids], [*[_IGNORED] * len(prompt), *ids]))
    return rows


def _open(answer: Sequence[int]) -> Sequence[int]:
    """An answer without its last token, the end of the turn; one of a single token as it is."""
    return answer[:-1] if len(answer) > 1 else answer
