"""What lmms-eval (0.7.3) reads and calls.

Its chat models get the messages with the pictures in their places; its simple models get one text and the pictures
apart, with ``<image>`` in the text where the layout leaves pictures in their places.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks_evaluation.harness.bridge import open_folder, opened, unparsable_share

__all__ = ["FUNCTIONS", "functions", "settings"]

#: The names that the folder's YAML calls, in the order of :func:`functions`.
FUNCTIONS: Final = ("doc_to_text", "doc_to_visual", "doc_to_messages", "process_results", "unparsable_share")


def settings(limit: int, stop: Sequence[str], shows: bool) -> dict[str, str]:
    """The lines of YAML that tasks of this harness have in common beside those of both, by key."""
    picture = {"doc_to_visual": "!function functions.doc_to_visual"} if shows else {}
    until = json.dumps(list(stop), ensure_ascii=False)
    return {
        **picture,
        "doc_to_messages": "!function functions.doc_to_messages",
        # An empty list: without any, two line feeds would end an answer.
        "generation_kwargs": f"{{until: {until}, max_new_tokens: {limit}, do_sample: false, temperature: 0.0}}",
    }


def functions(folder: Path) -> tuple[Callable[..., Any], ...]:
    """What the folder's YAML calls, see :data:`FUNCTIONS`."""

    def doc_to_text(doc: Mapping[str, Any]) -> str:
        bridge = open_folder(folder)
        return bridge.text(doc, placeholders=bridge.asking.layout == "interleave")

    def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
        return open_folder(folder).pictures(doc)

    def doc_to_messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
        request = open_folder(folder).request(doc)
        messages = request.messages or [{"role": "user", "content": [{"type": "text", "text": request.prompt}]}]
        pictures = iter(opened(request.images))
        return [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "url": next(pictures)} if part["type"] == "image" else dict(part)
                    for part in message["content"]
                ],
            }
            for message in messages
        ]

    def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        return open_folder(folder).score(doc, results)

    return doc_to_text, doc_to_visual, doc_to_messages, process_results, unparsable_share
