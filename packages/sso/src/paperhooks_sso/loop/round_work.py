"""One round: its stages in their order, each done once, with the alarms between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paperhooks import DataError
from paperhooks.generation import Response, TransformersBackend
from paperhooks.io import model_digest

from paperhooks_sso.algorithm import Group
from paperhooks_sso.data import ChatFormat, Conversation, answer_means, prompts_digest, write_lines
from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.loop.pair_stages import probe, read_pairs, write_pairs, write_references
from paperhooks_sso.loop.pair_trainer import train_pairs
from paperhooks_sso.loop.policy import Policy, save_checkpoint
from paperhooks_sso.loop.round_folder import STAGES, RoundFolder
from paperhooks_sso.loop.rounds import Round
from paperhooks_sso.loop.sample_stages import MakeBackend, Sampler
from paperhooks_sso.probes import Alarm, AlarmLimits, failure_alarms, margin_alarms, pair_alarms

__all__ = ["RoundWork"]


@dataclass(eq=False)
class RoundWork:
    """What the rounds of a loop share.

    policy
        The model that is worked on.
    chat, options, pace, limits, make_backend
        See :func:`paperhooks_sso.align`.
    prompts
        What is asked.
    until
        The last stage that is wanted.
    first
        Report of the pairs and probes of the first round, with which later ones are compared; found on the way.
    stages
        What is done, by round.
    """

    policy: Policy
    chat: ChatFormat
    options: LoopOptions
    pace: Pace = field(default_factory=Pace)
    limits: AlarmLimits = field(default_factory=AlarmLimits)
    make_backend: MakeBackend = TransformersBackend
    prompts: Sequence[Conversation] = ()
    until: str = "after"
    first: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, list[str]] = field(default_factory=dict)

    def inputs(self, each: Round) -> dict[str, Any]:
        """What decides a round; a checkpoint of another hand is found here."""
        return {
            "round": each.name, "sampler": self.policy.digests[each.sampler],
            "trained": self.policy.digests[each.trained], "prompts": prompts_digest(self.prompts),
            "chat": self.chat.digest, "options": self.options.inputs(),
        }  # fmt: skip

    def run(self, each: Round, folder: RoundFolder) -> list[Alarm]:
        """Do what is not done yet; the alarms that end the loop with this round."""
        self.stages[each.name] = folder.finished
        trained = folder.done("train")  # what is wanted is then wanted of a later round
        if trained:
            self.policy.digests[each.name] = trained["model"]
        pairs = folder.done("pairs")
        if pairs is None:
            replies = self._sampled(each, folder)
            if alarms := failure_alarms(replies, self.limits):
                return alarms
            self._count(replies, folder)
            if not self._wants("pairs"):
                return []
            pairs = self._pairs(each, folder, replies)
        self.first.setdefault("pairs", pairs)
        alarms = pair_alarms(pairs, self.first["pairs"], self.limits)
        return alarms if alarms or not (trained or self._wants("train")) else self.train(each, folder)

    def train(self, each: Round, folder: RoundFolder) -> list[Alarm]:
        """From pairs to a checkpoint, with probes before and after."""
        policy = self.policy
        if compared := _compared(each):
            self.stage(
                folder, "references",
                lambda: write_references(folder, policy.put(each.trained), self.chat, self.pace, compared),
            )  # fmt: skip
        before = self.stage(folder, "before", lambda: probe(folder, "before", policy.put(each.trained), self.pace))
        self.first.setdefault("before", before["probes"])
        if alarms := margin_alarms(before["probes"], None, self.first["before"], self.limits):
            return alarms
        told = self.stage(folder, "train", lambda: self._train(each, folder))
        policy.digests[each.name] = told["model"]
        after = self.stage(folder, "after", lambda: probe(folder, "after", policy.put(each.name), self.pace))
        return margin_alarms(before["probes"], after["probes"], self.first["before"], self.limits)

    def stage(self, folder: RoundFolder, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """A stage, done once."""
        found = folder.stage(name, make)
        self.stages[folder.path.name] = folder.finished
        return found

    def done(self) -> str:
        """What is done, in words."""
        found = [f"{name}: {', '.join(stages)}" for name, stages in self.stages.items() if stages]
        return "; ".join(found) or "nothing is done yet"

    def _wants(self, stage: str) -> bool:
        names = list(STAGES)
        return names.index(stage) <= names.index(self.until)

    def _sampled(self, each: Round, folder: RoundFolder) -> dict[str, Response]:
        """Answers to all prompts, by id; what was asked already is read."""
        model, roles = self.policy.put(each.sampler), self.options.roles(each.method)
        sampler = Sampler(
            model, self.chat, self.options, self.pace, each.draw, self.make_backend, failed=self.limits.failed
        )
        self.stage(folder, "prompts", lambda: self._asked(each, sampler, folder))
        return sampler.sample(folder, roles)

    def _count(self, replies: Mapping[str, Response], folder: RoundFolder) -> None:
        answered = [reply for reply in replies.values() if not reply.error]
        self.stage(
            folder, "samples",
            lambda: {
                "replies": len(answered), "failed": len(replies) - len(answered),
                "tokens": sum(reply.new_tokens for reply in answered),
            },
        )  # fmt: skip

    def _asked(self, each: Round, sampler: Sampler, folder: RoundFolder) -> dict[str, Any]:
        if each.principles:
            return sampler.take_over(folder, RoundFolder.open(folder.path.parent / each.principles), self.prompts)
        return sampler.write_prompts(folder, self.prompts)

    def _pairs(self, each: Round, folder: RoundFolder, replies: Mapping[str, Response]) -> dict[str, Any]:
        model, roles = self.policy.put(each.sampler), self.options.roles(each.method)
        return self.stage(
            folder, "pairs",
            lambda: write_pairs(
                folder, replies, self.chat, roles, self.options, len(self.prompts),
                lambda some: answer_means(model, some, end=False, batch_tokens=self.pace.batch_tokens),
            ),
        )  # fmt: skip

    def _train(self, each: Round, folder: RoundFolder) -> dict[str, Any]:
        """Train, keep the checkpoint, and say which weights it has."""
        model = self.policy.put(each.trained)
        if model_digest(model) != self.policy.digests[each.trained]:
            raise DataError(f"the model that {each.name} begins with is not the one that its reference was")
        records = read_pairs(folder, _compared(each))
        self.policy.changed()
        steps = train_pairs(model, records, each.method, self.options, self.pace, folder.path)
        write_lines(folder.file("train"), steps)
        digest = model_digest(model)
        save_checkpoint(model, self.chat.tokenizer, folder.checkpoint)
        self.policy.keeps(each.name, digest)
        return {"steps": len(steps), "model": digest, "loss": steps[-1]["loss"] if steps else None}


def _compared(each: Round) -> tuple[Group, ...]:
    """The groups of which the objective compares with a reference."""
    objective = each.method.objective
    return objective.groups if objective.pair.reference else ()
