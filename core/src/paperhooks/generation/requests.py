"""What passes between a task, the evaluation and whatever answers: requests, prompts, responses, backends.

Imports nothing heavy, so that tasks can be imported where no model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from paperhooks.io.options import number, optional, refused, whole
from paperhooks.io.processes import Ranks

__all__ = ["Backend", "Prompt", "Request", "Response", "Sampling", "StoredDocument"]

_LARGEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: from the softmax of logits / ``temperature``, cut to ``top_k`` and then to ``top_p``.

    Drawing is decided by ``seed`` alone: what a transformers model draws does not depend on what else is in the batch,
    on a restart or on the number of processes. Requests of one seed share their noise, so give each its own, such as a
    hash of run and id.

    :param temperature: above 0. :param top_p: above 0, at most 1: the most likely tokens that have this share of the
        probability together. :param top_k: so many of the most likely tokens; all without it. Tokens as likely as the
        last one that is kept are kept too. :param seed: from 0 to 2**63 - 1.
    :raises ValueError: a value outside of these bounds.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checked = {
            "temperature": number("temperature", self.temperature, above=0),
            "top_p": number("top_p", self.top_p, above=0, high=1),
            "top_k": optional(whole, "top_k", self.top_k, at_least=1),
            "seed": whole("seed", self.seed, at_least=0, at_most=_LARGEST_SEED),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked: ``messages``, or a finished ``prompt``, or its token ids.

    :param messages: a conversation. Each message has a ``role`` and a ``content``: text, or a list of parts. A part is
        ``{"type": "text", "text": ...}`` or ``{"type": "image"}``. The n-th image part stands for ``images[n]`` unless
        it names another by ``"index"``. Where the layout moves images away from their place, an image part leaves its
        ``"text"`` behind, if it has any. A text part may hold another wording for a layout under that layout's name,
        such as ``{"type": "text", "text": "<image 1>", "interleave": "image 1"}``. An image part with ``"only"`` and
        the name of a layout shows its image there alone, and is its text elsewhere.
    :param prompt: the finished prompt with the model's own image placeholders; used as it is, whatever the layout.
    :param images: PIL images, already opened; or :class:`paperhooks.io.Picture` for those that the evaluation opens
        when it is their turn, within its bound of memory and once where several documents show them.
    :param max_new_tokens, stop: where the answer is cut: a number of tokens from 1, and strings that end it and are not
        part of it, none of them empty.
    :param metadata: plain data for callables and servers; never shown to a model.
    :param prompt_ids: the finished prompt as token ids, special tokens included: asked as they are, so that a model
        answers the very ids that it is trained on. Without images.
    :param sampling: how the answer is drawn; None for the most likely token each time.
    :raises ValueError: ids that are no whole numbers from 0, ids with images, a limit below 1, stop strings that are
        one text or hold an empty one, a sampling of another type.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    images: Sequence[Any] = ()
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: tuple[int, ...] = ()
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        ids = tuple(whole(f"prompt_ids[{place}]", one, at_least=0) for place, one in enumerate(self.prompt_ids))
        object.__setattr__(self, "prompt_ids", ids)
        object.__setattr__(self, "max_new_tokens", whole("max_new_tokens", self.max_new_tokens, at_least=1))
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        if ids and self.images:
            raise ValueError("a request with prompt_ids shows no images; give its messages, or a finished prompt")
        if not isinstance(self.sampling, Sampling | None):
            raise refused("sampling", self.sampling, "a paperhooks.generation.Sampling, or None")

    @property
    def text(self) -> str:
        """The finished prompt, or the messages or the ids as JSON."""
        return self.prompt or json.dumps(list(self.prompt_ids) or self.messages, ensure_ascii=False)


def _stop_strings(stop: object) -> tuple[str, ...]:
    """As a tuple; a text alone would be taken for its letters, and an empty one would end every answer."""
    listed = isinstance(stop, Sequence) and not isinstance(stop, str | bytes)
    found = tuple(stop) if isinstance(stop, Sequence) else ()
    if not listed or not all(isinstance(one, str) and one for one in found):
        raise refused("stop", stop, "a tuple of texts that are not empty")
    return found


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as a backend will ask it.

    :param id: the document's.
    :param text: the whole prompt in the backend's own form; with the images it is what the answer depends on.
    :param request: the request, its images laid out.
    :param special: whether the tokenizer still has to add its special tokens; a chat template has written them already.
    :param tokens: how many tokens it takes, those of images included; 0 where that costs nothing.
    """

    id: str
    text: str
    request: Request
    special: bool = True
    tokens: int = 0

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """Prompts of one kind may share a batch: images or none, special tokens or none, token ids or text."""
        return self.special, bool(self.request.images), bool(self.request.prompt_ids)

    @property
    def cost(self) -> tuple[int, int, int]:
        """Prompts of similar cost belong together: images, length of the answer, length of the prompt."""
        return len(self.request.images), self.request.max_new_tokens, self.tokens or len(self.text)


@dataclass(frozen=True, slots=True)
class Response:
    """What came back.

    :param finish: ``"eos"``, ``"stop"`` (a stop string) or ``"length"`` (cut); ``""`` where the backend does not say.
    :param error: why there is no answer; the document is asked again by the next call.
    :param reasoning: what the model wrote in front of its answer, see :mod:`paperhooks.generation.thoughts`.
    :param new_tokens, prompt_tokens: tokens of the answer, with its reasoning, and of the prompt; 0 where the backend
        does not say.
    :param ids: the answer's token ids as they came, reasoning and special tokens included, without the one that ended
        it; of an answer that a stop string ended, up to the token that completed the string. Empty where the backend
        does not say.
    :param end: the token with which the model ended its answer by itself (it may know several); None where it did not,
        or the backend does not say which.
    """

    text: str
    new_tokens: int = 0
    finish: str = ""
    error: str = ""
    reasoning: str = ""
    prompt_tokens: int = 0
    ids: tuple[int, ...] = ()
    end: int | None = None


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What a stored response says of the document that it was given to; nothing of it has to be known.

    :param file: where it stands.
    :param digest: the hash of the document by whoever stored it.
    :param values: texts, numbers and lists of the document, by name.
    :param target: the right answer.
    """

    file: str
    digest: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    target: str = ""


class Backend:
    """What answers prompts. ``asks`` False: it looks answers up by id, so no request is made and no image opened."""

    asks: ClassVar[bool] = True

    def describe(self) -> Mapping[str, Any]:
        """Plain data that determines the responses; another description does not continue a run."""
        return {"backend": type(self).__name__}

    def about(self) -> Mapping[str, Any]:
        """Plain data worth recording that does not determine the responses, such as where the model came from."""
        return {}

    def check(self, ids: Sequence[str]) -> None:
        """Raise DataError where documents with these ids are not what it can answer; called before the first prompt."""
        return

    def told(self) -> Mapping[str, Sequence[StoredDocument]]:
        """What stored responses say of their documents, by id, for whoever knows the documents; empty where it asks."""
        return {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Around all answers of a run; not entered when there is nothing to ask, unless processes go in step."""
        yield

    def ranks(self) -> Ranks:
        """The processes that share the work, by replicas of what answers."""
        return Ranks()

    def gathered(self, value: Any) -> list[Any]:
        """What the processes that hold one replica together give, in their order; called while it is opened."""
        return [value]

    def context(self) -> int:
        """How many tokens of prompt and answer together the model was made for; 0 where that is not known."""
        return 0

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """The prompt of a request; called in a worker thread ahead of :meth:`answer`.

        Images of the request may be :class:`~paperhooks.generation.PendingImage`, whose size is known; :meth:`answer`
        gets them opened.
        """
        return Prompt(document_id, request.prompt, request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """One response a prompt, in their order. All prompts are of one kind."""
        return [Response("", error=f"{type(self).__name__} answers nothing") for _ in prompts]

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[Mapping[int, Response]]:
        """Responses by place among the prompts, as they come: each is written down at once. By default all together.

        Every prompt has to get one, in any order.
        """
        yield dict(enumerate(self.answer(prompts)))

    def down(self) -> str:
        """Why no further answer can be expected, such as a server that is not reached; empty while it answers."""
        return ""

    def too_large(self, error: Exception) -> bool:
        """Whether an error of :meth:`answer` means that the batch did not fit into memory; it is then halved."""
        return isinstance(error, MemoryError)

    def recover(self) -> None:
        """Free what an answer that failed for want of memory left behind."""
        return
