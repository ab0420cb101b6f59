"""Responses by id in a file: ``replies.jsonl``, or ``replies-0-of-2.jsonl`` of a process that does a share of the work.

One line a response, appended with a checksum and forced to the disk after every batch. Users' scripts know the columns:
``id``, hashes of what was asked, ``reply`` (the response), ``reasoning`` (what the model wrote in front of it),
``finish``, ``tokens``, ``prompt_tokens``, ``seconds``, ``error``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from paperhooks.errors import DataError, counted
from paperhooks.generation.requests import Response
from paperhooks.io.append_log import AppendLog
from paperhooks.io.harmless import redacted

__all__ = ["ReplyFile", "reply_columns", "stored_ids", "stored_response"]


def reply_columns(response: Response, prompt: str | None = None, seconds: float = 0.0) -> dict[str, Any]:
    """What a line says of a response; ``prompt`` is the prompt's hash where there was one."""
    return {
        "prompt_hash": prompt,
        "reply": None if response.error else response.text,
        "reasoning": response.reasoning or None,
        "finish": response.finish or None,
        "tokens": response.new_tokens,
        "prompt_tokens": response.prompt_tokens,
        "seconds": round(seconds, 4),
        "error": redacted(response.error) or None,
    }


def stored_response(row: Mapping[str, Any]) -> Response:
    """The response that a line was made of."""
    return Response(
        row["reply"] or "",
        row.get("tokens") or 0,
        row.get("finish") or "",
        row["error"] or "",
        row.get("reasoning") or "",
        row.get("prompt_tokens") or 0,
        *stored_ids(row),
    )


def stored_ids(row: Mapping[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """The answer's token ids and the one that ended it, as far as a line has them."""
    ids, end = row.get("ids"), row.get("end")
    known = isinstance(ids, list) and all(isinstance(one, int) for one in ids)
    return tuple(ids) if ids and known else (), end if isinstance(end, int) else None


class ReplyFile:
    """The rows of one run by id; ``run`` is the hash of what determines its responses.

    Reads the files of all shares in the folder and appends to that of ``shard`` (index and count), unless another
    process ``writes`` for this one. Reading changes nothing; a torn last line, left by a kill, goes with the first row
    that is appended.

    :cvar stem: the name of the file. :cvar columns: what every row has; another file is none of ours.
    :cvar noun, advice, again: what messages call that which was asked, what they say to do instead, and to do again.
    """

    stem: ClassVar[str] = "replies"
    columns: ClassVar[tuple[str, ...]] = ("id", "request_hash", "prompt_hash", "reply", "error", "run")
    noun: ClassVar[str] = "request"
    advice: ClassVar[str] = "use another folder"
    again: ClassVar[str] = "ask again"

    def __init__(self, folder: Path, run: str, shard: tuple[int, int] | None = None, *, writes: bool = True) -> None:
        share = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
        self.path, self.run, self.writes = folder / f"{self.stem}{share}.jsonl", run, writes
        self.rows: dict[str, dict[str, Any]] = {}
        self._log = AppendLog(self.path, self.columns, ("seconds",))
        self.reload()

    def reload(self) -> None:
        """Read all files again, for what other processes have written; raises DataError for a damaged one."""
        self.rows = {}
        name = re.compile(rf"{self.stem}(-\d+-of-\d+)?\.jsonl")
        for path in sorted(path for path in self.path.parent.glob(f"{self.stem}*.jsonl") if name.fullmatch(path.name)):
            for row in AppendLog(path, self.columns).read():
                if row["run"] != self.run:
                    raise DataError(f"{path} holds a response to {row['id']!r} of another run; {self.advice}")
                if not row["error"] or self.rows.get(row["id"], row)["error"]:
                    self.rows[row["id"]] = row

    def has_reply(self, key: str) -> bool:
        """Whether an id has its response; an error is none."""
        row = self.rows.get(key)
        return row is not None and not row["error"]

    def check_prompt(self, key: str, found: str) -> None:
        """Raise DataError unless the response of an id was given to the prompt with this hash."""
        if self.rows[key]["prompt_hash"] not in (found, None):
            raise DataError(f"{self.path.parent} holds a response to another prompt of {key!r}; {self.advice}")

    def require_all(self, keys: Iterable[str]) -> None:
        """Raise DataError where ids have no row, although every one was asked: rows were taken away."""
        missing = [key for key in keys if key not in self.rows]
        if missing:
            raise DataError(
                f"{self.path} was cut or removed: {counted(len(missing), f'{self.noun} has', f'{self.noun}s have')} no "
                f"row, the first is {missing[0]!r}; {self.again} to ask these"
            )

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and force them to the disk."""
        made = [{**row, "run": self.run} for row in rows]
        if self.writes:
            self._log.append(made)
        self.rows |= {row["id"]: row for row in made}

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._log.close()
