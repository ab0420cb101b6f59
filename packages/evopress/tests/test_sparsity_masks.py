"""Compressed models in the stock Trainer and with adapters: zeros stay, what is left out is not trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from paperhooks import Artefact, ArtefactError, UnsupportedModel
from paperhooks.testing import tiny_llama
from paperhooks_evopress import EvoPress, SparsityMasks
from torch import nn
from transformers import Trainer, TrainingArguments

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texts(n: int = 12, length: int = 16) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (length,), generator=generator).tolist() for _ in range(n)]


ROWS = [{"input_ids": ids, "labels": ids} for ids in texts()]


def compressed(model: nn.Module, target: str = "sparsity=0.5") -> Artefact:
    search = EvoPress(schedule="quick", generations=1, check_model=False, finalists=0)
    return paperhooks.compress(model, search, data=texts(), target=target, progress=False)


def trainer(model: Any, out: Path, *callbacks: Any, **options: Any) -> Trainer:
    given = {
        "per_device_train_batch_size": 2, "learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 4, "save_steps": 2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "seed": 0,
    }  # fmt: skip
    arguments = TrainingArguments(str(out), **{**given, **options})
    return Trainer(model, arguments, train_dataset=ROWS, callbacks=list(callbacks))


def filled(model: nn.Module, masks: SparsityMasks, artefact: Artefact) -> int:
    """How many of the artefact's zeros are not zero any more."""
    return sum(int(model.get_parameter(name)[masks.places(name)].count_nonzero()) for name in artefact.edits)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "adafactor"},
        {"max_grad_norm": 0.0},
    ],
    ids=lambda options: next(iter(options), "adamw"),
)
def test_zeros_stay_through_the_steps_of_an_optimiser(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_llama(layers=2)
    artefact = compressed(model)
    masks = SparsityMasks(artefact)
    name = next(iter(artefact.edits))
    before = model.get_parameter(name).detach().clone()
    training = trainer(model, tmp_path, masks, save_strategy="no", **options)
    training.train()
    assert filled(model, masks, artefact) == 0
    kept = ~masks.places(name)
    assert not torch.equal(model.get_parameter(name)[kept], before[kept])
    for state in training.optimizer.state_dict()["state"].values():
        assert all(torch.isfinite(each).all() for each in state.values() if isinstance(each, torch.Tensor))


def test_without_the_masks_zeros_are_lost_and_moments_grow_there(tmp_path: Path) -> None:
    """What the callback is there for."""
    model = tiny_llama(layers=2)
    artefact = compressed(model)
    trainer(model, tmp_path, save_strategy="no").train()
    assert filled(model, SparsityMasks(artefact), artefact) > 0


def test_no_moment_of_the_optimiser_grows_where_zeros_stay(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    artefact = compressed(model)
    masks = SparsityMasks(artefact)
    training = trainer(model, tmp_path, masks, save_strategy="no")
    training.train()
    name = next(iter(artefact.edits))
    state = next(s for p, s in unwrapped(training.optimizer).state.items() if p is model.get_parameter(name))
    assert int(state["exp_avg"][masks.places(name)].count_nonzero()) == 0
    assert int(state["exp_avg"].count_nonzero()) > 0


def unwrapped(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, part = tiny_llama(layers=2), tiny_llama(layers=2)
    artefact = compressed(whole)
    trainer(whole, tmp_path / "whole", SparsityMasks(artefact)).train()
    again = Artefact.load(artefact.save(tmp_path / "artefact"))
    again.apply(part)
    trainer(part, tmp_path / "part", SparsityMasks(again), max_steps=2, lr_scheduler_type="constant").train()
    resumed = tiny_llama(layers=2)
    again.apply(resumed)
    masks = SparsityMasks(again)
    reference = tiny_llama(layers=2)
    again.apply(reference)
    trainer(reference, tmp_path / "reference", masks, lr_scheduler_type="constant").train()
    trainer(resumed, tmp_path / "part", masks, lr_scheduler_type="constant").train(resume_from_checkpoint=True)
    assert filled(resumed, masks, artefact) == filled(whole, masks, artefact) == 0
    for name, parameter in reference.named_parameters():
        assert torch.equal(resumed.get_parameter(name), parameter), name


def test_a_model_without_the_zeros_is_refused(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    artefact = compressed(model)
    masks = SparsityMasks(artefact)
    artefact.undo()
    with pytest.raises(ArtefactError, match=r"is not zero at \d+ places"):
        trainer(model, tmp_path, masks).train()
    with pytest.raises(ArtefactError, match="has no parameter"):
        masks.check(nn.Linear(2, 2))
    with pytest.raises(ArtefactError, match="writes no zeros"):
        SparsityMasks(compressed(model, "bits=3"))


def test_parameters_that_are_not_here_as_a_whole_are_refused() -> None:
    model = tiny_llama(layers=2)
    masks = SparsityMasks(compressed(model))
    with pytest.raises(UnsupportedModel, match="is not in memory"):
        masks.check(model.to("meta"))
    with pytest.raises(ArtefactError, match=r"is \[64, 64\] and was compressed as"):
        masks.check(tiny_llama(layers=2, hidden_size=64))


def test_what_is_left_out_has_no_parameters_to_train(tmp_path: Path) -> None:
    model = tiny_llama(layers=3)
    artefact = compressed(model, "depth=1")
    gone = {id(p) for name in artefact.skipped for p in held(model, name)}
    training = trainer(model, tmp_path, save_strategy="no")
    training.train()
    trained = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert gone
    assert not gone & trained
    assert trained == {id(p) for p in model.parameters()}


def held(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of a module that is skipped."""
    return list(paperhooks.weights.skipped_modules(model)[name].parameters())


def adapted(model: nn.Module) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=True)
    return peft.get_peft_model(model, config)


def test_adapters_leave_the_zeros_below_them(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    artefact = compressed(model)
    masks = SparsityMasks(artefact)
    with_adapters = adapted(model)
    frozen = {n: p.detach().clone() for n, p in with_adapters.named_parameters() if not p.requires_grad}
    with pytest.warns(UserWarning, match="adapters stand on 4 parameters"):
        trainer(with_adapters, tmp_path, masks, save_strategy="no").train()
    masks.check(with_adapters)
    for name, parameter in with_adapters.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
    merged = with_adapters.merge_and_unload()
    with pytest.raises(ArtefactError, match="is not zero"):
        masks.check(merged)
    masks.apply(merged)
    masks.check(merged)


def test_adapters_on_other_modules_are_not_warned_of(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llama(layers=2)
    masks = SparsityMasks(compressed(model))
    with_adapters = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["lm_head"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="adapters stand on")
        trainer(with_adapters, tmp_path, masks, save_strategy="no").train()


def test_the_trained_model_is_that_of_the_zeros_when_it_is_saved(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    artefact = compressed(model)
    masks = SparsityMasks(artefact)
    trainer(model, tmp_path, masks).train()
    again = type(model).from_pretrained(tmp_path / "checkpoint-4").eval()
    masks.check(again)
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, model.eval()(IDS).logits, atol=1e-6)
