"""Nothing that a rank does alone hangs the others: it is named, on every rank."""

from __future__ import annotations

import json
from pathlib import Path

import cases_agreement as cases
import pytest
from paperhooks.testing import ChildError, RankPool

#: Where rank 0 fails; two of the four run by default.
ERRORS = [
    ("ddp", "post_layer"),
    ("fsdp2-root", "compute_loss"),
    pytest.param("ddp", "compute_loss", marks=pytest.mark.slow),
    pytest.param("fsdp2-root", "post_layer", marks=pytest.mark.slow),
]

#: The two ways in which ranks that train wait for one another.
BOTH = pytest.mark.parametrize("spread", ["ddp", "fsdp2-root"])


@pytest.mark.parametrize(("spread", "where"), ERRORS)
def test_an_error_reaches_the_other_rank_within_seconds(
    ranks: RankPool, tmp_path: Path, spread: str, where: str
) -> None:
    """The rank that fails ends, and its connections with it."""
    with pytest.raises(ChildError, match="rank 0 of 2 ended with status 7"):
        ranks.run(cases.an_error_reaches_the_other_rank, spread, where, tmp_path, False)
    waited, _, notes = json.loads((tmp_path / "waited.json").read_text())
    assert waited < 15
    assert any(f"rank 0 failed before, with RuntimeError: no {where}" in note for note in notes), notes


@pytest.mark.parametrize(("spread", "where"), ERRORS)
def test_a_rank_that_lives_on_after_an_error_does_not_hang_the_other(
    ranks: RankPool, tmp_path: Path, spread: str, where: str
) -> None:
    words = f"paperhooks: rank 1 ends: it waits for rank 0, which failed with RuntimeError: no {where}"
    with pytest.raises(ChildError, match=words):
        ranks.run(cases.an_error_reaches_the_other_rank, spread, where, tmp_path, True, limit=28)


@BOTH
def test_an_error_that_all_have_is_raised_by_all(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    ranks.run(cases.an_error_that_all_have_is_raised_by_all, spread, tmp_path)


@pytest.mark.parametrize(("spread", "kind"), [("ddp", "dict"), *(("fsdp2-root", kind) for kind in cases.SHARES)])
def test_other_options_are_named_at_the_first_step(ranks: RankPool, tmp_path: Path, spread: str, kind: str) -> None:
    ranks.run(cases.other_options_are_named, spread, tmp_path, kind)


@BOTH
def test_a_session_on_some_ranks_only_is_named(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    with pytest.raises(ChildError, match="rank 0 of 2 ended with status 7"):
        ranks.run(cases.sessions_on_some_ranks_are_named, spread, tmp_path, limit=30)
    assert (tmp_path / "error").read_text().startswith("rank 1 has not called its model with a session")


@BOTH
def test_another_order_is_named(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    ranks.run(cases.another_order_is_named, spread, tmp_path)


@BOTH
def test_a_session_closed_on_one_rank_is_named(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    with pytest.raises(ChildError, match="rank 0 of 2 ended with status 7"):
        ranks.run(cases.a_session_closed_on_one_rank_is_named, spread, tmp_path, limit=30)
    assert (tmp_path / "error").read_text().startswith("rank 1 has closed its session, and rank 0 goes on with terms(")


@BOTH
def test_a_conflict_is_raised_by_every_call(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    ranks.run(cases.a_conflict_is_raised_by_every_call, spread, tmp_path)


CALM = (
    "lists_that_methods_fill_are_no_options",
    "a_handled_error_ends_nobody",
    "an_error_before_the_first_call_is_told",
    pytest.param("an_error_of_an_earlier_session_is_no_news", marks=pytest.mark.slow),
    "an_own_error_is_blamed_on_nobody",
    "threads_end_with_their_session",
)


@pytest.mark.parametrize("case", CALM)
def test_nobody_is_ended_or_blamed_for_what_is_over(ranks: RankPool, tmp_path: Path, case: str) -> None:
    ranks.run(getattr(cases, case), tmp_path)


def test_a_second_error_is_told_as_well(ranks: RankPool, tmp_path: Path) -> None:
    with pytest.raises(
        ChildError, match="rank 1 ends: it waits for rank 0, which failed with RuntimeError: no compute"
    ):
        ranks.run(cases.a_second_error_is_told_as_well, tmp_path, limit=40)


def test_groups_of_ranks_meet_apart(four_ranks: RankPool, tmp_path: Path) -> None:
    four_ranks.run(cases.groups_meet_apart, tmp_path)


def test_a_session_that_ended_early_is_not_waited_for(ranks: RankPool, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="ended with status 7"):
        ranks.run(cases.a_session_that_ended_early_is_not_waited_for, tmp_path, limit=30)
    assert (tmp_path / "error").read_text().startswith("rank 0 has not called its model with a session")


def test_an_interrupt_reaches_the_other_rank(ranks: RankPool, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="rank 1 ends: it waits for rank 0, which failed with KeyboardInterrupt"):
        ranks.run(cases.an_interrupt_reaches_the_other_rank, tmp_path, limit=28)


def test_an_error_that_nobody_waits_for_ends_nobody(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(cases.an_error_that_nobody_waits_for_ends_nobody, tmp_path)


def test_an_error_in_the_backward_pass_reaches_the_other_rank(ranks: RankPool, tmp_path: Path) -> None:
    with pytest.raises(
        ChildError, match="rank 1 ends: it waits for rank 0, which failed with RuntimeError: no gradient"
    ):
        ranks.run(cases.an_error_in_the_backward_pass_reaches_the_other_rank, tmp_path, limit=28)


@pytest.mark.parametrize("spread", ["ddp", "fsdp2-root", "tp"])
def test_undeclared_spreads_are_refused(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    ranks.run(cases.undeclared_spreads_are_refused, spread, tmp_path)


def test_a_term_of_one_rank_is_logged_under_its_name(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(cases.terms_of_some_ranks_are_logged, tmp_path)


@pytest.mark.parametrize("averages", [True, False])
def test_a_rank_without_targets_does_not_count_in_a_term(ranks: RankPool, tmp_path: Path, averages: bool) -> None:
    for logged in ranks.run(cases.terms_of_ranks_without_targets_do_not_count, tmp_path, averages):
        assert logged == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize("way", ["options", "nothing"])
def test_trainers_agree_before_the_first_step(ranks: RankPool, tmp_path: Path, way: str) -> None:
    ranks.run(cases.trainers_agree, tmp_path, way)
