"""Examples that are not rows, figures beside the terms, and evaluation of a loss that a method owns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from loss_methods import PackedLoss, Penalties, SequenceLoss, collate, examples, fresh, pack, packs, train, trainer
from paperhooks import DataError, HookError, LossContext, Traits, hookimpl
from paperhooks.testing import run_ranks
from paperhooks.training import AccumulatedCounts, compute_loss
from safetensors.torch import load_file


def packed_run(out: Path, groups: list[Any], **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A Trainer after one step over batches that hold these groups of sequences, and its weights."""
    model = fresh()
    with paperhooks.attach(model, PackedLoss()):
        run = trainer(model, out, batch=1, accumulation=len(groups), **options)
        run.train_dataset, run.data_collator = groups, lambda rows: pack(rows[0])
        run.eval_dataset = groups
        run.train()
        run.evaluate()
    return run, {n: p.detach().clone() for n, p in model.named_parameters()}


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_several_examples_in_a_row_are_counted_as_the_method_says(tmp_path: Path) -> None:
    """Batches of 3 and of 1 move the weights as one of 4 does; without the count they would not."""
    rows = examples()[:4]
    _, wanted = packed_run(tmp_path, [rows])
    assert apart(wanted, {n: p.detach() for n, p in fresh().named_parameters()}) > 1e-3
    for groups in ([rows[:3], rows[3:]], [rows[:1], rows[1:]], [[row] for row in rows]):
        _, found = packed_run(tmp_path, groups)
        assert apart(found, wanted) < 1e-6


def test_rows_would_be_the_wrong_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = examples()[:4]
    _, wanted = packed_run(tmp_path, [rows])
    monkeypatch.setattr(AccumulatedCounts, "context", lambda self, model, batch: LossContext(
        model, batch, self.session, num_examples_in_batch=self.counts[1], accumulation_steps=self.steps
    ))  # fmt: skip
    monkeypatch.setattr(LossContext, "examples", property(lambda self: 1))
    _, found = packed_run(tmp_path, [rows[:3], rows[3:]])
    assert apart(found, wanted) > 1e-4


def test_a_loop_of_ones_own_counts_alike() -> None:
    gradients = []
    for groups in ([examples()[:4]], [examples()[:3], examples()[3:4]]):
        model = fresh()
        with paperhooks.attach(model, PackedLoss()) as session:
            batches = [pack(group) for group in groups]
            counts = AccumulatedCounts.of(session, batches)
            for batch in batches:
                compute_loss(session, counts.context(model, batch)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert apart(*gradients) < 1e-6


def test_another_method_still_counts_rows() -> None:
    """What one method says of examples holds for its own hooks alone."""

    @dataclass(eq=False)
    class Rows:
        traits = Traits()

        @hookimpl
        def loss_terms(self, context):
            assert context.method == "rows"
            assert context.examples == 1
            return {"one": context.example_mean(torch.ones(1))}

    model = fresh()
    with paperhooks.attach(model, PackedLoss(), Rows()) as session:
        batches = [pack(examples()[:3]), pack(examples()[3:4])]
        counts = AccumulatedCounts.of(session, batches)
        for batch in batches:
            context = counts.context(model, batch)
            compute_loss(session, context)
            assert float(context.terms["loss/rows/one"]) == 0.5
            assert context.method is None


@pytest.mark.parametrize("answer", [-1, 1.5, True, "3"])
def test_a_wrong_count_is_named(answer: Any) -> None:
    @dataclass(eq=False)
    class Miscounts(SequenceLoss):
        @hookimpl
        def count_examples(self, batch):
            return answer

    with (
        paperhooks.attach(fresh(), Miscounts()) as session,
        pytest.raises(HookError, match=r"count_examples of 'miscounts' returned .*; expected a whole number"),
    ):
        AccumulatedCounts.of(session, [collate(examples())])


def test_a_step_without_a_target_is_refused_when_it_is_counted() -> None:
    batch = collate(examples()[:2])
    batch["labels"][:] = -100
    with pytest.raises(DataError, match="no row of this optimiser step of 2 has a token to predict"):
        AccumulatedCounts.of(None, [batch])


# -- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_logged_like_terms_and_never_added(tmp_path: Path) -> None:
    groups = packs()[:4]
    run, weights = packed_run(tmp_path, groups, steps=1)
    model = fresh()
    with paperhooks.attach(model, PackedLoss()) as session:
        context = LossContext(model, pack(list(itertools.chain.from_iterable(groups))), session)
        loss = compute_loss(session, context)
    wanted = {name: float(figure.mean) for name, figure in context.figures.items()}
    assert set(wanted) == {"loss/packedloss/mean", "loss/packedloss/long"}
    assert wanted["loss/packedloss/mean"] != pytest.approx(wanted["loss/packedloss/long"], rel=1e-3)
    assert context.terms == {}
    logged = run.state.log_history[0]
    assert logged["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)  # nothing was added
    for name, value in wanted.items():
        assert logged[name] == pytest.approx(value, rel=1e-5), name
    assert weights


def test_figures_are_averaged_over_the_steps_since_the_last_log(tmp_path: Path) -> None:
    groups = packs()[:4]
    once, _ = packed_run(tmp_path, groups, steps=2, logging_steps=2, learning_rate=1e-30)
    each, _ = packed_run(tmp_path, groups, steps=2, learning_rate=1e-30)
    name = "loss/packedloss/mean"
    steps = [entry[name] for entry in each.state.log_history if name in entry]
    assert len(steps) == 2
    assert [entry[name] for entry in once.state.log_history if name in entry] == [pytest.approx(sum(steps) / 2)]


@dataclass(eq=False)
class Logs:
    """Logs what it is told to."""

    name: Any = "z"
    traits = Traits()

    @hookimpl
    def loss_terms(self, context):
        context.log(self.name, 1.0)
        context.log(self.name, torch.tensor([3, 4]), torch.tensor([2, 0]))
        return {"z": context.example_mean(torch.ones(len(context.labels)))}


def test_a_figure_has_a_name_of_its_own() -> None:
    model, batch = fresh(), collate(examples())
    with (
        paperhooks.attach(model, Logs()) as session,
        pytest.raises(HookError, match="logs logs the figure 'z' and has"),
    ):
        compute_loss(session, LossContext(model, batch, session))
    with paperhooks.attach(model, Logs(3)) as session, pytest.raises(HookError, match="under 3; expected a name"):
        compute_loss(session, LossContext(model, batch, session))
    with pytest.raises(HookError, match=r"context.log\('z'\) belongs into"):
        LossContext(model, batch).log("z", 1.0)
    with paperhooks.attach(model, Logs("y")) as session:
        context = LossContext(model, batch, session)
        compute_loss(session, context)
    assert float(context.figures["loss/logs/y"].mean) == pytest.approx(7 / 3)


# -- evaluation -----------------------------------------------------------------------------------------------------


def test_a_method_that_owns_the_loss_is_evaluated_without_labels(tmp_path: Path) -> None:
    """Weighted by examples: the mean over all sequences, however they lie in batches."""
    model = fresh()
    with paperhooks.attach(model, PackedLoss()) as session:
        context = LossContext(model, pack(examples()), session)
        with torch.no_grad():
            wanted = float(compute_loss(session, context))
        run = trainer(model, tmp_path, batch=1)
        run.data_collator = lambda rows: pack(rows[0])
        for groups in ([examples()], packs()[:4], [[row] for row in examples()]):
            metrics = run.evaluate(groups)
            assert metrics["eval_loss"] == pytest.approx(wanted, rel=1e-5)
            for name, figure in context.figures.items():
                assert metrics[f"eval_{name}"] == pytest.approx(float(figure.mean), rel=1e-5), name
        metrics = run.evaluate(packs()[:4], metric_key_prefix="held_out")
        assert metrics["held_out_loss"] == pytest.approx(wanted, rel=1e-5)
        assert "held_out_loss/packedloss/mean" in metrics
        predicted = run.predict(packs()[:4])
        assert predicted.predictions is None
        assert predicted.metrics["test_loss"] == pytest.approx(wanted, rel=1e-5)


def test_terms_are_evaluated_beside_the_loss(tmp_path: Path) -> None:
    model = fresh()
    with paperhooks.attach(model, SequenceLoss(), Penalties()) as session:
        context = LossContext(model, collate(examples()), session)
        with torch.no_grad():
            compute_loss(session, context)
        metrics = trainer(model, tmp_path, batch=8).evaluate()
    assert metrics["eval_loss/penalties/z"] == pytest.approx(float(context.terms["loss/penalties/z"]), rel=1e-5)
    assert not any("/" in name for name in trainer(fresh(), tmp_path).evaluate())


def test_an_evaluation_within_a_step_leaves_the_training_log_alone(tmp_path: Path) -> None:
    logs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = fresh()
        with paperhooks.attach(model, PackedLoss()):
            run = trainer(model, tmp_path, batch=1, accumulation=4, steps=2, logging_steps=2, **options)
            run.train_dataset = run.eval_dataset = packs()
            run.data_collator = lambda rows: pack(rows[0])
            run.train()
        logs.append([e["loss/packedloss/mean"] for e in run.state.log_history if "loss/packedloss/mean" in e])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 1


def test_two_processes_count_examples_of_both(tmp_path: Path) -> None:
    """3 + 1 sequences in one process and in the other equal one batch of all; shown twice counts once."""
    log, _ = run_ranks(train, "packed", tmp_path)
    model = fresh()
    with paperhooks.attach(model, PackedLoss()):
        run = trainer(model, tmp_path, batch=1, accumulation=8)
        run.train_dataset, run.data_collator = packs(), lambda rows: pack(rows[0])
        run.train()
        metrics = run.evaluate([[row] for row in examples()[:7]])
    found = load_file(tmp_path / "weights.safetensors")
    assert apart(found, {n: p.detach() for n, p in model.named_parameters()}) < 1e-6
    name = "loss/packedloss/mean"
    assert log[0][name] == pytest.approx(run.state.log_history[0][name], rel=1e-5)
    evaluated = next(entry for entry in log if "eval_loss" in entry)
    for key in ("eval_loss", f"eval_{name}", "eval_loss/packedloss/long"):
        assert evaluated[key] == pytest.approx(metrics[key], rel=1e-5), key
