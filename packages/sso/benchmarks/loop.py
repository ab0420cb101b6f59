"""What the loop costs on SmolLM2-135M-Instruct: sampling in batches, and everything that is not the model's work.

    python packages/sso/benchmarks/loop.py sampling [--prompts 64] [--batch 24]
    python packages/sso/benchmarks/loop.py rounding [--prompts 8] [--batch 24]
    python packages/sso/benchmarks/loop.py overhead [--prompts 32] [--out FOLDER]

``sampling``: three answers of 32 tokens to each prompt, all with principles of the bank, by the same sampler: in
batches, and one at a time. The token ids have to be the same, or nothing is reported; told is the ratio of CPU seconds.

``rounding``: the same in bfloat16, where sums are rounded otherwise in another batch: told is in how many answers a
token was flipped by it, and how many tokens are not the same (all of an answer from its first flip on).

``overhead``: one whole iteration (questions about features, three answers of 48 tokens, pairs, sums of the reference,
probes, one epoch), and which share of its CPU seconds was spent outside of sampling, scoring and training: reading,
writing, checking, digests of the weights, the checkpoint, the copy of the model.

The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from paperhooks.generation import Prompt, Response, TransformersBackend, ask
from paperhooks.logprobs import LogLikelihood
from paperhooks_sso import AlarmLimits, align
from paperhooks_sso.data import ChatFormat, PrincipleBank, RequestMaker, guided_prompt, read_prompts
from paperhooks_sso.loop import Pace, round_work
from paperhooks_testbed import load_smollm2

SUBJECTS: Final = ("tea", "storms", "maps", "owls", "glass", "trains", "sleep", "gardens")
ASKED: Final = (
    "What are {} good for?", "Write a sentence about {}.", "Who invented {}?", "Why do we like {}?",
    "Name three kinds of {}.", "What is hard about {}?", "Describe {} to a child.", "What rhymes with {}?",
)  # fmt: skip
TOKENS: Final = 32
SPENT: Counter[str] = Counter()


def questions(number: int) -> list[str]:
    """So many questions."""
    made = [form.format(subject) for form in ASKED for subject in SUBJECTS]
    return [made[at % len(made)] + " Please." * (at // len(made)) for at in range(number)]


def sampled(model: Any, tokenizer: Any, number: int, sizes: Sequence[int]) -> list[tuple[float, dict[str, Response]]]:
    """CPU seconds and answers of the same requests, in batches of every size."""
    bank, chat = PrincipleBank.load(), ChatFormat(tokenizer)
    names = bank.features
    prompts = [
        made
        for at, each in enumerate(read_prompts(questions(number)))
        if (made := guided_prompt(each, [bank.pick(names[at % len(names)])], chat, None)) is not None
    ]
    maker = RequestMaker(max_new_tokens=TOKENS)
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as out:
            begin = time.process_time()
            replies = ask(TransformersBackend(model, tokenizer), maker.answers(prompts), out=out, batch_size=size)
            found.append((time.process_time() - begin, replies))
    return found


def sampling(model: Any, tokenizer: Any, number: int, batch: int) -> dict[str, Any]:
    """In batches and one at a time."""
    (together, replies), (alone, others) = sampled(model, tokenizer, number, (batch, 1))
    different = [key for key, reply in replies.items() if reply.ids != others[key].ids]
    if different:
        raise SystemExit(f"{len(different)} of {len(replies)} answers differ, such as {different[0]}")
    return {
        "answers": len(replies), "tokens": sum(reply.new_tokens for reply in replies.values()),
        "batched_seconds": round(together, 1), "alone_seconds": round(alone, 1),
        "sampling_speedup": round(alone / together, 3),
    }  # fmt: skip


def rounding(model: Any, tokenizer: Any, number: int, batch: int) -> dict[str, Any]:
    """What is not the same in bfloat16."""
    (_, replies), (_, others) = sampled(model.bfloat16(), tokenizer, number, (batch, 1))
    kept = {key: alike(reply.ids or (), others[key].ids or ()) for key, reply in replies.items()}
    tokens = {key: len(reply.ids or ()) for key, reply in replies.items()}
    return {
        "answers": len(replies), "flipped_answers": sum(kept[key] < number for key, number in tokens.items()),
        "tokens": sum(tokens.values()), "tokens_apart": sum(tokens.values()) - sum(kept.values()),
    }  # fmt: skip


def alike(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return next((at for at, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))


class TimedBackend(TransformersBackend):
    """Counts the seconds of its answers, not those between them."""

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[Mapping[int, Response]]:
        made = super().answers(prompts)
        while (some := counted("sampling", lambda: next(made, None))) is not None:
            yield some


def counted(name: str, work: Callable[[], Any]) -> Any:
    """Do it, and note its CPU seconds."""
    begin = time.process_time()
    try:
        return work()
    finally:
        SPENT[name] += time.process_time() - begin


def overhead(model: Any, tokenizer: Any, number: int, out: Path) -> dict[str, Any]:
    """One iteration, and what of it was the model's work."""
    score, train = LogLikelihood.score, round_work.train_pairs
    LogLikelihood.score = lambda *a, **k: counted("scoring", lambda: score(*a, **k))  # type: ignore[method-assign]
    round_work.train_pairs = lambda *a, **k: counted("training", lambda: train(*a, **k))
    begin = time.process_time()
    align(
        model, questions(number), tokenizer=tokenizer, out=out, iterations=1, max_new_tokens=48, keep_cut=True,
        make_backend=TimedBackend, limits=AlarmLimits(cut=None, margin_fall=None), batch=4, learning_rate=1e-6,
        pace=Pace(sample_batch=24, micro_batch=1),
    )  # fmt: skip
    whole = time.process_time() - begin
    share = 1 - sum(SPENT.values()) / whole
    return {
        "prompts": number, "seconds": round(whole, 1), **{name: round(value, 1) for name, value in SPENT.items()},
        "overhead_share": round(share, 4), "overhead_over_model": round(share / (1 - share), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["sampling", "rounding", "overhead"])
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--out", type=Path, help="a new folder for the iteration; nowhere without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    with tempfile.TemporaryDirectory() as temporary:
        if options.part == "sampling":
            line = sampling(model, tokenizer, options.prompts or 64, options.batch)
        elif options.part == "rounding":
            line = rounding(model, tokenizer, options.prompts or 8, options.batch)
        else:
            line = overhead(model, tokenizer, options.prompts or 32, options.out or Path(temporary) / "run")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
