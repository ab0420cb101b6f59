"""What methods go on from, in checkpoints: of a session, of accelerate and of the Trainer."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from methods import Damp
from paperhooks import PluginConflict, Traits, attach, hookimpl
from paperhooks.testing import tiny_llama
from paperhooks.training import HooksTrainerMixin
from transformers import Trainer, TrainingArguments


@dataclass(eq=False)
class Count:
    """Counts its forwards."""

    count: int = 0
    traits = Traits(training=True)

    @hookimpl
    def pre_decoder(self, view, call, inputs):
        self.count += 1

    def state_dict(self):
        return {"count": torch.tensor(self.count)}

    def load_state_dict(self, state):
        self.count = int(state["count"])


class HooksTrainer(HooksTrainerMixin, Trainer):
    pass


def trainer(model, folder):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=2, save_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": torch.arange(3, 9), "labels": torch.arange(3, 9)}] * 4
    return HooksTrainer(model=model, args=arguments, train_dataset=rows)


def test_a_session_hands_over_what_its_methods_go_on_from():
    with attach(tiny_llama(), Count(3), Damp()) as session:
        state = session.state_dict()
    with attach(tiny_llama(), Damp(), Count()) as session:
        session.load_state_dict(state)
        assert session.methods["count"].count == 3
    with attach(tiny_llama(), Damp()) as session, pytest.raises(PluginConflict, match="has none with a state"):
        session.load_state_dict(state)


def test_accelerate_keeps_it(tmp_path):
    with attach(tiny_llama(), Count(3)) as session:
        accelerator = Accelerator(cpu=True)
        accelerator.register_for_checkpointing(session)
        accelerator.save_state(str(tmp_path))
        session.methods["count"].count = 7
        accelerator.load_state(str(tmp_path))
        assert session.methods["count"].count == 3


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_trainer_goes_on_or_says_that_it_does_not(tmp_path):
    with attach(tiny_llama(), Count()):
        trainer(tiny_llama(), tmp_path / "without").train()
    assert not list((tmp_path / "without").rglob("paperhooks_state_*")), "another model's session"
    with attach(model := tiny_llama(), Count()):
        trainer(model, tmp_path / "with").train()
    shutil.rmtree(tmp_path / "with" / "checkpoint-2")
    for resume in (True, str(tmp_path / "with" / "checkpoint-1")):
        with attach(model := tiny_llama(), Count()) as session:
            trainer(model, tmp_path / "with").train(resume_from_checkpoint=resume)
            assert session.methods["count"].count == 2
        shutil.rmtree(tmp_path / "with" / "checkpoint-2")
    with attach(model := tiny_llama(), Count()), pytest.warns(UserWarning, match="says nothing of count"):
        trainer(model, tmp_path / "without").train(resume_from_checkpoint=True)
