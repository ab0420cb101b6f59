"""Checkpoints of runs with methods: in this process alone, replicated and sharded."""

from __future__ import annotations

from pathlib import Path

import cases_saving as cases
import pytest
from paperhooks.testing import RankPool

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.mark.parametrize("method", cases.METHODS)
def test_a_resumed_trainer_equals_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    cases.with_trainer(method, str(tmp_path))


@pytest.mark.parametrize("method", ["both", pytest.param("distil_term", marks=pytest.mark.slow)])
def test_resumed_trainers_equal_uninterrupted_ones(ranks: RankPool, tmp_path: Path, method: str) -> None:
    ranks.run(cases.with_trainer, method, tmp_path)


@pytest.mark.parametrize("spread", ["fsdp2-root", pytest.param("fsdp2-wrapped", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["both", "distil_term", pytest.param("random", marks=pytest.mark.slow)])
def test_a_resumed_loop_equals_an_uninterrupted_one(ranks: RankPool, tmp_path: Path, method: str, spread: str) -> None:
    ranks.run(cases.by_hand, method, spread, tmp_path)


@pytest.mark.parametrize("spread", ["fsdp2-root", "ddp"])
def test_the_mark_of_a_trained_model_is_saved(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    ranks.run(cases.mark_beside_shards, spread, tmp_path)
