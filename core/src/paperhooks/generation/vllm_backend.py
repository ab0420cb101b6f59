"""A backend that answers by vLLM in this process, prompts given as token ids."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, require
from paperhooks.generation.prompts import make_prompt
from paperhooks.generation.requests import Backend, Prompt, Request, Response
from paperhooks.generation.settings import tokenizer_settings
from paperhooks.generation.stated_context import stated_context
from paperhooks.io.files import plain
from paperhooks.io.hashing import hash_file, hash_json

__all__ = ["VllmBackend"]

#: The files of a model's folder that decide its answers.
_TELLING: Final = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


class VllmBackend(Backend):
    """A model that vLLM loads and answers with. Needs the extra ``paperhooks[vllm]``.

    The engine is made when there is something to ask and given up, with its memory, once all is answered. All prompts
    of a batch are handed to vLLM at once, which makes batches of its own: give ``ask`` a large one. A request's
    sampling is handed on with its seed; vLLM promises the same answers in other batches only where it is told to (its
    batch invariance), and never over its versions.

    :param model: a folder, known by the bytes of its files, or a name of the hub (give a ``revision`` with it).
    :param tokenizer: a tokenizer of transformers; that of the model without one.
    :param options: for ``vllm.LLM``, such as ``dtype="bfloat16"`` or ``tensor_parallel_size=2``. All of them determine
        the replies, as far as a run that goes on is concerned.
    :raises DataError: there is no tokenizer.
    """

    def __init__(self, model: str | Path, tokenizer: Any = None, **options: Any) -> None:
        self.model, self.options = str(model), options
        self.tokenizer = tokenizer if tokenizer is not None else _tokenizer_of(self.model, options.get("revision"))
        self._engine: Any = None

    def describe(self) -> dict[str, Any]:
        """The model's files, or its name; options of the engine; the tokenizer and its chat template."""
        return {
            "backend": "vllm",
            "model": self._files or self.model,
            "options": plain(self.options),
            "tokenizer": tokenizer_settings(self.tokenizer),
            "chat_template": hash_json(getattr(self.tokenizer, "chat_template", None)),
        }

    def about(self) -> dict[str, Any]:
        """The model's name or folder."""
        return {"class": "vllm", "name": self.model}

    def context(self) -> int:
        """Option ``max_model_len``, or what the model's config says."""
        from transformers import AutoConfig

        if limit := self.options.get("max_model_len"):
            return int(limit)
        config = AutoConfig.from_pretrained(self.model, revision=self.options.get("revision"))
        return stated_context(config.get_text_config(decoder=True))

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """See :func:`paperhooks.generation.make_prompt`; with its tokens counted. Token ids stay as they are."""
        if request.prompt_ids:
            text = self.tokenizer.decode(list(request.prompt_ids))
            return Prompt(document_id, text, request, special=False, tokens=len(request.prompt_ids))
        made = make_prompt(self.tokenizer, document_id, request)
        return Prompt(made.id, made.text, made.request, made.special, len(self._ids(made)))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """An engine around all answers; its memory is free afterwards."""
        vllm = require("vllm", "paperhooks[vllm]", "to answer with vLLM")
        self._engine = vllm.LLM(self.model, **self.options)
        try:
            yield
        finally:
            self._engine = None
            self.recover()

    def recover(self) -> None:
        """Hand freed tensors back to the accelerator."""
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answers to a batch; a prompt that leaves no room for an answer is an error of its own."""
        ids = [self._ids(prompt) for prompt in prompts]
        room = self._longest
        fitting = [place for place, one in enumerate(ids) if not room or len(one) < room]
        found = iter(self._generated([(ids[place], prompts[place].request) for place in fitting]))
        asked = set(fitting)
        return [
            next(found) if place in asked else Response("", error=f"its prompt takes {len(one)} tokens of {room}")
            for place, one in enumerate(ids)
        ]

    def _generated(self, asked: Sequence[tuple[list[int], Request]]) -> list[Response]:
        vllm = require("vllm", "paperhooks[vllm]", "to answer with vLLM")
        if not asked:
            return []
        outputs = self._engine.generate(
            [vllm.TokensPrompt(prompt_token_ids=ids) for ids, _ in asked],
            [vllm.SamplingParams(**_parameters(request)) for _, request in asked],
            use_tqdm=False,
        )
        return [_response(output.outputs[0], len(ids)) for output, (ids, _) in zip(outputs, asked, strict=True)]

    def _ids(self, prompt: Prompt) -> list[int]:
        if prompt.request.prompt_ids:
            return list(prompt.request.prompt_ids)
        ids: list[int] = self.tokenizer(prompt.text, add_special_tokens=prompt.special)["input_ids"]
        return ids

    @property
    def _longest(self) -> int:
        """How many tokens the engine takes; 0 where this version of vLLM does not say it there."""
        config = getattr(getattr(self._engine, "llm_engine", None), "model_config", None)
        return int(getattr(config, "max_model_len", 0))

    @cached_property
    def _files(self) -> str:
        """A hash of the model's folder; empty for a name of the hub."""
        folder = Path(self.model)
        files = sorted(one for one in folder.glob("*") if one.suffix in _TELLING) if folder.is_dir() else []
        return hash_json([[one.name, hash_file(one)] for one in files]) if files else ""


def _tokenizer_of(model: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer was found at {model}: {error}; pass tokenizer=...") from error


def _parameters(request: Request) -> dict[str, Any]:
    """The arguments of ``vllm.SamplingParams``."""
    told = {"max_tokens": request.max_new_tokens, "stop": list(request.stop)}
    sampling = request.sampling
    if sampling is None:
        return {**told, "temperature": 0.0}
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    # Its value for all tokens has changed, so it is left out for these.
    return {**told, **drawn, **({} if sampling.top_k is None else {"top_k": sampling.top_k})}


def _response(output: Any, prompt_tokens: int) -> Response:
    """What vLLM answered; its ids hold the token that ended it, and ``stop_reason`` names a string that did."""
    ids, end = tuple(map(int, output.token_ids)), None
    finish = {"length": "length", "stop": "stop" if isinstance(output.stop_reason, str) else "eos"}.get(
        output.finish_reason, ""
    )
    if not finish:
        return Response("", error=f"vLLM ended the answer by {output.finish_reason!r}", prompt_tokens=prompt_tokens)
    if finish == "eos" and ids:
        ids, end = ids[:-1], ids[-1]
    return Response(output.text.strip(), len(ids), finish, prompt_tokens=prompt_tokens, ids=ids, end=end)
