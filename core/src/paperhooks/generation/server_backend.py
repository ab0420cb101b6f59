"""A backend that asks an OpenAI-compatible server."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from paperhooks.errors import DataError, require
from paperhooks.generation.requests import Backend, Prompt, Request, Response

__all__ = ["ServerBackend"]


class ServerBackend(Backend):
    """A model behind an OpenAI-compatible server (vLLM, llama.cpp, a provider). Needs the extra ``paperhooks[server]``.

    The prompts of a batch are sent at the same time. Images go as PNG data in the message. What a server refuses for
    one document, or fails at after the client's own retries, is the error of that document; a wrong key or an unknown
    model ends the run with DataError.

    :param model: the model's name there.
    :param base_url, api_key: as in ``openai.OpenAI``; its environment variables without them. The key is never
        recorded.
    :param parameters: more arguments of a request, such as ``{"seed": 0}``; None removes one that is sent by default.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
    ) -> None:
        openai = require("openai", "paperhooks[server]", "to ask a server")
        self.model, self.parameters = model, dict(parameters or {})
        self._openai = openai
        try:
            self._client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout)
        except openai.OpenAIError as error:
            raise DataError(f"no client for {model!r}: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Server, model and parameters."""
        url = str(self._client.base_url)
        return {"backend": "server", "url": url, "model": self.model, "parameters": self.parameters}

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """The messages as JSON; raises DataError for a finished prompt, which a chat server cannot take."""
        if request.prompt:
            raise DataError("a server takes messages, but the task's request has a finished prompt")
        return Prompt(document_id, request.text, request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """One request a prompt, all at the same time."""
        with ThreadPoolExecutor(len(prompts), thread_name_prefix="paperhooks-server") as pool:
            return list(pool.map(self._answer, prompts))

    def _answer(self, prompt: Prompt) -> Response:
        fatal = self._openai.AuthenticationError, self._openai.PermissionDeniedError, self._openai.NotFoundError
        try:
            done = self._client.chat.completions.create(**self._arguments(prompt.request))
        except fatal as error:
            raise DataError(f"the server {self._client.base_url} refuses {self.model!r}: {error}") from error
        except self._openai.OpenAIError as error:
            return Response("", error=f"{type(error).__name__}: {error}")
        choice = done.choices[0]
        tokens = done.usage.completion_tokens if done.usage else 0
        # "stop" may be the model's own end or one of our strings; without such strings it is the former.
        known = {"length": "length"} | ({} if prompt.request.stop else {"stop": "eos"})
        finish = known.get(choice.finish_reason or "", "")
        return Response((choice.message.content or "").strip(), tokens, finish)

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": _with_images(request),
            "temperature": 0.0,
            "max_tokens": request.max_new_tokens,
            "stop": list(request.stop) or None,
            **self.parameters,
        }
        return {name: value for name, value in arguments.items() if value is not None}


def _with_images(request: Request) -> list[dict[str, Any]]:
    images = iter(request.images)
    return [
        {**message, "content": [_part(part, images) for part in message["content"]]} for message in request.messages
    ]


def _part(part: Mapping[str, Any], images: Any) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    buffer = io.BytesIO()
    next(images).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
