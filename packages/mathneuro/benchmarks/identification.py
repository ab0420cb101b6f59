"""What finding the parameters of a skill costs, beside the way of the paper's official code, on SmolLM2-135M.

The official way is written out here from its description: the whole model with its head and with autograd reads one
text at a time, a hook on every linear layer makes |W| * norm, sums of the size of all weights are kept, and a sweep
does all of it again for every ratio. Word problems are the target, prose cut to the same lengths is the reference.
Before anything is measured, both ways have to isolate the same entries.

    python packages/mathneuro/benchmarks/identification.py [--quick] [--full] [--dtype bfloat16] [--samples 100]

CPU seconds of one thread; every memory figure comes from a process of its own, as its peak above the loaded model.
Without ``--full`` the sweep of the official way is computed from its measured parts. The last line is one JSON object
with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from typing import Any, Final, NamedTuple

import torch
from paperhooks.testing import fresh_process, print_peak
from paperhooks_mathneuro import Statistics, WeightSelection, collect, sweep
from paperhooks_testbed import documents, load_smollm2, problems
from torch import Tensor, nn
from transformers.utils import logging

RATIOS: Final = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15)
RATIO: Final = 0.05
SHORT: Final = 50
QUICK_LAYERS: Final = 10
ALIKE: Final = 0.9

Texts = Sequence[list[int]]


class Scale(NamedTuple):
    """How much is measured: texts and rounds of the timings, samples a side of comparison and memory."""

    texts: int
    rounds: int
    compared: int


@dataclass(eq=False)
class OfficialStyle:
    """Scores of one side in the official way; what it makes stays alive as long as this does, as it does there."""

    model: Any
    sums: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = ((name, each) for name, each in self.model.named_modules() if ".layers." in name)
        self.linear = {f"{name}.weight": each for name, each in layers if isinstance(each, nn.Linear)}

    def begin(self) -> None:
        """Start another side."""
        self.sums = {name: torch.zeros_like(each.weight.detach()) for name, each in self.linear.items()}

    def read(self, texts: Texts) -> None:
        """Add the scores of every text, one at a time."""
        with self._hooked():
            for ids in texts:
                self.model(torch.tensor([ids]))
                for name, total in self.sums.items():
                    total += self.products[name]

    def top(self, ratio: float) -> dict[str, Tensor]:
        """Masks of the largest scores of every matrix, in the dtype of the weights."""
        found = {}
        for name, total in self.sums.items():
            chosen = total.abs().flatten().topk(int(total.numel() * ratio)).indices
            mask = torch.zeros_like(total)
            mask.view(-1)[chosen] = 1
            found[name] = mask
        return found

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, each in self.linear.items():
                stack.callback(each.register_forward_hook(partial(self._score, name)).remove)
            yield

    def _score(self, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        norms = args[0].detach().norm(p=2, dim=1).to(torch.bfloat16)
        weight: Any = module.weight
        self.products[name] = weight.detach().abs() * norms


def multiplier(target: Mapping[str, Tensor], reference: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The float32 factors by which the official way edits the weights."""
    found = {}
    for name, mask in target.items():
        isolated = mask.bool() & ~reference[name].bool()
        found[name] = ~isolated + isolated * torch.tensor(scale)
    return found


def official_sweep(model: Any, sides: Sequence[Texts], ratios: Sequence[float]) -> None:
    """Everything anew for every ratio."""
    for ratio in ratios:
        style, masks = OfficialStyle(model), []
        for texts in sides:
            style.begin()
            style.read(texts)
            masks.append(style.top(ratio))
        multiplier(*masks, scale=0.0)


def package_sweep(
    model: Any, sides: Sequence[Texts], ratios: Sequence[float], batch: int | None
) -> dict[float, WeightSelection]:
    """The same sets with this package."""
    target, reference = (collected(model, texts, batch) for texts in sides)
    return sweep(model, target, reference, ratios=ratios)


def collected(model: Any, texts: Texts, batch: int | None) -> Statistics:
    """Statistics of one side, with batches of the package's default size where ``batch`` is None."""
    more: dict[str, Any] = {} if batch is None else {"batch_size": batch}
    return collect(model, texts, progress=False, **more)


def load(dtype: str, quick: bool) -> tuple[Any, Any]:
    """Model and tokenizer; the parameters are touched, so that none is still to be read from the disk."""
    logging.disable_progress_bar()
    model, tokenizer = load_smollm2(getattr(torch, dtype))
    if quick:
        model.model.layers = model.model.layers[:QUICK_LAYERS]
        model.config.num_hidden_layers = QUICK_LAYERS
    for parameter in model.parameters():
        parameter.detach().sum()
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    return model, tokenizer


def sides_of(tokenizer: Any, samples: int) -> tuple[Texts, Texts]:
    """Tokens of word problems, and of as many pieces of prose of the same lengths."""
    target = [tokenizer(f"{each.question}\n\n{each.solution}")["input_ids"] for each in problems(samples, seed=0)]
    prose = documents(min_chars=8 * max(map(len, target)))
    reference = []
    for ids, document in zip(target, prose, strict=False):
        reference.append(tokenizer(document.text[: 8 * len(ids)])["input_ids"][: len(ids)])
    if list(map(len, reference)) != list(map(len, target)):
        raise SystemExit(f"there is not enough prose for {samples} samples; ask for fewer with --samples")
    return target, reference


def representative(sides: tuple[Texts, Texts], count: int) -> Texts:
    """Texts of both sides in turn, spread evenly over the lengths, so that their mean length is that of all."""
    longest_last = sorted(range(len(sides[0])), key=lambda i: len(sides[0][i]))
    places = [longest_last[(2 * i + 1) * len(longest_last) // (2 * count)] for i in range(count)]
    return [sides[turn % 2][place] for turn, place in enumerate(places)]


# -- the same sets -----------------------------------------------------------------------------------------------------


def official_sets(model: Any, sides: Sequence[Texts], ratios: Sequence[float]) -> tuple[dict[str, Tensor], list[float]]:
    """The entries that the official way isolates, and the CPU seconds of its stage behind the forwards by ratio."""
    styles = [OfficialStyle(model) for _ in sides]
    for style, texts in zip(styles, sides, strict=True):
        style.begin()
        style.read(texts)
    sets, stages = {}, []
    for ratio in ratios:
        begin = time.process_time()
        target, reference = (style.top(ratio) for style in styles)
        factors = multiplier(target, reference, scale=0.0)
        stages.append(time.process_time() - begin)
        if ratio == RATIO:
            sets = {name: each == 0 for name, each in factors.items()}
    return sets, stages


def jaccard(model: Any, official: Mapping[str, Tensor], selection: WeightSelection) -> float:
    """Entries in both sets of those in any; the matrices must be the same."""
    if {matrix.parameter for matrix in selection.matrices} != set(official):
        raise SystemExit("the two ways score different matrices")
    both = either = 0
    for matrix in selection.matrices:
        own = selection.mask(matrix, model.get_parameter(matrix.parameter).detach())
        both += int((own & official[matrix.parameter]).sum())
        either += int((own | official[matrix.parameter]).sum())
    return both / max(1, either)


def compare(model: Any, sides: Sequence[Texts], ratios: Sequence[float]) -> dict[str, Any]:
    """Whether both ways find the same entries; leaves with an error where they do not."""
    official, stages = official_sets(model, sides, ratios)
    target, reference = (collected(model, texts, 1) for texts in sides)
    exact = jaccard(model, official, sweep(model, target, reference, ratios=[RATIO])[RATIO])
    compat = jaccard(model, official, sweep(model, target, reference, ratios=[RATIO], mode="compat")[RATIO])
    if exact < ALIKE:
        raise SystemExit(
            f"the two ways isolate different entries at ratio {RATIO}: Jaccard {exact:.3f}, expected at least {ALIKE}; "
            "what follows would not measure the same work"
        )
    isolated = sum(int(mask.sum()) for mask in official.values())
    return {"isolated_official": isolated, "jaccard": exact, "jaccard_compat": compat, "stages": stages}


# -- CPU time ----------------------------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def bare_forward(model: Any, texts: Texts) -> None:
    """What no way can do without: the decoder's forward, without head and gradient."""
    with torch.no_grad():
        for ids in texts:
            model(torch.tensor([ids]), use_cache=False, logits_to_keep=1)


def per_sample(model: Any, texts: Texts, rounds: int) -> dict[str, list[float]]:
    """CPU seconds a text of every way, in turn. The package's include what a call of ``collect`` costs once."""
    style = OfficialStyle(model)
    style.begin()
    ways: dict[str, Callable[[Texts], Any]] = {
        "official": style.read,
        "package": lambda some: collected(model, some, 1),
        "package_batched": lambda some: collected(model, some, None),
        "forward": lambda some: bare_forward(model, some),
    }
    for work in ways.values():
        work(texts[:1])
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            taken[name].append(cpu_seconds(partial(work, texts)) / len(texts))
    return taken


def summary(taken: Mapping[str, Sequence[float]], suffix: str) -> dict[str, float]:
    """Medians and ranges of all ways, and ratios of medians."""
    found = {}
    for name, each in taken.items():
        for what, value in (("", median(each)), ("_min", min(each)), ("_max", max(each))):
            found[f"{name}_per_sample_s{suffix}{what}"] = value
    official, own, batched, forward = (median(taken[name]) for name in taken)
    return found | {
        f"per_sample_speedup{suffix}": official / own,
        f"per_sample_speedup_batched{suffix}": official / batched,
        f"per_sample_over_forward{suffix}": own / forward,
    }


# -- memory, and whole runs --------------------------------------------------------------------------------------------


def child(options: argparse.Namespace) -> None:
    """One whole run in this process: prints its CPU seconds and its peak above the loaded model."""
    model, tokenizer = load(options.dtype, options.quick)
    whole, ratios = sides_of(tokenizer, options.samples), RATIOS if options.all_ratios else (RATIO,)
    sides = [[ids[: options.tokens] for ids in side] for side in whole]
    work: Callable[[], Any] = partial(official_sweep, model, sides, ratios)
    if options.child == "package":
        work = partial(package_sweep, model, sides, ratios, options.batch)
    print_peak(lambda: {"cpu_s": cpu_seconds(work)})


def run_child(options: argparse.Namespace, way: str, samples: int, *more: str) -> dict[str, float]:
    """What :func:`child` prints in a fresh process."""
    words = ["--child", way, "--dtype", options.dtype, "--samples", str(samples), *more]
    return fresh_process(__file__, *words, *["--quick"] * options.quick)


def memory_and_sweep(options: argparse.Namespace, scale: Scale) -> dict[str, float]:
    """Peaks of both ways, and the package's whole sweep."""
    official = run_child(options, "official", scale.compared)["mib"]
    own = run_child(options, "package", scale.compared, "--batch", "1")["mib"]
    batched = run_child(options, "package", scale.compared)["mib"]
    whole = run_child(options, "package", options.samples, "--all-ratios")
    short = run_child(options, "package", options.samples, "--all-ratios", "--tokens", str(SHORT))
    return {
        "official_memory_mib": official, "package_memory_mib": own, "package_memory_mib_batched": batched,
        "package_memory_mib_sweep": whole["mib"], "memory_ratio": official / own,
        "memory_ratio_batched": official / batched, "memory_ratio_sweep": official / whole["mib"],
        "package_sweep_s": whole["cpu_s"], f"package_sweep_s_{SHORT}_tokens": short["cpu_s"],
    }  # fmt: skip


def official_sweep_seconds(
    options: argparse.Namespace, sample: float, stages: Sequence[float], tokens: int | None = None
) -> float:
    """A whole sweep of the official way: run with ``--full``, otherwise forwards and stages of all ratios added up."""
    if options.full:
        more = [] if tokens is None else ["--tokens", str(tokens)]
        return run_child(options, "official", options.samples, "--all-ratios", *more)["cpu_s"]
    return len(RATIOS) * (2 * options.samples * sample + mean(stages))


# -- tables ------------------------------------------------------------------------------------------------------------

LABELS: Final = {
    "official": "official style",
    "package": "package, one text at a time",
    "package_batched": "package, default batches",
    "forward": "forward without head and gradient",
}


def print_times(texts: Texts, figures: Mapping[str, float], suffix: str) -> None:
    lengths = [len(ids) for ids in texts]
    print(f"\n{len(texts)} texts of {mean(lengths):.0f} tokens ({min(lengths)} to {max(lengths)}); CPU s a text")
    for name, label in LABELS.items():
        key = f"{name}_per_sample_s{suffix}"
        spread = f"{figures[f'{key}_min']:.3f}-{figures[f'{key}_max']:.3f}"
        speedup = figures[f"official_per_sample_s{suffix}"] / figures[key]
        print(f"  {label:<44} {figures[key]:>8.3f} {spread:>13} {speedup:>7.2f}x")


def print_runs(options: argparse.Namespace, compared: int, figures: Mapping[str, Any]) -> None:
    samples = options.samples
    print(f"\npeak memory above the model of {figures['model_mib']:.0f} MiB; MiB, and how much less")
    for label, value in (
        (f"official style, 2 x {compared} texts", figures["official_memory_mib"]),
        (f"package, 2 x {compared}, one text at a time", figures["package_memory_mib"]),
        (f"package, 2 x {compared}, default batches", figures["package_memory_mib_batched"]),
        (f"package, 2 x {samples}, default batches, {len(RATIOS)} ratios", figures["package_memory_mib_sweep"]),
    ):
        print(f"  {label:<44} {value:>8.0f} {'':>13} {figures['official_memory_mib'] / value:>7.1f}x")
    how = "measured" if options.full else "computed from measured parts"
    for suffix, texts in (("", "texts"), (f"_{SHORT}_tokens", f"texts of {SHORT} tokens")):
        official, own = figures[f"official_sweep_s{suffix}"], figures[f"package_sweep_s{suffix}"]
        print(f"\nsweep of {len(RATIOS)} ratios, 2 x {samples} {texts}; CPU s")
        print(f"  {f'official style, {how}':<44} {official:>8.1f}")
        print(f"  {'package, measured':<44} {own:>8.1f} {'':>13} {figures[f'sweep_speedup{suffix}']:>7.1f}x")


def measure(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """All figures, with a table of each part as soon as it is there."""
    model, tokenizer = load(options.dtype, options.quick)
    sides = sides_of(tokenizer, options.samples)
    some = [side[: scale.compared] for side in sides]
    figures = compare(model, some, (RATIO,) if options.quick else RATIOS)
    stages = figures.pop("stages")
    figures |= {"stage_s": mean(stages), "model_mib": sum(p.nbytes for p in model.parameters()) / 2**20}
    print(
        f"isolated at {RATIO} from 2 x {scale.compared} texts: {figures['isolated_official']} entries in the official "
        f"style; Jaccard {figures['jaccard']:.4f} (exact), {figures['jaccard_compat']:.4f} (compat)"
    )
    texts = representative(sides, scale.texts)
    for suffix, timed in (("", texts), (f"_{SHORT}_tokens", [ids[:SHORT] for ids in texts])):
        figures |= summary(per_sample(model, timed, scale.rounds), suffix)
        print_times(timed, figures, suffix)
    figures |= memory_and_sweep(options, scale)
    for suffix, tokens in (("", None), (f"_{SHORT}_tokens", SHORT)):
        sample = figures[f"official_per_sample_s{suffix}"]
        figures[f"official_sweep_s{suffix}"] = official_sweep_seconds(options, sample, stages, tokens)
        figures[f"sweep_speedup{suffix}"] = figures[f"official_sweep_s{suffix}"] / figures[f"package_sweep_s{suffix}"]
    print_runs(options, scale.compared, figures)
    return figures


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS} layers, few texts and rounds")
    parser.add_argument(
        "--full", action="store_true", help="run the official sweep instead of computing it (about 20 minutes)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--samples", type=int, help="samples a side of the sweep (default: 100, quick: 4)")
    parser.add_argument("--child", choices=("official", "package"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--all-ratios", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.samples = options.samples or (4 if options.quick else 100)
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    if options.child:
        child(options)
        return
    scale = Scale(texts=4, rounds=2, compared=2) if options.quick else Scale(texts=16, rounds=3, compared=8)
    scale = scale._replace(compared=min(scale.compared, options.samples))
    layers = f"{QUICK_LAYERS} layers, " if options.quick else ""
    print(f"SmolLM2-135M, {layers}{options.dtype}, one thread, torch {torch.__version__}")
    figures = measure(options, scale)
    settings = {name: getattr(options, name) for name in ("quick", "full", "dtype", "samples")} | scale._asdict()
    print(json.dumps(settings | {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}))


if __name__ == "__main__":
    main()
