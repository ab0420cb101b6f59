"""Keyed requests without a task: replies by id, going on, refusals, errors, processes that share the work."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.generation import Backend, CallableBackend, Prompt, Request, Response, TransformersBackend, ask
from paperhooks.io import Picture, Ranks
from paperhooks.testing import run_python, run_ranks, tiny_llama
from PIL import Image
from word_tokenizers import word_tokenizer

ROLES = ("y+", "y-", "yo")


def asked(count: int = 4, **options: object) -> dict[str, Request]:
    """Requests of three roles for each of several prompts."""
    return {f"{i}/{role}": Request(prompt=f"{role} {i}", **options) for i in range(count) for role in ROLES}


def shout(request: Request) -> str:
    return request.prompt.upper()


def rows_of(folder: Path, name: str = "replies.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


class Counting(CallableBackend):
    """Notes the ids of every batch; runs out of memory, or fails, where it is told to."""

    def __init__(self, most: int = 99, fails: Sequence[str] = (), dies: str = "") -> None:
        super().__init__(shout)
        self.most, self.fails, self.dies = most, fails, dies
        self.batches: list[list[str]] = []

    @property
    def asked(self) -> list[str]:
        return [one for batch in self.batches for one in batch]

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.batches.append([prompt.id for prompt in prompts])
        if len(prompts) > self.most:
            raise MemoryError("too much")
        if any(prompt.id == self.dies for prompt in prompts):
            raise KeyboardInterrupt
        found = super().answer(prompts)
        return [Response("", error="no") if p.id in self.fails else r for p, r in zip(prompts, found, strict=True)]


def test_replies_come_by_id_in_the_order_of_the_requests(tmp_path: Path) -> None:
    requests = asked()
    backend = Counting()
    replies = ask(backend, requests, out=tmp_path / "run", batch_size=5)
    assert list(replies) == list(requests)
    assert {key: one.text for key, one in replies.items()} == {k: r.prompt.upper() for k, r in requests.items()}
    assert sorted(map(len, backend.batches)) == [2, 5, 5]
    first = rows_of(tmp_path / "run")[0]
    assert list(first)[:7] == ["id", "request_hash", "prompt_hash", "reply", "reasoning", "finish", "tokens"]
    told = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (told["kind"], told["status"], told["results"]["replies"]) == ("ask", "finished", 12)
    assert told["inputs"]["name"] == "callable"


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    requests = asked()
    with pytest.raises(KeyboardInterrupt):
        ask(Counting(dies="2/y+"), requests, out=tmp_path / "run", batch_size=3)
    there = {row["id"] for row in rows_of(tmp_path / "run")}
    assert 0 < len(there) < len(requests)
    again = Counting()
    replies = ask(again, requests, out=tmp_path / "run", batch_size=2)
    assert sorted(again.asked) == sorted(set(requests) - there)
    assert len(replies) == len(requests)
    more, fewer = Counting(), Counting()
    assert len(ask(more, asked(5), out=tmp_path / "run")) == 15
    assert sorted(more.asked) == sorted(f"4/{role}" for role in ROLES)
    assert list(ask(fewer, asked(2).items(), out=tmp_path / "run")) == list(asked(2))
    assert fewer.asked == []


def test_errors_are_kept_by_id_and_asked_again(tmp_path: Path) -> None:
    requests = asked(2)
    broken = ask(Counting(fails=["1/y-"]), requests, out=tmp_path / "run", batch_size=4)
    assert {key: one.error for key, one in broken.items() if one.error} == {"1/y-": "no"}
    again = Counting()
    assert ask(again, requests, out=tmp_path / "run")["1/y-"].text == "Y- 1"
    assert again.asked == ["1/y-"]


def test_a_batch_without_room_is_halved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = Counting(most=2)
    with caplog.at_level(logging.WARNING, "paperhooks.generation"):
        replies = ask(backend, asked(3), out=tmp_path / "run", batch_size=5)
    assert not any(one.error for one in replies.values())
    assert list(map(len, backend.batches)) == [5, 2, 2, 2, 2, 1]
    assert "a batch of 5 did not fit into memory; going on with 2" in caplog.text


@pytest.mark.parametrize(
    "changed",
    [
        Request(prompt="another"),
        Request(prompt="y+ 0", max_new_tokens=7),
        Request(prompt="y+ 0", stop=("!",)),
        Request(messages=[{"role": "user", "content": "y+ 0"}]),
        Request(prompt="y+ 0", images=[Image.new("RGB", (4, 4))]),
    ],
)
def test_another_request_of_a_known_id_is_refused(tmp_path: Path, changed: Request) -> None:
    ask(Counting(), asked(1), out=tmp_path / "run")
    backend = Counting()
    with pytest.raises(DataError, match=r"holds a response to another request of '0/y\+'"):
        ask(backend, {**asked(1), "0/y+": changed, "new": Request(prompt="new")}, out=tmp_path / "run")
    assert backend.asked == []


def test_a_request_may_say_other_things_about_itself(tmp_path: Path) -> None:
    ask(Counting(), {"a": Request(prompt="a", metadata={"tries": 1})}, out=tmp_path / "run")
    backend = Counting()
    ask(backend, {"a": Request(prompt="a", metadata={"tries": 2})}, out=tmp_path / "run")
    assert backend.asked == []


def test_another_setting_is_refused_by_name(tmp_path: Path) -> None:
    ask(Counting(), asked(1), out=tmp_path / "run")
    with pytest.raises(DataError, match=r"inputs\.name = 'callable', not 'other'"):
        ask(CallableBackend(shout, "other"), asked(1), out=tmp_path / "run")
    with pytest.raises(DataError, match=r"inputs\.layout = 'interleave', not 'prepend'"):
        ask(Counting(), asked(1), out=tmp_path / "run", layout="prepend")


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([("a", Request(prompt="a")), ("a", Request(prompt="b"))], "two requests have the id 'a'"),
        ([(7, Request(prompt="a"))], "the id 7; expected a text"),
        ([("", Request(prompt="a"))], "the id ''; expected a text"),
        ([("\ud800", Request(prompt="a"))], "expected a text"),
        ({"a": "text"}, "'a' is str; expected a paperhooks.generation.Request"),
        ({"a": Request()}, "neither a prompt nor messages nor prompt_ids"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, requests: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ask(Counting(), requests, out=tmp_path / "run")
    assert not (tmp_path / "run" / "replies.jsonl").exists()


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("batch_tokens", 0), ("image_memory", 0.5)])
def test_numbers_below_one_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a whole number of at least 1"):
        ask(Counting(), asked(1), out=tmp_path / "run", **{name: value})


@pytest.mark.parametrize("stop", ["ab", ("",), ("a", ""), (3,), b"ab", 3, None])
def test_stop_strings_that_cannot_be_meant_are_refused(stop: Any) -> None:
    with pytest.raises(ValueError, match=r"stop is .*; expected a tuple of texts that are not empty"):
        Request(prompt="a", stop=stop)


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, None])
def test_an_answer_without_room_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match=f"max_new_tokens is {limit}; expected a whole number of at least 1"):
        Request(prompt="a", max_new_tokens=limit)


def test_stop_strings_may_come_in_a_list() -> None:
    assert Request(prompt="a", stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_without_requests_there_is_nothing_to_ask(tmp_path: Path) -> None:
    assert ask(Counting(), {}, out=tmp_path / "run") == {}


def test_a_changed_template_is_found_by_its_prompts(tmp_path: Path) -> None:
    class Templated(Counting):
        template = "{}"

        def prompt(self, document_id: str, request: Request) -> Prompt:
            return Prompt(document_id, self.template.format(request.prompt), request)

    requests = {f"r{i}": Request(prompt=f"w{i}") for i in range(6)}
    ask(Templated(), dict(list(requests.items())[:5]), out=tmp_path / "run")
    changed = Templated()
    changed.template = "<s>{}"
    with pytest.raises(DataError, match="holds a response to another prompt of 'r0'"):
        ask(changed, requests, out=tmp_path / "run")


def test_pictures_of_requests_are_opened_when_it_is_their_turn(tmp_path: Path) -> None:
    for name, size in (("a", 12), ("b", 20)):
        Image.new("RGB", (size, 8)).save(tmp_path / f"{name}.png")
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    requests = {name: Request(said, images=[Picture(tmp_path / f"{name}.png")]) for name in ("a", "b", "none")}
    backend = CallableBackend(lambda request: str(request.images[0].size))
    replies = ask(backend, requests, out=tmp_path / "run", batch_size=2)
    assert [replies[name].text for name in ("a", "b")] == ["(12, 8)", "(20, 8)"]
    assert "none.png" in replies["none"].error


def test_a_model_answers_as_by_itself(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    backend = TransformersBackend(model, word_tokenizer(model.config.vocab_size))
    requests = {f"{i}": Request(prompt=" ".join(f"w{i + j}" for j in range(1 + i)), max_new_tokens=5) for i in range(5)}
    together = ask(backend, requests, out=tmp_path / "run", batch_size=3)
    alone = {key: backend.answer([backend.prompt(key, request)])[0] for key, request in requests.items()}
    assert together == alone
    assert {one.new_tokens for one in together.values()} == {5}


# -- kills and processes -----------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from paperhooks.generation import CallableBackend, Request, ask

done = 0

def answer(request):
    global done
    done += 1
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    print(request.prompt, flush=True)
    return request.prompt.upper()

ask(CallableBackend(answer), {f"{i}/y+": Request(prompt=f"p{i}") for i in range(40)}, out=sys.argv[1], batch_size=4)
"""


def test_a_kill_loses_the_batch_that_was_asked_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    seen: list[str] = []
    for dies in (3, 14, 1, 0):
        done = run_python(file, tmp_path / "run", dies, check=False)
        assert done.returncode == (-9 if dies else 0), done.stderr
        seen += done.stdout.split()
        kept = rows_of(tmp_path / "run") if (tmp_path / "run" / "replies.jsonl").exists() else []
        assert len(kept) == {3: 0, 14: 12, 1: 12, 0: 40}[dies]
    # Two of the first batch, and one of the fourth.
    assert sorted(seen) == sorted([*(f"p{i}" for i in range(40)), "p0", "p1", "p12"])
    assert {row["id"]: row["reply"] for row in rows_of(tmp_path / "run")} == {f"{i}/y+": f"P{i}" for i in range(40)}


class Breaks(CallableBackend):
    def answers(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, Response]]:
        raise RuntimeError("lost its device")


def shared(out: str, fails: int) -> object:
    """What a rank ends with: all replies and how many it asked, or its error."""
    backend: Backend = Breaks(shout) if Ranks().index == fails else Counting()
    try:
        replies = ask(backend, asked(), out=out, batch_size=2)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [{key: one.text for key, one in replies.items()}, backend.asked]


def test_processes_share_the_requests_and_all_get_all(tmp_path: Path) -> None:
    broken = run_ranks(shared, tmp_path / "run", 1)
    assert broken == ["PaperhooksError: rank 1 failed: RuntimeError: lost its device", "RuntimeError: lost its device"]
    told = run_ranks(shared, tmp_path / "run", -1)
    expected = {key: request.prompt.upper() for key, request in asked().items()}
    assert [each[0] for each in told] == [expected] * 2
    files = [{row["id"] for row in rows_of(tmp_path / "run", f"replies-{rank}-of-2.jsonl")} for rank in range(2)]
    assert not files[0] & files[1]
    assert files[0] | files[1] == set(expected)
    backend = Counting()
    assert len(ask(backend, asked(), out=tmp_path / "run")) == 12
    assert backend.asked == []


def test_shards_by_hand(tmp_path: Path) -> None:
    part = ask(Counting(), asked(), out=tmp_path / "run", shard=(1, 2))
    assert 0 < len(part) < 12
    assert len(ask(Counting(), asked(), out=tmp_path / "run", shard=(0, 2))) == 12
    with pytest.raises(DataError, match=r"shard = \(2, 2\) must be"):
        ask(Counting(), asked(), out=tmp_path / "run", shard=(2, 2))
