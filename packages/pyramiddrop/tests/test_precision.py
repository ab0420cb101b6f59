"""Ranking is done in full precision, whatever surrounds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paperhooks import HookError, attach
from paperhooks.testing import tiny_llama, tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import PyramidDrop, Ranking, policies
from paperhooks_pyramiddrop.algorithm import choose

STAGES = {2: 0.5, 4: 0.25}
PARTS = [((3, 12, 5),), ((2, 24, 6), (4, 8, 3, 12, 2)), ((1, 40, 3), (5, 9, 4))]
LOW = [torch.bfloat16, torch.float16]


def kept_by_scores(given: Ranking, scores, kept):
    """What the ``kept`` [B, n] best would be by ``scores``, of the visual tokens, as many as were kept."""
    limits = torch.stack([torch.zeros(len(kept), dtype=torch.int64), (kept & given.visual).sum(1)], 1)
    return choose(scores, given.visual.long(), torch.zeros_like(given.visual), limits)


@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
@pytest.mark.parametrize("policy", ["last_token", "mean_text", "key_norm"])
@torch.no_grad()
def test_autocast_does_not_reach_the_ranking(policy, dtype):
    """Kept sets under autocast are those of the same states ranked in float32 without it."""
    model, seen, compared = tiny_vlm(), [], 0

    def spy(given: Ranking):
        seen.append((given, policies.POLICIES[policy](given)))
        return seen[-1][1]

    for seed in range(6):
        for parts in PARTS:
            seen.clear()
            with attach(model, PyramidDrop(stages=STAGES, rank=spy)), torch.autocast("cpu", dtype):
                model(**vlm_inputs(model, parts, seed=seed))
            for given, scores in seen:
                again = policies.POLICIES[policy](replace(given, hidden_states=given.hidden_states.float()))
                assert scores.dtype == torch.float32
                assert torch.equal(scores, again)
                compared += len(scores)
    assert compared >= 60


@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
@torch.no_grad()
def test_the_kept_sets_under_autocast_are_those_of_float32(dtype):
    model, seen, drops = tiny_vlm(), [], []

    def spy(given: Ranking):
        seen.append(given)
        return policies.last_token(given)

    for seed in range(10):
        with attach(model, PyramidDrop(stages={2: 0.5}, rank=spy, record=drops)), torch.autocast("cpu", dtype):
            model(**vlm_inputs(model, PARTS[2], seed=seed))
    for given, drop in zip(seen, drops, strict=True):
        exact = policies.last_token(replace(given, hidden_states=given.hidden_states.float()))
        assert torch.equal(kept_by_scores(given, exact, drop.kept) & given.real, drop.kept)


@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
@torch.no_grad()
def test_a_policy_of_ones_own_runs_without_autocast_too(dtype):
    model, seen = tiny_vlm(), []

    def own(given: Ranking):
        attention = given.view.layers[given.layer].self_attn
        keys = attention.k_proj(given.hidden_states)
        seen.append((torch.is_autocast_enabled("cpu"), keys.dtype, torch.is_grad_enabled()))
        return keys.norm(dim=-1)

    with attach(model, PyramidDrop(stages=STAGES, rank=own)), torch.autocast("cpu", dtype), torch.enable_grad():
        model(**vlm_inputs(model, PARTS[0]))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(False, torch.float32, False)] * 2


@pytest.mark.parametrize("policy", sorted(policies.POLICIES))
@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
@torch.no_grad()
def test_half_precision_states_under_autocast_meet_float32_weights(dtype, policy):
    """Embeddings in half precision make a residual stream in half precision; the weights are not."""
    model, drops = tiny_llama(layers=6), []
    embeds = torch.randn(1, 20, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    visual = torch.zeros(1, 20, dtype=torch.bool)
    visual[:, 3:15] = True
    with attach(model, PyramidDrop(stages=STAGES, rank=policy, record=drops)), torch.autocast("cpu", dtype):
        model(inputs_embeds=embeds, visual_mask=visual)
    assert [int((d.kept & d.visual).sum()) for d in drops] == [6, 3]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (lambda given: given.visual[0].float(), r"returned float32 \[20\]; expected float \[1, 20\]"),
        (lambda given: torch.zeros(1, 19), r"returned float32 \[1, 19\]"),
        (lambda given: given.visual.float().tolist(), "returned list"),
        (lambda given: None, "returned NoneType"),
        (lambda given: torch.zeros(1, 20, dtype=torch.complex64), "returned complex64"),
    ],
    ids=["one row", "short", "list", "nothing", "complex"],
)
@torch.no_grad()
def test_scores_of_another_form_are_refused(scores, words):
    model = tiny_vlm()
    with attach(model, PyramidDrop(stages=STAGES, rank=scores)), pytest.raises(HookError, match=words):
        model(**vlm_inputs(model, PARTS[0]))


@torch.no_grad()
def test_whole_numbers_are_scores_too():
    model, drops = tiny_vlm(), []
    with attach(model, PyramidDrop(stages={2: 0.5}, record=drops, rank=lambda given: given.visual.long().cumsum(1))):
        model(**vlm_inputs(model, PARTS[0]))
    assert drops[0].kept[0].nonzero()[:, 0].tolist() == [0, 1, 2, *range(9, 20)]
