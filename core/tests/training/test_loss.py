"""Loss hooks in real Trainer runs: gradient accumulation, logging, evaluation, and no trace without hooks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from loss_methods import (
    METHODS,
    HooksTrainer,
    Penalties,
    SequenceLoss,
    TokenLoss,
    collate,
    examples,
    fresh,
    train,
    trainer,
)
from paperhooks import DataError, HookError, LossContext, PluginConflict, Traits, hookimpl
from paperhooks.hooks.batch_counts import batch_target_rows, predicts_nothing
from paperhooks.logprobs import next_token_labels, sequence_logprobs
from paperhooks.models import ModelView
from paperhooks.testing import run_ranks
from paperhooks.training import compute_loss
from paperhooks.training.loss import find_session
from safetensors.torch import load_file
from transformers import Trainer

REPLACING = ["token", "sequence", "terms", "both"]


def trained(name: str, out: Path, accepts: bool = True, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and log after training with the methods called ``name``."""
    model = fresh()
    methods = [cls() for cls in METHODS[name]]
    session = paperhooks.attach(model, *methods) if methods else None
    run = trainer(model, out, **options)
    run.model_accepts_loss_kwargs = accepts
    run.train()
    if name == "bystander":
        assert session is not None
    if session is not None:
        session.close()
    return {n: p.detach().clone() for n, p in model.named_parameters()}, run.state.log_history


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    start = dict(fresh().named_parameters())
    assert any(not torch.equal(wanted[n], start[n]) for n in wanted), "nothing was trained"
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["stock", *REPLACING])
def test_accumulated_gradients_equal_one_big_batch(name: str, tmp_path: Path) -> None:
    wanted, whole = trained(name, tmp_path)
    for batch, accumulation in ((2, 4), (1, 8), (3, 3)):
        found, log = trained(name, tmp_path, batch=batch, accumulation=accumulation)
        same(found, wanted)
        for key in (k for k in whole[0] if k.startswith("loss")):
            assert log[0][key] == pytest.approx(whole[0][key], rel=1e-5), key


@pytest.mark.parametrize("name", ["token", "sequence"])
@pytest.mark.parametrize("averaged", [True, False])
def test_accumulation_is_right_without_a_token_count_from_the_trainer(
    name: str, averaged: bool, tmp_path: Path
) -> None:
    options = {"accepts": False, "average_tokens_across_devices": averaged}
    wanted, _ = trained(name, tmp_path)
    for batch, accumulation in ((8, 1), (2, 4), (3, 3)):
        found, log = trained(name, tmp_path, batch=batch, accumulation=accumulation, **options)
        same(found, wanted)
        assert log[0]["loss"] > 0


@pytest.mark.parametrize("accepts", [True, False])
def test_terms_are_added_to_the_stock_loss_whatever_its_normalisation(accepts: bool, tmp_path: Path) -> None:
    """Weights move by the sum of what the stock loss and the terms alone would do."""
    options = {"batch": 2, "accumulation": 4, "accepts": accepts}
    stock, _ = trained("stock", tmp_path, **options)
    both, log = trained("terms", tmp_path, **options)
    start = dict(fresh().named_parameters())
    model = fresh()
    with paperhooks.attach(model, Penalties()) as session:
        context = LossContext(model, collate(examples()), session, num_items_in_batch=51, num_examples_in_batch=8)
        terms = compute_loss(session, context) - context.model_loss
    gradients = dict(zip(start, torch.autograd.grad(terms, list(model.parameters())), strict=True))
    for name, weight in start.items():
        torch.testing.assert_close(both[name] - stock[name], -0.05 * gradients[name], rtol=1e-3, atol=2e-6, msg=name)
        assert weight.shape == both[name].shape
    assert log[0]["loss/penalties/z"] == pytest.approx(float(context.terms["loss/penalties/z"]), rel=1e-5)


@pytest.mark.parametrize("name", ["stock", "bystander"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_without_loss_hooks_it_is_the_stock_trainer_bit_for_bit(name: str, accumulation: int, tmp_path: Path) -> None:
    options = {"batch": 2, "accumulation": accumulation, "steps": 3}
    model = fresh()
    run = trainer(model, tmp_path, kind=Trainer, **options)
    run.train()
    weights, log = trained(name, tmp_path, **options)
    for key, parameter in model.named_parameters():
        assert torch.equal(weights[key], parameter), key
    assert [e.get("loss") for e in log] == [e.get("loss") for e in run.state.log_history]
    assert not any("/" in key for entry in log for key in entry)


def test_terms_are_logged_as_means_over_the_steps_since_the_last_log(tmp_path: Path) -> None:
    _, each = trained("both", tmp_path, batch=2, accumulation=2, steps=4)
    _, pairs = trained("both", tmp_path, batch=2, accumulation=2, steps=4, logging_steps=2)
    keys = ["loss", "loss/penalties/spread", "loss/penalties/z"]
    steps = [e for e in each if "loss" in e]
    found = [e for e in pairs if "loss" in e]
    assert len(steps) == 4
    assert len(found) == 2
    for i, entry in enumerate(found):
        for key in keys:
            assert entry[key] == pytest.approx((steps[2 * i][key] + steps[2 * i + 1][key]) / 2, rel=1e-4), key
    assert set(keys) <= set(found[0])


def test_training_twice_starts_the_log_anew(tmp_path: Path) -> None:
    model = fresh()
    with paperhooks.attach(model, Penalties()):
        run = trainer(model, tmp_path, steps=3, logging_steps=2, learning_rate=1e-30)
        run.train()  # the third step is never logged
        first = run.state.log_history[0]
        run.train()
        second = run.state.log_history[0]
    assert second["loss/penalties/z"] == pytest.approx(first["loss/penalties/z"], rel=1e-5)


@pytest.mark.parametrize("name", ["token", "sequence", "both"])
def test_evaluation_uses_the_same_loss_and_leaves_training_alone(name: str, tmp_path: Path) -> None:
    plain, _ = trained(name, tmp_path, batch=2, accumulation=2, steps=3)
    found, log = trained(name, tmp_path, batch=2, accumulation=2, steps=3, eval_strategy="steps", eval_steps=1)
    for key in plain:
        assert torch.equal(plain[key], found[key]), key
    assert all(e["eval_loss"] > 0 for e in log if "eval_loss" in e)
    assert sum("eval_loss" in e for e in log) == 3


def test_evaluated_loss_is_that_of_the_hook(tmp_path: Path) -> None:
    model = fresh()
    with paperhooks.attach(model, SequenceLoss()):
        metrics = trainer(model, tmp_path, batch=8).evaluate()
    with torch.no_grad():
        found = sequence_logprobs(model, collate(examples()))
    assert metrics["eval_loss"] == pytest.approx(float(torch.nn.functional.softplus(-found.mean).mean()), rel=1e-5)


def test_a_replaced_loss_runs_the_model_once_a_batch(tmp_path: Path) -> None:
    model, calls = fresh(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with paperhooks.attach(model, TokenLoss()):
        calls.clear()  # the head's self-check
        trainer(model, tmp_path, batch=2, accumulation=2, steps=2).train()
        assert len(calls) == 4
    with paperhooks.attach(model, Penalties()):
        calls.clear()
        trainer(model, tmp_path, batch=2, accumulation=2, steps=2).train()
    assert len(calls) == 4


def test_the_session_is_found_inside_wrappers() -> None:
    model = fresh()
    assert find_session(model) is None
    session = paperhooks.attach(model, TokenLoss())
    assert find_session(torch.nn.DataParallel(model)) is session
    assert find_session(torch.compile(model, backend="eager")) is session
    session.close()
    assert find_session(model) is None


# -- without a Trainer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["token", "sequence", "both"])
def test_a_plain_loop_accumulates_rightly(name: str) -> None:
    data, gradients = examples(), []
    for size in (8, 3):
        model = fresh()
        with paperhooks.attach(model, *[cls() for cls in METHODS[name]]) as session:
            for start in range(0, 8, size):
                batch = collate(data[start : start + size])
                counts = {"num_items_in_batch": 51, "num_examples_in_batch": 8, "accumulation_steps": 3}
                compute_loss(session, LossContext(model, batch, session, **counts)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    same_gradient = zip(gradients[0].items(), gradients[1].values())
    for (key, one), two in same_gradient:
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=key)


def test_the_model_loss_is_used_when_no_method_replaces_it() -> None:
    model, batch = fresh(), collate(examples())
    with paperhooks.attach(model, Penalties()) as session:
        context = LossContext(model, batch, session, num_items_in_batch=51, num_examples_in_batch=8)
        total = compute_loss(session, context)
    stock = model(**batch, num_items_in_batch=51).loss
    assert torch.equal(context.model_loss, stock)
    assert total.item() == pytest.approx(stock.item() + sum(float(t) for t in context.terms.values()), rel=1e-6)
    assert context.labels is batch["labels"]
    assert context.training is False
    assert list(context.terms) == ["loss/penalties/z", "loss/penalties/spread"]
    assert not any(t.requires_grad for t in context.terms.values())


def test_means_without_counts_fall_back_to_the_micro_batch() -> None:
    model, batch = fresh(), collate(examples())
    context = LossContext(model, batch, accumulation_steps=4)
    mask = next_token_labels(ModelView.from_model(model), batch) != -100
    values = torch.rand(mask.shape)
    assert float(context.token_mean(values, mask)) == pytest.approx(float(values[mask].mean()) / 4, rel=1e-5)
    assert float(context.example_mean(values[:, 0])) == pytest.approx(float(values[:, 0].mean()) / 4, rel=1e-5)
    assert context.model_loss.item() == pytest.approx(model(**batch).loss.item() / 4, rel=1e-6)


def test_an_example_may_be_several_rows() -> None:
    batch = collate(examples())
    context = LossContext(fresh(), batch, num_examples_in_batch=24, accumulation_steps=3)
    pairs = torch.rand(4)
    assert context.example_mean(pairs).item() == pytest.approx(pairs.sum().item() / 12)
    assert context.example_mean(pairs.repeat(2)).item() == pytest.approx(pairs.sum().item() / 12)


def test_values_without_target_do_not_count_even_if_not_finite() -> None:
    context = LossContext(fresh(), collate(examples()), num_items_in_batch=4)
    values = torch.tensor([[1.0, torch.nan], [2.0, torch.inf]])
    assert context.token_mean(values, torch.tensor([[1, 0], [1, 0]])).item() == 0.75


@dataclass(eq=False)
class Wrong:
    """Returns what it is told to."""

    result: Any
    hook: str
    traits = Traits(parallel=("ddp",))

    @hookimpl
    def compute_loss(self, context):
        return self.result if self.hook == "compute_loss" else None

    @hookimpl
    def loss_terms(self, context):
        return self.result if self.hook == "loss_terms" else None


@pytest.mark.parametrize(
    ("hook", "result", "words"),
    [
        ("compute_loss", 1.0, "compute_loss of 'wrong' is float; expected a scalar"),
        ("compute_loss", torch.ones(2), r"compute_loss of 'wrong' is torch.float32 \[2\]"),
        ("compute_loss", torch.tensor(1), "is torch.int64"),
        ("loss_terms", torch.tensor(1.0), "loss_terms of 'wrong' returned Tensor; expected a dict"),
        ("loss_terms", {"a": torch.ones(2)}, "term 'a' of 'wrong'"),
        ("loss_terms", {1: torch.ones(1)}, "expected a dict of name"),
    ],
)
def test_wrong_results_are_named(hook: str, result: Any, words: str) -> None:
    model = fresh()
    with paperhooks.attach(model, Wrong(result, hook)) as session, pytest.raises(HookError, match=words):
        compute_loss(session, LossContext(model, collate(examples()), session))


def test_an_error_in_a_hook_names_hook_and_method() -> None:
    @dataclass(eq=False)
    class Fails(Wrong):
        @hookimpl
        def loss_terms(self, context):
            raise RuntimeError("no")

    model = fresh()
    with paperhooks.attach(model, Fails(None, "")) as session, pytest.raises(RuntimeError) as caught:
        compute_loss(session, LossContext(model, collate(examples()), session))
    assert "raised in loss_terms of 'fails'" in caught.value.__notes__[0]


def test_a_model_without_loss_says_what_is_missing() -> None:
    model, batch = fresh(), collate(examples())
    del batch["labels"]
    with paperhooks.attach(model, Wrong(None, "")) as session, pytest.raises(HookError, match="give labels"):
        compute_loss(session, LossContext(model, batch, session))


def test_rows_without_a_target_do_not_count_in_an_accumulated_batch() -> None:
    labels = torch.tensor([[-100, 5, 6], [-100, -100, -100], [4, -100, -100], [-100, -100, 7]])
    assert batch_target_rows({"labels": labels}) == 2  # the first position is no target
    assert batch_target_rows({"shift_labels": labels}) == 3
    assert batch_target_rows({"input_ids": labels}) == batch_target_rows({"labels": torch.tensor([1, 2])}) == 0
    values, counted = torch.tensor([2.0, float("nan"), 4.0]), torch.tensor([True, False, True])
    context = LossContext(fresh(), {}, num_target_rows_in_batch=3, accumulation_steps=2)
    assert context.target_row_mean(values, counted).item() == pytest.approx(6 / 3)
    context.num_target_rows_in_batch = None
    assert context.target_row_mean(values, counted).item() == pytest.approx(3 / 2)
    context = LossContext(fresh(), {"labels": labels[:3]}, num_examples_in_batch=6, accumulation_steps=2)
    assert context.target_row_mean(values, torch.tensor([True, True, True]).logical_and(counted)).item() == (
        pytest.approx(3 / 2)
    )


def without_targets(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Batches of short rows are prompts alone."""
    batch = collate(rows)
    few = torch.tensor([len(row["input_ids"]) < 8 for row in rows])
    return {**batch, "labels": batch["labels"].masked_fill(few[:, None], -100)}


@pytest.mark.parametrize("name", ["terms", "token"])
@pytest.mark.parametrize("accepts", [True, False])
def test_micro_batches_without_target_contribute_nothing(name: str, accepts: bool, tmp_path: Path) -> None:
    """Also where the model's own loss, a mean of nothing, is NaN: one that takes no number of targets."""
    weights = []
    for size in (8, 1):
        model = fresh()
        with paperhooks.attach(model, *[cls() for cls in METHODS[name]]):
            run = trainer(model, tmp_path, batch=size, accumulation=8 // size)
            run.data_collator, run.model_accepts_loss_kwargs = without_targets, accepts
            run.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert bool(weights[1].isfinite().all())
    if accepts or name == "token":
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


def test_a_step_without_target_is_refused(tmp_path: Path) -> None:
    nothing = without_targets(examples()[1:2])
    with paperhooks.attach(fresh(), Penalties()) as session:
        model = session.view.model
        with pytest.raises(DataError, match="no row of this batch of 1 has a token to predict"):
            compute_loss(session, LossContext(model, nothing, session))
        loss = compute_loss(session, LossContext(model, nothing, session, accumulation_steps=2))
        loss.backward()
        assert bool(loss.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        assert LossContext(model, nothing, session, accumulation_steps=2).model_loss.item() == 0
        run = trainer(model, tmp_path, batch=1, accumulation=4)
        run.data_collator = lambda rows: {**collate(rows), "labels": torch.full_like(collate(rows)["labels"], -100)}
        with pytest.raises(DataError, match="no row of this optimiser step of 4 has a token to predict"):
            run.train()


def test_evaluation_leaves_batches_without_target_out(tmp_path: Path) -> None:
    with paperhooks.attach(fresh(), TokenLoss()) as session:
        run = trainer(session.view.model, tmp_path, batch=1)
        run.data_collator = without_targets
        mixed = run.evaluate()["eval_loss"]
        run.eval_dataset = [row for row in examples() if len(row["input_ids"]) >= 8]
        assert mixed == pytest.approx(run.evaluate()["eval_loss"], rel=1e-6)


def test_labels_of_whole_rows_are_no_targets_of_tokens() -> None:
    assert not predicts_nothing({"labels": torch.tensor([1])})
    assert not predicts_nothing({"labels": torch.tensor([[0.5]])})
    assert not predicts_nothing({"input_ids": torch.tensor([[1]])})
    assert predicts_nothing({"labels": torch.tensor([[3, -100]])})
    assert not predicts_nothing({"labels": None, "shift_labels": torch.tensor([[3, -100]])})


def test_training_that_asks_no_loss_hook_is_warned_of() -> None:
    model = fresh()
    words = r"tokenloss: the model was trained, but nobody asked .* HooksTrainerMixin"
    with pytest.warns(UserWarning, match=words), paperhooks.attach(model, TokenLoss()):
        model.train()(**collate(examples())).loss.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with paperhooks.attach(model, TokenLoss()) as session:
            compute_loss(session, LossContext(model, collate(examples()), session)).backward()
        with paperhooks.attach(model.eval(), TokenLoss()):
            model(**collate(examples()))


def test_two_methods_that_replace_the_loss_are_refused_at_attach() -> None:
    with pytest.raises(PluginConflict, match=r"wrong and .*loss"):
        paperhooks.attach(fresh(), Wrong(None, ""), TokenLoss())


def test_the_mixin_is_public() -> None:
    assert issubclass(HooksTrainer, paperhooks.HooksTrainerMixin)


# -- two processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["", "torchrun"])
def test_two_processes_equal_one_big_batch(tmp_path: Path, launcher: Any) -> None:
    name = "terms"  # the stock loss with a mean over tokens and a mean over sequences beside it
    wanted, whole = trained(name, tmp_path / "one")
    log, _ = run_ranks(train, name, tmp_path, launcher=launcher)
    same(load_file(tmp_path / "weights.safetensors"), wanted)
    for key in (k for k in whole[0] if k.startswith("loss")):
        assert log[0][key] == pytest.approx(whole[0][key], rel=1e-5), key
