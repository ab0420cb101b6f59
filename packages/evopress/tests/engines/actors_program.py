"""A search, and again with other numbers of Ray actors: ``python actors_program.py OUT TARGET ACTORS,... KILLS``.

OUT is a folder of run folders, each named by its number of actors, or ``-`` for none. A thread kills KILLS actors, each
while it scores. Prints a line of JSON a search: what was found, or the error.
"""

from __future__ import annotations

import json
import sys
import time
from threading import Thread
from typing import Any

import paperhooks
import psutil
import ray
import torch
from paperhooks import DataError
from paperhooks.io import model_digest, plain
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks_evopress import EvoPress

#: What Ray calls the process of an actor at work.
AT_WORK = "ray::CandidateScorer.score"


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (20 + i,), generator=generator).tolist() for i in range(24)]


class Killer(Thread):
    """Kills actors at work."""

    def __init__(self, kills: int) -> None:
        super().__init__(daemon=True)
        self.kills, self.killed = kills, set[int]()

    def run(self) -> None:
        while len(self.killed) < self.kills:
            for each in psutil.process_iter(["pid", "cmdline"]):
                if each.info["pid"] not in self.killed and " ".join(each.info["cmdline"] or ()).startswith(AT_WORK):
                    each.kill()
                    self.killed.add(each.info["pid"])
                    break
            time.sleep(0.001)


def main(out: str, target: str, counts: str, kills: int) -> None:
    torch.set_num_threads(1)
    killer = Killer(kills)
    killer.start()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    for actors in map(int, counts.split(",")):
        model = tiny_llama(layers=3)
        before = fingerprint(model)
        search = EvoPress(schedule="quick", generations=6, check_model=False, actors=actors)
        folder = None if out == "-" else f"{out}/{actors}"
        told: dict[str, Any]
        try:
            artefact = paperhooks.compress(model, search, data=texts(), target=target, out=folder, progress=False)
        except DataError as error:
            told = {"error": str(error)}
        else:
            told = {key: artefact.data[key] for key in ("levels", "final", "first", "cost", "evaluations")}
            told["weights"] = plain(model_digest(model))
            artefact.undo()
        assert fingerprint(model) == before
        print(json.dumps({"found": told, "killed": len(killer.killed)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
