"""What lm-eval (0.4.13) reads and calls.

It takes one text a document, in which each ``<image>`` stands for the next picture, and makes all requests before the
first answer. Tasks with pictures run on its multimodal models only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, require
from paperhooks.io import read_records

from paperhooks_evaluation.harness.bridge import PLACEHOLDER, Bridge, open_folder, unparsable_share

__all__ = ["FUNCTIONS", "functions", "settings"]

#: The names that the folder's YAML calls, in the order of :func:`functions`.
FUNCTIONS: Final = ("dataset", "doc_to_text", "doc_to_image", "process_results", "unparsable_share")


def settings(limit: int, stop: Sequence[str], shows: bool) -> dict[str, str]:
    """The lines of YAML that tasks of this harness have in common beside those of both, by key."""
    picture = {"doc_to_image": "!function functions.doc_to_image"} if shows else {}
    until = json.dumps(list(stop), ensure_ascii=False)
    return {
        "custom_dataset": "!function functions.dataset",  # finds a relative file wherever the folder is moved to
        **picture,
        # An empty list: without any, two line feeds would end an answer.
        "generation_kwargs": f"{{until: {until}, max_gen_toks: {limit}, do_sample: false, temperature: 0.0}}",
    }


def functions(folder: Path) -> tuple[Callable[..., Any], ...]:
    """What the folder's YAML calls, see :data:`FUNCTIONS`."""

    def dataset(data_files: Mapping[str, str], **metadata: Any) -> dict[str, Any]:
        library = require("datasets", "lm-eval", "to list the documents")
        return {
            split: library.Dataset.from_list([row for _, row in read_records(folder / file)])
            for split, file in data_files.items()
        }

    def doc_to_text(doc: Mapping[str, Any]) -> str:
        return _text(open_folder(folder), doc)

    def doc_to_image(doc: Mapping[str, Any]) -> list[Any]:
        return open_folder(folder).pictures(doc)

    def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        return open_folder(folder).score(doc, results)

    return dataset, doc_to_text, doc_to_image, process_results, unparsable_share


def _text(bridge: Bridge, row: Mapping[str, Any]) -> str:
    """The text with a placeholder for each picture; raises DataError where the harness would ask something else."""
    request = bridge.request(row)
    if len(request.messages) > 1:
        raise DataError(
            f"document {row['id']!r} has {len(request.messages)} messages, and lm-eval takes one; export to lmms-eval"
        )
    text = bridge.text(row, placeholders=True)
    if request.images and text.count(PLACEHOLDER) != len(request.images):
        raise DataError(f"document {row['id']!r} has {PLACEHOLDER} in its text, which lm-eval takes for a picture")
    return text
