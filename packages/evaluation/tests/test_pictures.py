"""Pictures of documents: opened ahead of the model within a bound, once where several documents show them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from evaluation_tasks import Counting, Echo, rows_of, timeless
from paperhooks.errors import DataError
from paperhooks.generation import (
    CallableBackend,
    PendingImage,
    PictureStore,
    Prompt,
    Request,
    Response,
    TransformersBackend,
    prompt_hash,
)
from paperhooks.io import Picture
from paperhooks_evaluation import Document, evaluate
from PIL import Image
from test_resuming import tiny_llava_with_processor

quick = partial(evaluate, report=False)
SIDE = 512  # 1 MiB opened


class Shown(Echo):
    """Documents with pictures by name: ``names[i]`` are those of document i; all are in one folder."""

    names: Sequence[Sequence[str]] = ()

    def documents(self, source: str) -> list[Document]:
        return [
            Document(f"q{i}", data={"names": list(names), "answer": "w1"}, place={"folder": source})
            for i, names in enumerate(type(self).names)
        ]

    def request(self, document: Document) -> Request:
        images = [Picture(Path(document.place["folder"], name)) for name in document.data["names"]]
        return Request([{"role": "user", "content": "w1 w2"}], images=images, max_new_tokens=3)


def showing(*names: Sequence[str]) -> Shown:
    return type("Shown", (Shown,), {"names": names, "__qualname__": "Shown"})()


def pictures(folder: Path, count: int, side: int = SIDE) -> list[str]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (side, side), (i % 256, i // 256, 7)).save(folder / f"{i}.png", compress_level=1)
    return [f"{i}.png" for i in range(count)]


class Watched:
    """Openings on record: how often each key, and in which threads."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()
        self.threads: set[str] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch, pause: float = 0.0) -> None:
        real = PendingImage.open

        def watched(pending: PendingImage) -> Any:
            self.opened[pending.key] += 1
            self.threads.add(threading.current_thread().name)
            time.sleep(pause)
            return real(pending)

        monkeypatch.setattr(PendingImage, "open", watched)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    found.install(monkeypatch)
    return found


def sizes(request: Request) -> str:
    assert all(isinstance(image, Image.Image) for image in request.images)
    return f"w1 {[image.getpixel((0, 0))[:2] for image in request.images]}"


@pytest.mark.parametrize("memory", [1, 4, 64])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_responses_do_not_depend_on_the_bound(tmp_path: Path, batch_size: int, memory: int) -> None:
    names = pictures(tmp_path / "data", 12)
    task = showing(*([names[i % 12], names[(5 * i + 1) % 12]] for i in range(20)), [])
    run = partial(quick, CallableBackend(sizes), None, task, data=tmp_path / "data")
    expected = run(out=tmp_path / "whole", batch_size=2).records
    found = run(out=tmp_path / "run", batch_size=batch_size, image_memory=memory)
    assert [one.response for one in found.records] == [one.response for one in expected]
    assert found.records[3].response == "w1 [(3, 0), (4, 0)]"
    assert timeless(rows_of(tmp_path / "run")) == timeless(rows_of(tmp_path / "whole"))


@pytest.mark.parametrize("apart", [1, 111])
def test_a_picture_is_opened_once_a_run(tmp_path: Path, watched: Watched, apart: int) -> None:
    """1,320 questions show 1,118 pictures: neighbours, and such that are far apart while there is room."""
    count = 111
    names = pictures(tmp_path / "data", count, side=16)
    shown = [[names[i]] for i in range(count)]
    for i in range(0, count, 5):
        shown.insert(len(shown) if apart > 1 else shown.index([names[i]]), [names[i]])
    backend = CallableBackend(sizes)
    quick(backend, None, showing(*shown), data=tmp_path / "data", out=tmp_path / "run", batch_size=4)
    assert (len(shown), sum(watched.opened.values()), max(watched.opened.values())) == (134, count, 1)


def test_pictures_are_opened_in_threads_while_the_model_answers(tmp_path: Path, monkeypatch) -> None:
    names = pictures(tmp_path / "data", 24, side=16)
    watched = Watched()
    watched.install(monkeypatch, pause=0.02)

    def answer(request: Request) -> str:
        time.sleep(0.02)
        return "w1"

    def seconds(memory: int, out: str) -> float:
        store = "paperhooks.generation.asker.PictureStore"
        with monkeypatch.context() as patched:
            patched.setattr(store, lambda most: PictureStore(memory))
            begin = time.perf_counter()
            quick(CallableBackend(answer), None, showing(*([n] for n in names)), data=tmp_path / "data", out=out)
            return time.perf_counter() - begin

    in_turn, ahead = seconds(0, str(tmp_path / "a")), seconds(2**20, str(tmp_path / "b"))
    assert ahead <= 0.75 * in_turn, (ahead, in_turn)
    assert all(name.startswith("paperhooks-pictures") for name in watched.threads)


class Opened(CallableBackend):
    """Counts the bytes that are open and not being asked, whenever a batch is asked."""

    def __init__(self, store: list[PictureStore]) -> None:
        super().__init__(sizes)
        self.store, self.most = store, 0

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        time.sleep(0.01)
        self.most = max(self.most, self.store[0]._taken())
        return super().answer(prompts)


@pytest.mark.parametrize("memory", [2, 5, 9])
def test_what_is_opened_ahead_stays_within_the_bound(tmp_path: Path, monkeypatch, memory: int) -> None:
    names = pictures(tmp_path / "data", 30)
    stores: list[PictureStore] = []

    def make(most: int) -> PictureStore:
        stores.append(PictureStore(most))
        return stores[-1]

    monkeypatch.setattr("paperhooks.generation.asker.PictureStore", make)
    backend = Opened(stores)
    task = showing(*([names[i]] for i in range(30)))
    quick(backend, None, task, data=tmp_path / "data", out=tmp_path / "run", batch_size=4, image_memory=memory)
    assert memory * 3 // 4 <= backend.most / 2**20 <= memory
    with pytest.raises(DataError, match="image_memory = 0 must be at least 1"):
        quick(backend, None, task, data=tmp_path / "data", out=tmp_path / "none", image_memory=0)


def test_of_images_that_a_task_opens_fewer_are_made_ahead(tmp_path: Path) -> None:
    alive: list[int] = []
    made: list[int] = []

    class Opens(Shown):
        names = [["0.png"]] * 40

        def request(self, document: Document) -> Request:
            made.append(1)
            return Request([{"role": "user", "content": "w1"}], images=[Image.new("RGB", (SIDE, SIDE))])

    def answer(request: Request) -> str:
        time.sleep(0.01)
        alive.append(len(made) - len(alive))
        return "w1"

    quick(CallableBackend(answer), None, Opens(), data="x", out=tmp_path / "run", batch_size=4, image_memory=6)
    assert len(alive) == 40
    assert max(alive) <= 2 * 3
    alive.clear()
    made.clear()
    quick(CallableBackend(answer), None, Opens(), data="x", out=tmp_path / "more", batch_size=4)
    assert max(alive) > 30


def test_pictures_that_cannot_be_opened_are_errors_of_their_documents(tmp_path: Path) -> None:
    names = pictures(tmp_path / "data", 6, side=64)
    (tmp_path / "data" / "1.png").write_bytes(b"none")
    whole = (tmp_path / "data" / "3.png").read_bytes()
    (tmp_path / "data" / "3.png").write_bytes(whole[:-40])  # its first bytes are those of an image
    (tmp_path / "data" / "5.png").unlink()
    task = showing(*([name] for name in names), ["0.png", "3.png"])
    run = {"data": tmp_path / "data", "out": tmp_path / "run", "batch_size": 3}
    result = quick(CallableBackend(sizes), None, task, **run)
    assert list(result.first.failures) == ["q1", "q3", "q5", "q6"]
    for key, name in (("q1", "1.png"), ("q3", "3.png"), ("q5", "5.png"), ("q6", "3.png")):
        assert result.first.failures[key].startswith("request: DataError: ")
        assert f"{name} cannot be opened as an image" in result.first.failures[key]
    (tmp_path / "data" / "3.png").write_bytes(whole)
    assert list(quick(CallableBackend(sizes), None, task, **run).first.failures) == ["q1", "q5"]


def test_a_moved_folder_goes_on_and_a_changed_picture_is_refused(tmp_path: Path, watched: Watched) -> None:
    names = pictures(tmp_path / "data", 8, side=16)
    task = showing(*([name] for name in names))
    backend = CallableBackend(sizes)
    quick(backend, None, task, data=tmp_path / "data", out=tmp_path / "run", limit=5)
    (tmp_path / "data").rename(tmp_path / "moved")
    watched.opened.clear()
    assert quick(backend, None, task, data=tmp_path / "moved", out=tmp_path / "run", limit=7).headline.n == 7
    assert sum(watched.opened.values()) == 2, "prompts answered before are made again without opening pictures"
    Image.new("RGB", (16, 16), "white").save(tmp_path / "moved" / "0.png")
    with pytest.raises(DataError, match="response to another prompt of 'q0'"):
        quick(backend, None, task, data=tmp_path / "moved", out=tmp_path / "run")


def test_a_prompt_is_known_by_the_bytes_of_its_pictures(tmp_path: Path) -> None:
    names = pictures(tmp_path, 2, side=16)
    first, second = (PendingImage((Picture(tmp_path / name),)) for name in names)
    hashes = {
        prompt_hash(Prompt("q", "text", Request(images=images)))
        for images in ([first], [second], [first, second], [PendingImage(first.pictures, 100)], [first.open()], [])
    }
    assert len(hashes) == 6
    assert prompt_hash(Prompt("r", "text", Request(images=[first]))) in hashes


def test_a_model_is_given_opened_pictures_and_its_tokens_are_counted_before(tmp_path: Path) -> None:
    names = pictures(tmp_path / "data", 4, side=24)
    vlm, processor = tiny_llava_with_processor()
    task = showing([names[0]], [names[1], names[2]], [names[3]], [])
    runs = {}
    for size in (1, 4):
        backend = Counting(TransformersBackend(vlm, processor))
        out = tmp_path / f"run{size}"
        runs[size] = quick(backend, None, task, data=tmp_path / "data", out=out, batch_size=size)
    assert timeless(rows_of(tmp_path / "run1")) == timeless(rows_of(tmp_path / "run4"))
    made = [
        backend.inner.prompt(one.id, request(task, one, opened))
        for one in task.documents(str(tmp_path / "data"))
        for opened in (True, False)
    ]
    assert [prompt.tokens for prompt in made[::2]] == [prompt.tokens for prompt in made[1::2]]
    tokens = {row["id"]: row["prompt_tokens"] for row in rows_of(tmp_path / "run1")}
    assert [tokens[f"q{i}"] for i in range(4)] == [prompt.tokens for prompt in made[::2]]
    assert runs[4].cost == runs[1].cost
    assert runs[1].cost["prompt_tokens"] == sum(tokens.values())
    assert runs[1].cost["answer_tokens"] == sum(row["tokens"] for row in rows_of(tmp_path / "run1")) > 0


def request(task: Shown, document: Document, opened: bool) -> Request:
    from paperhooks.generation import arrange

    return arrange(task.request(document), "prepend", opened=opened)


# -- responses one by one ----------------------------------------------------------------------------------------------


class OneByOne(CallableBackend):
    """Gives responses from the last prompt to the first, and dies, or runs out of memory, after some."""

    def __init__(self, after: int, error: BaseException | None, gives: int = 99) -> None:
        super().__init__(sizes)
        self.after, self.error, self.gives = after, error, gives
        self.asked: list[list[str]] = []

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, Response]]:
        self.asked.append([prompt.id for prompt in prompts])
        for number, place in enumerate(reversed(range(len(prompts)))):
            if number == self.after and self.error is not None:
                raise self.error
            if number < self.gives:
                yield {place: Response(f"w1 of {prompts[place].id}")}


def test_responses_are_written_as_they_come(tmp_path: Path) -> None:
    names = pictures(tmp_path / "data", 6, side=16)
    run = {"data": tmp_path / "data", "out": tmp_path / "run", "batch_size": 6}
    task = showing(*([name] for name in names))
    with pytest.raises(KeyboardInterrupt):
        quick(OneByOne(4, KeyboardInterrupt()), None, task, **run)
    assert [row["id"] for row in rows_of(tmp_path / "run")] == ["q5", "q4", "q3", "q2"]
    again = OneByOne(9, None)
    result = quick(again, None, task, **run)
    assert again.asked == [["q0", "q1"]]
    assert [one.response for one in result.records] == [f"w1 of q{i}" for i in range(6)]


def test_what_came_before_memory_ran_out_is_not_asked_again(tmp_path: Path) -> None:
    names = pictures(tmp_path / "data", 6, side=16)
    backend = OneByOne(2, MemoryError("too much"))
    task = showing(*([name] for name in names))
    result = quick(backend, None, task, data=tmp_path / "data", out=tmp_path / "run", batch_size=6)
    assert backend.asked == [[f"q{i}" for i in range(6)], ["q0", "q1", "q2"], ["q0"], ["q3"]]
    assert [one.response for one in result.records] == [f"w1 of q{i}" for i in range(6)]


def test_a_backend_that_leaves_a_prompt_out_is_named(tmp_path: Path) -> None:
    task = showing([], [])
    with pytest.raises(Exception, match="OneByOne gave no response to 'q0'"):
        quick(OneByOne(9, None, gives=1), None, task, data="x", out=tmp_path / "run", batch_size=2)
