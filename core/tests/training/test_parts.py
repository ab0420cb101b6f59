"""Gradients that a method has made in parts, in every kind of training loop."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from loss_methods import METHODS, PartLoss, SequenceLoss, collate, examples, fresh, train, trainer
from paperhooks import HookError, LossContext, Traits, hookimpl
from paperhooks.testing import run_ranks
from paperhooks.training import AccumulatedCounts, compute_loss
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel


def stepped(kind: type, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The weights after one step of the Trainer over eight sequences."""
    model = fresh()
    with paperhooks.attach(model, kind()):
        run = trainer(model, out, **options)
        run.train()
        run.evaluate()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    start = {name: p.detach() for name, p in fresh().named_parameters()}
    assert max(float((wanted[name] - start[name]).abs().max()) for name in wanted) > 1e-3
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (3, 3), (1, 8)])
def test_the_trainer_takes_the_same_step(batch: int, accumulation: int, tmp_path: Path) -> None:
    wanted = stepped(SequenceLoss, tmp_path)
    same(stepped(PartLoss, tmp_path, batch=batch, accumulation=accumulation), wanted)


def test_two_processes_take_the_same_step(tmp_path: Path) -> None:
    log, _ = run_ranks(train, "parts", tmp_path)
    same(load_file(tmp_path / "weights.safetensors"), stepped(SequenceLoss, tmp_path))
    assert METHODS["parts"] == [PartLoss]
    assert log


def test_a_loop_of_accelerate_takes_the_same_step(tmp_path: Path) -> None:
    """What scales the loss scales its parts."""
    accelerator, plain, method, asked = Accelerator(cpu=True, gradient_accumulation_steps=4), fresh(), PartLoss(), []
    model, optimizer = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=0.05))

    def backward(part: torch.Tensor) -> None:
        asked.append(part.item())
        accelerator.backward(4 * part)

    with paperhooks.attach(plain, method) as session:
        batches = [collate(examples()[at : at + 2]) for at in range(0, 8, 2)]
        counts = AccumulatedCounts.of(session, batches)
        for batch in batches:
            backward(compute_loss(session, counts.context(model, batch, run_backward=backward)))
        optimizer.step()
    assert len(asked) == 8
    same({n: p.detach() for n, p in plain.named_parameters()}, stepped(SequenceLoss, tmp_path))


def test_what_a_part_held_is_free_before_the_next_forward() -> None:
    """A tensor of its graph is gone after :meth:`LossContext.backward`."""
    held: list[Any] = []

    class Watched:
        """Keeps weak references to the states of each forward."""

        traits = Traits(writes=frozenset({"objective"}))

        @hookimpl
        def compute_loss(self, context: LossContext) -> torch.Tensor:
            with context.unsynchronised():
                part = self.part(context)
                context.backward(part)
                first = part.detach()
                del part
            gc.collect()
            assert held[0]() is None
            return first + self.part(context)

        def part(self, context: LossContext) -> torch.Tensor:
            states = context.model(**context.inputs, output_hidden_states=True).hidden_states[-1]
            held.append(weakref.ref(states))
            return states.square().mean()

    model = fresh()
    with paperhooks.attach(model, Watched()) as session:
        compute_loss(session, LossContext(model, collate(examples()[:2]), session)).backward()
    assert len(held) == 2


def test_in_evaluation_no_gradient_is_made() -> None:
    model, batch = fresh(), collate(examples()[:3])
    with paperhooks.attach(model, PartLoss()) as session, torch.no_grad():
        loss = compute_loss(session, LossContext(model, batch, session))
    with paperhooks.attach(model, SequenceLoss()) as session, torch.no_grad():
        wanted = compute_loss(session, LossContext(model, batch, session))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_a_part_is_made_in_full_precision_also_under_autocast() -> None:
    """Backward passes inside autocast would round what is multiplied by hand."""
    model, batch, seen = fresh(), collate(examples()[:3]), []
    with paperhooks.attach(model, PartLoss()) as session:
        context = AccumulatedCounts.of(session, [batch]).context(
            model, batch, run_backward=lambda part: seen.append(torch.is_autocast_enabled("cpu"))
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            compute_loss(session, context)
    assert seen == [False, False]


def test_what_is_no_part_of_a_loss_is_refused() -> None:
    model = fresh()
    context = LossContext(model, {})
    with pytest.raises(HookError, match=r"context.backward\(part\) belongs into compute_loss"):
        context.backward(torch.ones((), requires_grad=True))

    class Rows:
        """Gives one value a row."""

        traits = Traits(writes=frozenset({"objective"}))

        @hookimpl
        def compute_loss(self, context: LossContext) -> torch.Tensor:
            context.backward(context.logits.sum((1, 2)))
            return context.model_loss

    with (
        paperhooks.attach(model, Rows()) as session,
        pytest.raises(HookError, match=r"rows has a gradient made of a tensor \[2\]; expected a scalar"),
    ):
        compute_loss(session, LossContext(model, collate(examples()[:2]), session))


def test_an_engine_with_one_backward_pass_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    with paperhooks.attach(model, PartLoss()):
        run = trainer(model, tmp_path)
        monkeypatch.setattr(type(run.accelerator), "distributed_type", DistributedType.DEEPSPEED)
        with pytest.raises(HookError, match="DeepSpeed takes one backward pass a micro-batch"):
            run.compute_loss(model.train(), collate(examples()[:2]))


def test_a_static_graph_with_one_backward_pass_is_refused() -> None:
    wrapper = DistributedDataParallel.__new__(DistributedDataParallel)  # without the group that it would need
    torch.nn.Module.__init__(wrapper)
    wrapper.static_graph = True
    context = LossContext(wrapper, {}, method="parts")
    with pytest.raises(HookError, match=r"parts has gradients made in parts .*static_graph=True takes one backward"):
        context.backward(torch.ones((), requires_grad=True))
