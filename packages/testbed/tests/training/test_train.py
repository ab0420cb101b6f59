"""The training script: packing equals single questions, resuming equals not stopping, refusals."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from paperhooks.errors import DataError, MissingExtra
from paperhooks_testbed import KINDS, generate_scene, prompt, questions_for
from paperhooks_testbed.architecture import build_model
from paperhooks_testbed.training import IGNORE, pack
from paperhooks_testbed.training.curriculum import Curriculum
from paperhooks_testbed.training.train import CHECKPOINT, QUICK, Habits, export_run, main, train
from paperhooks_testbed.training.trainstate import Settings, TrainState
from safetensors.torch import load_file

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or later")
QUIET = Habits(log=1, save=1, check=100, profile=100, dev_images=1)


def test_the_model_is_small_deep_and_stock():
    model = build_model(0)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 4e6
    assert len(model.model.language_model.layers) >= 8


def test_building_leaves_random_state_alone():
    before = torch.get_rng_state()
    first, second = build_model(3), build_model(3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


@torch.no_grad()
def test_a_packed_question_is_computed_as_if_it_stood_alone(processor):
    model = build_model(0).eval()
    scenes = [generate_scene("train", i) for i in range(2)]
    asked = [questions_for(scene, random.Random(0), list(KINDS)) for scene in scenes]
    batch = pack(scenes, asked)
    logits = model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
    ).logits
    for b, row in enumerate(asked):
        places = (batch.targets[b] != IGNORE).nonzero()[::2, 0]
        for question, place in zip(row, places.tolist()):
            inputs = processor(images=question.image(), text=prompt(question), return_tensors="pt")
            alone = model(**inputs).logits[0, -1]
            torch.testing.assert_close(logits[b, place], alone, rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    pass


def train_until(out, stop: int) -> None:
    """Train, but fail when ``stop`` steps are done: the length of a run decides its learning rates, so it must stay."""
    advance = TrainState.advance

    def failing(state):
        if state.step == stop:
            raise Interrupted
        return advance(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "advance", failing)
        train(out, QUICK, resume=True, habits=QUIET)


@needs_muon
def test_resuming_gives_the_weights_of_an_unbroken_run(tmp_path):
    train(tmp_path / "whole", QUICK, habits=QUIET)
    for stop in (2, 4):  # once in the warm-up, once in the main phase
        with pytest.raises(Interrupted):
            train_until(tmp_path / "broken", stop)
    train(tmp_path / "broken", QUICK, resume=True, habits=QUIET)
    whole, broken = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


@needs_muon
def test_the_warm_up_learns_in_its_first_steps():
    state = TrainState(dataclasses.replace(QUICK, steps=100, warmup_steps=100, warmup_pictures=4))
    losses = [state.advance()[0] for _ in range(25)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@needs_muon
def test_runs_are_not_overwritten_or_mixed(tmp_path):
    short = dataclasses.replace(QUICK, steps=1)
    train(tmp_path, short, habits=QUIET)
    with pytest.raises(DataError, match="already holds a run; add --resume"):
        train(tmp_path, short, habits=QUIET)
    with pytest.raises(DataError, match="was trained with seed=0; this run asks for seed=1"):
        train(tmp_path, dataclasses.replace(short, seed=1), resume=True, habits=QUIET)
    with pytest.raises(DataError, match="holds no training run"):
        export_run(tmp_path / "nothing", tmp_path / "model")


@needs_muon
def test_the_command_trains_and_exports(tmp_path):
    assert main(["--out", str(tmp_path / "run"), "--quick"]) == 0
    export_run(tmp_path / "run", tmp_path / "model", questions=5)
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "seed 0, 6 steps" in card
    assert "{" not in card.replace(card[card.index("```json") : card.rindex("```")], "")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 12e6
    assert not list(tmp_path.glob(".model*"))


def test_lessons_are_functions_of_the_step():
    curriculum = Curriculum(pictures=3, questions=6)
    first, again, later = (curriculum.lesson(step, step) for step in (9, 9, 10))
    assert first.questions == again.questions
    assert torch.equal(first.hidden, again.hidden)
    assert first.scenes != later.scenes
    assert {scene.split for scene in first.scenes} == {"train"}


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(MissingExtra, match=r"torch 2.9 or later .* pip install 'paperhooks-testbed\[train\]'"):
        TrainState(QUICK)


def test_the_rate_rises_in_both_phases_and_falls_at_the_end():
    settings = Settings(steps=100, warmup_steps=20, rise=10, fall=30, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[0] == rates[20] == 0.1
    assert rates[9:20] == [1.0] * 11
    assert rates[29:71] == [1.0] * 42
    assert rates[71:] == sorted(rates[71:], reverse=True)
    assert 0 < rates[99] < 0.04
    # A longer run is the same until the shorter one's end is near: --steps may change before the fall.
    longer = dataclasses.replace(settings, steps=200)
    assert [longer.rate(step) for step in range(71)] == rates[:71]
