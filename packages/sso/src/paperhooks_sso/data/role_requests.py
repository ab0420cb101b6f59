"""What is asked of the model for a prompt, by id: ``17/y+``, ``17/features``, ``17/principle/Accuracy``.

Everything is asked by token ids, so that what a model answered is what it is trained on, and with a seed that depends
on the run, the iteration, the prompt and the role alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.generation import Request, Sampling

from paperhooks_sso.algorithm import Group
from paperhooks_sso.data.cut_prompts import text_end
from paperhooks_sso.data.features import STOP, feature_question
from paperhooks_sso.data.guided_prompts import GuidedPrompt, sample_seed
from paperhooks_sso.data.principles import Principle
from paperhooks_sso.data.prompts import Conversation
from paperhooks_sso.data.written_principles import principle_question

__all__ = ["FEATURES", "ROLES", "RequestMaker"]

#: The roles of answers, and the prompt that each is sampled for.
ROLES: Final[dict[str, Group]] = {"y+": "good", "y-": "bad", "yo": "plain"}
#: The last part of the id of a question for features.
FEATURES: Final = "features"
_PRINCIPLE: Final = "principle"
#: Tokens of the answers that name features, and that write a principle.
_FEATURE_TOKENS: Final = 32
_PRINCIPLE_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class RequestMaker:
    """Makes the requests of one iteration.

    seed, iteration
        From which the seed of every request is made, with its prompt's id and role; a name for a round of its own.
    temperature, top_p, max_new_tokens
        How answers are drawn, and how long they may be.
    limit
        Most tokens of a question without chat template; longer ones lose the beginning of the user's text.
    """

    seed: int = 0
    iteration: int | str = 1
    temperature: float = 0.7
    top_p: float = 0.8
    max_new_tokens: int = 2048
    limit: int | None = None

    def answers(self, prompts: Iterable[GuidedPrompt], roles: Sequence[str] = tuple(ROLES)) -> Iterator[_Named]:
        """The requests for y+, y- and yo: all of one prompt together."""
        for prompt in prompts:
            for role in roles:
                yield self._request(prompt.id, role, prompt.ids[ROLES[role]], self.max_new_tokens)

    def features(self, prompts: Iterable[Conversation], features: Sequence[str], tokenizer: Any) -> Iterator[_Named]:
        """The questions which features matter."""
        for prompt in prompts:
            ids = self._question(prompt, lambda text: feature_question(text, features), tokenizer)
            yield self._request(prompt.id, FEATURES, ids, _FEATURE_TOKENS, (STOP,))

    def principles(self, prompt: Conversation, principles: Iterable[Principle], tokenizer: Any) -> Iterator[_Named]:
        """The questions for principles that are written for one prompt, one for each feature."""
        for each in principles:
            ids = self._question(prompt, lambda text, each=each: principle_question(text, each), tokenizer)
            yield self._request(prompt.id, f"{_PRINCIPLE}/{each.feature}", ids, _PRINCIPLE_TOKENS, (STOP,))

    @staticmethod
    def principle_key(prompt: str, feature: str) -> str:
        """The id of the question for a principle."""
        return f"{prompt}/{_PRINCIPLE}/{feature}"

    def _question(self, prompt: Conversation, write: Any, tokenizer: Any) -> tuple[int, ...]:
        """Ids of a question; of a long prompt with as much of its end as fits."""

        def ids(text: str) -> list[int]:
            found: list[int] = tokenizer(write(text))["input_ids"]
            return found

        text = prompt.messages[-1]["content"]
        if self.limit is not None and len(ids(text)) > self.limit:
            text = text_end(text, lambda end: len(ids(end)) <= (self.limit or 0)) or text.split()[-1]
        return tuple(ids(text))

    def _request(self, prompt: str, role: str, ids: Sequence[int], tokens: int, stop: tuple[str, ...] = ()) -> _Named:
        seed = sample_seed(self.seed, self.iteration, prompt, role)
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p, seed=seed)
        asked = Request(prompt_ids=tuple(ids), max_new_tokens=tokens, stop=stop, sampling=sampling)
        return f"{prompt}/{role}", asked


_Named = tuple[str, Request]
