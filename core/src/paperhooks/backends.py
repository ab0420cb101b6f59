"""What can answer a task besides a transformers model: a function, stored replies, a server.

>>> from paperhooks.backends import CallableBackend
>>> backend = CallableBackend(lambda request: "yes")
>>> paperhooks.evaluate(backend, None, "pope", data="pope/", out="run/")  # doctest: +SKIP
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from paperhooks.engine import Backend, Prompt, Reply, Request
from paperhooks.errors import DataError, MissingExtra
from paperhooks.provenance import hash_file

__all__ = ["CallableBackend", "ReplayBackend", "ServerBackend"]


class CallableBackend(Backend):
    """A function from a :class:`~paperhooks.engine.Request` to a reply.

    ``name`` goes into the record of the run; runs under another name are not continued. What the function raises is the
    error of that document.
    """

    def __init__(self, function: Callable[[Request], str], name: str = "callable") -> None:
        self.function, self.name = function, name

    def describe(self) -> dict[str, Any]:
        """The name."""
        return {"backend": "callable", "name": self.name}

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """The messages as JSON."""
        return Prompt(document_id, _text(request), request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One call a prompt."""
        return [self._answer(prompt.request) for prompt in prompts]

    def _answer(self, request: Request) -> Reply:
        try:
            reply = self.function(request)
        except Exception as error:
            return Reply("", error=f"{type(error).__name__}: {error}")
        if not isinstance(reply, str):
            return Reply("", error=f"the function returned {type(reply).__name__}, not a text")
        return Reply(reply)


class ReplayBackend(Backend):
    """Replies from a file: ``samples.jsonl`` of a run, or JSON lines with ``id`` (or ``doc_id``) and ``reply``.

    In the place of ``reply`` may stand ``resps``, a list whose first entry counts, as in the sample files of lm-eval
    and lmms-eval. ``finish`` is taken over where it is there. Neither requests nor pictures are made. Raises DataError
    for a line that holds neither.
    """

    asks: ClassVar[bool] = False

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.replies = _read_replies(self.file)

    def describe(self) -> dict[str, Any]:
        """The hash of the file."""
        return {"backend": "replay", "replies": hash_file(self.file)}

    def about(self) -> dict[str, Any]:
        """Where the file lies."""
        return {"class": "replay", "name": str(self.file)}

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """The stored replies; a missing one is an error of its document."""
        missing = Reply("", error=f"{self.file} has no reply to this document")
        return [self.replies.get(prompt.id, missing) for prompt in prompts]


def _read_replies(file: Path) -> dict[str, Reply]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, reply = _stored_reply(f"{file}:{number}", line)
            found[key] = reply
    return found


def _stored_reply(where: str, line: bytes) -> tuple[str, Reply]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON: {error}") from error
    key = row.get("id", row.get("doc_id")) if isinstance(row, Mapping) else None
    if key is None:
        raise DataError(f"{where}: expected an object with 'id' or 'doc_id'")
    if row.get("error"):
        return str(key), Reply("", error=str(row["error"]))
    text = row["reply"] if "reply" in row else row.get("resps")
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        raise DataError(f"{where}: expected a text in 'reply', or in 'resps'")
    return str(key), Reply(text, int(row.get("tokens") or 0), str(row.get("finish") or ""))


class ServerBackend(Backend):
    """A model behind an OpenAI-compatible server (vLLM, llama.cpp, a provider). Needs the extra ``paperhooks[server]``.

    model
        The model's name there.
    base_url, api_key
        As in ``openai.OpenAI``; its environment variables without them. The key is never recorded.
    parameters
        More arguments of a request, such as ``{"seed": 0}``; None removes one that is sent by default.

    The prompts of a batch are sent at the same time. Pictures go as PNG data in the message. What a server refuses for
    one document, or fails at after the client's own retries, is the error of that document; a wrong key or an unknown
    model ends the run with DataError.
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
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("openai", "paperhooks[server]", "to ask a server") from error
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
        return Prompt(document_id, _text(request), request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One request a prompt, all at the same time."""
        with ThreadPoolExecutor(len(prompts), thread_name_prefix="paperhooks-server") as pool:
            return list(pool.map(self._answer, prompts))

    def _answer(self, prompt: Prompt) -> Reply:
        fatal = self._openai.AuthenticationError, self._openai.PermissionDeniedError, self._openai.NotFoundError
        try:
            done = self._client.chat.completions.create(**self._arguments(prompt.request))
        except fatal as error:
            raise DataError(f"the server {self._client.base_url} refuses {self.model!r}: {error}") from error
        except self._openai.OpenAIError as error:
            return Reply("", error=f"{type(error).__name__}: {error}")
        choice = done.choices[0]
        tokens = done.usage.completion_tokens if done.usage else 0
        # "stop" may be the model's own end or one of our strings; without such strings it is the former.
        known = {"length": "length"} | ({} if prompt.request.stop else {"stop": "eos"})
        finish = known.get(choice.finish_reason or "", "")
        return Reply((choice.message.content or "").strip(), tokens, finish)

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": _with_pictures(request),
            "temperature": 0.0,
            "max_tokens": request.max_new_tokens,
            "stop": list(request.stop) or None,
            **self.parameters,
        }
        return {name: value for name, value in arguments.items() if value is not None}


def _text(request: Request) -> str:
    return request.prompt or json.dumps(request.messages, ensure_ascii=False)


def _with_pictures(request: Request) -> list[dict[str, Any]]:
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
