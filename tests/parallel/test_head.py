"""Losses and scores of models whose head FSDP2 shards, in every layout. A chosen set runs by default."""

from __future__ import annotations

import cases_head
import pytest
from paperhooks.testing import RankPool

#: Layout, tied embeddings, family; those that are not chosen are marked slow. gemma2 caps its logits, cohere scales
#: them, which must not touch a loss.
CHOSEN = [("root", False, "llama"), ("resharded", False, "gemma2"), ("unit", False, "cohere"), ("unit", True, "llama")]
OTHERS = [("root", True, "gemma2"), ("resharded", True, "llama"), ("alone", False, "llama"), ("alone", True, "cohere")]


def cases() -> list:
    slow = [pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS]
    return [*CHOSEN, *slow]


@pytest.mark.parametrize(("layout", "tied", "family"), cases())
def test_losses_and_gradients_are_those_of_one_process(ranks: RankPool, layout: str, tied: bool, family: str) -> None:
    ranks.run(cases_head.losses_equal_one_process, layout, tied, family, limit=120)


@pytest.mark.parametrize(("layout", "tied"), [("root", True), ("unit", False), ("resharded", False)])
def test_scores_are_those_of_one_process(ranks: RankPool, layout: str, tied: bool) -> None:
    ranks.run(cases_head.scores_equal_one_process, layout, tied)


@pytest.mark.parametrize(("on_head", "tail"), [(False, False), (True, True)])
def test_adapters_around_a_sharded_model_learn_the_same(ranks: RankPool, on_head: bool, tail: bool) -> None:
    pytest.importorskip("peft")
    ranks.run(cases_head.adapters_equal_one_process, on_head, tail)


@pytest.mark.parametrize("layout", ["resharded", "unit"])
def test_a_plain_student_learns_from_a_sharded_teacher(ranks: RankPool, layout: str) -> None:
    ranks.run(cases_head.plain_student_of_a_sharded_teacher, layout)


@pytest.mark.parametrize("layout", cases_head.LAYOUTS)
def test_a_sharded_head_is_refused_outside_of_its_model(ranks: RankPool, layout: str) -> None:
    ranks.run(cases_head.head_is_refused_outside, layout)


@pytest.mark.parametrize("layout", ["root", "unit"])
def test_a_loss_in_float32_is_not_rounded_with_the_outputs(ranks: RankPool, layout: str) -> None:
    ranks.run(cases_head.mixed_precision_keeps_the_loss_exact, layout)


@pytest.mark.parametrize("layout", ["root", "unit"])
def test_attaching_leaves_the_shards(ranks: RankPool, layout: str) -> None:
    ranks.run(cases_head.attaching_leaves_the_shards, layout)
