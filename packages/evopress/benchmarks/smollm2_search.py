"""Searched against chosen by simpler means, on SmolLM2-135M-Instruct: depth, sparsity, bits, and a mixed budget.

Every setting is a target. Its searches (one a seed) and all baselines choose among the same levels, made from the same
calibration text (docstrings and help topics), and read as many tokens: a baseline that tries n choices reads 1/n of the
search's token-evaluations for each of them, as far as there is so much text. What was chosen is compared on text of
another kind (licences), sequence by sequence, with paired intervals.

    python packages/evopress/benchmarks/smollm2_search.py SETTING ... [--seeds 0 1 2] [--out FOLDER] [--device cuda]

Settings: depth-20, depth-33, sparsity-50, sparsity-70, bits-2.5, bits-3, bytes, and ``schedules`` (light against full
at 20 % depth), ``fitness`` (divergence against perplexity at 3 bits), ``start`` (the search after the additive model,
with as many and with ten times the tokens), ``pair`` (a choice and one that leaves out more and is better). Results are
written as they come, one JSON file a setting, and kept beside the levels: an interrupted run goes on. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Final

import paperhooks
import torch
from paperhooks import Artefact, CompressionRequest, ModelView, Traits, hookimpl
from paperhooks.hooks import Levels
from paperhooks.io import write_json
from paperhooks.reports import bootstrap_interval
from paperhooks_evopress import GPTQ, Evaluator, SparseGPT, SublayerDrop, Target, problem
from paperhooks_evopress.algorithm import Evolution, SearchSchedule, State, select
from paperhooks_evopress.baselines import BASELINES, Setting, baselines_of
from paperhooks_evopress.groundwork import decided_by
from paperhooks_evopress.history import evaluations
from paperhooks_evopress.schedules import scaled, schedule_of
from paperhooks_evopress.spaces import LevelProblem, Space, module_names

LENGTH: Final = 128  # tokens of a sequence
SEQUENCES: Final = 256  # of calibration text
HELD_OUT: Final = 64
#: Choices of a search that are compared at its end, and on how many tokens.
FINALISTS: Final = 4
COMPARED: Final = 8192
GROUP: Final = 64  # 576 columns cannot be divided into groups of 128
TARGETS: Final = {
    "depth-20": "depth=0.2",
    "depth-33": "depth=0.33",
    "sparsity-50": "sparsity=0.5",
    "sparsity-70": "sparsity=0.7",
    "bits-2.5": "bits=2.5",
    "bits-3": "bits=3",
    "bytes": "bytes=162MB",
}
#: What else is asked, and the target at which.
STUDIES: Final = {"schedules": "depth=0.2", "fitness": "bits=3", "start": "bits=3", "pair": "depth=0.2"}


def texts(file: Path | None, tokenizer: Any) -> dict[str, list[list[int]]]:
    """Token ids of calibration and held-out sequences; made once where a file is named."""
    if file is not None and file.exists():
        found: dict[str, list[list[int]]] = json.loads(file.read_text())
        return found
    from paperhooks_testbed import documents

    def pieces(domains: Sequence[str], number: int) -> list[list[int]]:
        rows: list[list[int]] = []
        for domain in domains:
            ids = [
                token for each in documents(min_chars=600, domain=domain)
                for token in tokenizer(each.text[:6000])["input_ids"]
            ]  # fmt: skip
            own = [ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH, LENGTH)]
            rows += Random(0).sample(own, number // len(domains))
        return rows

    found = {
        "calibration": pieces(("docstrings", "topics"), SEQUENCES),
        "held_out": pieces(("licences",), HELD_OUT),
    }
    if file is not None:
        write_json(file, found)
    return found


def levels_of(target: Target) -> list[Any]:
    if target.kind == "depth":
        return [SublayerDrop()]
    if target.kind == "sparsity":
        hidden = 576
        step = int(0.5 * min(target.value, 1 - target.value) / 8 * hidden**2)  # the official default
        return [SparseGPT(around=target.value, step=step)]
    if target.kind == "bits":
        return [GPTQ(group=GROUP)]
    return [SublayerDrop(), GPTQ(group=GROUP)]


@dataclass(eq=False)
class Study:
    """Everything that is asked of one target, as a compression method, so that it gets levels as a search does."""

    setting: str
    seeds: Sequence[int]
    held_out: Sequence[Sequence[int]]
    file: Path
    tokens: int = 250_000
    quick: bool = False
    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression(self, view: ModelView, request: CompressionRequest) -> Artefact:
        target = Target.of(request.target)
        sequences = [row for batch in request.batches(max_length=LENGTH) for row in batch["input_ids"].cpu()]
        held_out = [torch.tensor(row) for row in self.held_out]
        with request.levels(view, module_names(view, target)) as offered:
            names = [name for name, own in offered.items() if own]
        with request.levels(view, names) as levels:
            posed = problem(view, levels, target)
            begin = time.perf_counter()
            levels.prepare(self.file.parent / f"levels-{target}", decides=decided_by(sequences))
            seconds = time.perf_counter() - begin
            run = Run(self, posed, levels, view, sequences, held_out)
            run.note("levels", {"seconds": seconds, "units": len(posed.space.units)})
            getattr(run, {"schedules": "schedules", "fitness": "fitnesses", "start": "starts", "pair": "pair"}.get(
                self.setting, "comparison"
            ))()  # fmt: skip
            levels.restore()
            return request.artefact(view)


class Run:
    """A study of one problem, whose answers are kept as they come."""

    def __init__(
        self, study: Study, posed: LevelProblem, levels: Levels, view: ModelView, sequences: list[torch.Tensor],
        held_out: list[torch.Tensor],
    ) -> None:  # fmt: skip
        self.study, self.posed, self.levels = study, posed, levels
        # Choices of baselines differ in most matrices, which are unpacked anew for each chunk.
        options: dict[str, Any] = {"limit": 2**31, "batch_tokens": 512 if view.model.device.type == "cpu" else None}
        self.evaluator = Evaluator(view, levels, sequences, **options)
        self.perplexity = Evaluator(view, levels, sequences, fitness="perplexity", **options)
        self.judge = Evaluator(view, levels, held_out, **options)
        self.reader = Evaluator(view, levels, held_out, fitness="perplexity", **options)
        self.results: dict[str, Any] = json.loads(study.file.read_text()) if study.file.exists() else {}
        space = posed.space
        out = [sum(unit.exchange == kind for unit in space.units) for kind in space.budgets]
        gone = [have - int(keep) for have, keep in zip(out, space.budgets.values(), strict=True)]
        self.blocks = {"blocks": max(out, default=0), "removed": max(gone, default=0)}

    def schedule(self, name: str, share: float | None = None) -> SearchSchedule:
        """A schedule by name: the quick one within the tokens of the study, others at a share of theirs."""
        found = schedule_of(name, self.posed.target.kind, **self.blocks)
        if self.study.quick:
            found = replace(found, generations=2, initial=2)
        if share is not None:
            return scaled(found, share)
        most = (self.study.tokens - found.initial * found.initial_tokens) // found.generation_evaluations
        return replace(found, generations=max(1, min(most, found.generations))) if name == "quick" else found

    def note(self, name: str, told: Mapping[str, Any]) -> None:
        self.results[name] = dict(told)
        write_json(self.study.file, self.results)

    def judged(self, name: str, state: State, told: Mapping[str, Any]) -> None:
        """Keep a choice with what it gives on text of another kind, by sequence, and on all calibration text."""
        choice = self.posed.choice(state)
        kl = self.judge.by_sequence([choice])[0]
        self.note(name, {
            **told,
            "held_out_kl": fmean(kl),
            "held_out_perplexity": self.reader.score([choice], self.reader.tokens, 0)[0],
            "calibration_kl": self.evaluator.score([choice], min(COMPARED, self.evaluator.tokens), 0)[0],
            "bytes": self.levels.cost(choice, "bytes", whole=True) if self.posed.kind != "count" else None,
            "state": list(state),
            "by_sequence": [round(value, 6) for value in kl],
        })  # fmt: skip
        print(f"{self.study.setting}: {name}: {fmean(kl):.4f}", flush=True)

    def search(
        self, name: str, schedule: SearchSchedule, seed: int, *, start: State | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:  # fmt: skip
        if name in self.results:
            return
        judge = evaluator or self.evaluator

        def score(states: Sequence[State], tokens: int, draw: int, survivors: int | None) -> list[float]:
            return judge.score([self.posed.choice(state) for state in states], tokens, draw, survivors)

        begin = time.perf_counter()
        evolution = Evolution(self.posed.space, schedule, score, seed, start=start)
        for _ in evolution.run():
            pass
        finalists, read = evolution.finalists(FINALISTS), min(COMPARED, judge.tokens)
        values = judge.score([self.posed.choice(state) for state in finalists], read, 0)
        told = {
            "tokens": evaluations(evolution.history) + read * len(finalists),
            "seconds": time.perf_counter() - begin,
            "generations": len(evolution.history) - 1,
        }
        self.judged(name, finalists[select(values, 1)[0]], told)

    def baseline(self, name: str, tokens: int, evaluator: Evaluator | None = None, label: str | None = None) -> None:
        label = label or name
        if label in self.results:
            return
        judge = evaluator or self.evaluator
        units = len(self.posed.space.units)
        tries = {
            "one_shot": units,
            "one_shot_layers": units // 2,
            "greedy": self._greedy(1),
            "greedy_layers": self._greedy(2),
            "additive": 1 + sum(len(unit.choices) for unit in self.posed.space.units),
            "random": 32,
            "owl": 20,
        }.get(name, 1)
        each = max(32, min(judge.tokens, tokens // tries))
        setting = Setting(self.levels, self.posed, judge, each, seed=0)
        begin = time.perf_counter()
        found = BASELINES[name](setting)
        told = {"tokens": found.tokens, "seconds": time.perf_counter() - begin}
        self.judged(label, found.state, told)

    def _greedy(self, together: int) -> int:
        """How many choices a greedy removal tries."""
        blocks, removed = self.blocks["blocks"], self.blocks["removed"]
        if together == 2:
            return sum(blocks - gone for gone in range(removed)) or 1
        return sum(2 * blocks - gone for gone in range(2 * removed)) or 1

    # -- what is asked -------------------------------------------------------------------------------------------------

    def comparison(self) -> None:
        """All baselines and the search; of levels and bits also after the additive model, from its choice on."""
        schedule = self.schedule("quick")
        for name in baselines_of(self.posed.target.kind):
            self.baseline(name, schedule.evaluations)
        if self.posed.target.kind == "depth":  # Shortened Llama
            for name in ("one_shot", "one_shot_layers"):
                self.baseline(name, schedule.evaluations, self.perplexity, f"{name}_perplexity")
        for seed in self.study.seeds:
            self.search(f"search-{seed}", schedule, seed)
        if self.posed.target.kind != "depth":  # there the additive model is among the worst
            warm = self._additive()
            for seed in self.study.seeds:
                self.search(f"after_additive-{seed}", schedule, seed, start=warm)

    def _additive(self) -> State:
        """What the additive model chose."""
        state = tuple(self.results["additive"]["state"])
        return state if self.posed.space.feasible(state) else self.posed.space.repair(state, Random(0))

    def schedules(self) -> None:
        """The lightweight schedule against the paper's, both at the same share of their tokens, and at equal tokens."""
        full = self.schedule("paper")
        share = 0.8e6 / full.evaluations
        light = self.schedule("light")
        for seed in self.study.seeds:
            self.search(f"full-{seed}", scaled(full, share), seed)
            self.search(f"light-{seed}", scaled(light, share), seed)
            self.search(f"light_equal-{seed}", scaled(light, min(1.0, 0.8e6 / light.evaluations)), seed)

    def fitnesses(self) -> None:
        """Divergence against perplexity as what is searched for."""
        schedule = self.schedule("quick")
        for seed in self.study.seeds:
            self.search(f"kl-{seed}", schedule, seed)
            self.search(f"perplexity-{seed}", schedule, seed, evaluator=self.perplexity)

    def starts(self) -> None:
        """The additive model; then the search from an even choice and from the additive one, and with ten times as
        many tokens as the model took."""
        quick = self.schedule("quick")
        self.baseline("additive", quick.evaluations)
        tokens = self.results["additive"]["tokens"]
        equal = replace(quick, generations=max(1, tokens // quick.generation_evaluations), exhaustive=0)
        tenfold = replace(equal, generations=10 * equal.generations)
        warm = self._additive()
        self.note("about", {"equal": equal.evaluations, "tenfold": tenfold.evaluations})
        for seed in self.study.seeds:
            self.search(f"equal-{seed}", equal, seed)
            self.search(f"after-{seed}", equal, seed, start=warm)
            self.search(f"after_tenfold-{seed}", tenfold, seed, start=warm)
            self.search(f"tenfold-{seed}", tenfold, seed)

    def pair(self) -> None:
        """The worst choice of 3 attentions and 3 MLPs that a search finds, and what leaving out more makes of it."""
        space = self.posed.space
        classes = dict.fromkeys(unit.exchange for unit in space.units)
        have = {kind: sum(unit.exchange == kind for unit in space.units) for kind in classes}
        few = Space(space.units, None, {kind: float(have[kind] - 3) for kind in classes})

        def worst(states: Sequence[State], tokens: int, draw: int, survivors: int | None) -> list[float]:
            del survivors  # every value is wanted, for the worst are what an early stop leaves
            return [-each for each in self.evaluator.score([self.posed.choice(s) for s in states], tokens, draw)]

        for seed in self.study.seeds:
            if f"superset-{seed}" in self.results:
                continue
            evolution = Evolution(few, self.schedule("quick"), worst, seed)
            for _ in evolution.run():
                pass
            assert evolution.best is not None
            state, removed = evolution.best, []
            self.judged(f"subset-{seed}", state, {"removed": 6})
            best = self.evaluator.score([self.posed.choice(state)], 1024, 0)[0]
            for _ in range(8):  # what is left out next is what helps most, as long as anything helps
                tries = [
                    (*state[:at], len(unit.choices) - 1, *state[at + 1 :])
                    for at, unit in enumerate(space.units)
                    if state[at] == 0
                ]
                if not tries:
                    break
                scores = self.evaluator.score([self.posed.choice(each) for each in tries], 1024, 0, 1)
                if min(scores) >= best:
                    break
                best, state = min(scores), tries[scores.index(min(scores))]
                removed.append(best)
            self.judged(f"superset-{seed}", state, {"removed": 6 + len(removed)})


def difference(results: Mapping[str, Any], first: Sequence[str], second: Sequence[str]) -> dict[str, float]:
    """Mean held-out divergence of the first minus that of the second, averaged over runs, paired by sequence."""
    rows = list(zip(*(results[name]["by_sequence"] for name in first), strict=True))
    others = list(zip(*(results[name]["by_sequence"] for name in second), strict=True))
    pairs = [fmean(a) - fmean(b) for a, b in zip(rows, others, strict=True)]
    low, high = bootstrap_interval(fmean, pairs)
    return {"value": fmean(pairs), "low": low, "high": high, "n": len(pairs)}


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Means over seeds, and what each kind of answer differs by from the searched ones."""
    found: dict[str, Any] = {}
    runs: dict[str, list[str]] = {}
    for name, told in results.items():
        if "by_sequence" in told:
            runs.setdefault(name.rpartition("-")[0] or name, []).append(name)
    for kind, names in runs.items():
        found[kind] = {
            key: fmean(results[name][key] for name in names)
            for key in ("held_out_kl", "held_out_perplexity", "calibration_kl")
            if all(math.isfinite(results[name][key]) for name in names)
        }
        found[kind]["by_seed"] = [round(results[name]["held_out_kl"], 5) for name in names]
    references = [kind for kind in ("search", "full", "kl", "after_tenfold", "superset") if kind in runs]
    for kind in runs if references else ():
        if kind != references[0]:
            found[kind]["minus_" + references[0]] = difference(results, runs[kind], runs[references[0]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", choices=[*TARGETS, *STUDIES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("smollm2-search"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=Path, help="token ids, written there when the file does not exist")
    parser.add_argument("--model", type=Path, help="folder of the model; by default that of the test bed")
    parser.add_argument("--tokens", type=int, default=250_000, help="token-evaluations of a search")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two generations")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = _model(options.model)
    found = texts(options.texts, tokenizer)
    model.to(options.device)
    line: dict[str, Any] = {}
    for name in options.settings:
        file = options.out / f"{name}.json"
        study = Study(name, options.seeds, found["held_out"], file, options.tokens, options.quick)
        target = Target.of({**TARGETS, **STUDIES}[name])
        artefact = paperhooks.compress(
            model, study, data=found["calibration"], target=target, levels_from=levels_of(target), progress=False
        )
        artefact.undo()
        line[name] = summary(json.loads(file.read_text()))
    print(json.dumps(line))


def _model(folder: Path | None) -> tuple[Any, Any]:
    if folder is None:
        from paperhooks_testbed import load_smollm2

        return load_smollm2()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    main()
