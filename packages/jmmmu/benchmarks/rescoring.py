"""Scoring stored replies again, and calling for a finished run again: seconds from the start of the process.

1,320 synthetic questions, their replies read in all eight modes. Each side is a process of its own, in turn: one that
imports what the other one needs and ends, one that does the work. A process that only scores loads no torch. The
finished run is one of the test bed's vision-language model, which a user's script loads before it asks again; without a
model, with replies from a file, the same is timed for what it is.

    python packages/jmmmu/benchmarks/rescoring.py [--quick] [--repeats N]

Seconds are wall time; those of the processor are beside them, for machines that have other work. The last line is one
JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from paperhooks import evaluate
from paperhooks.generation import CallableBackend, Request
from paperhooks_jmmmu import make_sample

#: Of 28 subjects, so that there are 1,320 questions with some left over.
PER_SUBJECT: Final = 48
QUESTIONS: Final = 1320
QUICK: Final = 280

#: How models answer that were told to give a letter: mostly with the letter.
FORMS: Final = (
    *("{}",) * 6, "{}.", "({})", "答えは{}です。", "正解は「{}」です。", "**{}**", "{}. 図から読み取れます。",
    "図を見ると、{}が正しいことがわかります。\n\nしたがって、答えは{}です。", "申し訳ありませんが、お答えできません。",
)  # fmt: skip

#: What each process does; every one is given the folder of the run and that of the data.
IMPORTS: Final = "import json, sys, paperhooks, paperhooks_evaluation, paperhooks_jmmmu.method\n"
START: Final = f"{IMPORTS}from paperhooks import rescore"
RESCORE: Final = f"{IMPORTS}paperhooks.rescore(sys.argv[1], report=False)"
MODEL: Final = f"{IMPORTS}import paperhooks_testbed\nmodel = paperhooks_testbed.load_vlm()\n"
ANSWERED: Final = (
    "from paperhooks.generation import TransformersBackend\nbackend = TransformersBackend(*model)\n"
    "options = dict(limit=int(sys.argv[3]), max_new_tokens=1, batch_size=32, report=False)\n"
)
MODEL_ALONE: Final = f"{MODEL}{ANSWERED}"
RESUME: Final = (
    f"{MODEL_ALONE}paperhooks.evaluate(backend, None, 'jmmmu', data=sys.argv[2], out=sys.argv[1], **options)"
)
REPLAYED: Final = (
    f"{IMPORTS}from paperhooks.generation import ReplayBackend\n"
    "paperhooks.evaluate(ReplayBackend(sys.argv[4]), None, 'jmmmu', data=sys.argv[2], out=sys.argv[1], "
    "limit=int(sys.argv[3]), report=False)"
)
LOADED: Final = "\nprint(json.dumps([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules]))"


def seconds(code: str, *words: object) -> tuple[float, float, list[str]]:
    """Wall seconds and processor seconds of a process, and which heavy libraries it had loaded."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", code + LOADED, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used, json.loads(done.stdout.splitlines()[-1])


def in_turn(sides: dict[str, tuple[Any, ...]], repeats: int) -> dict[str, Any]:
    """Medians of every side, by wall and by processor, and what each had loaded."""
    found: dict[str, list[tuple[float, float, list[str]]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, words in sides.items():
            found[name].append(seconds(*words))
    figures: dict[str, Any] = {}
    for name, each in found.items():
        figures[f"{name}_s"] = median(one[0] for one in each)
        figures[f"{name}_cpu_s"] = median(one[1] for one in each)
        figures[f"{name}_loads"] = each[-1][2]
        loads = ", ".join(each[-1][2]) or "neither torch nor transformers nor datasets"
        wall, used = figures[f"{name}_s"], figures[f"{name}_cpu_s"]
        print(f"{name:<18} {wall:>6.2f} s, {used:>6.2f} s of the processor; loads {loads}", flush=True)
    return figures


def reply(request: Request, generator: random.Random) -> str:
    letter = generator.choice("ABCD")
    return generator.choice(FORMS).format(letter, letter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer questions, one round")
    parser.add_argument("--repeats", type=int, help="rounds (default: 5, quick: 1)")
    options = parser.parse_args()
    count, repeats = (QUICK, 1) if options.quick else (QUESTIONS, 5)
    repeats = options.repeats or repeats
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        data, scored, asked, replayed = (Path(folder, name) for name in ("data", "scored", "asked", "replayed"))
        make_sample(data, per_subject=PER_SUBJECT if count == QUESTIONS else 10)
        backend = CallableBackend(lambda request: reply(request, generator))
        result = evaluate(backend, None, "jmmmu", data=str(data), out=scored, limit=count, report=False)
        print(f"{result.documents} questions, {len(result.modes)} modes")
        stored = scored / "samples.jsonl"
        for code, out in ((RESUME, asked), (REPLAYED, replayed)):
            seconds(code, out, data, count, stored)
        figures = in_turn(
            {
                "start": (START, scored),
                "rescore": (RESCORE, scored),
                "model_alone": (MODEL_ALONE, asked, data, count),
                "resume": (RESUME, asked, data, count),
                "replay": (REPLAYED, replayed, data, count, stored),
            },
            repeats,
        )
    settings = {"quick": options.quick, "repeats": repeats, "questions": count, "modes": len(result.modes)}
    ratio = {"resume_ratio": figures["resume_s"] / figures["model_alone_s"]}
    ratio["resume_ratio_cpu"] = figures["resume_cpu_s"] / figures["model_alone_cpu_s"]
    figures |= ratio
    print(json.dumps(settings | {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}))


if __name__ == "__main__":
    main()
