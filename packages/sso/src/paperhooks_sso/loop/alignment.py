"""The loop itself: rounds of sampling and training in folders that go on wherever they were stopped.

>>> from paperhooks_sso import align
>>> found = align(model, "prompts.jsonl", tokenizer=tokenizer, out="aligned", iterations=3)  # doctest: +SKIP
>>> found.model.save_pretrained("better"), found.stopped  # doctest: +SKIP
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError
from paperhooks.generation import Response, TransformersBackend
from paperhooks.io import local_path, model_digest, whole
from paperhooks.models import find_tokenizer
from paperhooks.reports import RunFolder

from paperhooks_sso.data import ChatFormat, Conversation, answer_means, prompts_digest, read_prompts, write_lines
from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.loop.pair_stages import probe, read_pairs, write_pairs, write_references
from paperhooks_sso.loop.pair_trainer import train_pairs
from paperhooks_sso.loop.policy import Policy, save_checkpoint
from paperhooks_sso.loop.round_folder import RoundFolder
from paperhooks_sso.loop.rounds import Round, rounds_of
from paperhooks_sso.loop.sample_stages import MakeBackend, Sampler
from paperhooks_sso.probes import Alarm, AlarmLimits, margin_alarms, pair_alarms

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
    :param report: write reports with figures (needs ``paperhooks[plots]``).
    :param options: see :class:`LoopOptions`; they may not change from call to call, nor may prompts and model.
    :raises DataError: prompts that are none, or a folder of another loop: the field that differs is named.
    :raises ValueError: an option that cannot be meant. :raises UnsupportedModel: a model that cannot be copied.
    :raises KeyboardInterrupt: with a note that says what is done.
    """
    iterations = whole("iterations", iterations, at_least=1)
    chosen = LoopOptions(**options)
    folder = local_path(out)
    asked = read_prompts(prompts, limit)
    chat = ChatFormat(tokenizer or find_tokenizer(model), chosen.chat_options, chosen.template)
    loop = _Loop(folder, chosen, pace or Pace(), limits or AlarmLimits(), asked, chat, make_backend, report)
    with RunFolder(folder) as run:
        policy = Policy(model, folder)
        inputs = {"model": policy.digests["start"], "prompts": prompts_digest(asked), "chat": chat.digest}
        run.start(KIND, inputs={**inputs, **chosen.inputs()}, seed=chosen.seed)
        try:
            return loop.run(run, policy, iterations)
        except KeyboardInterrupt as error:
            error.add_note(f"{loop.done() or 'nothing is done yet'}; the same call goes on from {folder}")
            raise


class _Loop:
    """The rounds of one call."""

    def __init__(
        self,
        out: Path,
        options: LoopOptions,
        pace: Pace,
        limits: AlarmLimits,
        prompts: Sequence[Conversation],
        chat: ChatFormat,
        make_backend: MakeBackend,
        report: bool,
    ) -> None:
        self.out, self.options, self.pace, self.limits = out, options, pace, limits
        self.prompts, self.chat, self.make_backend, self.report = prompts, chat, make_backend, report
        self._stages: dict[str, list[str]] = {}
        self._first: dict[str, Any] = {}

    def run(self, run: RunFolder, policy: Policy, iterations: int) -> Aligned:
        """All rounds, or those up to an alarm."""
        last, done = "start", 0
        alarms: list[Alarm] = []
        for each in rounds_of(self.options, iterations):
            alarms = self._round(each, policy)
            if each.is_policy and self._trained(each.name):
                last, done = each.name, each.iteration
            run.record(rounds=self._stages, alarms=[alarm.sentence for alarm in alarms], iterations=done)
            if alarms:
                logger.warning("the loop has stopped in %s: %s", each.name, "; ".join(a.sentence for a in alarms))
                break
        if self.report:
            from paperhooks_sso.report import write_overview

            write_overview(run)
        if not alarms:
            run.finish()
        return Aligned(self.out, policy.put(last), done, tuple(alarms))

    def done(self) -> str:
        """What is done, in words."""
        return "; ".join(f"{name}: {', '.join(stages)}" for name, stages in self._stages.items() if stages)

    def _trained(self, name: str) -> bool:
        return "train" in self._stages.get(name, ())

    def _round(self, each: Round, policy: Policy) -> list[Alarm]:
        """One round; the alarms that end the loop with it."""
        with RoundFolder(self.out / each.name) as folder:
            folder.start(self._inputs(each, policy), self.options.seed)
            self._stages[each.name] = folder.finished
            alarms = self._worked(each, policy, folder)
            folder.run.record(alarms=[alarm.sentence for alarm in alarms])
            if self.report:
                from paperhooks_sso.report import write_round

                write_round(folder.run, self.limits, self._first)
            if not alarms:
                folder.run.finish()
            return alarms

    def _inputs(self, each: Round, policy: Policy) -> dict[str, Any]:
        """What decides a round; a checkpoint of another hand is found here."""
        return {
            "round": each.name, "sampler": policy.digests[each.sampler], "trained": policy.digests[each.trained],
            "prompts": prompts_digest(self.prompts), "chat": self.chat.digest, "options": self.options.inputs(),
        }  # fmt: skip

    def _worked(self, each: Round, policy: Policy, folder: RoundFolder) -> list[Alarm]:
        pairs = folder.done("pairs") or self._pairs(each, policy, folder)
        self._first.setdefault("pairs", pairs)
        if alarms := pair_alarms(pairs, self._first["pairs"], self.limits):
            return alarms
        if each.method.objective.pair.reference:
            self._stage(
                folder, "references",
                lambda: write_references(folder, policy.put(each.trained), self.chat, self.pace),
            )  # fmt: skip
        before = self._stage(folder, "before", lambda: probe(folder, "before", policy.put(each.trained), self.pace))
        self._first.setdefault("before", before["probes"])
        if alarms := margin_alarms(before["probes"], None, self._first["before"], self.limits):
            return alarms
        told = self._stage(folder, "train", lambda: self._train(each, policy, folder))
        policy.digests[each.name] = told["model"]
        after = self._stage(folder, "after", lambda: probe(folder, "after", policy.put(each.name), self.pace))
        return margin_alarms(before["probes"], after["probes"], self._first["before"], self.limits)

    def _stage(self, folder: RoundFolder, name: str, make: Any) -> dict[str, Any]:
        found = folder.stage(name, make)
        self._stages[folder.path.name] = folder.finished
        return found

    def _pairs(self, each: Round, policy: Policy, folder: RoundFolder) -> dict[str, Any]:
        """Ask the model and make pairs; what it was asked already is read."""
        model, roles = policy.put(each.sampler), self.options.roles(each.method)
        sampler = Sampler(model, self.chat, self.options, self.pace, each.iteration, self.make_backend)
        self._stage(folder, "prompts", lambda: self._prompts(each, sampler, folder))
        replies = sampler.sample(folder, roles)
        self._stage(folder, "samples", lambda: _counts(replies))
        return self._stage(
            folder, "pairs",
            lambda: write_pairs(
                folder, replies, self.chat, roles, self.options, len(self.prompts),
                lambda some: answer_means(model, some, end=False, batch_tokens=self.pace.batch_tokens),
            ),
        )  # fmt: skip

    def _prompts(self, each: Round, sampler: Sampler, folder: RoundFolder) -> dict[str, Any]:
        if each.principles:
            return sampler.take_over(folder, RoundFolder.open(self.out / each.principles), self.prompts)
        return sampler.write_prompts(folder, self.prompts)

    def _train(self, each: Round, policy: Policy, folder: RoundFolder) -> dict[str, Any]:
        """Train, keep the checkpoint, and say which weights it has."""
        model = policy.put(each.trained)
        if model_digest(model) != policy.digests[each.trained]:
            raise DataError(f"the model that {each.name} begins with is not the one that its reference was")
        records = read_pairs(folder, reference=each.method.objective.pair.reference)
        policy.changed()
        steps = train_pairs(model, records, each.method, self.options, self.pace, folder.path)
        write_lines(folder.file("train"), steps)
        digest = model_digest(model)
        save_checkpoint(model, self.chat.tokenizer, folder.checkpoint)
        policy.keeps(each.name, digest)
        return {"steps": len(steps), "model": digest, "loss": steps[-1]["loss"] if steps else None}


def _counts(replies: dict[str, Response]) -> dict[str, Any]:
    """How many answers there are, and of how many tokens."""
    answered = [reply for reply in replies.values() if not reply.error]
    return {
        "replies": len(answered), "failed": len(replies) - len(answered),
        "tokens": sum(reply.new_tokens for reply in answered),
    }  # fmt: skip
