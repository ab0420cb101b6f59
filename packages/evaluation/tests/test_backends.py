"""Backends besides transformers: functions, stored responses, a server; and evaluation during training."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_tasks import Echo, rows_of, tiny_model, word_tokenizer, write_questions
from paperhooks.errors import DataError, MissingExtra
from paperhooks.generation import CallableBackend, ReplayBackend, Request, ServerBackend
from paperhooks_evaluation import Document, EvaluationCallback, Record, Summary, evaluate, mean_metrics
from PIL import Image

quick = partial(evaluate, report=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": f"q{i}", "prompt": f"is it w{i}", "answer": "w1"} for i in range(4)]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows))
    return file


class Shown(Echo):
    """The question as messages, with a red image and a blue one."""

    def request(self, document: Document) -> Request:
        images = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
        content = [{"type": "text", "text": document.data["prompt"]}, {"type": "image"}, {"type": "image"}]
        return Request(messages=[{"role": "user", "content": content}], images=images, max_new_tokens=5, stop=("#",))


def test_a_function_gets_the_request_with_its_images_laid_out(data: Path, tmp_path: Path) -> None:
    seen: list[Request] = []
    backend = CallableBackend(lambda request: seen.append(request) or "w1 it is")
    result = quick(backend, None, Shown(), data=data, out=tmp_path / "run", max_pixels=6)
    assert result.headline.value == 1.0
    assert [part["type"] for part in seen[0].messages[0]["content"]] == ["image", "image", "text"]
    assert [image.size for image in seen[0].images] == [(2, 2), (2, 2)]
    quick(backend, None, Shown(), data=data, out=tmp_path / "text", layout="text-only")
    assert (seen[-1].images, len(seen[-1].messages[0]["content"])) == ([], 1)


def test_what_a_function_raises_or_returns_is_its_documents_error(data: Path, tmp_path: Path) -> None:
    def answer(request: Request) -> Any:
        if "w2" in request.prompt:
            raise TimeoutError("too slow")
        return 7 if "w3" in request.prompt else "w1"

    result = quick(CallableBackend(answer), None, Echo(), data=data, out=tmp_path / "run")
    failures = {"q2": "TimeoutError: too slow", "q3": "the function returned int, not a text"}
    assert (dict(result.first.failures), result.headline.value) == (failures, 1.0)
    with pytest.raises(DataError, match=r"inputs\.name = 'callable', not 'other'"):
        quick(CallableBackend(answer, "other"), None, Echo(), data=data, out=tmp_path / "run")
    with pytest.raises(DataError, match="go with a model, not with CallableBackend"):
        quick(CallableBackend(answer), None, Echo(), data=data, out=tmp_path / "x", methods=["any"])


def test_null_in_a_file_is_its_document_s_error(data: Path, tmp_path: Path) -> None:
    """An empty text is a response; the others of the file are scored."""
    said: list[dict[str, Any]] = [{"reply": None}, {"resps": [[None]]}, {"resps": [[""]]}, {"resps": []}]
    rows = [{"id": f"q{number}", **one} for number, one in enumerate(said)]
    (tmp_path / "told.jsonl").write_text("\n".join(map(json.dumps, rows)))
    replayed = quick(ReplayBackend(tmp_path / "told.jsonl"), None, Echo(), data=data, out=tmp_path / "again")
    assert (replayed.first.empty, list(replayed.first.failures)) == (1, ["q0", "q1", "q3"])
    assert all("has no response" in said for said in replayed.first.failures.values())


def test_stored_responses_are_replayed_without_any_request(data: Path, tmp_path: Path) -> None:
    first = quick(CallableBackend(lambda request: request.prompt[-2:]), None, Echo(), data=data, out=tmp_path / "run")

    class NoRequests(Echo):
        def request(self, document: Document) -> Request:
            raise AssertionError("nothing is asked")

    replay = ReplayBackend(tmp_path / "run" / "samples.jsonl")
    again = quick(replay, None, NoRequests(), data=data, out=tmp_path / "again")
    assert again.records == first.records
    assert quick(replay, None, NoRequests(), data=data, out=tmp_path / "again").records == first.records
    file = tmp_path / "harness.jsonl"
    rows = [{"doc_id": f"q{i}", "resps": [["w1"]]} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = quick(ReplayBackend(file), None, NoRequests(), data=data, out=tmp_path / "harness")
    assert other.headline.value == 1.0
    assert list(other.first.failures) == ["q3"]


@pytest.mark.parametrize(
    ("line", "said"),
    [("rubbish", r"r\.jsonl:1: is not JSON"), ("[1]", "with 'id'"), ('{"id": 1}', "in 'reply'"), ("", "failed")],
)
def test_stored_responses_that_cannot_be_used_are_refused(data: Path, tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(line)
    with pytest.raises(DataError, match=said):
        quick(ReplayBackend(file), None, Echo(), data=data, out=tmp_path / "run")
    with pytest.raises(DataError, match="does not exist"):
        ReplayBackend(tmp_path / "none.jsonl")


# -- a server ----------------------------------------------------------------------------------------------------------


@contextmanager
def server(seen: list[dict[str, Any]]) -> Iterator[str]:
    """A server that speaks as much of the protocol as is needed; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**asked, "path": self.path, "key": self.headers["Authorization"]})
            text = asked["messages"][0]["content"][-1]["text"]
            status = 404 if asked["model"] == "unknown" else 400 if "w2" in text else 200
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": f" w1 {text}\n"},
                "finish_reason": "length",
            }
            done = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}}  # fmt: skip
            body = json.dumps(done if status == 200 else {"error": {"message": "no such thing"}}).encode()
            self.send_response(status)
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
        yield f"http://127.0.0.1:{listener.server_port}/v1"
    finally:
        listener.shutdown()
        thread.join()


def test_a_server_is_asked_with_images_and_limits(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    seen: list[dict[str, Any]] = []
    with server(seen) as url:
        backend = ServerBackend("small", base_url=url, api_key="hush", parameters={"seed": 3, "temperature": None})
        result = quick(backend, None, Shown(), data=data, out=tmp_path / "run", batch_size=3)
        other = ServerBackend("unknown", base_url=url, api_key="hush")
        with pytest.raises(DataError, match=r"refuses 'unknown'.*no such thing"):
            quick(other, None, Shown(), data=data, out=tmp_path / "other")
    assert (result.headline.n, result.headline.value) == (3, 1.0)
    assert "no such thing" in result.first.failures["q2"]
    assert result.first.truncated == 3
    asked = next(one for one in seen if "w0" in one["messages"][0]["content"][-1]["text"])
    assert (asked["path"], asked["model"], asked["max_tokens"]) == ("/v1/chat/completions", "small", 5)
    assert (asked["stop"], asked["seed"], "temperature" in asked) == (["#"], 3, False)
    kind, image, text = asked["messages"][0]["content"]
    assert (kind["type"], text["text"]) == ("image_url", "is it w0")
    decoded = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
    assert (decoded.size, decoded.getpixel((0, 0))) == ((4, 3), (0, 0, 255))
    rows = rows_of(tmp_path / "run")
    assert {(row["finish"], row["tokens"]) for row in rows if not row["error"]} == {("length", 5)}
    recorded = (tmp_path / "run" / "result.json").read_text()
    assert "hush" not in recorded
    assert json.loads(recorded)["inputs"]["model"] == "small"


def test_a_finished_prompt_is_nothing_for_a_server(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with pytest.raises(DataError, match="a server takes messages") as caught:
        quick(
            ServerBackend("m", base_url="http://127.0.0.1:9", api_key="x"), None, Echo(), data=data, out=tmp_path / "r"
        )
    assert "'q0'" in caught.value.__notes__[0]


def test_without_the_library_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"paperhooks\[server\]"):
        ServerBackend("m")


# -- training ----------------------------------------------------------------------------------------------------------


class Grouped(Echo):
    """Four documents of a small grouping, of 8 groups in one grouping and of 9 in another one; two metrics."""

    def documents(self, source: str) -> Sequence[Document]:
        found = super().documents(source)[:9]
        return [
            dataclasses.replace(one, groups={**one.groups, "eight": f"e{min(i, 7)}", "nine": f"n{i}"})
            for i, one in enumerate(found)
        ]

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        return Summary([*mean_metrics("accuracy", records), *mean_metrics("other", records)])


def test_a_task_is_run_during_training_and_logged(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, tokenizer = tiny_model(), word_tokenizer()
    data = write_questions(tmp_path / "questions.json", model, tokenizer)
    arguments = TrainingArguments(
        str(tmp_path / "trainer"), max_steps=5, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    rows = [{"input_ids": [2, 3, 4], "labels": [2, 3, 4]}] * 10
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.add_callback(EvaluationCallback(trainer, tokenizer, Grouped(), data=data, out=tmp_path / "runs", every=2))
    trainer.train()
    assert model.training
    assert sorted(folder.name for folder in (tmp_path / "runs").iterdir()) == ["step-000002", "step-000004"]
    logged = {line["step"]: line for line in trainer.state.log_history if "eval/echo/accuracy" in line}
    assert sorted(logged) == [2, 4]
    saved = json.loads((tmp_path / "runs" / "step-000004" / "results.json").read_text())
    assert logged[4]["eval/echo/accuracy"] == saved["results"]["echo"]["accuracy,official"]
    assert {name for name in logged[4] if name.startswith("eval/")} == {
        "eval/echo/accuracy", "eval/echo/other", "eval/echo/accuracy/kind/even", "eval/echo/accuracy/kind/odd",
        *(f"eval/echo/accuracy/eight/e{i}" for i in range(8)),
    }  # fmt: skip
    parted = EvaluationCallback(
        trainer, tokenizer, Grouped(), data=data, out=tmp_path / "part", every=2, limit=1, limit_per="kind"
    )
    parted.on_step_end(arguments, SimpleNamespace(global_step=6), None)
    rows = (tmp_path / "part" / "step-000006" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == ["q0", "q1"]
    with pytest.raises(DataError, match="every = 0"):
        EvaluationCallback(trainer, tokenizer, Grouped(), data=data, out=tmp_path, every=0)
