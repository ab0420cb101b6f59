"""The method on the tiny reference model: reference values, layouts, and what it logs and refuses."""

from __future__ import annotations

import math
from typing import Any

import paperhooks
import pytest
import torch
import transformers
from paperhooks import DataError, LossContext, PluginConflict, PluginIncompatible, UnsupportedModel
from paperhooks.logprobs import Head, Reference
from paperhooks.testing import fingerprint, tiny_llama, tiny_text
from paperhooks.training import compute_loss
from paperhooks_sso import SSO, Objective, PairSums, sso_loss
from paperhooks_sso.algorithm import GROUPS
from paperhooks_sso.batches import BatchPart, parts_of
from paperhooks_sso.data import PairCollator
from sso_models import CASES, drawn_pairs, golden, objective_options, tiny, with_reference

LAYOUTS = ["joint", "group", "shared", "flat"]


def run(method: SSO, batch: dict[str, Any], model: Any = None) -> tuple[float, dict[str, torch.Tensor], LossContext]:
    """Loss, gradients and context of one batch."""
    model = model or tiny()
    with paperhooks.attach(model, method) as session:
        context = LossContext(model, batch, session)
        loss = compute_loss(session, context)
        loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters()}, context


@pytest.mark.parametrize("name", list(CASES))
def test_loss_log_probabilities_and_gradient_are_those_of_the_official_code(name: str) -> None:
    case = CASES[name]
    method = SSO(**objective_options(case))
    batch = golden(case["batch"])
    if method.objective.pair.reference:
        batch = with_reference(batch)
    loss, gradients, context = run(method, batch)
    broadcast = case["hp"]["loss"] == "ipo" and case["hp"]["W"]  # the official code mixes lengths up there
    if not broadcast:
        assert loss == pytest.approx(case["loss"], rel=1e-5)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        assert norm == pytest.approx(case["grad_norm"], rel=1e-5)
    model = tiny()
    with torch.no_grad():
        ((sums, counts),) = [p.sums(model, Head.from_model(model)) for p in parts_of(golden(case["batch"]), GROUPS)]
    wanted, size = case["forward"], case["B"]
    mean = case["hp"]["loss"] == "ipo"
    values = (sums / counts if mean else sums).split(size)
    keys = ("chosen", "rejected", "p_chosen", "p_rejected", "n_chosen", "n_rejected")
    for key, found in zip(keys, values, strict=True):
        if f"{key}_logps" not in wanted:  # the official code leaves these out without G
            assert not case["hp"]["G"]
            continue
        assert found.tolist() == pytest.approx(wanted[f"{key}_logps"], abs=1e-4), key
    assert context.figures


@pytest.mark.parametrize("preset", ["v1-ipo", "v1-dpo", "v2"])
def test_every_layout_gives_the_same_loss_and_gradients(preset: str) -> None:
    found = {}
    for layout in LAYOUTS:
        method = SSO(preset)
        batch = method.collator(pad_id=7, layout=layout)(drawn_pairs())
        found[layout] = run(method, with_reference(batch, method.objective.groups))
    loss, gradients, context = found["joint"]
    largest = max(float(g.abs().max()) for g in gradients.values())
    for layout in LAYOUTS[1:]:
        other, theirs, told = found[layout]
        assert other == pytest.approx(loss, rel=1e-6), layout
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=0, atol=1e-6 * largest, msg=f"{layout} {name}")
        for name, figure in context.figures.items():
            assert float(told.figures[name].mean) == pytest.approx(float(figure.mean), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("layout", ["group", "shared"])
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "v1-ipo"}, {"preset": "v1-dpo", "gamma": 0.2}, {"preset": "v1-dpo", "detach_weight": True},
        {"preset": "v2"}, {"variant": "head"}, {"gap": False}, {"weight": False},
        {"preset": None, "loss": "orpo"},
    ],
    ids=str,
)  # fmt: skip
def test_gradients_made_group_by_group_are_the_same(layout: str, options: dict[str, Any]) -> None:
    found = []
    for low_memory in (False, True):
        method = SSO(**options, low_memory=low_memory)
        batch = method.collator(layout=layout)(drawn_pairs())
        if method.objective.pair.reference:
            batch = with_reference(batch, method.objective.groups, tiny("reference").double())
        found.append(run(method, batch, tiny().double()))
    (loss, gradients, context), (other, theirs, told) = found
    assert other == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    for name, figure in context.figures.items():
        assert float(told.figures[name].mean) == pytest.approx(float(figure.mean), rel=1e-9, abs=1e-12), name


def test_group_by_group_at_most_two_graphs_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the three, that of the good group is gone before the bad one's begins."""
    order: list[str] = []
    sums, backward = BatchPart.sums, LossContext.backward
    monkeypatch.setattr(BatchPart, "sums", lambda self, *a: (order.append(self.groups[0]), sums(self, *a))[1])
    monkeypatch.setattr(LossContext, "backward", lambda self, part: (order.append("backward"), backward(self, part))[1])
    method = SSO(low_memory=True)
    batch = with_reference(method.collator(layout="group")(drawn_pairs()))
    model = tiny()
    with paperhooks.attach(model, method) as session:
        order.clear()
        loss = compute_loss(session, LossContext(model, batch, session))
        assert order == ["plain", "good", "backward", "bad"]
        before = model.lm_head.weight.grad.clone()
        loss.backward()
    assert not torch.equal(model.lm_head.weight.grad, before)
    with paperhooks.attach(model, method) as session, torch.no_grad():
        order.clear()
        wanted = model.lm_head.weight.grad.clone()
        compute_loss(session, LossContext(model, batch, session))
    assert order == ["plain", "good", "bad"]
    assert torch.equal(model.lm_head.weight.grad, wanted)


@pytest.mark.parametrize("layout", ["joint", "flat"])
def test_group_by_group_needs_groups_apart(layout: str) -> None:
    method = SSO(low_memory=True)
    batch = with_reference(method.collator(layout=layout)(drawn_pairs()))
    with pytest.raises(DataError, match=r"whose groups lie apart.*the layout 'shared' or 'group'"):
        run(method, batch)


def test_group_by_group_a_batch_cannot_be_skipped_and_is_looked_at_before_its_gradient() -> None:
    with pytest.raises(ValueError, match="low_memory=True has gradients made before all groups are known"):
        SSO(low_memory=True, not_finite="skip")
    method, model = SSO(low_memory=True), tiny()
    batch = with_reference(method.collator(layout="group")(drawn_pairs()))
    with paperhooks.attach(model, method) as session:
        with torch.no_grad():
            model.lm_head.weight[:4] = torch.nan
        with pytest.raises(DataError, match="log-probabilities of p0, p1, p2, p3 are NaN or infinite"):
            compute_loss(session, LossContext(model, batch, session))
    assert model.lm_head.weight.grad is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_split_in_any_way_add_up(layout: str) -> None:
    method, pairs = SSO(), drawn_pairs()
    collator = method.collator(layout=layout)
    gradients = []
    for split in ([4], [3, 1], [2, 2], [1, 1, 1, 1]):
        model = tiny().double()
        with paperhooks.attach(model, method) as session:
            batches, at = [], 0
            for size in split:
                batches.append(with_reference(collator(pairs[at : at + size]), model=tiny("reference").double()))
                at += size
            counts = paperhooks.training.AccumulatedCounts.of(session, batches)
            for batch in batches:
                compute_loss(session, counts.context(model, batch)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_figures_are_logged_by_group() -> None:
    batch = with_reference(PairCollator(layout="joint")(drawn_pairs()))
    _, _, context = run(SSO(), batch)
    names = {name.removeprefix("loss/sso/") for name in context.figures}
    each = {
        f"{g}_{k}"
        for g in GROUPS
        for k in ("margin", "accuracy", "chosen", "rejected", "chosen_length", "rejected_length")
    }
    assert names == each | {"L_plain", "L_good", "L_bad", "weight"}
    lengths = [len(pair.answers["chosen"]) for pair in drawn_pairs()]
    assert float(context.figures["loss/sso/plain_chosen_length"].mean) == pytest.approx(sum(lengths) / 4)
    assert 0.5 < float(context.figures["loss/sso/weight"].mean) < 1
    assert context.terms == {}


def test_without_the_gap_only_plain_rows_are_computed() -> None:
    model, rows = tiny(), []
    model.model.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
    method = SSO(gap=False)
    with paperhooks.attach(model, method) as session:
        batch = with_reference(PairCollator(layout="joint")(drawn_pairs()))  # all six rows of a prompt
        rows.clear()
        compute_loss(session, LossContext(model, batch, session))
    assert rows == [8]
    own = with_reference(method.collator(layout="joint")(drawn_pairs()), ("plain",))
    assert run(SSO(gap=False), own)[0] == pytest.approx(run(SSO(gap=False), batch)[0], rel=1e-6)


def test_holes_in_the_labels_of_an_answer_do_not_count() -> None:
    batch = with_reference(golden("b2"))
    whole = run(SSO(), batch)[2].figures["loss/sso/plain_chosen_length"].mean
    row = (batch["labels"][0] != -100).nonzero()[1]
    batch["labels"][0, row] = -100
    assert (
        float(run(SSO(), with_reference(batch))[2].figures["loss/sso/plain_chosen_length"].mean) == float(whole) - 0.5
    )


def test_detaching_leaves_no_trace() -> None:
    model = tiny()
    before = fingerprint(model)
    run(SSO(), with_reference(golden("b2")), model)
    model.zero_grad(set_to_none=True)
    assert fingerprint(model) == before


@pytest.mark.parametrize("choice", ["raise", "skip"])
def test_what_is_not_finite_is_named_or_skipped(choice: str) -> None:
    pairs = drawn_pairs()
    batch = with_reference(SSO().collator(layout="joint")(pairs))
    others = {
        token for at in (0, 1, 3) for ids in (*pairs[at].prompts.values(), *pairs[at].answers.values()) for token in ids
    }
    own = next(token for token in pairs[2].answers["rejected"] if token not in others and token > 64)
    model = tiny()
    with torch.no_grad():
        model.model.embed_tokens.weight[own] = float("nan")
    method = SSO(not_finite=choice)
    if choice == "raise":
        with pytest.raises(DataError, match=r"log-probabilities of p2 are NaN or infinite in torch.float32"):
            run(method, batch, model)
        return
    loss, gradients, context = run(method, batch, model)
    assert loss == 0
    assert all(float(gradient.abs().sum()) == 0 for gradient in gradients.values())
    assert float(context.figures["loss/sso/skipped"].mean) == 1
    assert float(run(SSO(not_finite="skip"), batch)[2].figures["loss/sso/skipped"].mean) == 0


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"chosen": torch.ones(2, 3)}, "the batch has the columns chosen, and none that SSO can read"),
        ({"plain": {"input_ids": torch.ones(2, 3)}}, "has the groups plain, and the objective needs 'good'"),
        ({"input_ids": torch.ones(5, 3)}, "has 5 rows; expected two for each prompt and group"),
        ({"input_ids": torch.ones(6, 3), "ids": ["a", "b"]}, "has 6 rows for 2 prompts"),
    ],
)
def test_batches_of_another_form_are_named(batch: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        SSO().count_examples(batch)


def test_options_are_those_of_the_preset_unless_given() -> None:
    assert SSO().objective == Objective(loss="ipo", beta=0.2)
    assert SSO("v2", beta=0.3).objective == Objective(variant="v2", beta=0.3, gamma=0.1)
    assert SSO(None).objective == Objective()
    assert SSO("v1-dpo").beta == 0.1
    for options, words in (
        ({"preset": "v3"}, "preset is 'v3'"), ({"beta": 0}, "beta is 0"), ({"smoothing": 0.1}, "'ipo' has no use for"),
        ({"not_finite": "ignore"}, "not_finite is 'ignore'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            SSO(**options)


def test_another_objective_is_refused_by_name() -> None:
    class Other:
        traits = paperhooks.Traits(writes=frozenset({"objective"}))

        @paperhooks.hookimpl
        def compute_loss(self, context):
            return None

    with pytest.raises(PluginConflict, match="other"):
        paperhooks.attach(tiny(), SSO(), Other())


def test_layouts_that_a_model_cannot_keep_apart_are_refused() -> None:
    model = tiny_llama(layers=2)
    model.config.sliding_window = 4
    model.config.layer_types = ["sliding_attention"] * 2
    method = SSO(loss="simpo", preset=None, beta=2.0)
    batch = method.collator(layout="shared")(drawn_pairs())
    with pytest.raises(UnsupportedModel, match="see 4 tokens, and rows have"):
        run(method, batch, model)


# -- references -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_live_reference_gives_what_its_columns_give(layout: str) -> None:
    batch = SSO().collator(layout=layout)(drawn_pairs())
    wanted, gradients, _ = run(SSO(), with_reference(batch))
    for reference in (tiny("reference"), Reference.of(tiny("reference"))):
        loss, found, _ = run(SSO(reference=reference), batch)
        assert loss == pytest.approx(wanted, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def adapted() -> Any:
    """The reference model with adapters that make it another one."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(tiny("reference"), config).eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_are_compared_with_the_model_without_them(layout: str) -> None:
    batch = SSO().collator(layout=layout)(drawn_pairs())
    wanted, gradients, _ = run(SSO(), with_reference(batch), adapted())
    loss, found, _ = run(SSO(reference="base"), batch, adapted())
    assert loss == pytest.approx(wanted, rel=1e-6)
    learned = [name for name, gradient in gradients.items() if gradient is not None]
    assert learned
    assert all("lora" in name for name in learned)
    for name in learned:
        torch.testing.assert_close(found[name], gradients[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_reference_has_to_be_there_and_another_model() -> None:
    batch = SSO().collator()(drawn_pairs())
    with pytest.raises(DataError, match="the loss 'ipo' compares with a reference, and there is none"):
        run(SSO(), batch)
    with pytest.raises(ValueError, match="the loss 'simpo' has no reference"):
        SSO(None, loss="simpo", beta=2.0, reference=tiny())
    with pytest.raises(PluginIncompatible, match="needs a causal language model, got str"):
        SSO(reference="start")
    model = tiny()
    with pytest.raises(PluginIncompatible, match="is the LlamaForCausalLM that is trained"):
        paperhooks.attach(model, SSO(reference=model))
    with pytest.raises(PluginIncompatible, match="has no adapters"):
        paperhooks.attach(model, SSO(reference="base"))


def test_no_reference_is_asked_where_the_loss_has_none() -> None:
    method = SSO(None, loss="simpo", beta=2.0)
    loss, gradients, _ = run(method, method.collator()(drawn_pairs()))
    assert math.isfinite(loss)
    assert any(float(gradient.abs().sum()) for gradient in gradients.values())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layout", ["joint", "group"])
def test_gradient_checkpointing_changes_nothing(layout: str, reentrant: bool) -> None:
    batch = with_reference(SSO().collator(layout=layout)(drawn_pairs()))
    wanted, gradients, _ = run(SSO(), batch)
    model = tiny().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    loss, found, _ = run(SSO(), batch, model)
    assert loss == pytest.approx(wanted, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_models_of_experts_keep_their_balance_loss() -> None:
    model = tiny_text("mixtral")
    batch = SSO(None, loss="simpo", beta=2.0).collator(layout="joint")(drawn_pairs())
    batch["input_ids"] %= model.config.vocab_size
    batch["labels"] = batch["labels"].where(batch["labels"] < 0, batch["labels"] % model.config.vocab_size)
    found = {}
    for asked in (False, True):
        model.config.output_router_logits = asked
        found[asked] = run(SSO(None, loss="simpo", beta=2.0), batch, model)[0]
        model.zero_grad()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    balance = model(**inputs, output_router_logits=True).aux_loss * model.config.router_aux_loss_coef
    assert float(balance) > 0
    assert found[True] - found[False] == pytest.approx(float(balance), rel=1e-4)


def test_the_layout_is_what_the_attached_model_can_keep_apart() -> None:
    method, sliding = SSO(None, loss="simpo", beta=2.0), tiny_llama(layers=2)
    assert method.collator().layout == "group"
    with paperhooks.attach(tiny().train(), method):
        assert method.collator().layout == "shared"
        assert method.collator(layout="joint").layout == "joint"
    assert method.collator().layout == "group"
    sliding.config.sliding_window, sliding.config.layer_types = 4, ["sliding_attention"] * 2
    with paperhooks.attach(sliding, method):
        assert method.collator().layout == "group"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_reference_that_is_not_finite_is_named_or_skipped(value: float, low_memory: bool) -> None:
    method = SSO(low_memory=low_memory)
    batch = with_reference(method.collator(layout="group")(drawn_pairs()))
    batch["bad"]["reference_logprobs"][1] = value
    with pytest.raises(DataError, match=r"the log-probabilities of p1 are NaN or infinite .* or of its reference"):
        run(method, batch)
    if not low_memory:
        loss, gradients, context = run(SSO(not_finite="skip"), batch)
        assert loss == 0
        assert all(float(g.abs().max()) == 0 for g in gradients.values())
        assert float(context.figures["loss/sso/skipped"].mean) == 1


@pytest.mark.parametrize("family", ["BloomForCausalLM", "MambaForCausalLM", "Lfm2ForCausalLM"])
def test_models_that_take_no_mask_of_rows_are_trained_by_group(family: str) -> None:
    sizes: dict[str, Any] = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2}
    made = {
        "BloomForCausalLM": lambda: transformers.BloomConfig(vocab_size=264, hidden_size=32, n_layer=2, n_head=4),
        "MambaForCausalLM": lambda: transformers.MambaConfig(**sizes),
        "Lfm2ForCausalLM": lambda: transformers.Lfm2Config(
            **sizes, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, family)(made[family]()).eval()
    method = SSO("v1-dpo", loss="simpo")
    with paperhooks.attach(model, method):
        assert method.collator().layout == "group"


def test_a_pair_without_tokens_pulls_at_nothing() -> None:
    """Not by the likelihood terms either, nor by W."""
    generator = torch.Generator().manual_seed(0)
    leaves = {g: [(-10 * torch.rand(2, generator=generator)).requires_grad_() for _ in range(2)] for g in GROUPS}
    counts = {g: [torch.tensor([5, 4]), torch.tensor([3, 0 if g == "plain" else 6])] for g in GROUPS}
    groups = {g: PairSums(*leaves[g], *counts[g]) for g in GROUPS}
    sso_loss(groups, Objective(loss="simpo", gamma=0.3)).loss.backward()
    assert [float(leaf.grad[1]) for leaf in leaves["plain"]] == [0.0, 0.0]
    assert all(float(leaf.grad[0]) != 0 for leaf in leaves["plain"])
    assert all(float(leaf.grad[1]) != 0 for leaf in leaves["good"])
