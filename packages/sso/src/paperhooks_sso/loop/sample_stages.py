"""The stages that ask the model: which features matter, principles, and the three answers to every prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from paperhooks import DataError
from paperhooks.generation import Backend, Response, TransformersBackend, ask

from paperhooks_sso.data import (
    ChatFormat,
    Conversation,
    GuidedPrompt,
    Principle,
    RequestMaker,
    chosen_principles,
    guided_prompt,
    read_lines,
    sample_seed,
    write_lines,
    written_principle,
)
from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.loop.round_folder import RoundFolder
from paperhooks_sso.probes import failures

__all__ = ["MakeBackend", "Sampler", "ending_turns"]

#: Makes what answers from a model and its tokenizer.
MakeBackend: TypeAlias = Callable[[Any, Any], Backend]
#: Tokens that a prompt has at least, or no question fits.
_LEAST: Final = 16
#: Tokens of the answers to questions without chat template, at most.
_QUESTION: Final = 256


@dataclass(frozen=True, eq=False)
class Sampler:
    """Asks one model in one round.

    model, chat
        Who is asked, and how.
    iteration
        For the seeds.
    make_backend
        What answers.
    failed
        Largest share of questions about features and principles that may fail; None for all.
    """

    model: Any
    chat: ChatFormat
    options: LoopOptions
    pace: Pace
    iteration: int | str
    make_backend: MakeBackend = TransformersBackend
    failed: float | None = 0.0

    def write_prompts(self, folder: RoundFolder, prompts: Sequence[Conversation]) -> dict[str, Any]:
        """Choose principles and make the ids of every prompt; writes ``asked.jsonl``."""
        with ending_turns(self.model, self.chat):
            backend = self.make_backend(self.model, self.chat.tokenizer)
            limit = self._limit(backend)
            told = self._principles(folder, backend, prompts)
        cut = self.options.too_long == "cut"
        made = [guided_prompt(each, own, self.chat, limit, cut=cut) for each, own in zip(prompts, told, strict=True)]
        return _written(folder, made)

    def take_over(self, folder: RoundFolder, other: RoundFolder, prompts: Sequence[Conversation]) -> dict[str, Any]:
        """The same prompts with the same principles as another round had them."""
        known = {each["id"]: GuidedPrompt.from_record(each) for each in read_lines(other.file("prompts"), "prompts")}
        return _written(folder, [known.get(each.id) for each in prompts])

    def sample(self, folder: RoundFolder, roles: Sequence[str]) -> dict[str, Response]:
        """Answers by id, in ``samples/``; what is there is not asked again."""
        prompts = [GuidedPrompt.from_record(each) for each in read_lines(folder.file("prompts"), "prompts")]
        with folder.run.timed("samples"):
            return self._ask(folder, "samples", self.maker().answers(prompts, roles))

    def maker(self, limit: int | None = None) -> RequestMaker:
        """Makes the requests of this round."""
        o = self.options
        return RequestMaker(o.seed, self.iteration, o.temperature, o.top_p, o.max_new_tokens, limit)

    def _limit(self, backend: Backend) -> int | None:
        """Most tokens of a prompt; None where the backend does not say what it was made for."""
        context = backend.context()
        if context and context - self.options.max_new_tokens < _LEAST:
            raise DataError(
                f"max_new_tokens is {self.options.max_new_tokens}, and the model was made for {context} tokens of "
                f"prompt and answer together; expected at most {context - _LEAST}"
            )
        return context - self.options.max_new_tokens if context else None

    def _principles(
        self, folder: RoundFolder, backend: Backend, prompts: Sequence[Conversation]
    ) -> list[list[Principle]]:
        o, bank, names = self.options, self.options.bank(), self.options.names()
        context = backend.context()
        maker = self.maker(max(_LEAST, context - _QUESTION) if context else None)
        said: dict[str, Response] = {}
        if o.features == "asked":
            said = self._ask(folder, "features", maker.features(prompts, names, self.chat.tokenizer))
        found = []
        for prompt in prompts:
            reply = said.get(f"{prompt.id}/features")
            seed = sample_seed(o.seed, self.iteration, prompt.id, "features drawn")
            text = reply.text if reply is not None else ", ".join(() if o.features == "random" else names)
            found.append(chosen_principles(text, bank, names, o.feature_number, o.concision, seed))
        return self._generated(folder, maker, prompts, found) if o.generated else found

    def _generated(
        self, folder: RoundFolder, maker: RequestMaker, prompts: Sequence[Conversation], found: list[list[Principle]]
    ) -> list[list[Principle]]:
        """Principles in the model's own words, where it gives some that can be read."""
        pairs = list(zip(prompts, found, strict=True))
        asked = (each for prompt, own in pairs for each in maker.principles(prompt, own, self.chat.tokenizer))
        replies = self._ask(folder, "principles", asked)

        def written(prompt: Conversation, own: Principle) -> Principle:
            reply = replies.get(maker.principle_key(prompt.id, own.feature))
            return own if reply is None or reply.error else written_principle(reply.text, own)

        return [[written(prompt, each) for each in own] for prompt, own in pairs]

    def _ask(self, folder: RoundFolder, name: str, requests: Any) -> dict[str, Response]:
        with ending_turns(self.model, self.chat):
            backend = self.make_backend(self.model, self.chat.tokenizer)
            found = ask(
                backend, requests, out=folder.path / name, batch_size=self.pace.sample_batch,
                progress=self.pace.progress,
            )  # fmt: skip
        if name != "samples" and (failed := failures(found, self.failed)):
            raise DataError(f"of the questions about {name}, {failed.sentence}")
        return found


def _written(folder: RoundFolder, made: Sequence[GuidedPrompt | None]) -> dict[str, Any]:
    kept = [each for each in made if each is not None]
    write_lines(folder.file("prompts"), (each.record() for each in kept))
    return {
        "prompts": len(made), "too_long": len(made) - len(kept), "cut": sum(each.asked.cut for each in kept),
        "tokens": sum(len(ids) for each in kept for ids in each.ids.values()),
    }  # fmt: skip


@contextmanager
def ending_turns(model: Any, chat: ChatFormat) -> Iterator[None]:
    """A model that ends its answers where its chat template ends a turn, also where its generation config names
    another token only: else it would go on with the turns of both."""
    config = getattr(model, "generation_config", None)
    if config is None:
        yield
        return
    before = config.eos_token_id
    known = [] if before is None else list(before) if isinstance(before, list | tuple) else [before]
    if (end := chat.end_of_turn[-1]) not in known:
        config.eos_token_id = [*known, end]
    try:
        yield
    finally:
        config.eos_token_id = before
