"""What a server is sent for sampling and token ids, and what becomes of the ids and reasons that it tells."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.generation import Request, Response, Sampling, ServerBackend, ask

pytest.importorskip("openai")
SAID = [{"role": "user", "content": "hello"}]


@contextmanager
def serving(**told: Any) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A server that answers ``told`` in its only choice; its address, and paths and bodies that it was sent."""
    seen: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, asked))
            said = {"text": "w1 "} if "prompt" in asked else {"message": {"role": "assistant", "content": "w1 "}}
            choice = {"index": 0, "finish_reason": "stop", **said, **told}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            body = json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}/v1", seen
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def answered(address: str, request: Request, out: Path, **options: Any) -> Response:
    backend = ServerBackend("m", base_url=address, api_key="none of yours", **options)
    return ask(backend, {"a": request}, out=out)["a"]


def test_a_sampling_is_sent(tmp_path: Path) -> None:
    request = Request(SAID, sampling=Sampling(0.7, 0.9, seed=12), stop=("!",), max_new_tokens=9)
    with serving() as (address, seen):
        found = answered(address, request, tmp_path / "run")
    path, sent = seen[0]
    assert path == "/v1/chat/completions"
    assert {name: sent[name] for name in ("temperature", "top_p", "seed", "max_tokens", "stop")} == {
        "temperature": 0.7, "top_p": 0.9, "seed": 12, "max_tokens": 9, "stop": ["!"]
    }  # fmt: skip
    assert not {"top_k", "return_token_ids"} & set(sent)
    assert found == Response("w1", 2, "", prompt_tokens=3)


def test_without_one_the_same_is_sent_as_ever(tmp_path: Path) -> None:
    with serving() as (address, seen):
        answered(address, Request(SAID), tmp_path / "run")
    said = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert seen == [
        ("/v1/chat/completions", {"model": "m", "messages": said, "temperature": 0.0, "max_tokens": 32}),
    ]  # fmt: skip


def test_token_ids_go_to_the_completions_as_they_are(tmp_path: Path) -> None:
    request = Request(prompt_ids=(1, 5, 6), sampling=Sampling(seed=3))
    with serving() as (address, seen):
        found = answered(address, request, tmp_path / "run")
    path, sent = seen[0]
    assert (path, sent["prompt"], sent["max_tokens"], sent["seed"]) == ("/v1/completions", [1, 5, 6], 32, 3)
    assert "messages" not in sent
    assert (found.text, found.finish, found.ids) == ("w1", "eos", ())


def test_top_k_is_for_servers_that_take_it(tmp_path: Path) -> None:
    request = Request(SAID, sampling=Sampling(top_k=5))
    with serving() as (address, seen):
        with pytest.raises(DataError, match=r"'a' is to be drawn with top_k = 5, .* say vllm=True"):
            answered(address, request, tmp_path / "run")
        assert not seen
        answered(address, request, tmp_path / "run", vllm=True, parameters={"extra_body": {"min_p": 0.1}})
    assert {name: seen[0][1][name] for name in ("top_k", "return_token_ids", "min_p")} == {
        "top_k": 5, "return_token_ids": True, "min_p": 0.1
    }  # fmt: skip


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed"])
def test_a_setting_is_said_once(tmp_path: Path, name: str) -> None:
    with serving() as (address, seen), pytest.raises(DataError, match=f"the server's parameters say {name} = 1; leave"):
        answered(address, Request(SAID, sampling=Sampling()), tmp_path / "run", parameters={name: 1})
    assert not seen


@pytest.mark.parametrize("request_", [Request(SAID, stop=("!",)), Request(prompt_ids=(1, 2), stop=("!",))])
@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"token_ids": [5, 6, 2], "stop_reason": None}, ((5, 6), 2, "eos")),
        ({"token_ids": [5, 6, 9], "stop_reason": 9}, ((5, 6), 9, "eos")),
        ({"token_ids": [5, 6, 7], "stop_reason": "!"}, ((5, 6, 7), None, "stop")),
        ({"token_ids": [5, 6], "finish_reason": "length"}, ((5, 6), None, "length")),
        ({"token_ids": [2]}, ((), 2, "eos")),
        ({"token_ids": None}, ((), None, "eos")),
        ({}, ((), None, "eos")),
    ],
)
def test_ids_and_reasons_of_vllm(
    tmp_path: Path, request_: Request, told: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    with serving(**told) as (address, _):
        found = answered(address, request_, tmp_path / "run", vllm=True)
    assert (found.ids, found.end, found.finish) == expected


def test_ids_that_are_none_are_an_error_of_the_request(tmp_path: Path) -> None:
    with serving(token_ids=["a"]) as (address, _):
        found = answered(address, Request(SAID), tmp_path / "run", vllm=True)
    assert found.error == "the server's answer cannot be used: its token_ids are \"['a']\""


def test_the_description_of_other_servers_is_what_it_was() -> None:
    plain = ServerBackend("m", base_url="http://localhost:9/v1").describe()
    assert sorted(plain) == ["backend", "model", "parameters", "url"]
    assert ServerBackend("m", base_url="http://localhost:9/v1", vllm=True).describe() == {**plain, "vllm": True}
    with pytest.raises(ValueError, match="vllm is 1; expected True or False"):
        ServerBackend("m", base_url="http://localhost:9/v1", vllm=1)
