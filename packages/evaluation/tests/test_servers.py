"""Servers that answer oddly, are down, or repeat keys: what becomes of the documents, and where no key is found."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from evaluation_tasks import Echo, rows_of
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, Request, ServerBackend
from paperhooks.testing import Processes
from paperhooks_evaluation import Document, evaluate

pytest.importorskip("openai")
quick = partial(evaluate, report=False)
Answer = Callable[[str], tuple[int, str, bytes] | None]


class Told(Echo):
    def request(self, document: Document) -> Request:
        content = [{"type": "text", "text": document.data["prompt"]}]
        return Request(messages=[{"role": "user", "content": content}], max_new_tokens=5)

    def fingerprint(self) -> str:  # the same in another process, by whatever name this module is imported there
        return Echo().fingerprint()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"id": f"q{i}", "prompt": f"p{i}", "answer": "w1"} for i in range(8)]))
    return file


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on this machine: host and port."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        thread.join()


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[Any]]]:
    """A server; ``answer`` gives status, type and body for a question, or None: the connection is cut."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, {name.lower(): text for name, text in self.headers.items()}))
            found = answer(asked["messages"][0]["content"][-1]["text"])
            if found is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, kind, body = found
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with listening(Handler) as place:
        yield f"{place}/v1", seen


def choice(message: Any, finish: str = "stop") -> tuple[int, str, bytes]:
    body = {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    return 200, "application/json", json.dumps(body).encode()


def fine(question: str) -> tuple[int, str, bytes]:
    return choice({"role": "assistant", "content": f"w1 {question}"})


def asked(address: str, **more: Any) -> ServerBackend:
    backend = ServerBackend("m", base_url=f"http://{address}", **{"api_key": "key-of-the-test", **more})
    backend._client = backend._client.with_options(max_retries=0)  # the client's own retries take seconds
    return backend


@pytest.mark.parametrize(
    "address",
    ["localhost:8765", "127.0.0.1:9/v1", "http:/x", "https://", "ftp://a/v1", "http://a:99999", "me:pw@localhost:80"],
)
def test_an_address_that_is_no_url_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"is no URL; expected one with http:// .* http://localhost:8000/v1") as error:
        ServerBackend("m", base_url=address)
    assert address.replace("me:pw", "***") in str(error.value)
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(DataError, match="is no URL"):
        ServerBackend("m", api_key="x")
    assert ServerBackend("m", base_url="HTTP://[::1]:9/v1").describe()["url"].lower().startswith("http://[::1]:9/v1")


ODD: dict[str, tuple[int, str, bytes] | None] = {
    "html": (200, "text/html", b"<html>log in</html>"),
    "list": (200, "application/json", b"[1, 2]"),
    "text": (200, "application/json", b'"hello"'),
    "null": (200, "application/json", b"null"),
    "no json": (200, "application/json", b'{"choices": [{"mess'),
    "deep": (200, "application/json", b"[" * 100_000),
    "empty": (200, "application/json", b""),
    "not utf-8": (200, "application/json", b'{"choices": "\xff\xfe"}'),
    "no choices": (200, "application/json", b'{"id": "1"}'),
    "empty choices": (200, "application/json", b'{"id": "1", "choices": []}'),
    "odd choices": (200, "application/json", b'{"id": "1", "choices": {"a": 1}}'),
    "null message": choice(None, "content_filter"),
    "null content": choice({"role": "assistant", "content": None}, "content_filter"),
    "no part": choice({"role": "assistant", "content": []}),
    "empty part": choice({"role": "assistant", "content": [{"type": "text", "text": None}]}),
    "parts of numbers": choice({"role": "assistant", "content": [{"type": "text", "text": 7}]}),
    "number": choice({"role": "assistant", "content": 7}),
    "refused": (400, "application/json", b'{"error": {"message": "no"}}'),
    "forbidden": (403, "text/html", b"blocked"),
    "not found": (404, "text/html", b"gone"),
    "failing": (500, "application/json", b'{"error": "out of memory"}'),
    "cut": None,
}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", ODD)
def test_one_odd_answer_is_the_error_of_its_document(data: Path, tmp_path: Path, kind: str, batch_size: int) -> None:
    with serving(lambda question: ODD[kind] if question == "p5" else fine(question)) as (address, seen):
        run = {"data": data, "out": tmp_path / "run", "batch_size": batch_size}
        result = quick(asked(address), None, Told(), **run)
        assert (result.headline.n, list(result.first.failures)) == (7, ["q5"])
        assert [row["id"] for row in rows_of(tmp_path / "run") if row["error"]] == ["q5"]
        seen.clear()
        quick(asked(address), None, Told(), **run)
        assert len(seen) == 1, "it is asked again, and it alone"


def test_all_kinds_of_odd_answers_one_behind_another(data: Path, tmp_path: Path) -> None:
    kinds = dict(
        zip(
            (f"p{i}" for i in range(7)), ("html", "list", "no json", "no choices", "null", "parts", "deep"), strict=True
        )
    )
    with serving(lambda question: ODD[kinds[question]] if question in kinds else fine(question)) as (address, _):
        result = quick(asked(address), None, Told(), data=data, out=tmp_path / "run")
    assert (result.headline.n, len(result.first.failures)) == (1, 7)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_server_that_goes_down_is_noticed(data: Path, tmp_path: Path, batch_size: int) -> None:
    seen: list[str] = []
    state = {"down": True}

    def answer(question: str) -> tuple[int, str, bytes] | None:
        seen.append(question)
        if state["down"] and question >= "p4":
            return None if question < "p7" else (503, "text/plain", b"starting")
        return fine(question)

    with serving(answer) as (address, _):
        run = {"data": data, "out": tmp_path / "run", "batch_size": batch_size}
        said = r"does not answer, \d documents in a row: .*; 4 of 8 documents are answered, and the same call goes on"
        with pytest.raises(DataError, match=said):
            quick(asked(address), None, Told(), **run)
        assert len(seen) == (7 if batch_size == 1 else 8)
        assert len([row for row in rows_of(tmp_path / "run") if not row["error"]]) == 4
        state["down"] = False
        seen.clear()
        assert quick(asked(address), None, Told(), **run).headline.n == 8
        assert sorted(seen) == ["p4", "p5", "p6", "p7"]


def test_a_page_instead_of_every_answer_is_noticed(tmp_path: Path) -> None:
    data = tmp_path / "questions.json"
    data.write_text(json.dumps([{"id": f"q{i}", "prompt": f"p{i}", "answer": "w1"} for i in range(100)]))
    said = r"none of 20 answers .* could be used: .*0 of 100 documents"
    with serving(lambda question: ODD["html"]) as (address, seen), pytest.raises(DataError, match=said):
        quick(asked(address), None, Told(), data=data, out=tmp_path / "run")
    assert len(seen) == 20


SAID: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"content": ""}, ""),
    "why not": ({"content": None, "refusal": "I cannot help."}, "I cannot help."),
    "parts": ({"content": [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]}, "w1 w2"),
    "part that refuses": ({"content": [{"type": "refusal", "refusal": "I will not."}]}, "I will not."),
    "empty text that refuses": ({"content": "", "refusal": "No."}, "No."),
}


@pytest.mark.parametrize("name", SAID)
def test_a_model_that_refuses_or_answers_in_parts_has_answered(data: Path, tmp_path: Path, name: str) -> None:
    """An empty text is one, too; null is the error of its document, which is asked again."""
    message, reply = SAID[name]

    def answer(question: str) -> tuple[int, str, bytes]:
        return choice({"role": "assistant", **message}, "content_filter") if question == "p5" else fine(question)

    with serving(answer) as (address, _):
        result = quick(asked(address), None, Told(), data=data, out=tmp_path / "run")
    assert (result.headline.n, dict(result.first.failures)) == (8, {})
    assert result.first.empty == (reply == "")
    assert next(row["reply"] for row in rows_of(tmp_path / "run") if row["id"] == "q5") == reply


def test_reasoning_that_a_server_tells_apart_is_kept(data: Path, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "w1", "reasoning_content": "hm"}
    with serving(lambda question: choice(message)) as (address, _):
        quick(asked(address), None, Told(), data=data, out=tmp_path / "run")
    assert {(row["reasoning"], row["reply"]) for row in rows_of(tmp_path / "run")} == {("hm", "w1")}


def test_reasoning_is_told_apart_under_either_name_and_without_an_answer(data: Path, tmp_path: Path) -> None:
    messages = {
        "p0": {"content": "w1", "reasoning": "hm"},
        "p1": {"content": "w1", "reasoning_content": None, "reasoning": "hm"},
        "p2": {"content": "w1", "reasoning_content": "hm", "reasoning": "hm"},
        "p3": {"content": None, "reasoning_content": "hm"},
    }

    def answer(question: str) -> tuple[int, str, bytes]:
        message = messages.get(question, {"content": "w1"})
        return choice({"role": "assistant", **message}, "length" if message["content"] is None else "stop")

    with serving(answer) as (address, _):
        result = quick(asked(address), None, Told(), data=data, out=tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert [(row["reasoning"], row["reply"]) for row in rows[:5]] == [("hm", "w1")] * 3 + [("hm", ""), (None, "w1")]
    assert (result.first.failures, result.first.truncated, result.records[3].truncated) == ({}, 1, True)


# -- limits, costs, responses as they come -----------------------------------------------------------------------------


@contextmanager
def limiting(known: str, refusal: str, status: int = 400) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server of the form of OpenAI's that takes the limit of tokens by one name, and counts what it is asked."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(told)
            code, body = 200, {
                "id": "1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "w1"}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 11, "completion_tokens": told.get(known), "total_tokens": 0},
            }  # fmt: skip
            if known not in told:
                code, body = status, {"error": {"message": refusal, "type": "invalid_request_error"}}
            raw = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            pass

    with listening(Handler) as place:
        yield f"{place}/v1", seen


class Limited(Told):
    """Documents with limits of their own."""

    def request(self, document: Document) -> Request:
        return dataclasses.replace(super().request(document), max_new_tokens=3 + int(document.id[1:]))


REFUSALS = [
    (400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."),
    (400, "Unrecognized request argument supplied: max_tokens"),
    (422, "max_tokens: Extra inputs are not permitted"),
]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("status", "refusal"), REFUSALS)
def test_a_server_gets_the_limit_by_the_name_it_wants(
    data: Path, tmp_path: Path, status: int, refusal: str, batch_size: int
) -> None:
    run = {"data": data, "out": tmp_path / "run", "batch_size": batch_size}
    with limiting("max_completion_tokens", refusal, status) as (address, seen):
        assert quick(asked(address), None, Limited(), limit=4, **run).headline.n == 4
        result = quick(asked(address), None, Limited(), **run)
    assert (result.headline.n, dict(result.first.failures)) == (8, {})
    taken = {
        one["messages"][0]["content"][0]["text"]: one["max_completion_tokens"]
        for one in seen
        if "max_completion_tokens" in one
    }
    assert taken == {f"p{i}": 3 + i for i in range(8)}
    assert 2 <= sum("max_tokens" in one for one in seen) <= 2 * batch_size, "what a server wants is remembered"
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())
    assert recorded["results"]["about"]["limit"] == "max_completion_tokens"
    assert "max_completion_tokens" not in json.dumps(recorded["inputs"])
    assert result.cost == {"prompt_tokens": 88, "answer_tokens": sum(range(3, 11))}


def test_a_server_that_takes_the_usual_name_is_asked_once_each(data: Path, tmp_path: Path) -> None:
    with limiting("max_tokens", "unknown argument max_completion_tokens") as (address, seen):
        result = evaluate(asked(address), None, Limited(), data=data, out=tmp_path / "run", batch_size=4)
    assert (len(seen), result.headline.n) == (8, 8)
    assert all("max_completion_tokens" not in one for one in seen)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["paperhooks"]["cost"] == {"prompt_tokens": 88, "answer_tokens": 52}
    assert "Tokens: 88 of prompts, 52 of answers." in (tmp_path / "run" / "report.md").read_text()


def test_other_refusals_and_names_by_hand_stay_what_they_are(data: Path, tmp_path: Path) -> None:
    large = "'max_tokens' or 'max_completion_tokens' is too large: 5000"
    with limiting("neither", large) as (address, seen):
        with pytest.raises(DataError, match=r"all 8 documents failed, the first with .* is too large"):
            quick(asked(address), None, Limited(), data=data, out=tmp_path / "a")
        assert len(seen) == 16
        assert all("max_tokens" in one for one in seen[::2]), "the other name did not help, and is not remembered"
        seen.clear()
        parameters = {"max_tokens": None, "max_completion_tokens": 7}
        with pytest.raises(DataError, match="all 8 documents failed"):
            quick(asked(address, parameters=parameters), None, Limited(), data=data, out=tmp_path / "b")
        assert [one["max_completion_tokens"] for one in seen] == [7] * 8
    with limiting("max_tokens", "") as (address, seen):
        with pytest.raises(DataError, match="all 8 documents failed"):
            quick(asked(address, parameters={"max_tokens": None}), None, Limited(), data=data, out=tmp_path / "c")
        assert len(seen) == 8


ASKING = """
import sys
from paperhooks.generation import ServerBackend
from paperhooks_evaluation import evaluate
from test_servers import Told

backend = ServerBackend("m", base_url=sys.argv[1], api_key="x")
evaluate(backend, None, Told(), data=sys.argv[2], out=sys.argv[3], batch_size=4, report=False)
"""


def test_a_kill_loses_no_response_that_came(data: Path, tmp_path: Path) -> None:
    """One of four parallel requests hangs; the others are on the disk by then."""
    hang = threading.Event()

    def answer(question: str) -> tuple[int, str, bytes]:
        if question == "p1":
            hang.wait(60)
        return fine(question)

    samples = tmp_path / "run" / "samples.jsonl"
    with serving(answer) as (address, seen):
        with Processes(limit=100) as processes:
            words = f"http://{address}", data, tmp_path / "run"
            paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
            child = processes.start("-c", ASKING, *words, environment={"PYTHONPATH": paths})
            until = time.monotonic() + 60
            while not (samples.exists() and samples.read_bytes().count(b"\n") == 3) and time.monotonic() < until:
                assert child.status is None, child.stderr
                time.sleep(0.05)
            child.kill()
        hang.set()
        assert sorted(row["id"] for row in rows_of(tmp_path / "run")) == ["q0", "q2", "q3"]
        seen.clear()
        assert quick(asked(address), None, Told(), data=data, out=tmp_path / "run").headline.n == 8
        assert len(seen) == 5


# -- keys --------------------------------------------------------------------------------------------------------------

KEYS = ("key-of-the-test", "pass/word", "query-key-1", "header-key-1", "body-key-1")


def keyed(address: str, suffix: str = "") -> ServerBackend:
    parameters = {
        "extra_headers": {"X-Api-Key": f"header-key-1{suffix}", "X-Team": "blue"},
        "extra_body": {"provider": {"api_key": f"body-key-1{suffix}"}, "n": 1},
    }
    address = f"me:pass%2Fword{suffix}@{address}?api_key=query-key-1{suffix}&version=3"
    return asked(address, api_key=f"key-of-the-test{suffix}", parameters=parameters)


def test_no_key_reaches_a_file_a_log_or_a_message(data: Path, tmp_path: Path, caplog, capsys) -> None:
    def answer(question: str) -> tuple[int, str, bytes] | None:
        keys = [key + ("-renewed" if "-renewed" in str(seen[-1]) else "") for key in KEYS]
        echo = f"{keys} {seen[-1]}"
        if question == "p1":
            return 400, "application/json", json.dumps({"error": {"message": echo}}).encode()
        if question == "p2":
            return 200, "text/html", echo.encode()
        return choice({"role": "assistant", "content": f"w1 {keys[0]} {keys[2]}"})

    caplog.set_level(logging.DEBUG)
    with serving(answer) as (address, seen):
        evaluate(keyed(address), None, Told(), data=data, out=tmp_path / "run")
        assert seen[0][0] == "/v1/chat/completions?api_key=query-key-1&version=3"
        assert seen[0][1]["authorization"] == "Basic bWU6cGFzcy93b3Jk"
        asked_before = len(seen)
        evaluate(keyed(address, "-renewed"), None, Told(), data=data, out=tmp_path / "run")
        assert len(seen) == asked_before + 2, "another key goes on with the run"
        other = asked(f"{address}?api_key=k&version=4", parameters=keyed(address).parameters)
        with pytest.raises(DataError, match=r"inputs\.query\.version = '3', not '4'"):
            quick(other, None, Told(), data=data, out=tmp_path / "run")
    with pytest.raises(DataError, match="documents in a row") as caught:
        quick(keyed(address), None, Told(), data=data, out=tmp_path / "down")
    inputs = json.loads((tmp_path / "run" / "result.json").read_text())["inputs"]
    assert inputs["parameters"]["extra_headers"] == {"X-Api-Key": "***", "X-Team": "blue"}
    assert inputs["query"] == {"api_key": "***", "version": "3"}
    files = [file for folder in ("run", "down") for file in (tmp_path / folder).iterdir()]
    told = {str(file): file.read_text(errors="replace") for file in files}
    shown = "".join(traceback.format_exception(caught.value, limit=0))
    told |= {"log": caplog.text, "screen": str(capsys.readouterr()), "error": shown}
    for key in (*KEYS, "pass%2Fword", "bWU6cGFzcy93b3Jk"):
        assert [name for name, text in told.items() if key in text] == [], key


# -- halves of characters ----------------------------------------------------------------------------------------------

HALF = json.loads('"w1 \\ud83d"')


@pytest.mark.parametrize("batch_size", [1, 4])
def test_half_a_character_in_an_answer_is_stored(data: Path, tmp_path: Path, batch_size: int) -> None:
    backend = CallableBackend(lambda request: HALF if request.prompt == "p2" else "w1")
    for _ in range(2):
        result = evaluate(backend, None, Echo(), data=data, out=tmp_path / "run", batch_size=batch_size)
        assert (result.headline.n, result.records[2].response) == (8, HALF)
    assert rows_of(tmp_path / "run")[2]["reply"] == HALF


@pytest.mark.parametrize("batch_size", [1, 4])
def test_half_a_character_in_a_question_is_an_error_of_its_document(
    data: Path, tmp_path: Path, batch_size: int
) -> None:
    rows = json.loads(data.read_text())
    rows[2]["prompt"] = HALF
    data.write_text(json.dumps(rows))
    result = evaluate(
        CallableBackend(lambda request: "w1"), None, Echo(), data=data, out=tmp_path / "run", batch_size=batch_size
    )
    assert (result.headline.n, list(result.first.failures)) == (7, ["q2"])
    assert "surrogates not allowed" in result.first.failures["q2"]


def test_an_error_whose_text_raises_is_an_error_of_its_document(data: Path, tmp_path: Path) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    def answer(request: Request) -> str:
        if request.prompt == "p2":
            raise Odd
        return "w1"

    result = quick(CallableBackend(answer), None, Echo(), data=data, out=tmp_path / "run")
    assert dict(result.first.failures) == {"q2": "Odd: (its text cannot be shown)"}
