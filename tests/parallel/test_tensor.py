"""Ranking and heads of models that two or four processes hold together by tensor parallelism."""

from __future__ import annotations

from pathlib import Path

import cases_tensor
import pytest
from paperhooks.testing import RankPool


def test_every_process_keeps_the_tokens_that_one_keeps(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(cases_tensor.kept_tokens_equal_one_process, "llava", tmp_path, list(cases_tensor.RANKS), limit=120)


@pytest.mark.slow
def test_four_processes_keep_the_tokens_that_one_keeps(four_ranks: RankPool, tmp_path: Path) -> None:
    four_ranks.run(cases_tensor.kept_tokens_equal_one_process, "llava", tmp_path, list(cases_tensor.RANKS), limit=240)


def test_policies_that_do_not_agree_are_refused(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(cases_tensor.agreement_is_checked, "llava", tmp_path)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (8, 2)])
def test_authors_are_given_the_attention_of_all_heads(
    ranks: RankPool, tmp_path: Path, heads: int, key_heads: int
) -> None:
    ranks.run(cases_tensor.attention_is_that_of_all_heads, tmp_path, heads, key_heads)


@pytest.mark.slow
def test_so_they_are_by_four_processes(four_ranks: RankPool, tmp_path: Path) -> None:
    four_ranks.run(cases_tensor.attention_is_that_of_all_heads, tmp_path, 8, 4)


def test_heads_that_are_split_are_refused(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(cases_tensor.heads_that_are_split_are_refused, tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_gradients_are_those_of_one_process(ranks: RankPool, tmp_path: Path, tied: bool) -> None:
    ranks.run(cases_tensor.losses_equal_one_process, tmp_path, tied, limit=120)
