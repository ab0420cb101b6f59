"""What attach refuses by name, and a session whose loss nobody asks for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from methods import Damp
from paperhooks import PluginIncompatible, Traits, attach, hookimpl
from paperhooks.hooks import LossContext
from paperhooks.testing import tiny_llama
from paperhooks.training import HooksTrainerMixin, compute_loss
from torch import nn
from transformers import Trainer, TrainingArguments

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@dataclass(eq=False)
class Offline:
    traits = Traits()

    @hookimpl
    def compression(self, view, request):
        return None


@dataclass(eq=False)
class Score:
    traits = Traits()

    @hookimpl
    def score_examples(self, views, examples):
        return torch.zeros(len(examples))


@pytest.mark.parametrize(
    ("method", "verb"), [(Offline, "paperhooks.compress"), (Score, "paperhooks.score or paperhooks.select")]
)
def test_a_method_without_hooks_for_a_session_is_refused_with_its_verb(method, verb):
    model = tiny_llama()
    with pytest.raises(PluginIncompatible, match=rf"has no hooks that run while it is attached .*; use {verb} with it"):
        attach(model, method())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("layers", [[99], [0, 4]])
def test_layers_outside_the_decoder_are_refused(layers):
    @dataclass(eq=False)
    class Some:
        traits = Traits(layers=layers)

        @hookimpl
        def post_layer(self, hidden_states):
            return None

    with pytest.raises(PluginIncompatible, match=r"traits\.layers names .*, but this llama has layers 0 to 3"):
        attach(tiny_llama(), Some())


@dataclass(eq=False)
class Term:
    """Adds a constant to the loss."""

    traits = Traits(training=True)

    @hookimpl
    def loss_terms(self, context: LossContext) -> dict[str, Any]:
        return {"one": context.outputs.logits.mean() * 0 + 1}


def batch() -> dict[str, Any]:
    return {"input_ids": IDS, "labels": IDS}


def said(record: list[Any]) -> list[str]:
    return [str(w.message) for w in record if "nobody asked for this session's loss" in str(w.message)]


@pytest.mark.parametrize("of", ["loss", "logits"])
def test_training_without_the_loss_hooks_is_noticed_at_the_first_step(of):
    model = tiny_llama().train()
    session = attach(model, Term())
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        outputs = model(**batch())
        assert said(record) == []
        (outputs.loss if of == "loss" else outputs.logits.mean()).backward()
        assert len(said(record)) == 1
        model(**batch()).loss.backward()
        session.close()
    assert len(said(record)) == 1


def test_a_stock_trainer_is_told_at_its_first_step(tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": IDS[0], "labels": IDS[0]}

    class Stop(Exception):
        pass

    class First(Trainer):
        def training_step(self, *args, **kwargs):
            super().training_step(*args, **kwargs)
            raise Stop

    class Right(HooksTrainerMixin, Trainer):
        pass

    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "max_steps": 2, "save_strategy": "no"}
    arguments = TrainingArguments(**options, disable_tqdm=True)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        with pytest.raises(Stop), attach(tiny_llama(layers=1), Term()) as session:
            First(session.view.model, arguments, train_dataset=Rows()).train()
        assert len(said(record)) == 1
        with attach(tiny_llama(layers=1), Term()) as session:
            Right(session.view.model, arguments, train_dataset=Rows()).train()
    assert len(said(record)) == 1


def test_evaluating_and_asking_say_nothing():
    model = tiny_llama()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model, Term()) as session:
            model(**batch())
            with torch.no_grad():
                model.train()(**batch())
            compute_loss(session, LossContext(model, batch(), session)).backward()
            model(**batch()).loss.backward()
        with attach(nn.DataParallel(model), Damp()):
            model(**batch()).loss.backward()
