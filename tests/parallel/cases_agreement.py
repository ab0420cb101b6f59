"""What a rank does alone: no session, other options, other terms, an error. Nothing of it hangs the others.

Every function at the top runs in one rank.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from paperhooks import LossContext, PaperhooksError, PluginConflict, Traits, UnsupportedModel, hookimpl
from paperhooks.logprobs import Reference
from paperhooks.models import in_step
from paperhooks.sessions import agreement
from paperhooks.testing import tiny_text
from paperhooks.training import HooksTrainerMixin, compute_loss
from spreads import SPREADS
from torch import distributed, nn
from torch.distributed import get_rank
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

__all__ = [
    "a_conflict_is_raised_by_every_call",
    "a_handled_error_ends_nobody",
    "a_second_error_is_told_as_well",
    "a_session_closed_on_one_rank_is_named",
    "a_session_that_ended_early_is_not_waited_for",
    "an_error_before_the_first_call_is_told",
    "an_error_in_the_backward_pass_reaches_the_other_rank",
    "an_error_of_an_earlier_session_is_no_news",
    "an_error_reaches_the_other_rank",
    "an_error_that_all_have_is_raised_by_all",
    "an_error_that_nobody_waits_for_ends_nobody",
    "an_interrupt_reaches_the_other_rank",
    "an_own_error_is_blamed_on_nobody",
    "another_order_is_named",
    "groups_meet_apart",
    "lists_that_methods_fill_are_no_options",
    "other_options_are_named",
    "sessions_on_some_ranks_are_named",
    "terms_of_ranks_without_targets_do_not_count",
    "terms_of_some_ranks_are_logged",
    "threads_end_with_their_session",
    "trainers_agree",
    "undeclared_spreads_are_refused",
]


@dataclass(eq=False)
class Terms:
    """A term of every rank, and one that the last rank alone has; fails where it is told to."""

    factor: float = 1.0
    fails_in: str = ""
    fails_on: int = -1
    shares: Any = None

    traits = Traits(training=True, parallel=("ddp", "fsdp2", "tp"))

    def _maybe(self, where: str) -> None:
        if where == self.fails_in and self.fails_on in (get_rank(), 99):
            raise RuntimeError(f"no {where}")

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        self._maybe("post_layer")

    @hookimpl
    def compute_loss(self, context):
        self._maybe("compute_loss")

    @hookimpl
    def loss_terms(self, context):
        terms = {"all": torch.tensor(4.0 + get_rank())}
        return {**terms, "last": torch.tensor(100.0)} if get_rank() == 1 else terms


def batch() -> dict[str, Any]:
    ids = torch.arange(3, 11)[None]
    return {"input_ids": ids, "labels": ids.clone()}


def step(called: Any, session: Any) -> None:
    compute_loss(session, LossContext(called, batch(), session=session)).backward()


def an_error_reaches_the_other_rank(spread: str, where: str, folder: str, stays: bool) -> None:
    """Rank 0 fails in the second step, and ends or lives on.

    The other rank writes how long it waited, its error and the notes on it.
    """
    model = tiny_text().train()
    called = SPREADS[spread].spread(model, folder)
    begun, method = 0.0, Terms()
    try:
        with paperhooks.attach(model, method) as session:
            step(called, session)
            method.fails_in, method.fails_on, begun = where, 0, time.monotonic()
            step(called, session)
            step(called, session)
    except RuntimeError as error:
        if get_rank() == 0:
            if stays:
                time.sleep(30)
            os._exit(7)  # as a script that ends with an error
        told = [time.monotonic() - begun, str(error), list(getattr(error, "__notes__", []))]
        Path(folder, "waited.json").write_text(json.dumps(told))


def an_error_that_all_have_is_raised_by_all(spread: str, folder: str) -> None:
    """Their groups stand, and they go on."""
    model = tiny_text().train()
    called = SPREADS[spread].spread(model, folder)
    method = Terms()
    with paperhooks.attach(model, method) as session:
        step(called, session)
        method.fails_in, method.fails_on = "post_layer", 99
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(RuntimeError, match="no post_layer") as caught:
                compute_loss(session, LossContext(called, batch(), session=session))
            assert time.monotonic() - begun < 2
            assert not any("failed before" in note for note in caught.value.__notes__)
    assert distributed.is_initialized()
    total = torch.ones(1)
    distributed.all_reduce(total)
    assert int(total) == 2


def _filled(value: float) -> nn.Module:
    module = nn.Linear(2, 2)
    nn.init.constant_(module.bias, value)
    nn.init.constant_(module.weight, 1.0)
    return module


#: Values that differ on the two ranks, and how they are told.
SHARES: dict[str, tuple[Any, Any, str, str]] = {
    "number": (0.5, 0.25, "0.5", "0.25"),
    "dict": ({2: 0.5}, {2: 0.25}, "{2: 0.5}", "{2: 0.25}"),
    "set": ({1, 2}, {1}, "[1, 2]", "[1]"),
    "dicts": ([{"a": 1}], [{"b": 1}], "[{'a': 1}]", "[{'b': 1}]"),
    "tensor": (torch.zeros(2), torch.ones(2), "tensor [2] ", "tensor [2] "),
    "model": (_filled(0.0), _filled(1.0), "Linear ", "Linear "),
    "reference": (Reference.of(_filled(0.0)), Reference.of(_filled(1.0)), "_AnotherModel(", "_AnotherModel("),
}


def other_options_are_named(spread: str, folder: str, kind: str) -> None:
    model = tiny_text().train()
    called = SPREADS[spread].spread(model, folder)
    here, other = get_rank(), 1 - get_rank()
    told = [re.escape(text) for text in SHARES[kind][2:]]
    words = (
        rf"rank {other} has attached terms\(shares={told[other]}.*\), and rank {here} terms\(shares={told[here]}.*\);"
    )
    with (
        paperhooks.attach(model, Terms(shares=SHARES[kind][here])) as session,
        pytest.raises(PluginConflict, match=words),
    ):
        step(called, session)


def sessions_on_some_ranks_are_named(spread: str, folder: str) -> None:
    """Rank 1 has no session. Rank 0 writes its error, and ends as a script would."""
    agreement.PATIENCE[:] = [0.5, 2.0, 300.0]
    model = tiny_text().train()
    called = SPREADS[spread].spread(model, folder)
    if get_rank() == 1:
        called(**batch()).loss.backward()
        return
    try:
        with paperhooks.attach(model, Terms()) as session:
            step(called, session)
    except PluginConflict as error:
        Path(folder, "error").write_text(str(error))
    os._exit(7)


def undeclared_spreads_are_refused(spread: str, folder: str) -> None:
    """At attach where the model is spread already, in the first forward where it is spread afterwards."""

    class Plain(Terms):
        traits = Traits(training=True)

    kind = spread.partition("-")[0]
    model = tiny_text().train()
    with paperhooks.attach(model, Plain()) as session:
        called = SPREADS[spread].spread(model, folder)
        if not SPREADS[spread].loads:
            with pytest.raises(UnsupportedModel, match=f"plain has not declared '{kind}'"):
                step(called, session)
    model = called if SPREADS[spread].loads else model
    if kind != "ddp":
        with pytest.raises(UnsupportedModel, match=f"plain has not declared '{kind}'"):
            paperhooks.attach(model, Plain())


class More:
    """Another method, for the order of two."""

    traits = Terms.traits

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        return None


def another_order_is_named(spread: str, folder: str) -> None:
    model = tiny_text().train()
    called = SPREADS[spread].spread(model, folder)
    methods = [Terms(), More()] if get_rank() == 0 else [More(), Terms()]
    with (
        paperhooks.attach(model, *methods) as session,
        pytest.raises(PluginConflict, match="in the same order"),
    ):
        step(called, session)


def a_session_closed_on_one_rank_is_named(spread: str, folder: str) -> None:
    """Rank 0 goes on with its session, and is told; rank 1 then ends as a script would."""
    model = tiny_text().train()
    called = SPREADS[spread].spread(model, folder)
    session = paperhooks.attach(model, Terms())
    step(called, session)
    if get_rank() == 1:
        session.close()
        called(**batch()).loss.backward()
        time.sleep(20)
        return
    time.sleep(2)
    try:
        for _ in range(3):
            called(**batch()).loss.backward()
    except PluginConflict as error:
        Path(folder, "error").write_text(str(error))
    os._exit(7)


def a_conflict_is_raised_by_every_call(spread: str, folder: str) -> None:
    model = tiny_text().train()
    called = SPREADS[spread].spread(model, folder)
    with paperhooks.attach(model, Terms(factor=1.0 + get_rank())) as session:
        for _ in range(3):
            with pytest.raises(PluginConflict, match="has attached terms"):
                step(called, session)


@dataclass(eq=False)
class Fills:
    """Appends to a list of its user."""

    found: list[float] | None = field(default=None, compare=False)
    traits = Traits(parallel=frozenset({"ddp"}))

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        if self.found is not None:
            self.found.append(float(hidden_states.sum()))


def lists_that_methods_fill_are_no_options(folder: str) -> None:
    """Validation with other data on every rank comes before the first step that all take; rank 1 keeps no list."""
    model = tiny_text().train()
    called = SPREADS["ddp"].spread(model, folder)
    with paperhooks.attach(model, Fills([] if get_rank() == 0 else None)) as session:
        with torch.no_grad():
            model.eval()(torch.tensor([[1 + get_rank(), 3]]))
        model.train()
        step(called, session)


def an_error_of_an_earlier_session_is_no_news(folder: str) -> None:
    """Rank 0 fails before its first call and handles that; in the next session it is late twice."""
    model = tiny_text().train()
    called = SPREADS["ddp"].spread(model, folder)
    with contextlib.suppress(ValueError), paperhooks.attach(model, Terms()):
        if get_rank() == 0:
            raise ValueError("old")
    with paperhooks.attach(model, Terms()) as session:
        time.sleep(5 * (get_rank() == 0))
        loss = compute_loss(session, LossContext(called, batch(), session=session))
        time.sleep(8 * (get_rank() == 0))
        loss.backward()


def an_error_before_the_first_call_is_told(folder: str) -> None:
    """And those who were told meet again in the next session."""
    model = tiny_text().train()
    called = DistributedDataParallel(model, broadcast_buffers=False)
    begun, told = time.monotonic(), ""
    try:
        with paperhooks.attach(model, Terms()) as session:
            if get_rank() == 0:
                raise ValueError("of its own")
            step(called, session)
    except (ValueError, PaperhooksError) as error:
        told = str(error)
    text = "rank 0 failed before its first call of the model, with ValueError: of its own"
    assert told == ("of its own" if get_rank() == 0 else text)
    assert time.monotonic() - begun < 10
    distributed.barrier()
    with paperhooks.attach(model, Terms()) as session:
        step(called, session)


def a_handled_error_ends_nobody(folder: str) -> None:
    """Rank 0 skips a bad batch and is busy for a while, as with a checkpoint; the others wait where it will come."""
    model = tiny_text().train()
    called = DistributedDataParallel(model, broadcast_buffers=False)
    method = Terms()
    with paperhooks.attach(model, method) as session:
        step(called, session)
        method.fails_in, method.fails_on = "post_layer", 0
        with called.no_sync(), contextlib.suppress(RuntimeError):
            step(called, session)
        time.sleep(6 * (get_rank() == 0))
        distributed.barrier()
        method.fails_in = ""
        step(called, session)

    def examples() -> Any:
        with paperhooks.attach(model, Terms()) as session:
            for _ in range(2):
                step(called, session)
                yield

    for number, _ in enumerate(examples()):
        if get_rank() == 0 and number == 0:
            break  # a generator that is left is closed in order
        if number == 0:
            break
    time.sleep(6 * (get_rank() == 0))
    distributed.barrier()


def a_second_error_is_told_as_well(folder: str) -> None:
    """Rank 0 handles its first error and lives on after the second one."""
    model = tiny_text().train()
    called = DistributedDataParallel(model, broadcast_buffers=False)
    method = Terms()
    try:
        with paperhooks.attach(model, method) as session:
            step(called, session)
            method.fails_in, method.fails_on = "post_layer", 0
            with called.no_sync(), contextlib.suppress(RuntimeError):
                step(called, session)
            time.sleep(5)
            method.fails_in = ""
            step(called, session)
            method.fails_in = "compute_loss"
            step(called, session)
    except RuntimeError:
        time.sleep(30 * (get_rank() == 0))


def an_own_error_is_blamed_on_nobody(folder: str) -> None:
    """Rank 0 has handled an error in its second call, rank 1 fails in its fourth by itself."""
    model = tiny_text().train()
    called = SPREADS["ddp"].spread(model, folder)
    method = Terms()
    with paperhooks.attach(model, method) as session, called.no_sync():
        for number in range(1, 5):
            method.fails_in, method.fails_on = "post_layer", {2: 0, 4: 1}.get(number, -1)
            if get_rank() != method.fails_on:
                step(called, session)
                continue
            with pytest.raises(RuntimeError, match="no post_layer") as caught:
                step(called, session)
            assert not any("failed before" in note for note in caught.value.__notes__)
    distributed.barrier()


def groups_meet_apart(folder: str) -> None:
    """Two ranks of four train a model together, and then all four another one."""
    pair = distributed.new_group([0, 1])
    if get_rank() < 2:
        model = tiny_text().train()
        called = DistributedDataParallel(model, process_group=pair)
        with paperhooks.attach(model, Terms(factor=2.0)) as session:
            step(called, session)
    model = tiny_text().train()
    called = DistributedDataParallel(model)
    with paperhooks.attach(model, Terms()) as session:
        step(called, session)


def a_session_that_ended_early_is_not_waited_for(folder: str) -> None:
    agreement.PATIENCE[:] = [0.5, 2.0, 300.0]
    model = tiny_text().train()
    called = DistributedDataParallel(model, broadcast_buffers=False)
    session = paperhooks.attach(model, Terms())
    if get_rank() == 0:
        session.close()
        time.sleep(6)
        os._exit(7)
    try:
        step(called, session)
    except PluginConflict as error:
        Path(folder, "error").write_text(str(error))
    os._exit(7)


def an_interrupt_reaches_the_other_rank(folder: str) -> None:
    """Rank 0 is interrupted in the middle of a call, in work without a session, and lives on."""
    model = SPREADS["fsdp2-root"].spread(tiny_text(), folder).eval()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if get_rank() == 0:
        model.model.layers[1].register_forward_pre_hook(interrupt)
    try:
        with torch.no_grad(), in_step(model):
            model(input_ids=batch()["input_ids"])
    except KeyboardInterrupt:
        time.sleep(30)


def threads_end_with_their_session(folder: str) -> None:
    """Also with one that nobody closes."""
    called = SPREADS["ddp"].spread(model := tiny_text().train(), folder)
    step(called, paperhooks.attach(model, Terms()))
    assert [each for each in threading.enumerate() if each.name == "paperhooks-failures"]
    del called, model
    gc.collect()
    time.sleep(1.2)
    assert not [each for each in threading.enumerate() if each.name == "paperhooks-failures"]


def an_error_that_nobody_waits_for_ends_nobody(folder: str) -> None:
    """In evaluation under DDP each rank goes its own way: rank 1 handles an error, and rank 0 works on."""
    model = tiny_text().train()
    called = SPREADS["ddp"].spread(model, folder)
    method = Terms()
    with paperhooks.attach(model, method) as session:
        step(called, session)
        model.eval()
        with torch.no_grad():
            if get_rank() == 1:
                method.fails_in, method.fails_on = "post_layer", 1
                with pytest.raises(RuntimeError, match="no post_layer"):
                    model(**batch())
                method.fails_in = ""
                time.sleep(9)
            model(**batch())
        distributed.barrier()


def an_error_in_the_backward_pass_reaches_the_other_rank(folder: str) -> None:
    """A hook of a tensor raises on rank 0, which lives on."""
    model = tiny_text().train()
    called = SPREADS["ddp"].spread(model, folder)

    def fails(gradient: torch.Tensor) -> None:
        raise RuntimeError("no gradient")

    try:
        with paperhooks.attach(model, Terms()) as session:
            step(called, session)
            loss = compute_loss(session, LossContext(called, batch(), session=session))
            if get_rank() == 0:
                loss.register_hook(fails)
            loss.backward()
    except RuntimeError:
        time.sleep(30)


class TermsTrainer(HooksTrainerMixin, Trainer):
    """The stock Trainer with hooks."""


def _trainer(model: Any, folder: str, **further: Any) -> TermsTrainer:
    options = TrainingArguments(
        str(Path(folder, str(get_rank()))), max_steps=4, per_device_train_batch_size=1, logging_steps=2, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, **further,
    )  # fmt: skip
    rows = [{name: value[0].tolist() for name, value in batch().items()} for _ in range(8)]
    return TermsTrainer(
        model, options, train_dataset=rows, data_collator=lambda r: {k: torch.tensor([e[k] for e in r]) for k in r[0]}
    )


def terms_of_some_ranks_are_logged(folder: str) -> None:
    """One rank's term is a mean over that rank; values stay with their names."""
    model = tiny_text().train()
    with paperhooks.attach(model, Terms()):
        run = _trainer(model, folder)
        run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert entry["loss/terms/all"] == pytest.approx(4.5)
        assert entry["loss/terms/last"] == pytest.approx(100.0)


def terms_of_ranks_without_targets_do_not_count(folder: str, averages: bool) -> list[float]:
    """Rank 1 has no target in any step; returns what is logged of a term that is a mean over targets."""

    class Kind(Terms):
        @hookimpl
        def loss_terms(self, context):
            mask = (context.labels != -100)[:, 1:]
            return {"mean": context.token_mean(torch.full(mask.shape, 3.0), mask)}

    model = tiny_text().train()
    with paperhooks.attach(model, Kind()):
        run = _trainer(model, folder, average_tokens_across_devices=averages)
        rows, collate = run.train_dataset, run.data_collator

        def blank(examples: list[Any]) -> Any:
            made = collate(examples)
            return {**made, "labels": made["labels"].fill_(-100)} if get_rank() == 1 else made

        assert rows
        run.data_collator = blank
        run.train()
    return [entry["loss/kind/mean"] for entry in run.state.log_history if "loss" in entry]


def trainers_agree(folder: str, way: str) -> None:
    """One rank has no session, or other options: all are told before the first step."""
    model = tiny_text().train()
    run = _trainer(model, folder)
    session = None
    if way == "options" or get_rank() == 0:
        session = paperhooks.attach(model, Terms(factor=1.0 + get_rank()))
    words = "factor=" if way == "options" else "no session"
    with pytest.raises(PaperhooksError, match=words):
        run.train()
    if session is not None:
        session.close()
