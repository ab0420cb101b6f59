"""Odd answers, odd servers and secrets: an error of one document, asked again by the next call; keys nowhere."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import paperhooks
import pytest
from paperhooks.errors import PaperhooksError
from paperhooks.generation import CallableBackend, ServerBackend
from PIL import Image

QUESTIONS = [{"question_id": i, "image": "a.png", "text": f"Is there a thing{i}?", "label": "no"} for i in range(5)]
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "No"}, "finish_reason": "stop"}
BODY = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}


def body(**parts: Any) -> bytes:
    return json.dumps({**BODY, "choices": [{**CHOICE, **parts}]}).encode()


#: What a server answers to one of the questions, with status 200.
ODD: dict[str, bytes] = {
    "html": b"<html><body>Service</body></html>",
    "a list": b"[1, 2]",
    "no json": b"{",
    "nothing": b"",
    "null": b"null",
    "a number": b"7",
    "no choices": json.dumps({**BODY, "choices": []}).encode(),
    "null choices": json.dumps({**BODY, "choices": None}).encode(),
    "no key": json.dumps(BODY).encode(),
    "null message": body(message=None),
    "null content": body(message={"role": "assistant", "content": None}, finish_reason="content_filter"),
    "parts": body(message={"role": "assistant", "content": [{"type": "text", "text": "No"}]}),
    "a number as content": body(message={"role": "assistant", "content": 3}),
    "half a character": body(message={"role": "assistant", "content": "No \ud83d"}),
    "deep": b"[" * 20_000,
    "not utf-8": b"\xff\xfe",
}
SECRET = "sk-verysecret12345"


class Server:
    """Answers every question with "No", and one of them with what was set."""

    def __init__(self) -> None:
        self.odd: bytes | None = None
        self.status = 200
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked += 1
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                found = outer.odd if outer.odd is not None and ("thing1?" in text or outer.status != 200) else body()
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(found)))
                self.end_headers()
                self.wfile.write(found)

            def log_message(self, *_: object) -> None:
                return

        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.listener.server_port}/v1"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.listener.shutdown()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "a.png")
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "data" / "coco_pope_random.json").write_text(lines)
    return tmp_path / "data"


def run(backend: Any, data: Path, **options: Any) -> Any:
    return paperhooks.evaluate(backend, None, "pope", data=data, out=data.parent / "run", report=False, **options)


@pytest.mark.parametrize(("kind", "batch"), [*((kind, 1) for kind in ODD), ("no json", 4), ("null choices", 4)])
def test_an_odd_answer_is_the_error_of_its_document(server: Server, data: Path, kind: str, batch: int) -> None:
    server.odd, server.status = ODD[kind], 200
    backend = ServerBackend("m", base_url=server.url, api_key="x")
    found = run(backend, data, batch_size=batch).first
    readable = kind in ("half a character", "parts")
    assert len(found.records) >= 4
    assert list(found.failures) in ([], ["coco-random-1"])
    assert readable or list(found.failures) == ["coco-random-1"]
    server.odd, server.asked = None, 0
    again = run(backend, data, batch_size=batch).first
    assert (len(again.records), len(again.failures)) == (5, 0)
    assert server.asked == len(found.failures), "what has an answer is not asked again"


@pytest.mark.parametrize("answer", ["half", "null", "number", "raises", "nul", "escapes", "long"])
def test_odd_answers_of_a_function(data: Path, answer: str) -> None:
    def raises() -> str:
        raise RuntimeError("no \ud83d text")

    odd: dict[str, Callable[[], Any]] = {
        "half": lambda: "No \ud83d", "null": lambda: None, "number": lambda: 3, "raises": raises,
        "nul": lambda: "No\0", "escapes": lambda: "\x1b[2JNo", "long": lambda: "No " * 100_000,
    }  # fmt: skip
    found = run(CallableBackend(lambda request: odd[answer]() if "thing1?" in request.text else "No"), data)
    assert len(found.first.records) >= 4
    assert len(run(CallableBackend(lambda request: "No"), data).first.records) == 5


def test_a_question_with_half_a_character(data: Path) -> None:
    rows = [{**row, "text": row["text"] + ("\ud83d" if row["question_id"] == 1 else "")} for row in QUESTIONS]
    (data / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(CallableBackend(lambda request: "No"), data).first
    assert (len(found.records), list(found.failures)) in [(5, []), (4, ["coco-random-1"])]


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_server_that_is_down_is_noticed_after_a_few_documents(
    server: Server, data: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai

    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.0)
    server.odd, server.status, server.asked = b'{"error": {"message": "down"}}', status, 0
    with pytest.raises(PaperhooksError, match="in a row"):
        run(ServerBackend("m", base_url=server.url, api_key="x"), data)
    server.odd, server.status = None, 200
    assert len(run(ServerBackend("m", base_url=server.url, api_key="x"), data).first.records) == 5


@pytest.mark.parametrize("place", ["key", "user", "query", "parameter", "echo", "error"])
def test_a_secret_is_told_to_nobody(server: Server, data: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.odd, server.status = None, 200
    url = server.url
    if place == "user":
        url = url.replace("http://", f"http://me:{SECRET}@")
    if place == "query":
        url += f"?api_key={SECRET}"
    if place == "echo":
        server.odd = body(message={"role": "assistant", "content": f"You sent Bearer {SECRET}"})
    if place == "error":
        server.odd, server.status = json.dumps({"error": {"message": f"the key {SECRET} is wrong"}}).encode(), 400
    parameters = {"extra_body": {"api_key": SECRET}} if place == "parameter" else None
    backend = ServerBackend("m", base_url=url, api_key=SECRET, parameters=parameters)
    said = ""
    try:
        said = str(run(backend, data).first.failures)
    except PaperhooksError as error:
        said = str(error)
    assert SECRET not in said + json.dumps(backend.describe()) + repr(backend)
    assert SECRET not in caplog.text
    for file in data.parent.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_another_key_is_no_other_run(server: Server, data: Path) -> None:
    server.odd, server.status = None, 200
    run(ServerBackend("m", base_url=server.url + "?api_key=one", api_key="one"), data)
    server.asked = 0
    run(ServerBackend("m", base_url=server.url + "?api_key=two", api_key="two"), data)
    assert server.asked == 0


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("<think>no dog at first, but it is there</think>\nYes", "yes"),
        ("<think>The dog is not hidden</think> Yes.", "yes"),
        ("[THINK]no, wait[/THINK]Yes", "yes"),
        ("no, there is a tag of the prompt</think>\n\nYes", "yes"),
        ("<THINK>yes?</THINK> No.", "no"),
        ("<think>There is no dog on the left and I still", None),
        ("I am not sure.", None),
        ("There may or may not be a dog", None),
        ("", None),
        ("No idea", None),
        ("Yes, there is a dog.", "yes"),
        ("no", "no"),
        ("Yes.<think>or so</think>", "yes"),
    ],
)
def test_the_answer_is_what_stands_behind_reasoning(data: Path, reply: str, wanted: str | None) -> None:
    found = run(CallableBackend(lambda request: reply), data).modes["official"]
    assert {record.parsed.fallback for record in found.records} == {wanted is None}
    if wanted is not None:
        assert {record.parsed.value for record in found.records} == {wanted}
