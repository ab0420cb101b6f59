"""One step from every training loop: the Trainer in one process and in two, and a loop of accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from paperhooks.testing import run_ranks
from paperhooks.training import AccumulatedCounts, compute_loss
from paperhooks_sso import SSO
from safetensors.torch import load_file
from sso_models import drawn_pairs, tiny, train_other_widths, train_share


def weights_of_one_batch() -> dict[str, torch.Tensor]:
    """After one step of plain descent on all four prompts."""
    model, method = tiny(), SSO(reference=tiny("reference"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with paperhooks.attach(model, method) as session:
        batches = [method.collator()(drawn_pairs())]
        loss = compute_loss(session, AccumulatedCounts.of(session, batches).context(model, batches[0]))
        loss.backward()
        optimizer.step()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(found: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    wanted, start = weights_of_one_batch(), {n: p.detach() for n, p in tiny().named_parameters()}
    assert max(float((wanted[name] - start[name]).abs().max()) for name in wanted) > 1e-3
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("layout", ["joint", "shared"])
def test_one_process_takes_the_step_of_one_batch(layout: str, tmp_path: Path) -> None:
    log = train_share(f"{layout}-2", str(tmp_path))
    same(load_file(tmp_path / "weights.safetensors"))
    assert any("eval_loss/sso/plain_margin" in entry for entry in log)


@pytest.mark.parametrize("low", ["", "-low"])
def test_group_by_group_one_process_takes_the_same_step(low: str, tmp_path: Path) -> None:
    train_share(f"group-2{low}", str(tmp_path))
    same(load_file(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(("layout", "low"), [("joint", ""), ("group", ""), ("group", "-low"), ("shared", "-low")])
def test_two_processes_with_three_and_one_prompt_take_the_same_step(layout: str, low: str, tmp_path: Path) -> None:
    log, other = run_ranks(train_share, f"{layout}-1{low}", tmp_path)
    same(load_file(tmp_path / "weights.safetensors"))
    one = train_share(f"{layout}-2", str(tmp_path / "one"))
    for key in (key for key in one[0] if key.startswith("loss")):
        assert log[0][key] == pytest.approx(one[0][key], rel=1e-5), key
    evaluated, wanted = (next(entry for entry in each if "eval_loss" in entry) for each in (log, one))
    for key in (key for key in wanted if key.startswith("eval_loss")):
        assert evaluated[key] == pytest.approx(wanted[key], rel=1e-5), key
    assert other is not None


def test_processes_whose_batches_have_other_widths_train_as_one() -> None:
    """What is tried of the model once for a width is no call of DDP's, which exchanges buffers."""
    assert run_ranks(train_other_widths, "shared") == pytest.approx([0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_loop_of_accelerate_takes_the_same_step(low_memory: bool) -> None:
    from accelerate import Accelerator

    accelerator, method = Accelerator(cpu=True), SSO(reference=tiny("reference"), low_memory=low_memory)
    plain = tiny()
    model, optimizer = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=0.05))
    pairs: list[Any] = drawn_pairs()
    with paperhooks.attach(plain, method) as session:
        batches = [method.collator()(part) for part in (pairs[:3], pairs[3:])]
        counts = AccumulatedCounts.of(session, batches)
        for batch in batches:
            context = counts.context(model, batch, run_backward=accelerator.backward)
            accelerator.backward(compute_loss(session, context))
        optimizer.step()
    same({n: p.detach() for n, p in plain.named_parameters()})
