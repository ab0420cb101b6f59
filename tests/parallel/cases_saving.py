"""Saved is what was trained: a run that goes on from a checkpoint equals one that was never interrupted.

Every function at the top runs in one rank, or in this process alone.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import paperhooks
import torch
from paperhooks import LossContext
from paperhooks.testing import tiny_text, tiny_vlm, vlm_inputs
from paperhooks.training import HooksTrainerMixin, compute_loss
from paperhooks_cca import CCA, read_mark
from paperhooks_miniplm import DistilTerm
from paperhooks_pyramiddrop import PyramidDrop
from spreads import SPREADS, whole
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import Trainer, TrainingArguments

__all__ = ["METHODS", "by_hand", "mark_beside_shards", "with_trainer"]

METHODS: Final[dict[str, Callable[[], list[Any]]]] = {
    "random": lambda: [PyramidDrop(stages={2: 0.5}, rank="random")],
    "cca": lambda: [CCA(grid=(2, 4))],
    "both": lambda: [CCA(grid=(2, 4)), PyramidDrop(stages={2: 0.5}, rank="random")],
    "distil_term": lambda: [DistilTerm(teacher=tiny_text(seed=1), chunk=3)],
}
_STEPS: Final = 4


class _HooksTrainer(HooksTrainerMixin, Trainer):
    """The Trainer that takes the methods' loss and keeps their state."""


def _model(method: str) -> Any:
    options = {"attention_dropout": 0.1, "layers": 3}  # drawn from generators that the Trainer itself keeps
    if method == "distil_term":
        return tiny_text(seed=0, **options).train()
    model = tiny_vlm("llava", layers=3).train()
    model.model.vision_tower.requires_grad_(False)  # the batches hold features
    model.model.multi_modal_projector.requires_grad_(False)
    return model


def _batch(model: Any, seed: int) -> dict[str, Any]:
    if model.config.model_type == "llava":
        batch = vlm_inputs(model, ((3, 8, 5), (4, 8, 4)), seed=seed)
    else:
        batch = {"input_ids": torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(seed))}
    labels = batch["input_ids"].clone()
    labels[:, :-4] = -100
    return {**batch, "labels": labels}


def with_trainer(method: str, folder: str) -> None:
    """Four steps at once, and two steps, a checkpoint, and two more of another process' objects."""
    place = Path(folder)
    _trained(method, place / "whole")
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        shutil.copytree(place / "whole" / "checkpoint-2", place / "broken" / "checkpoint-2")
    if distributed.is_initialized():
        distributed.barrier()
    expected = _trained(method, place / "again")
    found = _trained(method, place / "broken", resume=True)
    apart = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    assert apart < 1e-6, f"parameters lie {apart:.3g} apart"


def _trained(method: str, folder: Path, resume: bool = False) -> dict[str, torch.Tensor]:
    model = _model(method)
    if resume:  # transformers 5.24 saves LLaVA under names that its Trainer does not find again when it goes on
        saved = type(model).from_pretrained(folder / "checkpoint-2").state_dict()
        model.load_state_dict(saved)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=_STEPS, save_steps=2, per_device_train_batch_size=1, report_to=[],
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False, learning_rate=1e-2, seed=5,
    )  # fmt: skip
    with warnings.catch_warnings(), paperhooks.attach(model, *METHODS[method]()):
        warnings.filterwarnings("error", ".*begins anew.*")
        trainer = _HooksTrainer(
            model=model,
            args=arguments,
            train_dataset=list(range(12)),
            data_collator=lambda rows: _batch(model, rows[0]),
        )
        trainer.train(resume_from_checkpoint=resume or None)
    return whole(model)


def by_hand(method: str, spread: str, folder: str) -> None:
    """The same with a loop of one's own and torch's sharded checkpoints."""
    expected = _stepped(method, spread, folder, range(_STEPS))
    _stepped(method, spread, folder, range(_STEPS // 2), save=True)
    found = _stepped(method, spread, folder, range(_STEPS // 2, _STEPS), load=True)
    apart = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    assert apart < 1e-6, f"parameters lie {apart:.3g} apart"


def _stepped(
    method: str, spread: str, folder: str, steps: range, save: bool = False, load: bool = False
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = _model(method)
    called = SPREADS[spread].spread(model, folder)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    state = Path(folder, f"methods-{distributed.get_rank()}.pt")
    with paperhooks.attach(model, *METHODS[method]()) as session:
        if load:
            weights, moments = get_state_dict(model, optimiser)
            checkpoint.load({"model": weights, "optimiser": moments}, checkpoint_id=f"{folder}/shards")
            set_state_dict(model, optimiser, model_state_dict=weights, optim_state_dict=moments)
            drawn = torch.load(state, weights_only=True)
            torch.set_rng_state(drawn["torch"])
            session.load_state_dict(drawn["methods"])
        for step in steps:
            batch = _batch(model, 2 * step + distributed.get_rank())
            compute_loss(session, LossContext(called, batch, session=session)).backward()
            optimiser.step()
            optimiser.zero_grad()
        if save:
            weights, moments = get_state_dict(model, optimiser)
            checkpoint.save({"model": weights, "optimiser": moments}, checkpoint_id=f"{folder}/shards")
            torch.save({"torch": torch.get_rng_state(), "methods": session.state_dict()}, state)
    return whole(model)


def mark_beside_shards(spread: str, folder: str) -> None:
    """What a sharded model was trained with is in a full checkpoint, beside a sharded one, and stays afterwards."""
    model, method = _model("cca"), METHODS["cca"]()
    called = SPREADS[spread].spread(model, folder)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    with paperhooks.attach(model, *method):
        for step in itertools.repeat(0, 2):
            called(**_batch(model, step)).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        if distributed.get_rank() == 0:
            model.config.save_pretrained(f"{folder}/config")
    assert read_mark(model) == method[0].settings, "the mark is gone with the session"
    weights = whole(model)
    if distributed.get_rank() == 0:
        model.save_pretrained(f"{folder}/full", state_dict=weights)
        for name in ("config", "full"):
            found = type(model.config).from_pretrained(f"{folder}/{name}").paperhooks["cca"]
            assert found == method[0].settings, name
    distributed.barrier()
