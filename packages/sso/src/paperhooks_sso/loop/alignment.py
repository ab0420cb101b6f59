"""The loop itself: rounds of sampling and training in folders that go on wherever they were stopped.

>>> from paperhooks_sso import align
>>> found = align(model, "prompts.jsonl", tokenizer=tokenizer, out="aligned", iterations=3)  # doctest: +SKIP
>>> found.model.save_pretrained("better"), found.stopped  # doctest: +SKIP
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import require
from paperhooks.generation import TransformersBackend
from paperhooks.io import choice, local_path, whole
from paperhooks.models import find_tokenizer
from paperhooks.reports import RunFolder

from paperhooks_sso.data import ChatFormat, prompts_digest, read_prompts
from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.loop.policy import Policy
from paperhooks_sso.loop.round_folder import RoundFolder
from paperhooks_sso.loop.round_work import RoundWork
from paperhooks_sso.loop.rounds import START, Round, rounds_of
from paperhooks_sso.loop.sample_stages import MakeBackend
from paperhooks_sso.probes import Alarm, AlarmLimits
from paperhooks_sso.report import write_overview, write_round

__all__ = ["KIND", "Aligned", "align"]

KIND: Final = "sso"
logger = logging.getLogger("paperhooks_sso")


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """What a loop has come to.

    out
        Its folder.
    model
        The model with the weights of the last checkpoint of a policy, in eval mode; a copy of the given one.
    iterations
        How many are done.
    alarms
        What has stopped it; empty where it came to its end.
    """

    out: Path
    model: Any = field(repr=False)
    iterations: int
    alarms: Sequence[Alarm] = ()

    @property
    def stopped(self) -> str:
        """Why it was stopped, in a sentence for each alarm; empty where it came to its end."""
        return "; ".join(alarm.sentence for alarm in self.alarms)


def align(
    model: Any,
    prompts: Any,
    *,
    tokenizer: Any = None,
    out: str | Path,
    iterations: int = 3,
    limit: int | None = None,
    limits: AlarmLimits | None = None,
    pace: Pace | None = None,
    make_backend: MakeBackend = TransformersBackend,
    until: str = "after",
    report: bool = True,
    **options: Any,
) -> Aligned:
    """Improve a chat model by pairs that it writes itself, some times over; called again, it goes on.

    Every iteration has the model answer every prompt with a good principle, with a bad one and without, makes pairs of
    the answers, and trains the model on them. Killed at any moment and called again with the same arguments, it goes on
    with the stage that was not done: nothing is sampled twice, and pairs and checkpoints are the same as without the
    kill. More ``iterations`` than before go on, too.

    :param model: a causal language model on one device, with or without PEFT adapters (of which the active one is
        trained). It stays as it is: the loop works on a copy, which takes as much memory again.
    :param prompts: see :func:`paperhooks_sso.data.read_prompts`; ``limit`` takes the first ones only.
    :param tokenizer: with a chat template; that of the model's name without it.
    :param out: the folder, with a folder for each round.
    :param limits: what stops the loop. An alarm leaves everything as it is: another call with other limits goes on.
    :param pace: how much is done at a time.
    :param make_backend: makes what answers from a model and a tokenizer.
    :param until: the last stage that is wanted: "samples" or "pairs" of the first round that is not trained yet, or
        "after", all.
    :param report: write reports with figures (needs ``paperhooks[plots]``).
    :param options: see :class:`LoopOptions`; they may not change from call to call, nor may prompts and model.
    :raises DataError: prompts that are none, or a folder of another loop: the field that differs is named.
    :raises ValueError: an option that cannot be meant. :raises UnsupportedModel: a model that cannot be copied.
    :raises KeyboardInterrupt: with a note that says what is done.
    """
    iterations = whole("iterations", iterations, at_least=1)
    until = choice("until", until, ("samples", "pairs", "after"))
    chosen = LoopOptions(**options)
    folder = local_path(out)
    if report:  # known before the work, not after it
        require("matplotlib", "paperhooks-sso[plots]", "to draw the figures of reports; report=False does without")
    asked = read_prompts(prompts, limit)
    chat = ChatFormat(tokenizer or find_tokenizer(model), chosen.chat_options, chosen.template)
    with RunFolder(folder) as run:
        policy = Policy(model, folder)
        if until == "after":
            policy.check_trained()
        work = RoundWork(policy, chat, chosen, pace or Pace(), limits or AlarmLimits(), make_backend, asked, until)
        inputs = {"model": policy.digests[START], "prompts": prompts_digest(asked), "chat": chat.digest}
        run.start(KIND, inputs={**inputs, **chosen.inputs()}, seed=chosen.seed)
        try:
            return _rounds(run, work, iterations, report)
        except KeyboardInterrupt as error:
            error.add_note(f"{work.done()}; the same call goes on from {folder}")
            raise


def _rounds(run: RunFolder, work: RoundWork, iterations: int, report: bool) -> Aligned:
    """All rounds, or those up to an alarm or to the stage that is wanted."""
    last, done = START, 0
    alarms: list[Alarm] = []
    for each in rounds_of(work.options, iterations):
        alarms = _round(run.path / each.name, each, work, report)
        if "train" not in work.stages[each.name]:
            break
        if each.is_policy:
            last, done = each.name, each.iteration
        if alarms:
            break
    run.record(
        rounds=work.stages, iterations=done, alarms=[asdict(alarm) for alarm in alarms], limits=asdict(work.limits)
    )
    for alarm in alarms:
        logger.warning("stopped: %s", alarm.sentence)
    if report and any("before" in stages for stages in work.stages.values()):
        write_overview(run)
    if not alarms and done == iterations:
        run.finish()
    return Aligned(run.path, work.policy.put(last), done, tuple(alarms))


def _round(path: Path, each: Round, work: RoundWork, report: bool) -> list[Alarm]:
    """One round in its folder, with its report."""
    with RoundFolder(path) as folder:
        folder.start(work.inputs(each), work.options.seed)
        alarms = work.run(each, folder)
        folder.run.record(alarms=[asdict(alarm) for alarm in alarms], alpha=each.method.alpha)
        if report and "pairs" in folder.finished:
            write_round(folder.run)
        if not alarms and "after" in folder.finished:
            folder.run.finish()
        return alarms
