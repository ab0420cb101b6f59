"""The tiny reference model with its batches, and pairs of random ids for it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from paperhooks.logprobs import Head
from paperhooks_sso.algorithm import GROUPS
from paperhooks_sso.batches import parts_of
from paperhooks_sso.data import EncodedPrompt
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

REFERENCE = Path(__file__).parent / "reference"
CASES: dict[str, Any] = json.loads((REFERENCE / "tiny_model_init.json").read_text())


def tiny(which: str = "policy") -> Any:
    """The trained tiny Llama, in eval mode: "policy" or "reference"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(REFERENCE / "tiny_llama"))
    model.load_state_dict(load_file(REFERENCE / "tiny_llama" / f"{which}.safetensors"), strict=True)
    return model.eval()


def golden(batch: str) -> dict[str, torch.Tensor]:
    """One of the reference batches b1, b2 and b3."""
    tensors = load_file(REFERENCE / "tiny_batches.safetensors")
    return {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{batch}.")}


class Deaf:
    """A tokenizer that does not hear that names of control tokens are to be taken as text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, *, split_special_tokens: bool = False, **options: Any) -> Any:
        return self.tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def objective_options(case: dict[str, Any]) -> dict[str, Any]:
    """Options of :class:`paperhooks_sso.SSO` for a case of the reference."""
    hp = case["hp"]
    return {
        "preset": None, "loss": hp["loss"], "beta": hp["beta"], "weight": hp["W"], "gap": hp["G"], "alpha": hp["alpha"],
        "beta_g": hp["gb"], "gamma": hp["ftx"],
    }  # fmt: skip


def drawn_pairs(number: int = 4, seed: int = 0) -> list[EncodedPrompt]:
    """Prompts and answers of random ids and lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(8, 260, (length,), generator=generator).tolist())

    found = []
    for at in range(number):
        question = ids(3, 8)
        prompts = {"plain": (0, *question), "good": (0, *ids(4, 9), *question), "bad": (0, *ids(4, 9), *question)}
        answers = {"chosen": ids(4, 14), "rejected": ids(2, 9), "ordinary": ids(3, 12)}
        found.append(EncodedPrompt(f"p{at}", prompts, answers))
    return found


def record_of(pair: EncodedPrompt) -> dict[str, Any]:
    """A pair as a record of a pairs file."""
    prompts = {f"{group}_prompt": list(ids) for group, ids in pair.prompts.items()}
    return {"id": pair.id, **prompts, **{f"{name}_ids": list(ids) for name, ids in pair.answers.items()}}


def with_reference(batch: dict[str, Any], groups: Any = GROUPS, model: Any = None) -> dict[str, Any]:
    """The batch with the sums of the reference model as columns."""
    model = model or tiny("reference")
    with torch.no_grad():
        sums = [part.sums(model, Head.from_model(model))[0] for part in parts_of(batch, groups)]
    if "input_ids" in batch:
        return {**batch, "reference_logprobs": sums[0]}
    columns = {g: {**batch[g], "reference_logprobs": own} for g, own in zip(groups, sums, strict=True)}
    return {**batch, **columns}


def train_share(name: str, out: str) -> list[dict[str, Any]]:
    """One of two processes: 3 pairs in one and 1 in the other; the first one leaves the weights. Returns the log."""
    import paperhooks
    from paperhooks import HooksTrainerMixin
    from paperhooks_sso import SSO
    from safetensors.torch import save_file
    from transformers import Trainer, TrainingArguments

    class HooksTrainer(HooksTrainerMixin, Trainer):
        """What a user writes."""

    layout, steps, *low = name.split("-")
    method = SSO(reference=tiny("reference"), low_memory=bool(low))
    model, pairs = tiny(), drawn_pairs()
    collator = method.collator(layout=layout)
    arguments = TrainingArguments(
        output_dir=out, use_cpu=True, max_steps=1, per_device_train_batch_size=1, per_device_eval_batch_size=1,
        gradient_accumulation_steps=int(steps), learning_rate=0.05, lr_scheduler_type="constant", optim="sgd",
        max_grad_norm=0.0, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, seed=3,
        remove_unused_columns=False, average_tokens_across_devices=True,
    )  # fmt: skip
    data = [pairs[:3], pairs[3:]]
    with paperhooks.attach(model, method):
        run = HooksTrainer(
            model, arguments, data_collator=lambda rows: collator(rows[0]), train_dataset=data, eval_dataset=data
        )
        run.train()
        run.evaluate()
        if run.is_world_process_zero():
            save_file({n: p.detach().clone() for n, p in model.named_parameters()}, Path(out) / "weights.safetensors")
    return run.state.log_history


def _width(batch: dict[str, Any]) -> int:
    """The widest of a batch's groups."""
    return max(columns["input_ids"].shape[1] for columns in batch.values() if isinstance(columns, dict))


def train_other_widths(layout: str) -> float:
    """One of two processes, whose batches grow wider while the other's shrink, under DDP as it is by default.

    Returns how far its gradients lie from those that one process makes of all batches.
    """
    import copy

    import paperhooks
    from paperhooks import LossContext
    from paperhooks.training import compute_loss
    from paperhooks_sso import SSO
    from torch.distributed import get_rank
    from torch.nn.parallel import DistributedDataParallel

    model, method = tiny().train(), SSO(reference=tiny("reference"))
    alone, collator = copy.deepcopy(model), method.collator(layout=layout, multiple_of=1)
    draws = sorted((collator(drawn_pairs(2, seed)) for seed in range(8)), key=_width)
    assert len({*map(_width, draws)}) > 3
    called = DistributedDataParallel(model)
    with paperhooks.attach(model, method) as session:
        for batch in draws[:3:-1] if get_rank() else draws[:4]:
            compute_loss(session, LossContext(called, batch, session=session)).backward()
    with paperhooks.attach(alone, method) as session:
        for batch in draws:
            (compute_loss(session, LossContext(alone, batch, session=session)) / 2).backward()
    each = zip(model.parameters(), alone.parameters(), strict=True)
    return max(float((own.grad - other.grad).abs().max()) for own, other in each)
