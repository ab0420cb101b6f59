"""What a training step with a teacher costs, beside the way of the paper's official code.

Teacher and student of random weights see batches of 4 rows of 257 ids, at two vocabularies. Two ways compute the
Vanilla-KD loss with w = 0.5 and its gradients:

- official style, written out here from its description: both models with their heads, logits [B, T, V] converted to
  float32, softmax of the teacher, log-softmax of the student, the teacher's entropy for the log, means over rows;
- this package: ``Distil``, loss and gradient of the logits a chunk of positions at a time.

Losses and gradients have to agree, or nothing is reported.

    python packages/miniplm/benchmarks/distilling.py [--quick] [--rounds 3] [--chunk 128]

CPU seconds of one thread, medians of rounds in which the ways take turns; every memory figure comes from a process of
its own, as its peak above the loaded models. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from paperhooks import LossContext, attach
from paperhooks.testing import fresh_process, print_peak
from paperhooks.training import compute_loss
from paperhooks_miniplm import Distil, TrainingCollator, small_llama
from torch.nn import functional

VOCABULARIES: Final = (49_152, 151_936)
ROWS: Final = 4
LENGTH: Final = 256
WEIGHT: Final = 0.5
#: Of losses, and of each gradient's norm, as shares.
ALIKE: Final = 1e-4


def models(vocabulary: int, quick: bool) -> tuple[Any, Any]:
    """Student and teacher."""
    width, layers = (64, 1) if quick else (256, 4)
    make = partial(small_llama, vocabulary, positions=LENGTH + 1)
    return make(width, layers, inner=3 * width, seed=0), make(2 * width, 2 * layers, inner=6 * width, seed=1).eval()


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """Rows of the full length; token 0 ends documents."""
    rows = np.random.default_rng(0).integers(1, vocabulary, (ROWS, LENGTH + 1))
    rows[:, ::97] = 0
    return TrainingCollator(eos_id=0, max_length=LENGTH)(list(rows))


def official(student: Any, teacher: Any, given: dict[str, torch.Tensor]) -> float:
    """Loss, with gradients on the student."""
    inputs = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
    labels, logits = given["labels"][:, 1:], student(**inputs, use_cache=False).logits[:, :-1].float()
    with torch.no_grad():
        known = teacher(**inputs, use_cache=False).logits[:, :-1]
    mask = (labels != -100).float()
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    probabilities = known.softmax(-1, dtype=torch.float32)
    logs = logits.log_softmax(-1, dtype=torch.float32)
    kd = -(probabilities * logs.masked_fill(torch.isinf(logits), 0)).sum(-1)
    with torch.no_grad():
        _ = -(probabilities * known.log_softmax(-1, dtype=torch.float32)).sum(-1)
    lm, distilled = (((each * mask).sum(1) / mask.sum(1)).mean() for each in (losses, kd))
    loss = (1 - WEIGHT) * lm + WEIGHT * distilled
    loss.backward()
    return loss.item()


def package(session: Any, student: Any, given: dict[str, torch.Tensor]) -> float:
    """The same with this package."""
    loss = compute_loss(session, LossContext(student, given, session))
    loss.backward()
    return loss.item()


def norms(student: Any, step: Callable[[], float]) -> tuple[float, list[float]]:
    """Loss and norms of the gradients of one step."""
    student.zero_grad(set_to_none=True)
    return step(), [float(p.grad.norm()) for p in student.parameters()]


def check_alike(found: list[tuple[float, list[float]]]) -> float:
    """Largest difference of both ways as a share; leaves with an error where they do not agree."""
    pairs = [(one, two) for one, two in zip([found[0][0], *found[0][1]], [found[1][0], *found[1][1]], strict=True)]
    worst = max(abs(one - two) / max(abs(one), 1e-12) for one, two in pairs)
    if not worst < ALIKE:
        raise SystemExit(f"losses or gradients of the two ways differ by {worst:.2g} of their size")
    return worst


def measure(vocabulary: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step and peaks of both ways."""
    student, teacher = models(vocabulary, options.quick)
    given, seconds = batch(vocabulary), {"official": [], "package": []}  # type: dict[str, Any], dict[str, list[float]]
    with attach(student, Distil(teacher, weight=WEIGHT, chunk=options.chunk)) as session:
        ways = {
            "official": partial(official, student, teacher, given),
            "package": partial(package, session, student, given),
        }
        worst = check_alike([norms(student, step) for step in ways.values()])
        for _ in range(options.rounds):
            for name, step in ways.items():
                student.zero_grad(set_to_none=True)
                begin = time.process_time()
                step()
                seconds[name].append(time.process_time() - begin)
    mib = {
        name: fresh_process(
            __file__,
            "--child",
            name,
            "--vocabulary",
            str(vocabulary),
            "--chunk",
            str(options.chunk),
            *["--quick"] * options.quick,
        )
        for name in ways
    }
    theirs, own = (median(seconds[name]) for name in ways)
    more, less = (mib[name]["mib"] for name in ways)
    print(f"{vocabulary} ids: {theirs:.2f} and {own:.2f} CPU s a step, {theirs / own:.2f}x; {more:.0f} and ", end="")
    print(f"{less:.0f} MiB, {more / less:.1f}x less; differ by {worst:.1e} at most", flush=True)
    return {
        f"official_s_{vocabulary}": theirs, f"package_s_{vocabulary}": own, f"speedup_{vocabulary}": theirs / own,
        f"speedup_{vocabulary}_min": min(seconds["official"]) / max(seconds["package"]),
        f"speedup_{vocabulary}_max": max(seconds["official"]) / min(seconds["package"]),
        f"official_mib_{vocabulary}": more, f"package_mib_{vocabulary}": less,
        f"memory_ratio_{vocabulary}": more / less,
    }  # fmt: skip


def child(options: argparse.Namespace) -> None:
    """One step in this process: prints its peak above the loaded models and their gradients."""
    student, teacher = models(options.vocabulary, options.quick)
    given = batch(options.vocabulary)
    for p in (*student.parameters(), *teacher.parameters()):
        p.detach().sum()
    for p in student.parameters():
        p.grad = torch.ones_like(p)  # both ways leave gradients, which are no part of the difference
    if options.child == "official":
        print_peak(lambda: official(student, teacher, given))
        return
    with attach(student, Distil(teacher, weight=WEIGHT, chunk=options.chunk)) as session:
        print_peak(lambda: package(session, student, given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller models, one round")
    parser.add_argument("--rounds", type=int, help="rounds of the timings (default: 3, quick: 1)")
    parser.add_argument(
        "--chunk", type=int, default=Distil.chunk, help="positions that a head of the package sees at once"
    )
    parser.add_argument("--child", choices=("official", "package"), help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    torch.set_num_threads(1)
    if options.child:
        child(options)
        return
    found: dict[str, Any] = {"quick": options.quick, "rounds": options.rounds}
    for vocabulary in VOCABULARIES:
        found |= measure(vocabulary, options)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
