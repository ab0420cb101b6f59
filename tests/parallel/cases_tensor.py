"""Tensor parallelism: every process keeps the tokens that one process keeps, and has the head's values and gradients.

Every function at the top runs in one rank of a group that holds one model together.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import paperhooks
import pytest
import torch
from cases_head import LOSSES, gradients, same
from paperhooks import HookError, ModelView, Traits, UnsupportedModel, hookimpl
from paperhooks.hooks import attention_from
from paperhooks.logprobs import sequence_logprobs
from paperhooks.models import attention_parts, mean_over_heads, queries_and_keys
from paperhooks.testing import tiny_text, tiny_vlm, vlm_inputs
from paperhooks_miniplm import LogLikelihood
from paperhooks_pyramiddrop import PyramidDrop
from torch import Tensor, nn
from torch.distributed import all_gather_object, barrier, get_rank, get_world_size

__all__ = ["agreement_is_checked", "attention_is_that_of_all_heads", "heads_that_are_split_are_refused",
           "kept_tokens_equal_one_process", "losses_equal_one_process"]  # fmt: skip


def spread(model: Any, folder: str, name: str = "model") -> Any:
    """The same model, held by all ranks together."""
    place = Path(folder) / name
    if get_rank() == 0:
        model.save_pretrained(place)
    barrier()
    loaded = type(model).from_pretrained(place, tp_plan="auto")
    assert ModelView.from_model(loaded).spread.kinds == ("tp",)
    return loaded.train(model.training)


def own_rank(ranking: Any) -> Tensor:
    """A policy of a user's own: the last queries' products with every key, the mean over all heads."""
    q, k = queries_and_keys(ranking.view, ranking.layer, ranking.hidden_states, ranking.position_embeddings,
                            ranking.query_rows[:, -1:])  # fmt: skip
    groups = q.shape[1] // k.shape[1]
    products = (q.unflatten(1, (-1, groups)) * k[:, :, None]).sum(-1).flatten(1, 2)  # [B, Hq, n]
    return mean_over_heads(ranking.view, products, attention_parts(ranking.view, ranking.layer).query_heads)


def part_of_the_heads(ranking: Any) -> Tensor:
    """What such a policy must not do."""
    q, k = queries_and_keys(ranking.view, ranking.layer, ranking.hidden_states, ranking.position_embeddings,
                            ranking.query_rows[:, -1:])  # fmt: skip
    groups = q.shape[1] // k.shape[1]
    return (q.unflatten(1, (-1, groups)) * k[:, :, None]).sum(-1).flatten(1, 2).mean(1)


def unseeded(ranking: Any) -> Tensor:
    draws = torch.Generator().manual_seed(get_rank())
    return torch.rand(ranking.visual.shape, generator=draws)


RANKS: Final[dict[str, Any]] = {
    "last_token": "last_token", "key_norm": "key_norm", "mean_text": "mean_text", "random": "random", "own": own_rank,
}  # fmt: skip


def kept_tokens_equal_one_process(family: str, folder: str, names: list[str]) -> None:
    """Kept tokens, scores, logits and generated tokens of every policy; scores are the same bits on all ranks."""
    plain = tiny_vlm(family, kv_heads=4 if get_world_size() > 2 else 2).eval()
    together, inputs = spread(plain, folder), vlm_inputs(plain, ((3, 16, 5), (2, 16, 6)))
    for name in names:
        found, wanted = (outcome(model, inputs, RANKS[name]) for model in (together, plain))
        assert len(found["drops"]) == len(wanted["drops"]) > 2, name
        for ours, theirs in zip(found["drops"], wanted["drops"], strict=True):
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-6, equal_nan=True)
            assert torch.equal(ours.kept, theirs.kept), f"{name}, layer {ours.layer}: other tokens were kept"
        torch.testing.assert_close(found["logits"], wanted["logits"], rtol=1e-4, atol=1e-4)
        assert found["tokens"].tolist() == wanted["tokens"].tolist(), name
        everywhere: list[Any] = [None] * get_world_size()
        all_gather_object(everywhere, [drop.scores.nan_to_num(-1.0) for drop in found["drops"]])
        assert all(map(torch.equal, everywhere[0], everywhere[get_rank()])), f"{name}: other scores on another rank"


def outcome(model: Any, inputs: dict[str, Tensor], rank: Any) -> dict[str, Any]:
    drops: list[Any] = []
    with paperhooks.attach(model, PyramidDrop(stages={1: 0.5, 2: 0.25}, rank=rank, record=drops)), torch.no_grad():
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return {"drops": drops, "logits": logits, "tokens": tokens}


def agreement_is_checked(family: str, folder: str) -> None:
    """A policy that looks at the heads of one process, or draws of its own, is refused on all of them."""
    plain = tiny_vlm(family).eval()
    together, inputs = spread(plain, folder), vlm_inputs(plain, ((3, 16, 5), (2, 16, 6)))
    for policy in (part_of_the_heads, unseeded):
        outcome(plain, inputs, policy)
        with pytest.raises(HookError, match="other scores in process 1 of this tensor-parallel model"):
            outcome(together, inputs, policy)


class Looking:
    """Notes what core tells plugin authors about attention."""

    traits = Traits(layers=(1,), parallel=("tp",))

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    @hookimpl
    def pre_attention(self, site: Any, call: Any, inputs: Any) -> None:
        batch, length = inputs.hidden_states.shape[:2]
        rows = torch.tensor([[1, length - 1]]).expand(batch, -1)
        self.seen.append(attention_from(site, inputs, rows))


def attention_is_that_of_all_heads(folder: str, heads: int, key_heads: int) -> None:
    """Grouped queries, and one key head a process; what each process holds is told, and equal scores stay equal."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": key_heads, "hidden_size": 8 * heads}
    plain = tiny_text(**sizes).eval()
    together, ids = spread(plain, folder), torch.arange(3, 19).reshape(2, 8)
    seen = []
    for model in (plain, together):
        method = Looking()
        with paperhooks.attach(model, method), torch.no_grad():
            model(ids)
        seen += method.seen
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[1].sum(-1), torch.ones(2, 2))
    view = ModelView.from_model(together)
    assert view.spread.heads(1, view) == (heads // get_world_size(), heads)
    parts = attention_parts(view, 1)
    assert (parts.query_heads, parts.key_heads) == (heads, key_heads)
    q, k = queries_and_keys(view, 1, torch.randn(1, 4, 8 * heads), None, torch.zeros(1, 1, dtype=torch.int64))
    assert q.shape[1] * get_world_size() == heads
    assert k.shape[1] * get_world_size() == key_heads
    own = torch.randn(1, q.shape[1], 1, generator=torch.Generator().manual_seed(get_rank()))
    assert len(mean_over_heads(view, own.expand(-1, -1, 4099), heads).unique()) == 1, "equal scores came apart"
    with pytest.raises(UnsupportedModel, match="gradients do not flow"):
        mean_over_heads(view, q.detach().requires_grad_(), heads)


def heads_that_are_split_are_refused(folder: str) -> None:
    """Fewer key heads than processes: the message names the reason."""
    view = ModelView.from_model(spread(tiny_text(num_attention_heads=4, num_key_value_heads=1), folder))
    width = view.text_config.hidden_size
    with pytest.raises(UnsupportedModel, match="no whole heads of"):
        queries_and_keys(view, 1, torch.randn(1, 4, width), None, torch.zeros(1, 1, dtype=torch.int64))


def losses_equal_one_process(folder: str, tied: bool) -> None:
    """Log-probabilities, divergences and distillation with a head that every process has a part of."""
    plain = tiny_text(seed=0, tie_word_embeddings=tied).train()
    teacher = tiny_text(seed=1).requires_grad_(False)
    together, taught = spread(plain, folder), spread(teacher, folder, "teacher").requires_grad_(False)
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    for name, loss in LOSSES.items():
        (wanted,), expected = gradients(loss, copy.deepcopy(plain), [batch], teacher)
        for known in (teacher, taught):
            (value,), found = gradients(loss, together, [batch], known)
            torch.testing.assert_close(
                value, wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
            same(found, expected, name, 5e-5)
    check_scores(plain.eval(), together.eval(), batch)


def check_scores(plain: nn.Module, together: nn.Module, batch: dict[str, Tensor]) -> None:
    rows = [ids.numpy() for ids in batch["input_ids"]]
    with torch.no_grad():
        found, wanted = (sequence_logprobs(model, batch, chunk=3) for model in (together, plain))
    torch.testing.assert_close(found.tokens, wanted.tokens, rtol=1e-5, atol=1e-5)
    scores = [torch.tensor(LogLikelihood(model, None, 64, chunk=3).score(rows).nll) for model in (together, plain)]
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)
