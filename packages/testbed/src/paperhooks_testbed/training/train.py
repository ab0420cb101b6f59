"""Training the tiny vision-language model: ``python -m paperhooks_testbed.training --out RUN``, then ``--export``.

1. Warm-up: patches learn to name what is on them (see ``training/warmup.py``); the decoder does not run.
2. Main phase: answer tokens only, many questions behind one image, from two objects a scene to six. In part of
   the images the questions cannot see the image in the first one or two layers, so the model learns to read it
   deeper down, as large models do.
3. Drills: scenes of up to nine objects, with a large share of two-step questions and of their parts (see
   ``paperhooks_testbed.training.drills`` and ``paperhooks_testbed.training.neighbours``).

Every step is a function of the seed and its number, and the checkpoint holds all that a step changes, so an
interrupted run continues with ``--resume`` as if nothing had happened. The learning rate is constant after a short
rise and falls over the last steps: before that, a run can be lengthened or shortened with another ``--steps``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from paperhooks.errors import DataError
from paperhooks.io import write_json

from paperhooks_testbed.pretrained import vlm_folder
from paperhooks_testbed.training.checkpoint import load_checkpoint, save_checkpoint
from paperhooks_testbed.training.curriculum import Curriculum
from paperhooks_testbed.training.devset import DevSet
from paperhooks_testbed.training.export import export
from paperhooks_testbed.training.trainstate import Settings, TrainState

__all__ = ["CHECKPOINT", "RUN", "Habits", "export_run", "main", "open_run", "train"]

log = logging.getLogger("paperhooks.testbed.train")

CHECKPOINT = "checkpoint.safetensors"
RUN = "run.json"
QUICK = Settings(
    steps=6, warmup_steps=3, warmup_pictures=2, rise=2, fall=2, curriculum=Curriculum(pictures=2, questions=5)
)


@dataclasses.dataclass(frozen=True)
class Habits:
    """How often a run logs, saves and checks itself, in steps; nothing here changes the weights."""

    log: int = 50
    save: int = 100
    check: int = 250
    profile: int = 1000
    dev_images: int = 60


def train(out: Path, settings: Settings, resume: bool = False, habits: Habits | None = None) -> TrainState:
    """Train until ``settings.steps``, writing ``checkpoint.safetensors`` and ``run.json`` into ``out`` as it goes.

    :raises DataError: if ``out`` holds a run and ``resume`` is false, or the run there had other settings.
    """
    habits = habits or Habits()
    state, seconds = open_run(out, settings, resume)
    dev = DevSet(habits.dev_images)
    started, begun, losses = time.monotonic(), state.step, []
    while state.step < settings.steps:
        loss, details = state.advance()
        losses.append(loss)
        elapsed = time.monotonic() - started
        if state.step % habits.log == 0:
            extra = "".join(f" {name} {value:.3f}" for name, value in details.items())
            pace = elapsed / (state.step - begun)
            log.info("step %d loss %.4f (%.2f s a step)%s", state.step, sum(losses) / len(losses), pace, extra)
            losses = []
        if state.step % habits.save == 0 or state.step == settings.steps:
            _save(out, state, seconds + elapsed)
        if state.step > settings.warmup_steps and state.step % habits.check == 0:
            _check(state, dev, state.step % habits.profile == 0)
    return state


def open_run(out: Path, settings: Settings, resume: bool) -> tuple[TrainState, float]:
    """The state to go on from, and the seconds that the run has taken so far."""
    out.mkdir(parents=True, exist_ok=True)
    path, state = out / CHECKPOINT, TrainState(settings)
    if not path.exists():
        return state, 0.0
    if not resume:
        raise DataError(f"{out} already holds a run; add --resume to go on with it, or choose another folder")
    run = _read(out / RUN)
    for key, value in dataclasses.asdict(settings).items():
        if key != "steps" and run["settings"].get(key) != json.loads(json.dumps(value)):
            raise DataError(f"{out} was trained with {key}={run['settings'].get(key)}; this run asks for {key}={value}")
    state.step = load_checkpoint(path, state.modules, state.optimizers)
    log.info("resumed at step %d", state.step)
    return state, float(run["seconds"])


def export_run(out: Path, folder: Path, questions: int = 1000) -> dict[str, Any]:
    """Turn the run's checkpoint into a model folder with its card; returns what the run says of itself.

    :raises DataError: if ``out`` holds no run.
    """
    run = _read(out / RUN)
    stored = dict(run["settings"])
    state = TrainState(Settings(**{**stored, "curriculum": Curriculum(**stored["curriculum"])}))
    run["steps"] = load_checkpoint(out / CHECKPOINT, state.modules, state.optimizers)
    measured = export(state.model, run, folder, questions)
    for kind, share in measured.own.items():
        log.info("%s: %.3f of %d", kind, share.value, share.total)
    log.info("with noise: %.3f", measured.noise["all"].value)
    log.info("dropped before layer r: %s", " ".join(f"{share.value:.3f}" for share in measured.depth))
    return run


def _save(out: Path, state: TrainState, seconds: float) -> None:
    save_checkpoint(out / CHECKPOINT, state.step, state.modules, state.optimizers)
    settings = dataclasses.asdict(state.settings)
    run = {"settings": settings, "steps": state.step, "seconds": round(seconds), "threads": torch.get_num_threads()}
    write_json(out / RUN, run)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path} is missing: {path.parent} holds no training run")
    return json.loads(path.read_text(encoding="utf-8"))


def _check(state: TrainState, dev: DevSet, profile: bool) -> None:
    shares = dev.accuracy(state.model)
    log.info("step %d dev %s", state.step, " ".join(f"{name} {value:.3f}" for name, value in shares.items()))
    if profile:
        layers = range(len(state.model.model.language_model.layers))
        values = [dev.accuracy(state.model, r)["all"] for r in layers]
        log.info("step %d dev, image dropped before layer r: %s", state.step, " ".join(f"{v:.3f}" for v in values))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.export is not None:
        export_run(options.out, options.export)
        return 0
    settings = QUICK if options.quick else Settings(seed=options.seed)
    if options.steps is not None:
        settings = dataclasses.replace(settings, steps=options.steps)
    habits = Habits(log=1, save=2, check=5, profile=5, dev_images=4) if options.quick else Habits()
    train(options.out, settings, options.resume, habits)
    return 0


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser("python -m paperhooks_testbed.training", description=summary, epilog=rest)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    parser.add_argument("--steps", type=int, help=f"all steps of the run (default {Settings.steps})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few small steps, to see that everything runs")
    parser.add_argument(
        *("--export",),
        type=Path,
        nargs="?",
        const=vlm_folder(),
        metavar="DIR",
        help="do not train: write the run's model and its measured card into DIR (default: into the package)",
    )
    return parser
