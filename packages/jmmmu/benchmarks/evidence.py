"""The figures of claims.toml: parity, the published table, how replies are read, luck, and a hidden stop string.

Everything is counted on the files in ``tests/reference``: inputs written for this project, with what the published code
made of them. Nothing is measured in time; it takes a few seconds.

    python packages/jmmmu/benchmarks/evidence.py [--quick]

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import pstdev
from typing import Any

from paperhooks.reports import wilson_interval
from paperhooks_jmmmu.algorithm import chance, drawn_letters, luck
from paperhooks_jmmmu.answers import (
    judge_open,
    letters_of,
    parse_choice,
    parse_choice_lmms_mmmu,
    parse_choice_mmmu,
    parse_choice_pro,
    parse_choice_robust,
    parse_open,
    parse_open_mmmu,
)
from paperhooks_jmmmu.data import DOMAINS, SUBJECTS

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"
#: Columns of the published table that add up to another one.
SUMS = {
    "ca": ("art_psychology", "business", "science", "medicine", "tech_eng"),
    "cs": ("japanese_art", "japanese_heritage", "japanese_history", "world_history"),
    "overall": ("ca", "cs"),
}


def reference(name: str) -> Any:
    """A file of the reference values."""
    return json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))


def parity() -> dict[str, int]:
    """Counts of letters (with their rules, for JMMMU's parser) and verdicts that differ from the published code's."""
    choices, opens = reference("mc_cases"), reference("open_cases")
    wrong = {"jmmmu": 0, "jmmmu_pro": 0, "mmmu": 0, "lmms_mmmu": 0, "open": 0, "open_mmmu": 0}
    for case in choices["cases"]:
        reply, options = case["response"], choices["docs"][case["doc"]]["options"]
        wrong["jmmmu"] += parse_choice(reply, options) != (case["jmmmu"], case["rule"])
        wrong["jmmmu_pro"] += (parse_choice_pro(reply, options).letter or "X") != case["jmmmu_pro"]
        wrong["mmmu"] += parse_choice_mmmu(reply, options).letter != case["mmmu"]
        wrong["lmms_mmmu"] += parse_choice_lmms_mmmu(reply, options).letter != case["lmms_mmmu"]
    for case in opens["cases"]:
        for column, parse, name in (("jmmmu", parse_open, "open"), ("mmmu", parse_open_mmmu, "open_mmmu")):
            answers = parse(case["response"])
            verdicts = "".join("01"[judge_open(answers, gold)] for gold in opens["golds"])
            wrong[name] += sum(a != b for a, b in zip(verdicts, case[f"{column}_correct"], strict=True))
    return {"choices": len(choices["cases"]), "verdicts": len(opens["cases"]) * len(opens["golds"]), **wrong}


def options_of(names: Iterable[str]) -> list[int]:
    """The number of options of every question, 0 for an open one."""
    return [
        k
        for name in names
        for k in [0] * SUBJECTS[name].opens + [k for k, n in SUBJECTS[name].options.items() for _ in range(n)]
    ]


def random_row() -> dict[str, float]:
    """Percent that random letters are expected to score."""
    parts = {"overall": list(SUBJECTS), **DOMAINS}
    for subset in ("CA", "CS"):
        parts[subset] = [name for name, one in SUBJECTS.items() if one.subset == subset]
    return {name: 100 * (chance(options_of(subjects)) or 0.0) for name, subjects in parts.items()}


def table() -> tuple[int, int]:
    """Rows of the published table whose columns add up in whole questions, and all rows of models."""
    published = reference("published_results")
    rows = [row["percent"] for row in published["rows"] if row["correct_counts"] is not None]
    return sum(all(adds_up(row, published["n"], *each) for each in SUMS.items()) for row in rows), len(rows)


def adds_up(percent: dict[str, float], n: dict[str, int], whole: str, parts: Sequence[str]) -> bool:
    """Whether some whole numbers of right answers give both the rounded parts and the rounded whole."""
    possible = {part: [c for c in range(n[part] + 1) if round(100 * c / n[part], 1) == percent[part]] for part in parts}
    sums = {sum(counts) for counts in itertools.product(*possible.values())}
    return any(abs(100 * c / n[whole] - percent[whole]) <= 0.06 for c in sums)


def shares(name: str) -> dict[str, int]:
    """How many replies of a list each parser reads as a human does, whole and cut at the first blank line."""
    found = reference(name)
    counts = {"n": len(found["cases"]), "official": 0, "robust": 0, "official_cut": 0, "robust_cut": 0}
    for case in found["cases"]:
        options = found["docs"][case["doc"]]
        for cut, reply in (("", case["response"]), ("_cut", case["response"].partition("\n\n")[0])):
            counts[f"official{cut}"] += parse_choice(reply, options).letter == case["expected"]
            counts[f"robust{cut}"] += parse_choice_robust(reply, options).letter == case["expected"]
    return counts


def spread(share: float, seeds: int) -> dict[str, float]:
    """The spread of the overall score, in points, over seeds of the drawn letters, beside the formula."""
    chosen = random.Random(0)
    sizes = [k for k in options_of(SUBJECTS) if k and chosen.random() < share]
    letters = [letters_of([""] * k) for k in sizes]
    golds = [chosen.choice(each) for each in letters]
    scores = []
    for seed in range(seeds):
        right = sum(a == b for a, b in zip(drawn_letters(letters, seed), golds, strict=True))
        scores.append(100 * right / 1320)
    measured = pstdev(scores)
    margin = 1.96 * measured / math.sqrt(2 * (seeds - 1))
    return {
        "unread": len(sizes), "seeds": seeds, "measured": measured, "low": measured - margin, "high": measured + margin,
        "formula": 100 * luck(sizes, 1320), "lowest": min(scores), "highest": max(scores),
    }  # fmt: skip


def main() -> None:
    """Print the figures, and all of them as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds")
    seeds = 100 if parser.parse_args().quick else 1000
    adding, rows = table()
    figures = {
        "parity": parity(),
        "random_row": random_row(),
        "table": {"rows": rows, "adding_up": adding},
        "own_replies": shares("own_replies"),
        "third_replies": shares("third_replies"),
        "fourth_replies": shares("fourth_replies"),
        "clear_replies": shares("robust_expectations"),
        "luck": {str(share): spread(share, seeds) for share in (0.3, 0.9)},
    }
    for name, one in figures.items():
        print(name, one)
    for name in ("own_replies", "third_replies", "fourth_replies", "clear_replies"):
        for which in ("official", "robust", "official_cut", "robust_cut"):
            low, high = wilson_interval(figures[name][which], figures[name]["n"])
            print(f"{name}, {which}: {figures[name][which] / figures[name]['n']:.4f} [{low:.4f}, {high:.4f}]")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
