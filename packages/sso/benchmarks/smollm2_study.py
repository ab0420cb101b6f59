"""What SmolLM2-135M-Instruct makes of its own pairs: how many there are, and what training does to those that follow.

    python packages/sso/benchmarks/smollm2_study.py data [--prompts 100] [--out FOLDER]
    python packages/sso/benchmarks/smollm2_study.py generator [--seeds 0 1 2] [--out FOLDER]

``data``: a hundred questions with the principles of the bank, features asked of the model; told are the pairs that
are left, what was dropped and why, what the filter would keep, and how far the model itself tells the principles apart.

``generator``: pairs of one principle whose effect can be counted, Concision; a policy is trained on the same pairs,
with the same steps and rate, by SSO and by the base loss on the plain prompt alone, and asked other questions
afterwards. Told is of fresh answers how likely bad ones are under the plain prompt (on-policy-ness), both margins, and
in how many pairs the good answer is the shorter one.

Runs go on from the folder; results are written as they come. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from paperhooks.io import write_json
from paperhooks_sso.data import answer_means, filter_pairs, read_lines
from paperhooks_sso.loop import Pace, align, train_file
from paperhooks_sso.probes import AlarmLimits, probe_values
from paperhooks_testbed import load_smollm2

SUBJECTS: Final = (
    "a rainbow", "boiling an egg", "the moon", "a library card", "bread", "a bicycle", "rain", "a good night's sleep",
    "earthworms", "a birthday party", "the number zero", "train tickets", "honey", "a lighthouse", "chess", "the heart",
    "volcanoes", "a shopping list", "winter coats", "public parks", "soap", "a job interview", "salt", "sunflowers",
    "magnets",
)  # fmt: skip
ASKED: Final = (
    "What should a child know about {}?", "Write two sentences about {}.", "Give me one tip about {}.",
    "Why do people care about {}?", "Tell me something surprising about {}.", "Explain {} to a visitor from far away.",
)  # fmt: skip
#: Most tokens of an answer, by part. Many answers are longer; what is left of them still differs, so they are kept.
TOKENS: Final = {"data": 96, "generator": 48}
#: Questions that are trained on, one a step, and those that are asked afterwards.
TRAINED, FRESH = 24, 20
RATE: Final = 2e-5
LIMITS: Final = AlarmLimits(
    min_pairs=1, cut=None, same=None, leaking=None, length_growth=None, gap_kept=None, margin_fall=None
)
WAYS: Final[Mapping[str, dict[str, Any]]] = {"pairs": {"weight": False, "gap": False}, "sso": {}}
PACE: Final = Pace(sample_batch=24, micro_batch=1)


def questions() -> list[dict[str, str]]:
    """All questions: those that follow one another differ in both subject and form."""
    rows = [
        ASKED[(number + turn) % len(ASKED)].format(subject)
        for turn in range(len(ASKED))
        for number, subject in enumerate(SUBJECTS)
    ]
    return [{"id": str(at), "prompt": prompt} for at, prompt in enumerate(rows)]


def sampled(
    model: Any, tokenizer: Any, asked: Sequence[Any], tokens: int, out: Path, **options: Any
) -> tuple[list[Any], Any]:
    """The pairs of a model, with the report of them."""
    align(
        model, asked, tokenizer=tokenizer, out=out, iterations=1, until="pairs", max_new_tokens=tokens, keep_cut=True,
        limits=LIMITS, pace=PACE, report=False, **options,
    )  # fmt: skip
    folder = out / "iteration-1"
    report = json.loads((folder / "result.json").read_text())["results"]["pairs"]
    return read_lines(folder / "pairs.jsonl"), report


def data(model: Any, tokenizer: Any, number: int, out: Path) -> dict[str, Any]:
    """How the data stage fares."""
    records, report = sampled(model, tokenizer, questions()[:number], TOKENS["data"], out / "data", features="asked")
    means = answer_means(model, records, end=False)
    filtered = filter_pairs(means)[1]
    told = {name: report[name] for name in ("prompts", "kept", "dropped", "cut", "same", "leaking", "lengths")}
    sure = {
        name: sum(row[f"{answer}_{own}"] > row[f"{answer}_{other}"] for row in means) / len(means)
        for name, answer, own, other in (("chosen", "chosen", "good", "bad"), ("rejected", "rejected", "bad", "good"))
    }
    return {
        **told,
        "finished": sum("length" not in record["finish"].values() for record in records),
        "filter": asdict(filtered),
        "likelier under its own principle": sure,
        "probes": probe_values(means),
        "features": dict(Counter(name for record in records for name in record["features"])),
    }


def generator(model: Any, tokenizer: Any, seed: int, out: Path) -> dict[str, Any]:
    """Fresh pairs of the model as it was, and trained in every way on the same pairs."""
    asked, own, tokens = questions(), out / f"generator-{seed}", TOKENS["generator"]
    first = TRAINED * seed
    train, fresh = asked[first : first + TRAINED], asked[-FRESH:]
    options: dict[str, Any] = {
        "features": ["Concision"], "feature_number": 1, "concision": 0.0, "drop_leaks": False, "seed": seed
    }  # fmt: skip
    sampled(model, tokenizer, train, tokens, own / "train", **options)

    def measured(asking: Any, name: str) -> dict[str, float]:
        records, report = sampled(asking, tokenizer, fresh, tokens, own / name, **options)
        return {**_contrast(asking, model, records), "kept": report["kept"], "same": report["same"]}

    found = {"start": measured(model, "fresh-start")}
    for way, objective in WAYS.items():
        folder = own / f"trained-{way}"
        trained = train_file(
            model, own / "train" / "iteration-1" / "pairs.jsonl", tokenizer=tokenizer, out=folder, pace=PACE,
            limits=LIMITS, report=False, objective=objective, batch=1, learning_rate=RATE, seed=seed,
        )  # fmt: skip
        found[way] = measured(trained, f"fresh-{way}")
        write_json(out / f"generator-{seed}.json", found)
    for way in WAYS:
        shutil.rmtree(own / f"trained-{way}" / "checkpoint", ignore_errors=True)
    return found


def _contrast(asking: Any, start: Any, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of fresh pairs: probes under the model that wrote them and under the start, and which answer is the shorter."""
    mine, before = probe_values(answer_means(asking, records)), probe_values(answer_means(start, records))
    lengths = [(len(each["chosen_ids"]), len(each["rejected_ids"])) for each in records]
    return {
        **{name: mine[name] for name in ("rejected_likelihood", "chosen_likelihood", "good_margin", "bad_margin")},
        "rejected_likelihood_start": before["rejected_likelihood"],
        "gap": (mine["chosen_gap"] + mine["rejected_gap"]) / 2,
        "shorter": fmean((good < bad) + 0.5 * (good == bad) for good, bad in lengths),
        "chosen_length": fmean(good for good, _ in lengths), "rejected_length": fmean(bad for _, bad in lengths),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["data", "generator"])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="where runs and results are kept; nowhere without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    with tempfile.TemporaryDirectory() as temporary:
        out: Path = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "data": lambda: data(model, tokenizer, options.prompts, out),
            "generator": lambda: {str(seed): generator(model, tokenizer, seed, out) for seed in options.seeds},
        }
        line = parts[options.part]()
        write_json(out / f"{options.part}.json", line)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
