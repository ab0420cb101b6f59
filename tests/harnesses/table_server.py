"""A server in the form of OpenAI's chat completions that answers from a table, and records what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Asked", "TableServer", "serving"]


@dataclass(frozen=True)
class Asked:
    """A question: its parts as sent (``"image"`` or a text), and what else came with it."""

    parts: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass
class TableServer:
    """Text of a question, pictures and their places left out, to the reply; ``asked`` holds the questions by reply."""

    url: str
    replies: Mapping[str, str]
    asked: dict[str, Asked] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def answer(self, body: Mapping[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        told = tuple(part["text"] if part["type"] == "text" else "image" for part in parts)
        text = "".join(part["text"] for part in parts if part["type"] == "text").replace("<image>", "")
        if text not in self.replies:
            self.unknown.append(text)
        self.asked[text] = Asked(told, {key: value for key, value in body.items() if key != "messages"})
        return self.replies.get(text, "")


@contextmanager
def serving(replies: Mapping[str, str]) -> Iterator[TableServer]:
    """A server on this machine, for the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": server.answer(body)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            sent = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = TableServer(f"http://127.0.0.1:{listener.server_port}/v1", replies)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
