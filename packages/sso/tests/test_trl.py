"""TRL's DPOTrainer with the mixin trains to the very parameters of the plain Trainer."""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from paperhooks import HooksTrainerMixin
from paperhooks_sso import SSO
from paperhooks_sso.algorithm import GROUPS
from sso_models import drawn_pairs, record_of, tiny, with_reference
from transformers import AutoTokenizer, Trainer, TrainingArguments

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

REFERENCE = Path(__file__).parent / "reference"


class HooksTrainer(HooksTrainerMixin, Trainer):
    """What a user writes."""


def records() -> list[dict[str, Any]]:
    """Pairs with the sums of the reference."""
    pairs = drawn_pairs()
    sums = with_reference(SSO().collator(layout="joint")(pairs))["reference_logprobs"].view(2 * len(GROUPS), -1)
    return [{**record_of(pair), "reference": sums[:, at].tolist()} for at, pair in enumerate(pairs)]


def settings(kind: type, out: Path) -> Any:
    return kind(
        output_dir=str(out), use_cpu=True, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=0.05, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, report_to="none",
        save_strategy="no", logging_steps=1, disable_tqdm=True, seed=3, bf16=False, gradient_checkpointing=False,
        **({"remove_unused_columns": False} if kind is TrainingArguments else {}),
    )  # fmt: skip


def trained(which: str, out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    model, method = tiny(), SSO()
    data, collator = datasets.Dataset.from_list(records()), method.collator()
    with paperhooks.attach(model, method):
        if which == "trl":
            from paperhooks_sso.trl_trainer import HooksDPOTrainer

            run = HooksDPOTrainer(
                model, ref_model=tiny("reference"), args=settings(trl.DPOConfig, out), train_dataset=data,
                processing_class=AutoTokenizer.from_pretrained(REFERENCE / "tiny_llama"), data_collator=collator,
            )  # fmt: skip
        else:
            run = HooksTrainer(model, settings(TrainingArguments, out), data_collator=collator, train_dataset=data)
        run.train()
    return {n: p.detach().clone() for n, p in model.named_parameters()}, run.state.log_history


def test_trl_is_the_version_whose_names_are_overridden() -> None:
    """Another one: look whether DPOTrainer still prepares its dataset and names its columns by these two."""
    assert version("trl").startswith("1.16.")
    for name in ("_prepare_dataset", "_set_signature_columns_if_needed"):
        assert name in vars(trl.DPOTrainer)


def test_parameters_and_logs_are_those_of_the_plain_trainer(tmp_path: Path) -> None:
    weights, log = trained("trl", tmp_path / "trl")
    wanted, plain = trained("plain", tmp_path / "plain")
    start = dict(tiny().named_parameters())
    assert max(float((wanted[name] - start[name]).detach().abs().max()) for name in wanted) > 1e-3
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-7, msg=name)
    for one, two in zip(log[:2], plain[:2], strict=True):
        assert {key for key in two if "/" in key} <= set(one)
        for key in (key for key in two if key.startswith("loss")):
            assert one[key] == pytest.approx(two[key], rel=1e-6), key


def test_what_would_be_ignored_is_refused(tmp_path: Path) -> None:
    from paperhooks_sso.trl_trainer import HooksDPOTrainer

    arguments = settings(trl.DPOConfig, tmp_path)
    with pytest.raises(ValueError, match="needs the collator of the method"):
        HooksDPOTrainer(tiny(), args=arguments)
    for name, value in {
        "use_weighting": True, "beta": 0.3, "loss_type": ["ipo"], "max_length": 64, "sync_ref_model": True,
        "precompute_ref_log_probs": True,
    }.items():  # fmt: skip
        changed = copy.copy(arguments)
        setattr(changed, name, value)
        with pytest.raises(ValueError, match=f"{name}=.* belongs to the loss of DPOTrainer"):
            HooksDPOTrainer(tiny(), args=changed, data_collator=SSO().collator())
