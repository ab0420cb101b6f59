"""On a GPU, or on the emulated accelerator, the loss is that of the CPU, and the host seldom waits."""

from __future__ import annotations

from typing import Any

import paperhooks
import pytest
import torch
from paperhooks.testing import host_waits
from paperhooks.training import AccumulatedCounts, compute_loss
from paperhooks_sso import SSO
from sso_models import drawn_pairs, tiny

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]


def on(device: Any, value: Any) -> Any:
    """A batch on a device."""
    if isinstance(value, dict):
        return {name: on(device, each) for name, each in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def step(device: Any, layout: str, dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, and gradients on the CPU."""
    model, reference = (tiny(which).to(device, dtype) for which in ("policy", "reference"))
    method = SSO(reference=reference)
    batch = on(device, method.collator(layout=layout)(drawn_pairs()))
    with paperhooks.attach(model, method) as session:
        loss = compute_loss(session, AccumulatedCounts.of(session, [batch]).context(model, batch))
        loss.backward()
    return float(loss.detach()), {name: p.grad.float().cpu() for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", ["joint", "group", "shared", "flat"])
def test_loss_and_gradients_are_those_of_the_cpu(accelerator: Any, layout: str) -> None:
    wanted, gradients = step("cpu", layout)
    loss, found = step(accelerator, layout)
    assert loss == pytest.approx(wanted, rel=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near(accelerator: Any, dtype: torch.dtype) -> None:
    wanted, _ = step("cpu", "group")
    loss, gradients = step(accelerator, "group", dtype)
    assert loss == pytest.approx(wanted, rel=0.05)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_the_host_waits_a_fixed_number_of_times_a_step(accelerator: Any) -> None:
    """For labels and lengths of each forward and for what is not finite, however many prompts there are."""
    model, reference = (tiny(which).to(accelerator) for which in ("policy", "reference"))
    method, waits = SSO(reference=reference), []
    with paperhooks.attach(model, method) as session:
        for number in (1, 4):
            batch = on(accelerator, method.collator()(drawn_pairs(number)))
            counts = AccumulatedCounts.of(session, [batch])
            context = counts.context(model, batch)
            compute_loss(session, context)  # heads are found once
            with host_waits() as seen:
                compute_loss(session, counts.context(model, batch)).backward()
            waits.append(seen.total - seen.at("transformers/"))  # which looks into every mask
    assert waits[0] == waits[1] <= 8
