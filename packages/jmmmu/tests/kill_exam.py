"""A run of JMMMU that is killed at random moments and started again: ``python kill_exam.py KILLS SEED DATA FOLDER``.

Everything is imported once, and each run is a fork of this process. After every second kill the last line of the
responses is cut, as by a kill in the middle of writing it. Prints a line of JSON for each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from exam_runs import canned, quick, untimed
from paperhooks.generation import CallableBackend, Request
from paperhooks_jmmmu import Jmmmu

#: Seconds that an answer takes.
PAUSE = 0.005


def run(data: Path, out: Path, log: Path, kill_at: float | None = None) -> int:
    """Exit status of a run in a fork; the ids that it asks about go to ``log``.

    :param kill_at: after how many questions it is killed, and after which part of the time of one more.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            task = Jmmmu()
            replies = canned(task.documents(str(data)))

            def answer(request: Request) -> str:
                with log.open("a") as file:
                    file.write(f"{request.metadata['id']}\n")
                time.sleep(PAUSE)
                return replies[request.metadata["id"]]

            quick(CallableBackend(answer), None, task, data=data, out=out, batch_size=2)
            status = 0
        finally:
            os._exit(status)
    if kill_at is not None:
        while (
            len(asked(log)) < int(kill_at) and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(PAUSE / 4)
        time.sleep(kill_at % 1 * PAUSE)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def whole_ids(file: Path) -> list[str]:
    """The ids of the whole lines of a file of responses."""
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    return [row["id"] for row in map(json.loads, lines) if "id" in row]


def asked(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def main(kills: int, seed: int, data: Path, folder: Path) -> None:
    """Kill and start again so many times."""
    folder.mkdir()
    status = run(data, folder / "undisturbed", folder / "undisturbed.log")
    wanted, ids = untimed(folder / "undisturbed"), asked(folder / "undisturbed.log")
    scores = (folder / "undisturbed" / "scores.csv").read_bytes()
    draw = random.Random(seed)
    for number in range(kills):
        out, logs = folder / f"run-{number}", [folder / f"{number}-{part}.log" for part in "ab"]
        killed = run(data, out, logs[0], draw.uniform(0, len(ids)))
        samples = out / "samples.jsonl"
        before = whole_ids(samples)
        cut = number % 2 == 1 and len(before) > 1
        if cut:
            text = samples.read_bytes()
            start = text[:-1].rfind(b"\n") + 1
            samples.write_bytes(text[: draw.randrange(start + 1, len(text))])
        kept = whole_ids(samples)
        again = run(data, out, logs[1])
        found = {
            "killed": killed, "asked": len(asked(logs[0])), "kept": len(kept), "cut": cut, "status": [status, again],
            "asked_the_rest_once": sorted(asked(logs[1]) + kept) == sorted(ids),
            "same": untimed(out) == wanted and (out / "scores.csv").read_bytes() == scores,
        }  # fmt: skip
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
