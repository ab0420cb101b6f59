"""What a loop will cost, before it is begun: tokens, time as a few batches take it on this machine, and disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.errors import counted
from paperhooks.generation import Backend, Prompt, TransformersBackend
from paperhooks.io import whole
from paperhooks.logprobs import LogLikelihood
from paperhooks.models import find_tokenizer

from paperhooks_sso.data import (
    ChatFormat,
    Conversation,
    GuidedPrompt,
    RequestMaker,
    chosen_principles,
    guided_prompt,
    read_prompts,
    sample_seed,
)
from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.loop.rounds import rounds_of
from paperhooks_sso.loop.sample_stages import MakeBackend

__all__ = ["LoopPlan", "plan_loop"]

#: Prompts that are looked at, evenly spread.
_LOOKED_AT: Final = 64
#: Tokens that are sampled to see how long one takes.
_STEPS: Final = 8
#: A training pass costs so many forwards; one more is the reference's.
_PASSES: Final = 3
#: Bytes of one token id in a file of JSON.
_ID: Final = 6


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """Upper bounds: every answer is counted with as many tokens as it may have.

    prompts, too_long, rounds
        How many prompts, of which about so many do not fit and are dropped; how many times of sampling and training.
    prompt_tokens, new_tokens, trained_tokens
        Tokens that are read before answers, that are sampled, and that stand in trained rows; of all rounds.
    sample_seconds, train_seconds
        As a few batches took it; None where nothing was measured.
    disk
        Bytes of checkpoints and texts.
    """

    prompts: int
    too_long: int
    rounds: int
    prompt_tokens: int
    new_tokens: int
    trained_tokens: int
    sample_seconds: float | None
    train_seconds: float | None
    disk: int

    def lines(self) -> Iterator[str]:
        """For people, a line each."""
        dropped = (
            f", of which about {counted(self.too_long, 'is', 'are')} too long and dropped" if self.too_long else ""
        )
        prompts = "1 prompt" if self.prompts == 1 else f"{self.prompts:,} prompts"
        yield f"{prompts}{dropped}, in {counted(self.rounds, 'round')} of sampling and training"
        yield (
            f"tokens, at most: {self.prompt_tokens:,} read, {self.new_tokens:,} sampled, {self.trained_tokens:,} in "
            "rows that are trained on"
        )
        if self.sample_seconds is not None and self.train_seconds is not None:
            sampling, training = _hours(self.sample_seconds), _hours(self.train_seconds)
            yield (
                f"time, at most: {sampling} of sampling and {training} of training, as a few batches took it here; "
                "answers that end by themselves take less"
            )
        yield f"disk: {self.disk / 1e9:,.2f} GB of checkpoints and texts"


def plan_loop(
    model: Any,
    prompts: Any,
    *,
    tokenizer: Any = None,
    iterations: int = 3,
    limit: int | None = None,
    pace: Pace | None = None,
    make_backend: MakeBackend = TransformersBackend,
    measure: bool = True,
    **options: Any,
) -> LoopPlan:
    """What :func:`paperhooks_sso.align` with the same arguments will cost.

    :param measure: answer and score a few batches, to see how long they take; the model stays as it is.
    """
    chosen, pace = LoopOptions(**options), pace or Pace()
    asked = read_prompts(prompts, limit)
    chat = ChatFormat(tokenizer or find_tokenizer(model), chosen.chat_options, chosen.template)
    backend = make_backend(model, chat.tokenizer)
    some = asked[:: max(1, len(asked) // _LOOKED_AT)][:_LOOKED_AT]
    made = [each for each in _guided(some, chosen, chat, backend) if each is not None]
    if not made:
        raise DataError("no prompt fits beside max_new_tokens into what the model was made for; lower max_new_tokens")
    rounds = list(rounds_of(chosen, whole("iterations", iterations, at_least=1)))
    kept = round(len(asked) * len(made) / len(some))
    read, rows = _tokens(made, chosen)
    roles = sum(len(chosen.roles(each.method)) for each in rounds)
    groups = sum(len(each.method.objective.groups) for each in rounds)
    prompt_tokens, new = round(kept * read * roles), kept * roles * chosen.max_new_tokens
    trained = round(kept * rows * groups)
    sample_seconds = train_seconds = None
    if measure:
        batches = kept * roles / pace.sample_batch
        sample_seconds = batches * _answer_seconds(backend, made, chosen, pace)
        train_seconds = trained * (_PASSES + 1) * _token_seconds(model, made)
    disk = len(rounds) * _checkpoint_bytes(model) + _ID * (prompt_tokens + 2 * new)
    return LoopPlan(
        len(asked), len(asked) - kept, len(rounds), prompt_tokens, new, trained, sample_seconds, train_seconds, disk
    )


def _guided(
    prompts: Sequence[Conversation], options: LoopOptions, chat: ChatFormat, backend: Backend
) -> Iterator[GuidedPrompt | None]:
    """Prompts with principles that are drawn: how long they are does not depend much on which."""
    bank, names = options.bank(), options.names()
    context = backend.context()
    limit = context - options.max_new_tokens if context else None
    for each in prompts:
        seed = sample_seed(options.seed, 1, each.id, "features drawn")
        own = chosen_principles("", bank, names, options.feature_number, options.concision, seed)
        yield guided_prompt(each, own, chat, limit, cut=options.too_long == "cut")


def _tokens(made: Sequence[GuidedPrompt], options: LoopOptions) -> tuple[float, float]:
    """Mean tokens of one prompt in its three forms, and of the two rows of one group with the longest answers."""
    mean = fmean(len(ids) for each in made for ids in each.ids.values())
    return mean, 2 * (mean + options.max_new_tokens)


def _answer_seconds(backend: Backend, made: Sequence[GuidedPrompt], options: LoopOptions, pace: Pace) -> float:
    """Seconds of one batch of the longest answers: one for the prompts, and one a token."""
    some = [made[at % len(made)] for at in range(pace.sample_batch)]

    def seconds(tokens: int) -> float:
        maker = RequestMaker(options.seed, 1, options.temperature, options.top_p, tokens)
        prompts: list[Prompt] = [backend.prompt(key, request) for key, request in maker.answers(some, ["y+"])]
        begun = time.perf_counter()
        backend.answer(prompts)
        return time.perf_counter() - begun

    with backend.opened():
        seconds(1)  # the first call of all makes ready
        once = seconds(1)
        step = max(0.0, seconds(1 + _STEPS) - once) / _STEPS
    return once + step * options.max_new_tokens


def _token_seconds(model: Any, made: Sequence[GuidedPrompt]) -> float:
    """Seconds that one token of a row takes in a forward pass."""
    rows = [np.array(each.ids["good"]) for each in made[:8]]
    scorer = LogLikelihood(model, max_length=max(map(len, rows)))
    scorer.score(rows[:1])
    begun = time.perf_counter()
    scorer.score(rows)
    return (time.perf_counter() - begun) / sum(map(len, rows))


def _checkpoint_bytes(model: Any) -> int:
    """Of a checkpoint: of all parameters, or of those that learn where the model has adapters."""
    adapters = hasattr(model, "peft_config")
    held = {id(p): p for p in model.parameters() if p.requires_grad or not adapters}
    return sum(p.numel() * p.element_size() for p in held.values())


def _hours(seconds: float) -> str:
    """A time in the unit that fits."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
