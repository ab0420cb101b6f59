"""Pictures of a run: how often each is decoded, and what large ones take of memory and time.

Three parts, without a model, since what it takes is not the question here:

- 1,320 questions over 1,118 pictures, those of one picture in one subject of 47 questions, in two modes: decodings a
  picture.
- 120 questions with pictures of up to 57 megapixels, the reader pausing over each batch as a model would: the peak
  above the start against what is allowed, the bound on images ahead (512 MiB) plus the largest batch; in a process of
  its own.
- 200 questions with large pictures in batches that take as long as decoding does: seconds of the run, against decoding
  in turn, where every batch waits for its pictures. Both sides in one process, in turn.

    python packages/jmmmu/benchmarks/pictures.py [--quick] [--rounds N]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Final

from paperhooks import evaluate
from paperhooks.generation import CallableBackend, PendingImage, Prompt, Request, Response, arrange
from paperhooks.io import Picture
from paperhooks.testing import fresh_process, print_peak
from paperhooks_evaluation import Document, Parsed, Task
from PIL import Image

MIB: Final = 2**20
#: The engine's own bound on what is opened ahead.
AHEAD: Final = 512
SIZES: Final = ((9540, 6000), (6000, 4000), (4000, 3000), (3000, 2000), (2000, 1500), (1200, 900), (800, 600))
#: Questions of a subject.
SUBJECT: Final = 47
QUICK_SIZES: Final = ((3000, 2000), (2000, 1500), (1200, 900))


@dataclass(frozen=True)
class Shown(Task):
    """Questions of which each shows pictures of a folder by name; read in two modes."""

    questions: tuple[tuple[str, ...], ...] = ()

    version: ClassVar[str] = "1"
    modes: ClassVar[tuple[str, ...]] = ("first", "second")

    def documents(self, source: str) -> Sequence[Document]:
        return [
            Document(f"q{number}", data={"pictures": list(names)}, place={"folder": source})
            for number, names in enumerate(self.questions)
        ]

    def request(self, document: Document) -> Request:
        pictures = [Picture(Path(document.place["folder"], name)) for name in document.data["pictures"]]
        return Request([{"role": "user", "content": "x"}], images=pictures)

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        return Parsed(response)

    def score(self, document: Document, parsed: Parsed) -> float:
        return 1.0


class Slow(CallableBackend):
    """Pauses over a batch as a model would; knows the largest batch in bytes of its images."""

    def __init__(self, pause: float) -> None:
        super().__init__(lambda request: "A")
        self.pause, self.largest = pause, 0

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        images = {id(image): 4 * image.width * image.height for prompt in prompts for image in prompt.request.images}
        self.largest = max(self.largest, sum(images.values()))
        time.sleep(self.pause)
        return super().answer(prompts)


def draw(folder: Path, sizes: Sequence[tuple[int, int]], each: int, ending: str = "jpg") -> list[str]:
    """Noise, so that no file is small for what it shows; the names, the largest first."""
    folder.mkdir()
    noise = Image.effect_noise((512, 512), 60).convert("RGB")
    names = []
    for number, size in enumerate(sizes):
        for turn in range(each):
            names.append(f"{number}-{turn}.{ending}")
            noise.rotate(90 * turn).resize(size).save(folder / names[-1])
    return names


# -- how often ---------------------------------------------------------------------------------------------------------


def decodings(folder: Path, questions: int, pictures: int) -> dict[str, Any]:
    """Decodings a picture of a run in two modes, in the layout where they are opened one by one."""
    noise = Image.effect_noise((500, 400), 60).convert("RGB")
    data = folder / "small"
    data.mkdir()
    for number in range(pictures):
        noise.putpixel((0, 0), (number % 256, number // 256, 0))  # other bytes in each file
        noise.save(data / f"{number}.png", compress_level=1)
    names = [f"{number * pictures // questions}.png" for number in range(questions)]
    generator, subjects = random.Random(0), [names[first : first + SUBJECT] for first in range(0, questions, SUBJECT)]
    for subject in subjects:
        generator.shuffle(subject)
    task = Shown(tuple((name,) for subject in subjects for name in subject))
    opened: list[str] = []
    stock = PendingImage.open

    def counted(self: PendingImage) -> Any:
        opened.append(self.key)
        return stock(self)

    PendingImage.open = counted  # type: ignore[method-assign]
    try:
        evaluate(Slow(0.0), None, task, data=str(data), out=folder / "often", batch_size=8, report=False)
    finally:
        PendingImage.open = stock  # type: ignore[method-assign]
    shown = len(set(opened))
    return {"questions": questions, "pictures": shown, "decoded": len(opened), "decodings": len(opened) / shown}


# -- memory ------------------------------------------------------------------------------------------------------------


def large(names: Sequence[str], questions: int) -> Shown:
    """Questions with one or two of the pictures, the largest ones among them."""
    generator = random.Random(1)
    return Shown(tuple(tuple(generator.choices(names, k=generator.choice((1, 1, 2)))) for _ in range(questions)))


def child(folder: Path, questions: int, names: Sequence[str], pause: float) -> None:
    """Prints the peak of a run above the start of it, and the largest batch."""
    backend = Slow(pause)

    def run() -> dict[str, Any]:
        task = large(names, questions)
        evaluate(backend, None, task, data=str(folder), out=folder / "run", batch_size=4, report=False)
        return {"batch_mib": backend.largest / MIB}

    print_peak(run)


# -- time --------------------------------------------------------------------------------------------------------------


def in_turn(task: Shown, folder: Path, batch: int, pause: float) -> float:
    """Seconds where every batch waits for its pictures."""
    backend, documents = Slow(pause), list(task.documents(str(folder)))
    begin = time.perf_counter()
    for first in range(0, len(documents), batch):
        requests = [arrange(task.request(document), "prepend") for document in documents[first : first + batch]]
        backend.answer([backend.prompt(str(number), request) for number, request in enumerate(requests)])
    return time.perf_counter() - begin


def ahead(task: Shown, folder: Path, batch: int, pause: float) -> float:
    """Seconds of a run, which opens pictures while the model is busy."""
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        evaluate(Slow(pause), None, task, data=str(folder), out=out, batch_size=batch, report=False)
        return time.perf_counter() - begin


def times(folder: Path, names: Sequence[str], questions: int, rounds: int) -> dict[str, Any]:
    """Medians of both ways; the pause is what decoding a batch takes, measured first."""
    # Every picture once: that one is decoded once where several questions show it is no part of this.
    task, batch = Shown(tuple((name,) for name in names[:questions])), 8
    pause = in_turn(task, folder, batch, 0.0) / -(-questions // batch)
    found: dict[str, list[float]] = {"in_turn_s": [], "ahead_s": []}
    for _ in range(rounds):
        found["in_turn_s"].append(in_turn(task, folder, batch, pause))
        found["ahead_s"].append(ahead(task, folder, batch, pause))
    figures = {name: median(each) for name, each in found.items()}
    return figures | {"pause_s": pause, "time_ratio": figures["ahead_s"] / figures["in_turn_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller pictures, one round")
    parser.add_argument("--rounds", type=int, help="rounds of the times (default: 3, quick: 1)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = QUICK_SIZES if options.quick else SIZES
    asked, timed, rounds = (24, 40, 1) if options.quick else (120, 200, 3)
    if options.child:
        names = sorted(file.name for file in options.child.glob("*.jpg"))
        child(options.child, asked, names, 0.3)
        return
    figures: dict[str, Any] = {"quick": options.quick, "rounds": options.rounds or rounds}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        figures |= decodings(folder, *((132, 112) if options.quick else (1320, 1118)))
        print(f"{figures['pictures']} pictures, {figures['decoded']} decoded", flush=True)
        draw(folder / "large", sizes, 3)
        found = fresh_process(__file__, "--child", str(folder / "large"), *["--quick"] * options.quick)
        allowed = AHEAD + found["batch_mib"]
        figures |= {"peak_mib": found["mib"], "allowed_mib": allowed, "memory_ratio": found["mib"] / allowed}
        print(f"peak {found['mib']:.0f} MiB above the start, allowed {allowed:.0f}", flush=True)
        names = draw(folder / "many", [(3000, 2000)] * timed, 1)
        figures |= times(folder / "many", names, timed, figures["rounds"])
        print(f"in turn {figures['in_turn_s']:.1f} s, ahead {figures['ahead_s']:.1f} s")
    print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}))


if __name__ == "__main__":
    main()
