"""A backend that asks an OpenAI-compatible server."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from paperhooks.errors import DataError, require
from paperhooks.generation.requests import Backend, Prompt, Request, Response, Sampling
from paperhooks.io.harmless import error_text, redacted
from paperhooks.io.options import flag

__all__ = ["ServerBackend"]

_NO_KEY: Final = "none"
#: After how many documents in a row without an answer a server counts as down, and after how many answers of which
#: none could be used it counts as something else.
_IN_A_ROW: Final = 3
_UNUSABLE: Final = 20
#: The names by which servers know the limit of an answer's tokens; the first is sent until one asks for the other.
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
#: What servers say of an argument that they do not take.
_UNKNOWN: Final = (
    "unsupported",
    "not supported",
    "unrecognized",
    "unknown",
    "unexpected",
    "extra inputs",
    "deprecated",
)
#: Who writes addresses and headers into the log: the library for servers and those below it.
_LOGGERS: Final = (
    *("openai._base_client", "openai._response", "httpx", "httpx2"),
    *(f"{name}.{part}" for name in ("httpcore", "httpcore2") for part in ("connection", "http11", "http2", "proxy")),
)


class ServerBackend(Backend):
    """A model behind an OpenAI-compatible server (vLLM, llama.cpp, a provider). Needs the extra ``paperhooks[server]``.

    The prompts of a batch are sent at the same time. Images go as PNG data in the message. What a server refuses for
    one document, fails at after the client's own retries, or answers in a form that cannot be used, is the error of
    that document. A server that is not reached, or that refuses the key or the model, for some documents in a row ends
    the run; the next call goes on with it. A server that wants ``max_completion_tokens`` in the place of ``max_tokens``
    gets that, unless ``parameters`` name either.

    :param model: the model's name there.
    :param base_url, api_key: as in ``openai.OpenAI``; its environment variables without them. Keys are never recorded,
        also those in the address (``user:password@``, ``?api_key=``) and in ``parameters``; of a run that is continued
        they may be others.
    :param parameters: more arguments of a request, such as ``{"seed": 0}``; None removes one that is sent by default.
    :param vllm: the server is one of vLLM, which takes ``top_k`` and tells token ids, and whether a stop string or the
        model ended an answer. Without it, a request with ``top_k`` is refused, and responses have no ids.
    :raises DataError: an address that is no URL, or neither address nor key.

    A request's sampling is sent as temperature, top_p and seed. What a server draws may depend on what it answers at
    the same time. Requests with ``prompt_ids`` go to the completions, all others to the chat completions.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        vllm: bool = False,
    ) -> None:
        openai = require("openai", "paperhooks[server]", "to ask a server")
        self.model, self.parameters, self.vllm = model, dict(parameters or {}), flag("vllm", vllm)
        self._openai = openai
        # The library would send the path behind the query, and name user and password wherever it names the address.
        url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or "")
        user, _, host = url.netloc.rpartition("@")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        login = base64.b64encode(unquote(user).encode()).decode()
        try:
            self._client = openai.OpenAI(
                base_url=urlunsplit(url._replace(netloc=host, query="", fragment="")) or None,
                # A local server asks for no key, and the library insists on one.
                api_key=api_key or os.environ.get("OPENAI_API_KEY") or (_NO_KEY if url.netloc else None),
                timeout=timeout,
                default_query=query,
                default_headers={"Authorization": f"Basic {login}"} if user else {},
            )
        except openai.OpenAIError as error:
            raise DataError(f"no client for {model!r}: {redacted(error, [api_key])}") from None
        self._query = _public(query)
        self._secrets = {
            *(self._client.api_key, user, unquote(user), unquote(user.partition(":")[2]), login if user else ""),
            *_secrets(query),
            *_secrets(self.parameters),
        } - {"", None, _NO_KEY}
        self._answered = self._failed = self._unreached = 0
        self._reason = ""
        self._limit = _LIMITS[0]

    def describe(self) -> dict[str, Any]:
        """Server, model and parameters, without any key."""
        told = ({"query": self._query} if self._query else {}) | ({"vllm": True} if self.vllm else {})
        url, parameters = redacted(self._client.base_url, self._secrets), _public(self.parameters)
        return {"backend": "server", "url": url, "model": self.model, "parameters": parameters, **told}

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """The messages or token ids as JSON.

        :raises DataError: a finished prompt, which a chat server cannot take; a sampling that the server does not take,
            or that the backend's parameters say otherwise.
        """
        if request.prompt:
            raise DataError("a server takes messages, but the task's request has a finished prompt")
        if request.sampling is not None:
            self._check_sampling(document_id, request.sampling)
        return Prompt(document_id, request.text, request, tokens=len(request.prompt_ids))

    def _check_sampling(self, document_id: str, sampling: Sampling) -> None:
        if sampling.top_k is not None and not self.vllm:
            raise DataError(
                f"{document_id!r} is to be drawn with top_k = {sampling.top_k}, which the interface of OpenAI does not "
                "have; say vllm=True where the server is one of vLLM, or leave top_k out"
            )
        for name in _sampled(sampling):
            if name in self.parameters:
                raise DataError(
                    f"{document_id!r} has a sampling, and the server's parameters say {name} = "
                    f"{self.parameters[name]!r}; leave one of them out"
                )

    def about(self) -> dict[str, Any]:
        """The model, and once it has answered by which name the server takes the limit of tokens."""
        return {"class": "server", "name": self.model} | ({"limit": self._limit} if self._answered else {})

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """One request a prompt, all at the same time."""
        found = {place: response for some in self.answers(prompts) for place, response in some.items()}
        return [found[place] for place in range(len(prompts))]

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, Response]]:
        """One request a prompt, all at the same time; responses as they come."""
        results: dict[int, tuple[Response, str]] = {}
        pool = ThreadPoolExecutor(len(prompts), thread_name_prefix="paperhooks-server")
        with _veil(self._secrets), pool:
            waiting = {pool.submit(self._answer, prompt): place for place, prompt in enumerate(prompts)}
            while waiting:
                done = {waiting.pop(one): one.result() for one in wait(waiting, return_when=FIRST_COMPLETED).done}
                results |= done
                yield {place: response for place, (response, _) in done.items()}
        self._count([results[place] for place in range(len(prompts))])

    def _count(self, results: Sequence[tuple[Response, str]]) -> None:
        """Take note of a batch, and of a reason to end the run."""
        if any(not response.error for response, _ in results):
            self._answered, self._unreached, self._reason = 1, 0, ""
            return
        where, said = redacted(self._client.base_url, self._secrets), results[-1][0].error
        self._failed += len(results)
        self._unreached += sum(fault != "" for _, fault in results)
        if self._unreached >= _IN_A_ROW:
            what = f"refuses {self.model!r}" if results[-1][1] == "refused" else "does not answer"
            self._reason = f"the server {where} {what}, {self._unreached} documents in a row: {said}"
        elif not self._answered and self._failed >= _UNUSABLE:
            self._reason = f"none of {self._failed} answers of the server {where} could be used: {said}"

    def down(self) -> str:
        """Why the server is not to be asked any more."""
        reason, self._reason = self._reason, ""
        return reason

    def _answer(self, prompt: Prompt) -> tuple[Response, str]:
        """The response, and what fault of the server was in the way: ``"refused"``, ``"unreached"`` or none."""
        library, fault = self._openai, ""
        try:
            return self._response(self._done(prompt.request), prompt.request), ""
        except (library.AuthenticationError, library.NotFoundError) as error:
            fault, said = "refused", error_text(error)
        except (library.APIConnectionError, library.InternalServerError, library.RateLimitError) as error:
            fault, said = "unreached", error_text(error)
        except ValueError as error:  # of our own, or of what reads JSON
            said = f"the server's answer cannot be used: {error}"
        except Exception as error:
            said = error_text(error)
        return Response("", error=redacted(said, self._secrets)), fault

    def _done(self, request: Request) -> Any:
        """What the library makes of an answer; asked again where the server wants the other name of the limit."""
        if request.prompt_ids:
            return self._client.completions.create(**self._arguments(request, _LIMITS[0]))
        create, name = self._client.chat.completions.create, self._limit
        refusals = self._openai.BadRequestError, self._openai.UnprocessableEntityError
        try:
            return create(**self._arguments(request, name))
        except refusals as error:
            other = next(one for one in _LIMITS if one != name)
            if not _wants(other, name, error) or any(one in self.parameters for one in _LIMITS):
                raise
            try:
                done = create(**self._arguments(request, other))
            except refusals:
                raise error from None
            self._limit = other
            return done

    def _response(self, done: Any, request: Request) -> Response:
        """What a server answered; ValueError for anything but a text."""
        choices = _get(done, "choices")
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"it holds no choices: {str(done)[:200]!r}")
        message, reason = _get(choices[0], "message"), _get(choices[0], "finish_reason")
        content = _get(choices[0], "text") if request.prompt_ids else _content(message)
        told = (_get(message, name) for name in ("reasoning_content", "reasoning"))
        thought = next((text for text in told if isinstance(text, str) and text), "")
        if content is None and thought:  # cut before the answer began
            content = ""
        if not isinstance(content, str):
            ended = f" (finish reason {reason})" if isinstance(reason, str) else ""
            raise ValueError(f"its content is {type(content).__name__}, not a text{ended}")
        tokens, asked = (_get(_get(done, "usage"), f"{name}_tokens") for name in ("completion", "prompt"))
        ids, end, finish = _ending(choices[0], request, self.vllm)
        return Response(
            self._veiled(content.strip()),
            tokens if isinstance(tokens, int) else 0,
            finish,
            reasoning=self._veiled(thought),
            prompt_tokens=asked if isinstance(asked, int) else 0,
            ids=ids,
            end=end,
        )

    def _veiled(self, text: str) -> str:
        """An answer as it is, but for a key that the server repeats in it."""
        for secret in self._secrets:
            text = text.replace(secret, "***") if len(secret) >= 8 else text
        return text

    def _arguments(self, request: Request, limit: str) -> dict[str, Any]:
        asked = {"prompt": list(request.prompt_ids)} if request.prompt_ids else {"messages": _with_images(request)}
        drawn = {"temperature": 0.0} if request.sampling is None else _sampled(request.sampling)
        arguments: dict[str, Any] = {
            "model": self.model,
            **asked,
            **drawn,
            limit: request.max_new_tokens,
            "stop": list(request.stop) or None,
            **self.parameters,
        }
        # The library refuses arguments that are not OpenAI's, but for those in extra_body.
        body = {"return_token_ids": True, "top_k": arguments.pop("top_k", None)} if self.vllm else {}
        body = {name: value for name, value in body.items() if value is not None} | (arguments.get("extra_body") or {})
        if body:
            arguments["extra_body"] = body
        return {name: value for name, value in arguments.items() if value is not None}


def _sampled(sampling: Sampling) -> dict[str, Any]:
    """A sampling as arguments of a request."""
    told = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    return told if sampling.top_k is None else {**told, "top_k": sampling.top_k}


def _ending(choice: Any, request: Request, vllm: bool) -> tuple[tuple[int, ...], int | None, str]:
    """The answer's token ids, the token that ended it, and how it ended; ValueError for ids that are none.

    "stop" may be the model's own end or one of our strings. Without such strings it is the former, and vLLM names a
    string (``stop_reason``); its ids hold the token of the end.
    """
    reason, told = _get(choice, "finish_reason"), _get(choice, "token_ids")
    by_string = isinstance(_get(choice, "stop_reason"), str) if vllm else None
    stopped = {True: "stop", False: "eos", None: "" if request.stop else "eos"}[by_string]
    finish = {"length": "length", "stop": stopped}.get(reason, "") if isinstance(reason, str) else ""
    if not vllm or told is None:
        return (), None, finish
    if not isinstance(told, list) or not all(isinstance(one, int) for one in told):
        raise ValueError(f"its token_ids are {str(told)[:200]!r}")
    ended = bool(told) and finish == "eos"
    return tuple(told[:-1] if ended else told), told[-1] if ended else None, finish


def _checked_url(text: str) -> SplitResult:
    """The parts of an address; raises DataError unless it is empty or has a scheme and a host."""
    try:
        url = urlsplit(text)
        fits = not text or (url.scheme in ("http", "https") and url.hostname and url.port != 0)
    except ValueError:  # a port or a host that cannot be
        fits = False
    if not fits:
        told = f"***@{text.rpartition('@')[2]}" if "@" in text else text
        raise DataError(
            f"the server's address {redacted(told)!r} is no URL; expected one with http:// or https:// and the path of "
            "the server's interface, such as http://localhost:8000/v1"
        )
    return url


@contextmanager
def _veil(secrets: set[str]) -> Iterator[None]:
    """Takes keys out of what the library for servers and those below it write into the log inside the block."""

    def veiled(record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage(), secrets), ()
        return True

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for each in loggers:
        each.addFilter(veiled)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(veiled)


def _wants(other: str, name: str, error: Exception) -> bool:
    """Whether an error of a server asks for another name of an argument, or does not know that one."""
    said = str(error).lower()
    return other in said or (name in said and any(word in said for word in _UNKNOWN))


def _is_secret(name: str, value: Any) -> bool:
    """Whether a query parameter or header is a key, by its name or its form."""
    return any(redacted(text) != text for text in (f"?{name}={value}", f"{name}: {value}"))


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with their keys replaced, so that another key leaves the run the same."""
    return {
        name: _public(value) if isinstance(value, Mapping) else "***" if _is_secret(name, value) else value
        for name, value in settings.items()
    }


def _secrets(settings: Mapping[str, Any]) -> set[str]:
    """The values of settings that are keys."""
    inner = [_secrets(value) for value in settings.values() if isinstance(value, Mapping)]
    own = {str(v) for n, v in settings.items() if not isinstance(v, Mapping) and _is_secret(n, v)}
    return own.union(*inner)


def _get(value: Any, name: str) -> Any:
    """An entry of whatever the library made of an answer, which it does not check; None where there is none."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _content(message: Any) -> Any:
    """The text of a message, also where it comes in parts; of one without a text, why the model refused; or None."""
    content, refusal = _get(message, "content"), _get(message, "refusal")
    if isinstance(content, list):
        parts = [text for part in content for text in (_get(part, "text"), _get(part, "refusal")) if text is not None]
        whole = all(isinstance(part, str) for part in parts)
        content = ("".join(parts) if parts else None) if whole else content
    return refusal if content in (None, "") and isinstance(refusal, str) and refusal else content


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
