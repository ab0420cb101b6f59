"""The head inside the model's forward: losses, gradients and scores of a model that FSDP2 shards equal one process.

Every function at the top runs in one rank. Ranks have different batches of different lengths, the last has no target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import paperhooks
import pytest
import torch
from paperhooks import LossContext, UnsupportedModel
from paperhooks.logprobs import Head, sequence_logprobs
from paperhooks.logprobs.divergence import kl_divergence
from paperhooks.models import last_hidden_state
from paperhooks.testing import tiny_text
from paperhooks.training import compute_loss
from paperhooks_miniplm import Distil, DistilTerm, LogLikelihood
from torch import Tensor, nn
from torch.distributed import get_rank, get_world_size
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import CohereConfig, CohereForCausalLM

__all__ = [
    "LAYOUTS",
    "attaching_leaves_the_shards",
    "head_is_refused_outside",
    "losses_equal_one_process",
    "mixed_precision_keeps_the_loss_exact",
    "plain_student_of_a_sharded_teacher",
    "scores_equal_one_process",
]  # fmt: skip

#: Where the output embeddings' weights are: in the root's unit, in a root that gives them up after its forward, in a
#: unit of the last norm and the head as accelerate makes it, and in one of the head alone.
LAYOUTS: Final = ("root", "resharded", "unit", "alone")


SIZES: Final = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def model_of(seed: int, tied: bool, family: str = "llama") -> Any:
    if family == "cohere":  # multiplies its logits
        torch.manual_seed(seed)
        model: Any = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25, tie_word_embeddings=tied))
    else:
        model = tiny_text(family, seed=seed, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    return model.train()


def sharded(model: Any, layout: str, tied: bool, **options: Any) -> Any:
    """A sharded copy of a model."""
    model = copy.deepcopy(model)
    tails = {
        "unit": [model.model.norm, model.lm_head] + [model.model.embed_tokens] * tied,
        "alone": [model.lm_head] + [model.model.embed_tokens] * tied,
    }
    for layer in model.model.layers:
        fully_shard(layer, **options)
    if layout in tails:
        fully_shard(tails[layout], reshard_after_forward=not tied, **options)
    return fully_shard(model, reshard_after_forward=True if layout == "resharded" else None, **options)


def batch_of(rank: int) -> dict[str, Tensor]:
    """Two rows, longer on later ranks; the last rank of several predicts nothing."""
    draws = torch.Generator().manual_seed(rank)
    ids = torch.randint(3, 90, (2, 7 + 2 * rank), generator=draws)
    labels = ids.clone()
    labels[:, : 2 + rank] = -100
    if rank == get_world_size() - 1:
        labels.fill_(-100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def log_probability(model: Any, batch: dict[str, Tensor], teacher: Any) -> Tensor:
    return -sequence_logprobs(model, batch, chunk=3).sum.sum()


def made_again(model: Any, batch: dict[str, Tensor], teacher: Any) -> Tensor:
    """The same, without logits kept for the backward pass."""
    return -sequence_logprobs(model, batch, chunk=3, limit=0).sum.sum()


def divergence(model: Any, batch: dict[str, Tensor], teacher: Any) -> Tensor:
    """The way that is documented for a divergence of two models."""
    heads = Head.from_model(model), Head.from_model(teacher)
    mask = batch["labels"] != -100

    def inside(g: Tensor, other: Head) -> Tensor:
        def work(h: Tensor, own: Head) -> Tensor:
            return kl_divergence(h, own, g, other, mask=mask, direction="jsd", chunk=3)

        with torch.enable_grad():
            return heads[0].run(model, batch, work)

    with torch.no_grad():
        values = heads[1].run(teacher, batch, inside)
    return values.sum()


def by_methods(*methods: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def loss(model: Any, batch: dict[str, Tensor], teacher: Any) -> Tensor:
        with paperhooks.attach(model, *(method(teacher) for method in methods)) as session:
            context = LossContext(
                model, batch, session, num_items_in_batch=5, num_examples_in_batch=2, num_target_rows_in_batch=2
            )
            return compute_loss(session, context)

    return loss


LOSSES: Final[dict[str, Callable[..., Tensor]]] = {
    "logprobs": log_probability,
    "made again": made_again,
    "divergence": divergence,
    "distil": by_methods(lambda teacher: Distil(teacher, chunk=3, official_mask=False)),
    "labels": by_methods(lambda teacher: Distil(weight=0, chunk=3, official_mask=False)),
    "term": by_methods(lambda teacher: DistilTerm(teacher, chunk=3, official_mask=False)),
    "both": by_methods(
        lambda teacher: Distil(teacher, chunk=3, weight=0.3, official_mask=False),
        lambda teacher: DistilTerm(teacher, weight=0.3, chunk=3, official_mask=False),
    ),
}


def losses_equal_one_process(layout: str, tied: bool, family: str = "llama") -> None:
    """Value and gradient of every parameter, for every loss, with a plain teacher and with a sharded one."""
    plain, teacher = model_of(0, tied, family), model_of(1, False).requires_grad_(False)
    spread, taught = sharded(plain, layout, tied), sharded(teacher, layout, False)
    for name, loss in LOSSES.items():
        for known in (teacher, taught):  # the second step finds what the first has left
            check(loss, plain, spread, teacher, known, f"{name} of {layout}")


def plain_student_of_a_sharded_teacher(layout: str) -> None:
    """No rank shares the student's gradients; the teacher is called on all."""
    plain, teacher = model_of(0, False), model_of(1, False).requires_grad_(False)
    taught, batch = sharded(teacher, layout, False), batch_of(get_rank())
    for name, loss in LOSSES.items():
        wanted = gradients(loss, plain, [batch], teacher)[1]
        same(gradients(loss, copy.deepcopy(plain), [batch], taught)[1], wanted, name)


def adapters_equal_one_process(on_head: bool, tail: bool) -> None:
    """LoRA around the model, and sharded around that: the root is a wrapper that core does not see from the model."""
    import peft

    torch.manual_seed(0)
    targets = ["q_proj", "v_proj"] + ["lm_head"] * on_head
    adapters = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    plain, teacher = peft.get_peft_model(model_of(0, False), adapters), model_of(1, False).requires_grad_(False)
    spread = copy.deepcopy(plain)
    inner = spread.get_base_model()
    for layer in inner.model.layers:
        fully_shard(layer)
    if tail:
        fully_shard([inner.model.norm, inner.lm_head])
    fully_shard(spread)
    for name, loss in LOSSES.items():
        check(loss, plain, spread, teacher, teacher, name)


def check(loss: Callable[..., Tensor], plain: Any, spread: Any, teacher: Any, known: Any, what: str) -> None:
    count = get_world_size()
    values, wanted = gradients(loss, plain, [batch_of(rank) for rank in range(count)], teacher)
    (value,), found = gradients(loss, spread, [batch_of(get_rank())], known)
    torch.testing.assert_close(value, values[get_rank()], rtol=1e-6, atol=1e-6, msg=lambda text: f"{what}: {text}")
    same(found, {name: each / count for name, each in wanted.items()}, what)


def gradients(
    loss: Callable[..., Tensor], model: nn.Module, batches: list[dict[str, Tensor]], teacher: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The loss of every batch, and the sum of its gradients, whole."""
    model.zero_grad()
    values = []
    for batch in batches:
        values.append(loss(model, batch, teacher))
        values[-1].backward()
        values[-1] = values[-1].detach()
    return values, {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str, tolerance: float = 1e-6) -> None:
    assert found.keys() == wanted.keys(), f"{what}: {sorted(found.keys() ^ wanted.keys())} have a gradient in one alone"
    for name, each in wanted.items():
        torch.testing.assert_close(
            found[name], each, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{what}, {name}: {text}"
        )


def scores_equal_one_process(layout: str, tied: bool) -> None:
    """Without gradient: log-probabilities under no_grad, and MiniPLM's scoring."""
    plain = model_of(0, tied).eval()
    spread, batch = sharded(plain, layout, tied), batch_of(get_rank())
    rows = [ids.numpy() for ids in batch["input_ids"]]
    for _ in range(2):
        with torch.no_grad():
            found, wanted = sequence_logprobs(spread, batch, chunk=3), sequence_logprobs(plain, batch, chunk=3)
        torch.testing.assert_close(found.tokens, wanted.tokens, rtol=1e-6, atol=1e-6)
        assert found.count.tolist() == wanted.count.tolist()
        found, wanted = (LogLikelihood(model, None, 64, chunk=3).score(rows).nll for model in (spread, plain))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-6, atol=1e-6)
    check(log_probability, plain.train(), spread.train(), None, None, "after scoring")


def head_is_refused_outside(layout: str) -> None:
    """Found before the model was sharded or after it; a head made by hand is called as it stands."""
    model = model_of(0, False)
    before = Head.from_model(model)
    for layer in model.model.layers:
        fully_shard(layer)
    tail = {"unit": [model.model.norm, model.lm_head], "alone": [model.lm_head]}.get(layout)
    if tail:
        fully_shard(tail)
    fully_shard(model)
    for head in (before, Head.from_model(model)):
        hidden = last_hidden_state(model, batch_of(0))
        with pytest.raises(UnsupportedModel, match=r"head\.run"):
            head.logits(hidden)


def mixed_precision_keeps_the_loss_exact(layout: str) -> None:
    """Weights in bfloat16 inside, as accelerate's policy has it: the loss itself is not rounded to bfloat16."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.bfloat16)
    plain, teacher = model_of(0, False), model_of(1, False).requires_grad_(False)
    spread, half = sharded(plain, layout, False, mp_policy=policy), copy.deepcopy(plain).to(torch.bfloat16)
    for name in ("logprobs", "distil", "term"):
        batch = batch_of(0)
        (value,) = gradients(LOSSES[name], spread, [batch], teacher)[0]
        (wanted,) = gradients(LOSSES[name], half, [batch], teacher)[0]
        assert value != value.bfloat16(), f"{name}: {value}"
        torch.testing.assert_close(value, wanted, rtol=2e-3, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def attaching_leaves_the_shards(layout: str) -> None:
    """An optimiser that is made after attaching finds the same parameters as before."""
    model = sharded(model_of(0, False), layout, False)
    before = [id(parameter) for parameter in model.parameters()]
    with paperhooks.attach(model, Distil(teacher=model_of(1, False).eval())):
        assert [id(parameter) for parameter in model.parameters()] == before
