"""What scoring rows of tokens costs, beside the way of the paper's official code and beside a bare forward pass.

The model has the size of the paper's reference (hidden 512, 8 layers) with random weights, at two vocabularies. Rows of
at most 257 ids are either packed (0.8 % padding) or one document each: a long-tailed mix with a median of 0.4 times
the limit, a fifth of it cut. Three ways read the same rows:

- official style, written out here from its description: batches of at most 16 rows padded to the limit, the whole model
  with its head, float32 logits [B, T, V], cross-entropy over all of them, masked means;
- this package;
- bound: the decoder and the matrix product of the head, nothing else, batched and without padding as in the package.

Both scores have to agree, or nothing is reported.

    python packages/miniplm/benchmarks/scoring.py [--dtype bfloat16] [--quick] [--rounds 3]
    python packages/miniplm/benchmarks/scoring.py --settings [--quick]    # chunk and batch sizes of the package instead

CPU seconds of one thread, medians of rounds in which the ways take turns; every memory figure comes from a process of
its own, as its peak above the loaded model. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import NormalDist, fmean, median
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from paperhooks.testing import fresh_process, print_peak
from paperhooks_miniplm import LogLikelihood
from paperhooks_miniplm.scoring.likelihood import labels_of
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARIES: Final = (49_152, 151_936)
LIMIT: Final = 256
END: Final = 0
OFFICIAL_ROWS: Final = 16
#: Positions that the head sees at once, as in the package unless told otherwise.
CHUNK: Final = LogLikelihood.chunk
CHUNKS: Final = (64, 128, 256, 512, 1024)
BUDGETS: Final = (1024, 2048, 4096, 8192, 16384)
#: By how much the means of a row may differ: in half precision it matters what is batched with what.
ALIKE: Final = {"float32": 1e-4, "bfloat16": 2e-2}

Ids: TypeAlias = np.ndarray[Any, Any]
Rows: TypeAlias = Sequence[Ids]


class Scale(NamedTuple):
    """How much is measured: the model, timed rows, rows of the package's memory (its default batch holds 7).

    As rows of documents are half as long as packed ones, there are twice as many.
    """

    hidden: int = 512
    layers: int = 8
    packed: int = 8
    documents: int = 16
    memory_rows: int = 16


QUICK: Final = Scale(hidden=128, layers=2, packed=3, documents=6, memory_rows=16)


# -- model and rows ----------------------------------------------------------------------------------------------------


def load(vocabulary: int, scale: Scale, dtype: str) -> Any:
    """A random model with tied embeddings; its parameters are touched by making them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=scale.hidden, intermediate_size=scale.hidden * 11 // 4,
        num_hidden_layers=scale.layers, num_attention_heads=scale.hidden // 64, tie_word_embeddings=True,
        max_position_embeddings=1024,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(getattr(torch, dtype))
    for parameter in model.parameters():
        parameter.detach().sum()
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), use_cache=False)
    return model


def quantiles(count: int) -> list[float]:
    """Evenly spread over (0, 1): few rows then have the mix of many."""
    return [(2 * i + 1) / (2 * count) for i in range(count)]


def document_lengths(count: int) -> list[int]:
    """Log-normal around 0.4 times the limit, at least 8."""
    normal = NormalDist(math.log(0.4 * LIMIT), 1.0)
    return [max(8, round(math.exp(normal.inv_cdf(q)))) for q in quantiles(count)]


def packed(vocabulary: int, count: int) -> Rows:
    """Rows of several documents, on average 0.8 % short of the limit."""
    random = np.random.default_rng(1)
    lengths = [LIMIT + 1 + round(0.008 * LIMIT * math.log(1 - q)) for q in quantiles(count)]
    rows = [random.integers(1, vocabulary, n) for n in random.permutation(lengths)]
    mean_document = fmean(document_lengths(1000))
    for ids in rows:
        ids[random.random(len(ids)) < 1 / mean_document] = END
    return rows


def documents(vocabulary: int, count: int) -> Rows:
    """Rows of one document each, cut at the limit; the others close with the end token."""
    random = np.random.default_rng(2)
    rows = [random.integers(1, vocabulary, min(n, LIMIT + 1)) for n in random.permutation(document_lengths(count))]
    for ids in rows:
        if len(ids) <= LIMIT:
            ids[-1] = END
    return rows


KINDS: Final[Mapping[str, Callable[[int, int], Rows]]] = {"packed": packed, "documents": documents}


def tokens_of(rows: Rows) -> int:
    """What a model must read: every id of a row but the last."""
    return sum(len(ids) - 1 for ids in rows)


# -- the three ways ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def official(model: Any, rows: Rows) -> Ids:
    """Mean negative log-likelihood of every row in the official way."""
    found = []
    for first in range(0, len(rows), OFFICIAL_ROWS):
        batch = rows[first : first + OFFICIAL_ROWS]
        inputs, labels = (torch.full((len(batch), LIMIT), END) for _ in range(2))
        for row, ids in enumerate(batch):
            inputs[row, : len(ids) - 1] = torch.from_numpy(ids[:-1])
            labels[row, : len(ids) - 1] = torch.from_numpy(ids[1:])
        real = torch.arange(LIMIT) < torch.tensor([[len(ids) - 1] for ids in batch])
        logits = model(input_ids=inputs, attention_mask=real.long(), use_cache=False).logits.float()
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        mask = (real & (inputs != END)).float()
        found.append((losses * mask).sum(1) / mask.sum(1))
    return torch.cat(found).double().numpy()


def package(likelihood: LogLikelihood, rows: Rows) -> Ids:
    """The same with this package."""
    scores = likelihood.score(rows)
    means: Ids = scores.nll / scores.count
    return means


@torch.inference_mode()
def bound(model: Any, batch_tokens: int, rows: Rows) -> None:
    """The forward that no way can do without: decoder and head of the positions that count."""
    for inputs, mask, labels in batches(rows, batch_tokens):
        hidden = model.model(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        for chunk in hidden[labels >= 0].split(CHUNK):
            model.lm_head(chunk)


def batches(rows: Rows, batch_tokens: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Inputs, attention mask and labels [B, T], by length, in the batches that the package makes."""
    pending: list[Ids] = []
    for ids in sorted(rows, key=len):
        if pending and len(ids) * (len(pending) + 1) > batch_tokens:
            yield batch_of(pending)
            pending = []
        pending.append(ids)
    yield batch_of(pending)


def batch_of(rows: Rows) -> tuple[Tensor, Tensor | None, Tensor]:
    """One batch, padded to its longest row; without a mask where nothing is padded."""
    lengths = torch.tensor([len(ids) for ids in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for row, each in enumerate(rows):
        ids[row, : len(each)] = torch.from_numpy(each)
    mask = (torch.arange(ids.shape[1] - 1) < lengths[:, None] - 1).long()
    return ids[:, :-1], None if bool(mask.all()) else mask, labels_of(ids, lengths, END)


# -- CPU time ----------------------------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


def in_turn(ways: Mapping[str, Callable[[Rows], Any]], rows: Rows, rounds: int) -> tuple[dict[str, list[float]], Any]:
    """Tokens a CPU second of every way, round by round, and what each found."""
    for work in ways.values():
        work(rows[:2])
    rates: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(rounds):
        for name, work in ways.items():
            seconds, found[name] = cpu_seconds(partial(work, rows))
            rates[name].append(tokens_of(rows) / seconds)
    return rates, found


def agree(found: Mapping[str, Any], allowed: float) -> float:
    """Largest difference between the means of both ways; leaves with an error where they do not agree."""
    differences = np.abs(found["official"] - found["package"])
    worst = int(differences.argmax())  # NaN counts as the largest
    if not differences[worst] < allowed:
        raise SystemExit(
            f"the two ways score row {worst} differently: {found['official'][worst]:.6f} in the official style, "
            f"{found['package'][worst]:.6f} with the package; allowed is a difference of {allowed:g}"
        )
    return float(differences[worst])


def compare(model: Any, rows: Rows, options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Rates of all ways on some rows, and by how much their scores differ."""
    likelihood = LogLikelihood(model, END, LIMIT, batch_tokens=options.batch_tokens)
    ways: dict[str, Callable[[Rows], Any]] = {
        "official": partial(official, model),
        "package": partial(package, likelihood),
        "bound": partial(bound, model, options.batch_tokens),
    }
    rates, found = in_turn(ways, rows, options.rounds)
    return rates, agree(found, ALIKE[options.dtype])


def summary(rates: Mapping[str, Sequence[float]], suffix: str) -> dict[str, float]:
    """Medians and ranges of all ways, and ratios of medians."""
    figures = {}
    for name, each in rates.items():
        for what, value in (("", median(each)), ("_min", min(each)), ("_max", max(each))):
            figures[f"{name}_tokens_s_{suffix}{what}"] = value
    theirs, own, most = (median(rates[name]) for name in ("official", "package", "bound"))
    return figures | {
        f"speedup_{suffix}": own / theirs, f"speedup_of_bound_{suffix}": most / theirs, f"of_bound_{suffix}": own / most
    }  # fmt: skip


# -- memory ------------------------------------------------------------------------------------------------------------


def child(options: argparse.Namespace, scale: Scale) -> None:
    """Scores packed rows in this process and prints its peak above the loaded model."""
    model = load(options.vocabulary, scale, options.dtype)
    # Further batches of the official way add nothing to its peak; the package gets rows for its largest batch.
    rows = packed(options.vocabulary, OFFICIAL_ROWS if options.child == "official" else scale.memory_rows)
    if options.child == "official":
        print_peak(lambda: official(model, rows))
    else:
        likelihood = LogLikelihood(model, END, LIMIT)
        print_peak(lambda: package(likelihood, rows))


def run_child(way: str, vocabulary: int, options: argparse.Namespace) -> float:
    """MiB that :func:`child` prints in a fresh process."""
    words = ["--child", way, "--vocabulary", str(vocabulary), "--dtype", options.dtype]
    return float(fresh_process(__file__, *words, *["--quick"] * options.quick)["mib"])


def memory(vocabulary: int, options: argparse.Namespace) -> dict[str, float]:
    """Peaks of both ways, with the package's default settings."""
    theirs, own = (run_child(way, vocabulary, options) for way in ("official", "package"))
    return {
        f"official_mib_{vocabulary}": theirs,
        f"package_mib_{vocabulary}": own,
        f"memory_ratio_{vocabulary}": theirs / own,
    }


# -- settings of the package -------------------------------------------------------------------------------------------


def settings_rates(model: Any, rows: Rows, settings: Mapping[str, dict[str, Any]], rounds: int) -> dict[str, float]:
    """Median tokens a CPU second of the package with every setting, as a table too."""
    ways: dict[str, Callable[[Rows], Any]] = {
        name: LogLikelihood(model, END, LIMIT, **each).score for name, each in settings.items()
    }
    rates, _ = in_turn(ways, rows, rounds)
    best = max(rates, key=lambda name: median(rates[name]))
    for name, each in rates.items():
        print(f"  {name:<24} {median(each):>8.0f} {spread(each):>13} {'fastest' if name == best else ''}", flush=True)
    return {name: median(each) for name, each in rates.items()}


def try_settings(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Chunk sizes at both vocabularies; batch sizes at the smaller, as the decoder does not know the vocabulary."""
    figures: dict[str, Any] = {}
    for vocabulary in VOCABULARIES:
        model, rows = load(vocabulary, scale, options.dtype), packed(vocabulary, 8)
        print(f"\nchunk sizes, {vocabulary} ids, {tokens_of(rows)} tokens; tokens a CPU second")
        chunks = {f"chunk_{c}": {"chunk": c, "batch_tokens": options.batch_tokens} for c in CHUNKS}
        found = settings_rates(model, rows, chunks, options.rounds)
        figures |= {f"{name}_tokens_s_{vocabulary}": each for name, each in found.items()}
    vocabulary = VOCABULARIES[0]
    model, rows = load(vocabulary, scale, options.dtype), packed(vocabulary, scale.memory_rows)
    print(f"\ntokens of a batch, {vocabulary} ids, {tokens_of(rows)} tokens; tokens a CPU second")
    found = settings_rates(model, rows, {f"batch_tokens_{b}": {"batch_tokens": b} for b in BUDGETS}, rounds=1)
    return figures | {f"{name}_tokens_s_{vocabulary}": each for name, each in found.items()}


# -- tables ------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.0f}-{max(values):.0f}"


def print_rates(title: str, rates: Mapping[str, Sequence[float]]) -> None:
    print(f"\n{title}; tokens a CPU second, and times the official style")
    for name, each in rates.items():
        times = median(each) / median(rates["official"])
        print(f"  {name:<24} {median(each):>8.0f} {spread(each):>13} {times:>7.2f}x", flush=True)


def measure(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """All figures, with a table of each part as soon as it is there."""
    figures: dict[str, Any] = {"max_difference": 0.0}
    for vocabulary in VOCABULARIES:
        model = load(vocabulary, scale, options.dtype)
        for kind, make in KINDS.items():
            rows = make(vocabulary, getattr(scale, kind))
            padding = 1 - tokens_of(rows) / (LIMIT * len(rows))
            rates, difference = compare(model, rows, options)
            print_rates(f"{vocabulary} ids, {len(rows)} rows, {kind}, {padding:.1%} padding at the limit", rates)
            figures |= summary(rates, f"{vocabulary}_{kind}") | {f"padding_{kind}": padding}
            figures["max_difference"] = max(figures["max_difference"], difference)
        del model
        found = memory(vocabulary, options)
        print(
            f"  peak above the model: official style {found[f'official_mib_{vocabulary}']:.0f} MiB, package "
            f"{found[f'package_mib_{vocabulary}']:.0f} MiB, {found[f'memory_ratio_{vocabulary}']:.1f}x less"
        )
        figures |= found
    print(f"\nmeans of rows differ by at most {figures['max_difference']:.1e}")
    return figures


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer rows, one round")
    parser.add_argument("--rounds", type=int, help="rounds of the timings (default: 3, quick: 1)")
    parser.add_argument(
        "--batch-tokens", type=int, default=1024,
        help="tokens of a timed batch of package and bound (default: 1024, so that sorting shows with few rows)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=tuple(ALIKE), default="float32",
        help="of the weights (default: float32); the official code has half precision, float32 logits either way",
    )  # fmt: skip
    parser.add_argument("--settings", action="store_true", help="try chunk and batch sizes of the package instead")
    parser.add_argument("--child", choices=("official", "package"), help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARIES[0], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    scale = QUICK if options.quick else Scale()
    if options.child:
        child(options, scale)
        return
    print(f"hidden {scale.hidden}, {scale.layers} layers, {options.dtype}, one thread, torch {torch.__version__}")
    figures = try_settings(options, scale) if options.settings else measure(options, scale)
    settings = {name: getattr(options, name) for name in ("quick", "rounds", "batch_tokens", "dtype")} | scale._asdict()
    print(json.dumps(settings | {k: round(v, 8 if v < 0.01 else 4) for k, v in figures.items()}))


if __name__ == "__main__":
    main()
