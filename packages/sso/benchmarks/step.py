"""What a training step on six rows a prompt costs, beside the way of the paper's official code.

A Llama of random weights (8 layers of 576, 49,152 entries) sees prompts of 40 tokens, principles of 130, and answers of
150, 100 and 140. Compared are CPU seconds of one thread and the peak of memory above weights and their gradients of

- official: six rows of a prompt padded to one width, three forwards of the policy and three of the reference, float32
  log-softmax of all logits, which are kept for the backward pass; written out here from its description;
- fused: the same with the head of TRL, which makes log-probabilities in tiles, in place of logits (where TRL is there);
- live: this package, the reference asked in the step, by layout;
- precomputed: this package, the reference's sums in the batch; "in turn" with ``low_memory``, group after group.

Losses and gradients have to agree with those of the same formula in float64, or nothing is reported.

    python packages/sso/benchmarks/step.py [--quick] [--rounds 3] [--prompts 1]

Times are medians of rounds in which the ways take turns; every memory figure comes from a process of its own. The last
line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import torch
from paperhooks import attach
from paperhooks.testing import fresh_process, print_peak
from paperhooks.training import AccumulatedCounts, compute_loss
from paperhooks_sso import SSO, PairSums, sso_loss
from paperhooks_sso.algorithm import GROUPS
from paperhooks_sso.data import EncodedPrompt, PairCollator
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT, PRINCIPLE, ANSWERS = 40, 130, {"chosen": 150, "rejected": 100, "ordinary": 140}
PRESET: Final = "v1-ipo"
LAYOUTS: Final = ("joint", "group", "shared", "flat")
#: Largest share by which a loss may differ from float64, and a gradient from its largest entry.
LOSS, GRADIENT = 1e-5, 1e-4


def model(quick: bool, seed: int = 0) -> Any:
    """The policy, and with another seed its reference: the same weights, a little moved."""
    layers, width, entries = (2, 64, 1024) if quick else (8, 576, 49_152)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, vocab_size=entries, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters() if seed else ():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    return made


def pairs(number: int, entries: int) -> list[EncodedPrompt]:
    """Prompts of random ids with the lengths above."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, entries, (length,), generator=generator).tolist())

    made = []
    for at in range(number):
        question = ids(PROMPT)
        prompts = {"plain": question, "good": (*ids(PRINCIPLE), *question), "bad": (*ids(PRINCIPLE), *question)}
        made.append(EncodedPrompt(str(at), prompts, {name: ids(length) for name, length in ANSWERS.items()}))
    return made


def official(policy: Any, reference: Any, batch: dict[str, Any], fused: bool = False) -> torch.Tensor:
    """The loss as the official code makes it: three forwards each, of rows padded to one width."""

    def sums(asked: Any, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        rows = {name: batch[name][part] for name in ("input_ids", "attention_mask")}
        labels = batch["labels"][part]
        targets, known = labels[:, 1:], labels[:, 1:] != -100
        if fused:
            made = asked(**rows, labels=labels, fused_lm_head=True, use_cache=False).log_probs[:, -targets.shape[1] :]
        else:
            logits = asked(**rows, use_cache=False).logits[:, :-1].float()
            made = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        return (made * known).sum(1), known.sum(1)

    size = len(batch["input_ids"]) // 6
    found = {}
    for at, group in enumerate(GROUPS):
        part = slice(2 * at * size, 2 * (at + 1) * size)
        values, counts = sums(policy, part)
        with torch.no_grad():
            compared, _ = sums(reference, part)
        found[group] = PairSums(*values.split(size), *counts.split(size), *compared.split(size))
    return sso_loss(found, SSO(PRESET).objective).loss


def ways(quick: bool, prompts: int) -> tuple[dict[str, Callable[[], Any]], Any]:
    """Name to what makes a step, which leaves its gradients on the policy and returns the loss; and the policy."""
    policy, reference = model(quick), model(quick, seed=2)
    records = pairs(prompts, policy.config.vocab_size)
    joint = PairCollator(layout="joint")(records)

    def theirs(fused: bool) -> Callable[[], float]:
        if fused:
            for each in (policy, reference):
                with_fused_head(each)

        def step() -> float:
            policy.zero_grad()
            loss = official(policy, reference, joint, fused)
            loss.backward()
            return float(loss.detach())

        return step

    def ours(layout: str, live: bool, low: bool = False) -> Callable[[], float]:
        method = SSO(PRESET, reference=reference, low_memory=low)
        batch = method.collator(layout=layout)(records)
        session = attach(policy, method)
        if not live:
            batch = with_sums(batch, reference)

        def step() -> float:
            policy.zero_grad()
            loss = compute_loss(session, AccumulatedCounts.of(session, [batch]).context(policy, batch))
            loss.backward()
            return float(loss.detach())

        step.close = session.close  # type: ignore[attr-defined]
        return step

    made = {"official": lambda: theirs(False)}
    made |= {f"live {layout}": lambda layout=layout: ours(layout, True) for layout in LAYOUTS}
    made |= {f"precomputed {layout}": lambda layout=layout: ours(layout, False) for layout in LAYOUTS}
    made["precomputed shared in turn"] = lambda: ours("shared", False, True)
    if fused_head() is not None:
        made["fused"] = lambda: theirs(True)  # last, for it changes the model's forward
    return made, policy


def with_sums(batch: dict[str, Any], reference: Any) -> dict[str, Any]:
    """The batch with the reference's sums."""
    from paperhooks.logprobs import Head
    from paperhooks_sso.batches import parts_of

    with torch.no_grad():
        sums = [part.sums(reference, Head.from_model(reference))[0] for part in parts_of(batch, GROUPS)]
    if "input_ids" in batch:
        return {**batch, "reference_logprobs": sums[0]}
    return {**batch, **{g: {**batch[g], "reference_logprobs": s} for g, s in zip(GROUPS, sums, strict=True)}}


def fused_head() -> Any:
    """TRL's function that gives a model a head in tiles, or None without TRL."""
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError:
        return None
    return add_fused_lm_head


def with_fused_head(each: Any) -> None:
    """Once a model."""
    if not getattr(each, "benchmark_fused", False):
        fused_head()(each, outputs=("log_probs",))
        each.benchmark_fused = True


def exact(quick: bool, prompts: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the formula in float64."""
    policy, reference = model(quick).double(), model(quick, seed=2).double()
    batch = PairCollator(layout="joint")(pairs(prompts, policy.config.vocab_size))
    size = len(batch["input_ids"]) // 6

    def sums(asked: Any, row: int) -> torch.Tensor:
        ids, labels = batch["input_ids"][row : row + 1], batch["labels"][row, 1:]
        at = (labels != -100).nonzero()[:, 0]
        logits = asked(input_ids=ids, attention_mask=batch["attention_mask"][row : row + 1], use_cache=False).logits
        return logits[0, at].log_softmax(-1).gather(1, labels[at, None]).sum()

    rows = 6 * size
    own = torch.stack([sums(policy, row) for row in range(rows)])
    with torch.no_grad():
        compared = torch.stack([sums(reference, row) for row in range(rows)])
    counts = (batch["labels"][:, 1:] != -100).sum(1)
    found = {}
    for at, group in enumerate(GROUPS):
        part = slice(2 * at * size, 2 * (at + 1) * size)
        found[group] = PairSums(*own[part].split(size), *counts[part].split(size), *compared[part].split(size))
    loss = sso_loss(found, SSO(PRESET).objective).loss
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in policy.named_parameters()}


def peak(way: str, quick: bool, prompts: int) -> None:
    """Print the peak of a step after the first, with the gradients there already.

    The first one also pays, once a process, for what libraries set up when they are called.
    """
    made, policy = ways(quick, prompts)
    step = made[way]()
    for weight in policy.parameters():
        weight.grad = torch.zeros_like(weight)
    policy.zero_grad = lambda *args, **kwargs: None
    step()
    print_peak(lambda: {"loss": step()})


def tokens(prompts: int, entries: int) -> dict[str, int]:
    """Tokens of the backbone by layout."""
    records = pairs(prompts, entries)
    found = {}
    for layout in LAYOUTS:
        batch = PairCollator(layout=layout)(records)
        each = [batch] if "input_ids" in batch else [batch[group] for group in GROUPS]
        found[layout] = sum(part["input_ids"].numel() for part in each)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--peak", help="print the memory of one way alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        peak(options.peak, options.quick, options.prompts)
        return
    wanted, gradients = exact(options.quick, options.prompts)
    made, policy = ways(options.quick, options.prompts)
    largest = max(float(g.abs().max()) for g in gradients.values())
    seconds: dict[str, list[float]] = {name: [] for name in made}
    errors = {}
    for number in range(1 if options.quick else options.rounds):
        for name, make in made.items():
            step = make()
            begin = time.process_time()
            loss = step()
            seconds[name].append(time.process_time() - begin)
            if hasattr(step, "close"):
                step.close()
            if number == 0:
                off = max(float((p.grad - gradients[n]).abs().max()) for n, p in policy.named_parameters()) / largest
                errors[name] = (abs(loss - wanted) / abs(wanted), off)
    for name, (loss_error, gradient_error) in errors.items():
        if name != "official" and name != "fused" and not (loss_error <= LOSS and gradient_error <= GRADIENT):
            raise SystemExit(
                f"{name} differs from float64 by {loss_error:.2g} of the loss, {gradient_error:.2g} of a gradient"
            )
    words = ["--prompts", str(options.prompts), *(["--quick"] if options.quick else [])]
    memory = {name: fresh_process(__file__, "--peak", name, *words)["mib"] for name in made}
    middle = {name: median(values) for name, values in seconds.items()}
    print(f"{'way':27} {'seconds':>8} {'faster':>7} {'MiB':>8} {'less':>6} {'loss off':>9} {'gradient off':>13}")
    for name, value in middle.items():
        print(
            f"{name:27} {value:8.2f} {middle['official'] / value:7.2f} {memory[name]:8.0f} "
            f"{memory['official'] / memory[name]:6.2f} {errors[name][0]:9.1e} {errors[name][1]:13.1e}"
        )
    line: dict[str, Any] = {"tokens": tokens(options.prompts, policy.config.vocab_size)}
    for name, value in middle.items():
        key = name.replace(" ", "_")
        line[f"{key}_speedup"] = round(middle["official"] / value, 3)
        line[f"{key}_memory"] = round(memory["official"] / memory[name], 3)
        if "fused" in middle:
            line[f"{key}_speedup_over_fused"] = round(middle["fused"] / value, 3)
            line[f"{key}_memory_over_fused"] = round(memory["fused"] / memory[name], 3)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
