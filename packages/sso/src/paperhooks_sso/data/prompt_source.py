"""Prompts from wherever they lie: files, folders, datasets of the hub, lists."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from paperhooks import DataError
from paperhooks.io import hash_json, optional, read_records, whole

from paperhooks_sso.data.prompts import Conversation, conversation_of

__all__ = ["prompts_digest", "read_prompts"]


def read_prompts(source: Any, limit: int | None = None) -> list[Conversation]:
    """The prompts of a source, in order.

    :param source: what :func:`paperhooks.io.read_records` takes: a file, a folder, ``hub:NAME:SPLIT``, or an iterable
        of texts, messages or records (:func:`conversation_of`). Of text files every block between blank lines is a
        prompt. A prompt without ``id`` is called by its number, from 0.
    :param limit: so many, the first ones; no more is read.
    :raises DataError: no prompt, two of one id, or a record that is none; names it.
    """
    limit = optional(whole, "limit", limit, at_least=1)
    found: dict[str, Conversation] = {}
    for number, (where, record) in enumerate(islice(read_records(source, text="blocks"), limit)):
        prompt = record if isinstance(record, Conversation) else conversation_of(record, str(number), where)
        if prompt.id in found:
            raise DataError(f"{where}: there are two prompts with the id {prompt.id!r}; give each its own")
        found[prompt.id] = prompt
    if not found:
        raise DataError(f"{source if isinstance(source, str) else 'the source'} holds no prompt")
    return list(found.values())


def prompts_digest(prompts: Iterable[Conversation]) -> str:
    """SHA-256 of ids, texts and order."""
    return hash_json([[each.id, each.messages, each.system] for each in prompts])
