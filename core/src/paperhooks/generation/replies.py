"""Asking keyed requests, without a task: replies by id, from a folder that goes on where it stopped.

>>> requests = {"17/y+": Request(prompt="Hello"), "17/y-": Request(prompt="Bye")}
>>> replies = ask(CallableBackend(str.upper), requests, out="replies/")  # doctest: +SKIP
>>> replies["17/y+"].text  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.generation.asker import BATCH_TOKENS, Asker
from paperhooks.generation.hashes import request_hash
from paperhooks.generation.layouts import arrange, check_layout
from paperhooks.generation.ledger import Ledger, Reply
from paperhooks.generation.reply_file import ReplyFile, reply_columns, stored_response
from paperhooks.generation.requests import Backend, Request, Response
from paperhooks.generation.shares import check_shard, in_shard, replicas
from paperhooks.io.options import optional, whole
from paperhooks.io.processes import Ranks
from paperhooks.reports.run_folder import RunFolder

__all__ = ["ask"]

_KIND: Final = "ask"


def ask(
    backend: Backend,
    requests: Mapping[str, Request] | Iterable[tuple[str, Request]],
    *,
    out: str | Path,
    batch_size: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    layout: str = "interleave",
    max_pixels: int | None = None,
    image_memory: int = 512,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
) -> dict[str, Response]:
    """Ask requests by id and keep the responses in a folder; an id that has one there is not asked again.

    Killing the process loses at most the batch that was being answered. The next call with the same backend and layout
    goes on, also with more requests or with some of them. What fails for one request is its ``error``; the next call
    asks it again. Batches that do not fit into memory are halved. The processes of an initialised
    ``torch.distributed`` share the requests by the hash of their ids and all return all responses.

    :param requests: by id, or pairs of id and request.
    :param out: the folder: ``result.json`` says what determines the responses, ``replies.jsonl`` has a line each.
    :param batch_size, batch_tokens: how many requests are asked at a time at most, and how many tokens their prompts
        may have with padding (the longest prompt times the requests).
    :param layout, max_pixels: where images go (see :mod:`paperhooks.generation.layouts`), and to how many pixels
        larger ones are scaled.
    :param image_memory: MiB that images may take which are opened ahead.
    :param shard: ``(index, count)``: ask only the requests whose id hashes to this share; by then known responses to
        others are returned too.
    :param progress: show one line on a terminal.
    :return: responses by id, in the order of the requests.
    :raises DataError: two requests of one id, an id that is no text, a folder of another backend or layout (the
        setting is named), or one that holds a response to another request of an id (the id is named).
    :raises ValueError: a number below 1.
    """
    for name, value in {"batch_size": batch_size, "batch_tokens": batch_tokens, "image_memory": image_memory}.items():
        whole(name, value, at_least=1)
    optional(whole, "max_pixels", max_pixels, at_least=1)
    check_shard(shard)
    ranks = Ranks(alone=shard is not None)
    wanted = ranks.agreed(lambda: _by_id(requests))
    inputs = {"layout": check_layout(layout), "max_pixels": max_pixels}
    launch = "" if shard is None else f"{shard[1]} shards"
    with RunFolder(out) as run:
        described = ranks.agreed(lambda: dict(backend.describe()))
        ranks = replicas(backend, shard, ReplyFile.noun) or ranks
        share = shard or ranks.shard
        _started(run, ranks, inputs | described, launch)
        # All have read before one writes: processes that hold one replica together have the same left to ask.
        file = ranks.agreed(lambda: ReplyFile(run.path, run.result["inputs_hash"], share, writes=ranks.leader))
        mine = [key for key in wanted if in_shard(key, share)]
        ledger = _RequestLedger(run, file, wanted, layout, max_pixels)
        asker = Asker(ledger, backend, batch_size, batch_tokens, image_memory)
        ranks.agreed(lambda: _ask(ledger, asker, backend, ranks, mine, progress))
        ranks.agreed(lambda: _read_again(file, mine))
        ranks.agreed(lambda: _finish(run, file, backend.about(), wanted, writes=ranks.first))
    return {key: stored_response(file.rows[key]) for key in wanted if key in file.rows}


class _RequestLedger(Ledger):
    """Requests by id, and the folder that their replies go to."""

    def __init__(
        self, run: RunFolder, file: ReplyFile, requests: Mapping[str, Request], layout: str, max_pixels: int | None
    ) -> None:
        self.run, self.file, self.requests = run, file, requests
        self.layout, self.max_pixels = layout, max_pixels
        self.writes = file.writes

    def request(self, key: str) -> Request:
        return self.requests[key]

    def laid_out(self, request: Request) -> Request:
        return arrange(request, self.layout, self.max_pixels, opened=False)

    def check(self, key: str, digest: str) -> None:
        self.file.check_prompt(key, digest)

    def answered(self, key: str) -> bool:
        """Whether an id has its response; raises DataError where it was given to another request."""
        if not self.file.has_reply(key):
            return False
        if self.file.rows[key]["request_hash"] != request_hash(self.requests[key]):
            raise DataError(
                f"{self.file.path.parent} holds a response to another request of {key!r}: its prompt, limit, stop "
                f"strings or sampling are others; {self.file.advice}"
            )
        return True

    def write(self, replies: Sequence[Reply]) -> None:
        self.run.confirm()
        self.file.append(self._row(reply) for reply in replies)

    def _row(self, reply: Reply) -> dict[str, Any]:
        # A request that failed is asked anew, and may be one that cannot be hashed: its picture is not there.
        asked = None if reply.response.error else request_hash(self.requests[reply.id])
        columns = reply_columns(reply.response, reply.digest, reply.seconds)
        return {
            "id": reply.id, "request_hash": asked, **columns, "ids": list(reply.response.ids), "end": reply.response.end
        }  # fmt: skip

    def close(self) -> None:
        self.file.close()


def _by_id(requests: Mapping[str, Request] | Iterable[tuple[str, Request]]) -> dict[str, Request]:
    """The requests by id; raises DataError for two of one id, and for what is no id or no request."""
    found: dict[str, Request] = {}
    for key, request in requests.items() if isinstance(requests, Mapping) else requests:
        if not isinstance(key, str) or not key or "\0" in key or key.encode(errors="replace").decode() != key:
            raise DataError(f"the requests have the id {key!r}; expected a text")
        if not isinstance(request, Request):
            raise DataError(f"{key!r} is {type(request).__name__}; expected a paperhooks.generation.Request")
        if key in found:
            raise DataError(f"two requests have the id {key!r}")
        found[key] = request
    return found


def _started(run: RunFolder, ranks: Ranks, inputs: Mapping[str, Any], launch: str) -> None:
    """The first process makes the folder, or goes on with it; the others find it as that one left it."""
    begin = {False: lambda: None, True: lambda: run.start(_KIND, inputs=inputs, launch=launch, writes=ranks.first)}
    ranks.agreed(begin[ranks.first])
    ranks.agreed(begin[not ranks.first])


def _ask(
    ledger: _RequestLedger, asker: Asker, backend: Backend, ranks: Ranks, mine: Sequence[str], progress: bool
) -> None:
    answered = [key for key in mine if ledger.answered(key)]
    known = set(answered)
    if len(answered) < len(mine):
        backend.check(mine)
        asker.run([key for key in mine if key not in known], answered, progress and ranks.first)
    elif ranks.in_step:
        with backend.opened():
            pass  # the other processes cannot call the model without this one


def _read_again(file: ReplyFile, asked: Sequence[str]) -> None:
    file.reload()
    file.require_all(asked)


def _finish(run: RunFolder, file: ReplyFile, about: Mapping[str, Any], wanted: Iterable[str], writes: bool) -> None:
    """Say what there is, once every request was tried."""
    if not writes or any(key not in file.rows for key in wanted):
        return
    failed = sum(bool(row["error"]) for row in file.rows.values())
    run.record(about=dict(about), replies=len(file.rows) - failed, failed=failed)
    run.finish()
