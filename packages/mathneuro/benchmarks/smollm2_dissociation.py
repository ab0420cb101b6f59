"""Does pruning the entries of a skill remove that skill and spare the rest? Measured on SmolLM2-135M-Instruct.

The isolated set and its controls are pruned, and the negative log-likelihood of held-out texts of both sides is
measured before and after: for the target that of solutions given their questions, for the reference that of whole
texts. Every repeat identifies the set with other texts. Factors near 1 are searched on development items and reported
on others.

    python packages/mathneuro/benchmarks/smollm2_dissociation.py [--quick] [--out FOLDER]
    python packages/mathneuro/benchmarks/smollm2_dissociation.py --target gsm8k/train.jsonl \\
        --reference mmlu_validation.csv

Without files the target is generated word problems and the reference prose of Python's own documentation. Files hold
records as ``paperhooks_mathneuro.read_records`` takes them; used are those of at most 900 characters, without their
choices, which would be measured as well. The last line is one JSON object with every figure; with
``--out`` the report, the selections and every item's values stay, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from paperhooks_mathneuro import Effects, Study, read_records, study
from paperhooks_testbed import documents, load_smollm2, problems

#: PlacedRecords longer than this (in characters) are left out, so that a CPU can measure a hundred a side.
LONGEST = 900


def generated(n: int) -> tuple[list[Any], list[Any]]:
    """Word problems, and paragraphs of Python's help topics and docstrings."""
    maths = [{"question": p.question, "answer": p.solution} for p in problems(n, seed=0)]
    prose: list[Any] = []
    for document in documents(domain="topics"):
        blocks = (" ".join(block.split()) for block in document.text.split("\n\n"))
        prose += [block for block in blocks if 200 <= len(block) <= 600 and block[0].isalpha()]
    return maths, prose


def from_file(path: Path) -> list[Any]:
    """PlacedRecords of a file without choices, which would be measured as well."""
    records = [
        {key: value for key, value in record.items() if key != "choices" and not (key == "answer" and "qa" in record)}
        if isinstance(record, dict)
        else record
        for record in read_records(path)
    ]
    return [record for record in records if len(str(record)) <= LONGEST]


def figures(found: Study) -> dict[str, Any]:
    """The promised figures by ratio, set and side: change of the NLL with its interval."""
    target, _ = found.sides
    result: dict[str, Any] = {}
    for ratio, effects in found.effects.items():
        for one in effects.edited:
            key = f"{one.selection} @ {ratio:g}"
            for side in found.sides:
                change = effects.change(one, side)
                result[f"{key}, {side}"] = [change.delta, change.low, change.high]
            result[f"{key}, selectivity"] = list(effects.selectivity(one))
        result[f"share @ {ratio:g}"] = effects.find("isolated", 0.0).share
        base, random = (_delta(effects, name, target) for name in ("isolated", "random"))
        result[f"isolated / random @ {ratio:g}, {target}"] = base / random
        for repeat in range(sum(r == ratio for r, _ in found.repeats)):
            own = found.repeats[ratio, repeat]
            result[f"by repeat @ {ratio:g}, {repeat}"] = {
                one.selection: [_delta(own, one.selection, side) for side in found.sides] for one in own.edited
            }
    if found.noise is not None:
        result["noise share"] = found.noise.share
    result["found again"] = {one.n: one.found_again for one in found.stability}
    if found.development is not None and found.chosen is not None and found.reported is not None:
        result["chosen"] = [found.chosen.selection, found.chosen.scale, found.chosen.value]
        for change in found.development.changes():
            result[f"development: {change.selection} x {change.scale:g}, {change.side}"] = [
                change.delta, change.low, change.high,
            ]  # fmt: skip
        for change in found.reported.changes():
            key = f"reported: {change.selection} x {change.scale:g}, {change.side}"
            result[key] = [change.delta, change.low, change.high]
    return result


def _delta(effects: Effects, name: str, side: str) -> float:
    return float(effects.deltas(effects.find(name, 0.0), side).mean())


def main() -> None:
    """Run the study and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="texts of the skill")
    parser.add_argument("--reference", type=Path, help="other texts")
    parser.add_argument("--names", nargs=2, default=("maths", "general"), metavar=("TARGET", "REFERENCE"))
    parser.add_argument("--samples", type=int, default=48, help="texts a side to identify with")
    parser.add_argument("--items", type=int, default=100, help="texts a side to report on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--scales", type=float, nargs="*", default=[0.98, 0.99, 1.01, 1.02, 1.05, 1.1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="under a minute: few texts, one repeat, no factors")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.samples, options.items, options.repeats, options.ratios, options.scales = 8, 6, 1, [0.05], []
    if (options.target is None) != (options.reference is None):
        parser.error("give both --target and --reference, or neither")
    if options.target is None:
        target, reference = generated(4 * (options.samples + options.items))
    else:
        target, reference = from_file(options.target), from_file(options.reference)
    model, tokenizer = load_smollm2()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        found = study(
            model, target, reference, options.out or scratch, tokenizer=tokenizer, names=tuple(options.names),
            ratios=options.ratios, scales=options.scales, samples=options.samples, items=options.items,
            repeats=options.repeats, report=options.out is not None,
        )  # fmt: skip
    result = figures(found)
    width = max(map(len, result))
    for name, value in result.items():
        if isinstance(value, list) and len(value) == 3 and not isinstance(value[0], str):
            print(f"{name:<{width}}  {value[0]:+.4f} [{value[1]:+.4f}, {value[2]:+.4f}]")
        elif isinstance(value, float):
            print(f"{name:<{width}}  {value:.4f}")
    print(f"{time.perf_counter() - begin:.0f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
