"""Method x spread x attached before or after: each equals one process.

:func:`equals_one_process` runs in every rank. The same model, methods and batches are run in this process alone, and
compared: losses and parameters after three steps, logits, kept tokens, generated tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import paperhooks
import torch
from paperhooks import LossContext
from paperhooks.testing import tiny_text, tiny_vlm, vlm_inputs
from paperhooks.training import compute_loss
from paperhooks_cca import CCA
from paperhooks_miniplm import Distil, DistilTerm
from paperhooks_pyramiddrop import PyramidDrop
from spreads import SPREADS, Spreading, whole
from torch import Tensor
from torch.distributed import get_rank, get_world_size

__all__ = ["METHODS", "equals_one_process"]

#: Name to a function that makes the methods, given a list for what is dropped.
METHODS: Final[dict[str, Callable[[list[Any]], list[Any]]]] = {
    "pyramiddrop": lambda drops: [PyramidDrop(stages={2: 0.5, 4: 0.25}, record=drops)],
    "random": lambda drops: [PyramidDrop(stages={2: 0.5, 4: 0.25}, rank="random", record=drops)],
    "key_norm": lambda drops: [PyramidDrop(stages={2: 0.5, 4: 0.25}, rank="key_norm", record=drops)],
    "cca": lambda drops: [CCA(grid=(2, 4))],
    "both": lambda drops: [CCA(grid=(2, 4)), PyramidDrop(stages={2: 0.5}, record=drops)],
    "distil": lambda drops: [Distil(teacher=tiny_text(seed=1), chunk=3)],
    "distil_term": lambda drops: [DistilTerm(teacher=tiny_text(seed=1), chunk=3)],
}
_TEXT: Final = ("distil", "distil_term")
_STEPS: Final = 3


def equals_one_process(method: str, spread: str, when: str, folder: str) -> None:
    """Run one case; raises AssertionError where a number differs."""
    make, way = METHODS[method], SPREADS[spread]
    plain = (tiny_text(seed=0) if method in _TEXT else tiny_vlm("llava")).train(way.trains)
    model = copy.deepcopy(plain)
    plain = way.alone(plain)
    drops: list[Any] = []
    methods = make(drops)
    if when == "before":
        with paperhooks.attach(model, *methods) as session:
            called = way.spread(model, folder)
            _run(plain, make, way, called, model, session, drops)
    else:
        called = way.spread(model, folder)
        model = called if way.loads else model
        with paperhooks.attach(model, *methods) as session:
            _run(plain, make, way, called, model, session, drops)


def _run(plain: Any, make: Any, way: Spreading, called: Any, model: Any, session: Any, drops: list[Any]) -> None:
    ranks = [0] * get_world_size() if way.same_batch else list(range(get_world_size()))
    batches = [_batch(plain, rank) for rank in ranks]
    alone = _alone(plain, make, way, batches)
    own = batches[get_rank()]
    if way.trains:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(_STEPS):
            loss = compute_loss(session, LossContext(called, own, session=session))
            loss.backward()
            _close(loss.detach().reshape(()), alone["losses"][step][get_rank()], way, f"loss of step {step}")
            optimiser.step()
            optimiser.zero_grad()
        for name, parameter in whole(model).items():
            _close(parameter, alone["parameters"][name], way, name)
    _same_drops(drops, alone["drops"][get_rank()])
    drops.clear()
    model.eval()
    inputs = {name: value for name, value in own.items() if name != "labels"}
    with torch.no_grad():
        _close(called(**inputs).logits, alone["logits"][get_rank()], way, "logits")
    tokens = _generated(model, own, synced_gpus=session.view.spread.in_step)
    assert tokens.tolist() == alone["tokens"][get_rank()].tolist(), "generated tokens"
    _same_drops(drops, alone["later drops"][get_rank()])


def _alone(plain: Any, make: Any, way: Spreading, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """What one process makes of the batches of all ranks: gradients are averaged over them."""
    kept: list[list[Any]] = [[] for _ in batches]
    methods = [make(drops) for drops in kept]
    found: dict[str, Any] = {"losses": [], "logits": [], "tokens": []}
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.05)
    for _ in range(_STEPS if way.trains else 0):
        found["losses"].append([])
        for batch, chosen in zip(batches, methods, strict=True):
            with paperhooks.attach(plain, *chosen) as session:
                loss = compute_loss(session, LossContext(plain, batch, session=session))
                (loss / len(batches)).backward()
            found["losses"][-1].append(loss.detach())
        optimiser.step()
        optimiser.zero_grad()
    found["parameters"] = whole(plain)
    found["drops"] = [list(drops) for drops in kept]
    plain.eval()
    for batch, chosen, drops in zip(batches, methods, kept, strict=True):
        drops.clear()
        with paperhooks.attach(plain, *chosen), torch.no_grad():
            found["logits"].append(plain(**{n: v for n, v in batch.items() if n != "labels"}).logits)
            found["tokens"].append(_generated(plain, batch))
    found["later drops"] = kept
    return found


def _batch(model: Any, rank: int) -> dict[str, Any]:
    """Two rows; later ranks have longer ones, of which the second has no image."""
    if model.config.model_type == "llava":
        batch = vlm_inputs(model, ((3, 8, 5 + rank), (4, 8, 4)) if rank == 0 else ((3, 8, 5), (9,)), seed=rank)
    else:
        ids = torch.randint(3, 90, (2, 8 + 2 * rank), generator=torch.Generator().manual_seed(rank))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = batch["input_ids"].clone()
    labels[:, :-3] = -100
    return {**batch, "labels": labels.masked_fill(batch["attention_mask"] == 0, -100)}


def _generated(model: Any, batch: dict[str, Any], **options: Any) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, **options)


def _close(found: Tensor, expected: Tensor, way: Spreading, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: {list(found.shape)}, expected {list(expected.shape)}"
    apart = float((found.float() - expected.float()).abs().max())
    allowed = way.tolerance * max(1.0, float(expected.abs().max()))
    assert apart <= allowed, f"{what} lies {apart:.3g} apart, allowed are {allowed:.3g}"


def _same_drops(found: list[Any], expected: list[Any]) -> None:
    assert [drop.layer for drop in found] == [drop.layer for drop in expected]
    for drop, other in zip(found, expected, strict=True):
        assert torch.equal(drop.kept, other.kept), f"other tokens were kept at layer {drop.layer}"
