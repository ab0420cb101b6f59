"""Answers of a transformers model to batches of prompts, leaving model and processor as they were."""

from __future__ import annotations

import copy
import dataclasses
import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from paperhooks.compat import attention_kernel, origin, revision
from paperhooks.errors import DataError
from paperhooks.generation.draws import Draws
from paperhooks.generation.pending_images import PendingImage
from paperhooks.generation.prompts import make_prompt
from paperhooks.generation.requests import Backend, Prompt, Request, Response
from paperhooks.generation.settings import (
    config_settings,
    generation_settings,
    processor_settings,
    tokenizer_settings,
)
from paperhooks.generation.stated_context import stated_context
from paperhooks.generation.thoughts import REASONING_TAGS
from paperhooks.io.hashing import class_name, hash_json, model_digest
from paperhooks.io.images import fitted_size
from paperhooks.io.processes import Ranks
from paperhooks.models.forward import evaluation_mode
from paperhooks.models.rounds import Company, in_step, ranks_of
from paperhooks.plugins.methods import describe_method
from paperhooks.sessions.session import active_session, attach

__all__ = ["TransformersBackend"]

#: Greedy decoding, and None for what only sampling uses: transformers warns about values that it ignores.
_GREEDY: Final[Mapping[str, Any]] = {
    "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False,
    "use_cache": True, "max_length": None, "min_length": None, "stop_strings": None,
    "temperature": None, "top_p": None, "top_k": None, "typical_p": None, "epsilon_cutoff": None, "eta_cutoff": None,
    "min_p": None, "top_h": None,
}  # fmt: skip
#: The answer of a model whose logits are no numbers.
_UNDRAWN: Final = Response("", error="nothing can be drawn: the model's logits are NaN or infinite")
#: Of how many sizes of images the tokens are counted.
_SIZES: Final = 256
#: Larger images are counted as if they had so many pixels, which is beyond what processors scale them to.
_COUNTED_PIXELS: Final = 2**24


class TransformersBackend(Backend):
    """A model and its processor (a tokenizer for text-only models), with ``methods`` attached while it answers."""

    def __init__(self, model: Any, processor: Any, methods: Sequence[Any] = ()) -> None:
        self.model, self.processor, self.methods = model, processor, tuple(methods)
        self.tokenizer = getattr(processor, "tokenizer", processor)
        # Padding is a state of the tokenizer, which a thread that makes prompts ahead must not meet.
        self._tokenizing = threading.Lock()
        self._image_tokens: dict[tuple[tuple[int, int], ...], int] = {}
        self._company = Company()

    def describe(self) -> dict[str, Any]:
        """Hashes of weights and chat template, all settings of what is involved (see ``settings``), and methods."""
        session = active_session(self.model)
        attached = list(session.methods.values()) if session else []
        return {
            "model": model_digest(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "config": config_settings(self.model),
            "processor": processor_settings(self.processor),
            "tokenizer": tokenizer_settings(self.tokenizer),
            "chat_template": hash_json(getattr(self.processor, "chat_template", None)),
            "generation": {
                "greedy": True,
                **generation_settings(_greedy(self.model.generation_config, self.tokenizer, 1)),
            },
            "methods": [describe_method(method) for method in [*attached, *self.methods]],
        }

    def about(self) -> dict[str, Any]:
        """Where the model came from and where it runs."""
        config = self.model.config
        return {
            "class": class_name(self.model),
            "name": origin(config) or None,
            "revision": revision(config),
            "device": str(self.model.device),
            "attention": attention_kernel(config),
        }

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Evaluation mode, no gradients, and the methods attached."""
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(self.model))
            stack.enter_context(torch.no_grad())
            if self.methods:
                stack.enter_context(attach(self.model, *self.methods))
            self._company = stack.enter_context(in_step(self.model))
            yield

    def gathered(self, value: Any) -> list[Any]:
        """What the ranks of a tensor-parallel group give, in their order."""
        return self._company.give(value)

    def ranks(self) -> Ranks:
        """The processes that hold the model, by its replicas."""
        return self._ranks

    @cached_property
    def _ranks(self) -> Ranks:
        return ranks_of(self.model)

    def context(self) -> int:
        """What the config says of positions; most models with rotary ones go on beyond them, and worse."""
        return stated_context(self.model.config.get_text_config(decoder=True))

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """See :func:`paperhooks.generation.make_prompt`; with its tokens counted. Token ids stay as they are.

        :raises DataError: token ids that the model does not have.
        """
        if request.prompt_ids:
            return self._prompt_of_ids(document_id, request)
        made = make_prompt(self.processor, document_id, request)
        with self._tokenizing:
            return dataclasses.replace(made, tokens=self._count(made))

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answers to a batch, padded on the left. Responses are without special tokens and outer blanks.

        Greedy, or drawn as each request says (see :class:`~paperhooks.generation.Sampling`); both may share a batch.

        A prompt of more tokens than the model has learned positions is an error of its document; the model is not
        called, which on an accelerator would break it for all others.
        """
        with self._tokenizing, _left_padding(self.tokenizer):
            inputs = self._inputs(prompts)
        asked = _prompt_tokens(inputs)
        if max(asked) > (self._positions or max(asked)):
            fitting = [prompt for prompt, count in zip(prompts, asked, strict=True) if count <= self._positions]
            answers = iter(self.answer(fitting) if fitting else ())
            return [next(answers) if count <= self._positions else self._too_long(count) for count in asked]
        limit = max(prompt.request.max_new_tokens for prompt in prompts)
        config = _greedy(self.model.generation_config, self.tokenizer, limit)
        stopping = _Stopping(self.tokenizer, [prompt.request for prompt in prompts], inputs["input_ids"].shape[1])
        extra: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([stopping])} if stopping.needed else {}
        draws = self._draws(prompts, inputs["input_ids"])
        if draws is not None:
            extra["logits_processor"] = LogitsProcessorList([draws])
        if self.ranks().in_step:
            extra["synced_gpus"] = False  # every call of the model is a round of its own already
        with _generation_config(self.model, config):
            output = self.model.generate(**inputs, generation_config=config, **extra)
        new = output[:, inputs["input_ids"].shape[1] :]  # cut by length: a response may repeat its prompt
        ends, broken = _ends(config), set[int]() if draws is None else draws.broken_rows()
        return [
            dataclasses.replace(
                _UNDRAWN if place in broken else self._response(row.tolist(), prompt.request, ends), prompt_tokens=count
            )
            for place, (row, prompt, count) in enumerate(zip(new, prompts, asked, strict=True))
        ]

    def too_large(self, error: Exception) -> bool:
        """Also the errors of torch, which has one class for accelerators and none for the CPU."""
        told = isinstance(error, RuntimeError) and ("out of memory" in str(error) or "allocate memory" in str(error))
        # Ranks that wait for parts of a call have lost it, whatever is asked next.
        return (told or super().too_large(error)) and not self._company.waits

    def recover(self) -> None:
        """Hand freed tensors back to the accelerator; a tensor-parallel group asks for less together."""
        self._company.again()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def _positions(self) -> int:
        """How many positions a model has learned, a row of a table each; 0 of one that computes them."""
        decoder, words = getattr(self.model, "get_decoder", lambda: None)(), self.model.get_input_embeddings()
        tables = (one for one in (decoder.modules() if decoder else ()) if isinstance(one, torch.nn.Embedding))
        rows = [one.num_embeddings for one in tables if one is not words]
        limit = self.context()
        # Some have two rows in front that no position uses.
        return limit if any(limit <= count <= limit + 2 for count in rows) else 0

    def _too_long(self, count: int) -> Response:
        return Response("", error=f"its prompt takes {count} tokens, and the model has {self._positions} positions")

    def _prompt_of_ids(self, document_id: str, request: Request) -> Prompt:
        size = self.model.get_input_embeddings().num_embeddings
        if max(request.prompt_ids) >= size:
            raise DataError(
                f"{document_id!r} has the token id {max(request.prompt_ids)}, and the model knows {size} tokens; give "
                "ids of its own tokenizer"
            )
        text = self.tokenizer.decode(list(request.prompt_ids))
        return Prompt(document_id, text, request, special=False, tokens=len(request.prompt_ids))

    def _draws(self, prompts: Sequence[Prompt], ids: Tensor) -> Draws | None:
        samplings = [prompt.request.sampling for prompt in prompts]
        if not any(samplings):
            return None
        if self.model.generation_config.watermarking_config is not None:  # it would come after the draw, and do nothing
            raise DataError(
                "the model's generation config has a watermarking_config, which drawn answers would not carry; set it "
                "to None, or ask without sampling"
            )
        return Draws(samplings, ids.shape[1], ids.device)

    def _count(self, prompt: Prompt) -> int:
        count = len(self.tokenizer(prompt.text, add_special_tokens=prompt.special)["input_ids"])
        if not prompt.request.images:
            return count
        # What images add depends on their sizes; where these are many, no more of them are looked at.
        sizes = tuple(image.size for image in prompt.request.images)
        if sizes not in self._image_tokens and len(self._image_tokens) < _SIZES:
            shown = dataclasses.replace(prompt.request, images=[_stand_in(one) for one in prompt.request.images])
            whole = self._inputs([dataclasses.replace(prompt, request=shown)])
            self._image_tokens[sizes] = whole["input_ids"].shape[1] - count
        return count + self._image_tokens.get(sizes, max(self._image_tokens.values()))

    def _inputs(self, prompts: Sequence[Prompt]) -> Any:
        if prompts[0].request.prompt_ids:
            rows = [prompt.request.prompt_ids for prompt in prompts]
            return _padded(rows, self.tokenizer.pad_token_id or 0, self.model.device)
        options: dict[str, Any] = {"padding": len(prompts) > 1, "return_tensors": "pt"}
        if not prompts[0].special:
            options["add_special_tokens"] = False
        if prompts[0].request.images:
            options["images"] = [list(prompt.request.images) for prompt in prompts]
        inputs = self.processor(text=[prompt.text for prompt in prompts], **options).to(self.model.device)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        return inputs

    def _response(self, ids: list[int], request: Request, ends: set[int]) -> Response:
        ids = ids[: request.max_new_tokens]
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        kept = ids if end is None else ids[:end]
        text = self._decoded(kept)
        cut = _first_stop(text, request.stop)
        if cut is not None:
            count = _tokens_until_stop(self.tokenizer, kept, request.stop)
            return Response(text[:cut].strip(), count, "stop", ids=tuple(kept[:count]))
        if end is None:
            return Response(text.strip(), len(kept), "length", ids=tuple(kept))
        return Response(text.strip(), len(kept), "eos", ids=tuple(kept), end=ids[end])

    def _decoded(self, ids: list[int]) -> str:
        """The text without special tokens, but for those that reasoning stands between."""
        parts, start = [], 0
        for place, token in enumerate([*ids, None]):
            if token is None or token in self._tags:
                parts += [self.tokenizer.decode(ids[start:place], skip_special_tokens=True), self._tags.get(token, "")]
                start = place + 1
        return "".join(parts)

    @cached_property
    def _tags(self) -> dict[int | None, str]:
        """Special tokens that begin or end reasoning, by id."""
        tags = {tag for pair in REASONING_TAGS for tag in pair}
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        return {key: str(token) for key, token in added if str(token) in tags and token.special}


def _padded(rows: Sequence[Sequence[int]], padding: int, device: Any) -> dict[str, Tensor]:
    """Token ids and their mask, int64 [B, T], padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _prompt_tokens(inputs: Mapping[str, Any]) -> list[int]:
    """Tokens of each prompt, without padding."""
    ids = inputs["input_ids"]
    counts: list[int] = inputs.get("attention_mask", torch.ones_like(ids)).sum(dim=1).tolist()
    return counts


def _stand_in(image: Any) -> Any:
    """Of an image that is not opened yet a black one of its size, which takes as many tokens."""
    if not isinstance(image, PendingImage):
        return image
    from PIL import Image

    return Image.new("RGB", fitted_size(image.size, _COUNTED_PIXELS))


class _Stopping(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Ends each row at its own limit, and when one of its stop strings is complete."""

    def __init__(self, tokenizer: Any, requests: Sequence[Request], start: int) -> None:
        self.tokenizer, self.requests, self.start = tokenizer, requests, start
        self.needed = any(r.stop for r in requests) or len({r.max_new_tokens for r in requests}) > 1
        self.done = [False] * len(requests)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Bool [B]: which rows are done."""
        count = input_ids.shape[1] - self.start
        for row, request in enumerate(self.requests):
            if self.done[row] or count >= request.max_new_tokens:
                self.done[row] = True
            elif request.stop:
                # A token is at least one byte, so a string completed just now begins within as many tokens.
                reach = max(len(stop.encode()) for stop in request.stop) + 4
                tail = self.tokenizer.decode(input_ids[row, self.start :][-reach:], skip_special_tokens=True)
                self.done[row] = _first_stop(tail, request.stop) is not None
        return torch.tensor(self.done, device=input_ids.device)


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    return min((place for one in stop if (place := text.find(one)) >= 0), default=None)


def _tokens_until_stop(tokenizer: Any, ids: list[int], stop: Sequence[str]) -> int:
    # Bisection: once a stop string is complete, more tokens do not take it away.
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if _first_stop(tokenizer.decode(ids[:middle], skip_special_tokens=True), stop) is None:
            low = middle + 1
        else:
            high = middle
    return low


@contextmanager
def _left_padding(tokenizer: Any) -> Iterator[None]:
    # Generation goes on from the last column, so padding must come first.
    before = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.padding_side, tokenizer.pad_token = before


@contextmanager
def _generation_config(model: Any, config: Any) -> Iterator[None]:
    # generate fills what is None in its argument from the model's own config, and then warns about what it filled in.
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


def _greedy(base: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    config = copy.deepcopy(base)
    config.update(**_GREEDY)
    config.update(max_new_tokens=max_new_tokens)
    if config.pad_token_id is None:
        known = tokenizer.pad_token_id
        config.pad_token_id = min(_ends(config), default=None) if known is None else known
    return config


def _ends(config: Any) -> set[int]:
    ends = config.eos_token_id
    return set(ends if isinstance(ends, list | tuple) else [ends]) - {None}
