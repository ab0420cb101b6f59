"""Iterations with SSO and with nothing but pairs by principles, where it is known which answers are right.

A model of a hundred thousand parameters knows the colours of sixteen things: told to be good it is right nearly always,
told to be bad nearly never, and told nothing it is right in six of ten (:mod:`paperhooks_sso.demo_model`). Every
iteration samples answers to all questions and trains on the pairs, of which nobody has told the model which is right.
Compared are, with the same base loss, rate, steps and seeds,

- pairs: the base loss on the plain prompt alone ("principle-based alignment");
- without W, without G: one of the two switched off;
- sso: with both, as the preset has it.

Told is after every iteration how often plain answers, good and bad answers are right, and in how many pairs the good
one is right and the bad one is not: the truth that a collapse loses; for the last one, the difference from the first
way over seeds, with a bootstrap interval.

    python packages/sso/benchmarks/controlled.py [--quick] [--seeds 0 1 2 3 4] [--rates 3e-4 1e-3] [--out FOLDER]

Half a minute a seed and way. Runs go on from the folder. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import tomlkit
import torch
from paperhooks.generation import TransformersBackend, ask
from paperhooks.io import write_json, write_text
from paperhooks.reports import bootstrap_interval
from paperhooks_sso.data import GuidedPrompt, RequestMaker, read_lines
from paperhooks_sso.demo_model import PRINCIPLE, PROMPTS, RIGHT, colour_model
from paperhooks_sso.loop import Pace, align
from paperhooks_sso.probes import AlarmLimits
from transformers import AutoModelForCausalLM

WAYS: Final[Mapping[str, dict[str, Any]]] = {
    "pairs": {"weight": False, "gap": False},
    "without W": {"weight": False},
    "without G": {"gap": False},
    "sso": {},
}
#: Nothing stops the loop: what goes wrong is what is looked for.
LIMITS: Final = AlarmLimits(
    min_pairs=1, cut=None, same=None, leaking=None, length_growth=None, gap_kept=None, margin_fall=None
)
COPIES: Final = 8  # of every question


def figures(folder: Path, plain: Mapping[str, Any]) -> dict[str, float]:
    """What one iteration has sampled, by the truth; every answer counts, also those that gave no pair.

    :param plain: answers to the questions without a principle, by the model that has sampled.
    """
    replies = {row["id"]: str(row["reply"]) for row in read_lines(folder / "samples" / "replies.jsonl", "replies")}
    replies |= {key: reply.text for key, reply in plain.items()}
    roles: dict[str, dict[str, bool]] = {"y+": {}, "y-": {}, "yo": {}}
    for key, reply in replies.items():
        prompt, _, role = key.rpartition("/")
        roles[role][prompt] = RIGHT[prompt.partition(" #")[0]] in reply.split()
    ordered = [roles["y+"][prompt] and not right for prompt, right in roles["y-"].items()]
    found = {
        "plain": fmean(roles["yo"].values()), "good": fmean(roles["y+"].values()), "bad": fmean(roles["y-"].values()),
        "pairs_right": fmean(ordered),
        "length": fmean(len(reply.split()) for key, reply in replies.items() if key.endswith("/y+")),
    }  # fmt: skip
    stages = json.loads((folder / "result.json").read_text())["results"]
    probes = stages.get("before", {}).get("probes", {})
    gap = {"gap": (probes["chosen_gap"] + probes["rejected_gap"]) / 2} if probes else {}
    return {**found, **gap, "same": stages["pairs"]["same"]}


def run(way: str, preset: str, rate: float, seed: int, iterations: int, out: Path) -> list[dict[str, float]]:
    """The figures of every iteration, and of one more in which nothing is trained."""
    bank = out / "principles.toml"
    texts = {"adjectives": list(PRINCIPLE.adjectives), "good": PRINCIPLE.good, "bad": PRINCIPLE.bad}
    write_text(bank, tomlkit.dumps({PRINCIPLE.feature: texts}))
    model, tokenizer = colour_model(seed)
    prompts = [{"prompt": prompt, "id": f"{prompt} #{copy}"} for copy in range(COPIES) for prompt in PROMPTS]
    folder = out / f"{way}-{preset}-{rate:g}-{seed}".replace(" ", "-")
    objective = {**WAYS[way]}
    given: dict[str, Any] = {
        "preset": preset, "objective": objective, "features": [PRINCIPLE.feature], "principles": [str(bank)],
        "feature_number": 1, "concision": 0.0, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16,
        "keep_cut": True, "drop_leaks": False, "batch": 8, "learning_rate": rate, "seed": seed, "limits": LIMITS,
        "pace": Pace(sample_batch=128, micro_batch=8), "report": False, "tokenizer": tokenizer, "out": folder,
    }  # fmt: skip
    align(model, prompts, iterations=iterations, **given)
    align(model, prompts, iterations=iterations + 1, until="pairs", **given)
    found = []
    for number in range(1, iterations + 2):
        at = folder / f"iteration-{number}"
        if number > 1:
            model = AutoModelForCausalLM.from_pretrained(folder / f"iteration-{number - 1}" / "checkpoint")
        asked = [GuidedPrompt.from_record(each) for each in read_lines(at / "asked.jsonl")]
        requests = RequestMaker(seed, number, 1.0, 1.0, 16).answers(asked, ("yo",))
        found.append(
            figures(
                at, ask(TransformersBackend(model, tokenizer), requests, out=folder / f"plain-{number}", batch_size=128)
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one iteration")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--preset", default="v1-ipo")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--out", type=Path, help="where runs and results are kept; nowhere without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, iterations = ([0], 1) if options.quick else (options.seeds, options.iterations)
    line: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out: Path = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        for rate in options.rates:
            for way in options.ways:
                runs = []
                for seed in seeds:
                    runs.append(run(way, options.preset, rate, seed, iterations, out))
                    told = " ".join(f"{each['plain']:.2f}/{each['pairs_right']:.2f}" for each in runs[-1])
                    print(f"{options.preset} {rate:g} {way} {seed}: plain right/pairs right {told}", flush=True)
                line[f"{options.preset} {rate:g} {way}"] = _summary(runs)
                _compare(line, f"{options.preset} {rate:g} ", way)
                if options.out:
                    write_json(out / f"controlled-{options.preset}.json", line)
    print(json.dumps(line))


def _summary(runs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Means over seeds by iteration, and the values of the last one."""
    steps = [[run[at] for run in runs] for at in range(len(runs[0]))]
    return {
        "iterations": [{name: round(fmean(each[name] for each in step), 4) for name in step[0]} for step in steps],
        "last": {name: [round(each[name], 4) for each in steps[-1]] for name in steps[-1][0]},
    }


def _compare(line: dict[str, Any], prefix: str, way: str) -> None:
    """Add how far the last iteration is from that of the pairs alone: the mean over seeds, and its interval."""
    own, base = line[prefix + way], line.get(f"{prefix}pairs")
    if way == "pairs" or base is None:
        return
    own["more_than_pairs"] = found = {}
    for name, values in own["last"].items():
        apart = [value - other for value, other in zip(values, base["last"][name], strict=True)]
        low, high = bootstrap_interval(fmean, apart)
        found[name] = [round(value, 4) for value in (fmean(apart), low, high)]
        print(f"  {way} - pairs, {name}: {found[name][0]:+.3f} ({low:+.3f} to {high:+.3f})", flush=True)


if __name__ == "__main__":
    main()
