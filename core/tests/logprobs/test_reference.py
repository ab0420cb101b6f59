"""The model that another is compared with, in every form it has."""

from __future__ import annotations

import copy
from typing import Any

import paperhooks
import pytest
import torch
from paperhooks import DataError, LossContext, PluginIncompatible
from paperhooks.logprobs import Reference, reference_columns, sequence_logprobs
from paperhooks.models import view_of
from paperhooks.testing import RankPool, tiny_llama
from paperhooks.training import compute_loss
from torch import Tensor, nn

peft = pytest.importorskip("peft")


def batch_of(rows: int = 2) -> dict[str, Tensor]:
    ids = torch.randint(3, 90, (rows, 7), generator=torch.Generator().manual_seed(3))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(torch.arange(7) < 3, -100),
    }


def sums(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return sequence_logprobs(model, batch).sum


def adapted(start: bool = True, **options: Any) -> Any:
    """A model with adapters that change it: "default", which is trained, and a frozen "start"."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "lm_head"], "lora_dropout": 0.5} | options)
    model = peft.get_peft_model(tiny_llama(), config)
    if start:
        model.add_adapter("start", peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.train()


def state(model: nn.Module) -> list[Any]:
    layers = [m for m in model.modules() if hasattr(m, "active_adapters") and hasattr(m, "merged")]
    flags = [(name, p.requires_grad) for name, p in model.named_parameters()]
    return [
        flags,
        [m.training for m in model.modules()],
        [(m.disable_adapters, list(m.active_adapters)) for m in layers],
    ]


class Wrapper(nn.Module):
    """As DistributedDataParallel and its kin."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_another_model_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    other = tiny_llama(seed=1, attention_dropout=0.5).train()
    wanted = sums(copy.deepcopy(other).eval(), batch_of())
    reference = Reference.of(other)
    reference.check(tiny_llama())
    found = reference.sums(tiny_llama(), batch_of())
    assert torch.equal(found, wanted)
    assert not found.requires_grad
    assert found.dtype == torch.float64
    assert all(module.training for module in other.modules())
    shifted = {**batch_of(), "shift_labels": torch.full((2, 7), 5)}
    assert torch.equal(reference.sums(tiny_llama(), shifted), sums(copy.deepcopy(other).eval(), shifted))


@pytest.mark.parametrize("wrap", [lambda m: m, Wrapper, lambda m: view_of(m)], ids=["plain", "wrapped", "view"])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}], ids=str)
def test_without_adapters_it_is_the_model_before_them(wrap: Any, options: dict[str, Any]) -> None:
    model = adapted(start=False, **options)
    before, batch, trained = state(model), batch_of(), sums(copy.deepcopy(model).eval(), batch_of())
    reference = Reference.without_adapters()
    reference.check(wrap(model))
    found = reference.sums(wrap(model), batch)
    torch.testing.assert_close(found, sums(tiny_llama(), batch))
    assert not torch.allclose(found, trained, atol=1e-2)
    assert state(model) == before
    assert torch.equal(sums(copy.deepcopy(model).eval(), batch), trained)


def test_a_frozen_adapter_takes_the_place_of_the_trained_one() -> None:
    model = adapted()
    before, trained = state(model), sums(copy.deepcopy(model).eval(), batch_of())
    other = copy.deepcopy(model).eval()
    other.set_adapter("start")
    reference = Reference.by_adapter("start")
    reference.check(model)
    found = reference.sums(Wrapper(model), batch_of())
    torch.testing.assert_close(found, sums(other, batch_of()))
    assert not torch.allclose(found, trained, atol=1e-2)
    assert state(model) == before


def test_flags_that_somebody_set_and_adapters_that_he_disabled_stay_so() -> None:
    model = adapted()
    next(p for n, p in model.named_parameters() if "lora_A.default" in n).requires_grad_(False)
    before = state(model)
    Reference.without_adapters().sums(model, batch_of())
    Reference.by_adapter("start").sums(model, batch_of())
    assert state(model) == before
    model.base_model.disable_adapter_layers()
    before = state(model)
    torch.testing.assert_close(Reference.without_adapters().sums(model, batch_of()), sums(tiny_llama(), batch_of()))
    assert state(model) == before


@pytest.mark.parametrize("reference", [Reference.without_adapters(), Reference.by_adapter("start")])
def test_an_error_leaves_the_adapters_as_they_were(reference: Reference) -> None:
    model = adapted()
    before = state(model)
    with pytest.raises(DataError, match="label 1000"):
        reference.sums(model, {**batch_of(), "labels": torch.full((2, 7), 1000)})
    handle = model.get_base_model().model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reference.run(model, batch_of(), lambda hidden, head: hidden)
    handle.remove()
    assert state(model) == before


@pytest.mark.parametrize("reference", [Reference.without_adapters(), Reference.by_adapter("start")])
def test_gradients_that_are_on_their_way_are_those_without_the_reference(reference: Reference) -> None:
    model = adapted(lora_dropout=0.0)
    found = []
    for asked in (False, True):
        model.zero_grad()
        loss = sequence_logprobs(model, batch_of()).sum.sum()
        if asked:
            reference.sums(model, batch_of())
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[1][name], each) for name, each in found[0].items())


@pytest.mark.parametrize("reference", [Reference.without_adapters(), Reference.by_adapter("start")])
def test_work_runs_the_trained_model_as_it_is_and_asks_the_head_of_the_reference(reference: Reference) -> None:
    model = adapted(lora_dropout=0.0)
    before, batch = state(model), batch_of()
    trained = sums(model, batch)

    def work(hidden: Tensor, head: Any) -> tuple[Tensor, Tensor]:
        assert state(model) == before
        assert torch.is_grad_enabled()
        own = sequence_logprobs(model, batch)
        with torch.no_grad():
            labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
            values = head.logits(hidden).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return own.sum, (values * (labels != -100)).double().sum(-1)

    own, known = reference.run(model, batch, work)
    torch.testing.assert_close(own.detach(), trained)
    assert own.requires_grad
    torch.testing.assert_close(known, reference.sums(model, batch), rtol=1e-5, atol=1e-5)


def refused() -> list[Any]:
    model, mixed, disabled = tiny_llama(), adapted(start=False), adapted()
    mixed.get_base_model().model.norm.weight.requires_grad_(True)
    disabled.base_model.disable_adapter_layers()
    same = Reference.of(model)
    shared = nn.ModuleList([model.model, model.lm_head])  # another object, of the very parameters
    return [
        (Reference.without_adapters(), model, "has no adapters of PEFT, so without them it is the model"),
        (same, model, "would move along; give a copy"),
        (same, Wrapper(model), "would move along; give a copy"),
        (Reference.of(shared), model, "would move along; give a copy"),
        (Reference.of(mixed.get_base_model()), mixed, "would move along"),
        (Reference.by_adapter("other"), adapted(), "has no adapter 'other'; it has default, start"),
        (Reference.by_adapter("default"), adapted(), "'default' is the one that is trained"),
        (Reference.by_adapter("start"), disabled, "while adapters are disabled"),
        (Reference.without_adapters(), mixed, "is trained beside the adapters"),
    ]


@pytest.mark.parametrize("number", range(9))
def test_what_would_move_along_or_is_not_there_is_refused(number: int) -> None:
    reference, model, message = refused()[number]
    with pytest.raises(PluginIncompatible, match=message):
        reference.check(model)


def test_merged_adapters_and_what_is_no_model_are_refused() -> None:
    merged = adapted()
    merged.merge_adapter()
    with pytest.raises(PluginIncompatible, match="merged into its weights"):
        Reference.without_adapters().sums(merged, batch_of())
    with pytest.raises(PluginIncompatible, match="got str"):
        Reference.of("gpt2")  # type: ignore[arg-type]


# -- columns ------------------------------------------------------------------------------------------------------


def examples_of(count: int = 5) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Pairs of sequences of different lengths."""
    draws = torch.Generator().manual_seed(7)
    found = {}
    for number in range(count):
        rows = [torch.randint(3, 90, (n,), generator=draws).tolist() for n in (4 + number, 6)]
        found[f"e{number}"] = [(ids, [-100, -100, *ids[2:]]) for ids in rows]
    return found


def test_columns_are_the_values_of_the_model(tmp_path: Any) -> None:
    model, examples = tiny_llama(), examples_of()
    found = reference_columns(model, examples, tmp_path / "values.jsonl", unit=2)
    assert list(found) == list(examples)
    for key, rows in examples.items():
        for value, (ids, labels) in zip(found[key], rows, strict=True):
            wanted = sums(model, {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])})
            torch.testing.assert_close(torch.tensor([value], dtype=torch.float64), wanted, rtol=1e-5, atol=1e-5)
    digest = paperhooks.io.model_digest(model)
    assert reference_columns(digest, examples, tmp_path / "values.jsonl") == found
    with pytest.raises(DataError, match="no reference values of 1 examples, such as 'e5'"):
        reference_columns(digest, examples_of(6), tmp_path / "values.jsonl")


def test_it_goes_on_after_a_kill_and_computes_nothing_twice(tmp_path: Any, monkeypatch: Any) -> None:
    from paperhooks.logprobs import LogLikelihood

    model, file, scored = tiny_llama(), tmp_path / "values.jsonl", []
    score = LogLikelihood.score
    monkeypatch.setattr(
        LogLikelihood, "score", lambda self, rows, **o: scored.append(len(rows)) or score(self, rows, **o)
    )
    whole = reference_columns(model, examples_of(), tmp_path / "whole.jsonl", unit=1)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    scored.clear()
    assert reference_columns(model, examples_of(), file, unit=1) == whole
    assert scored == [2, 2, 2]
    assert file.read_bytes() == b"".join(lines)
    assert reference_columns(model, examples_of(3), file) == {key: whole[key] for key in examples_of(3)}


def test_values_of_another_model_template_or_text_are_refused_and_kept(tmp_path: Any) -> None:
    file = tmp_path / "values.jsonl"
    reference_columns(tiny_llama(), examples_of(), file)
    before, changed = file.read_bytes(), examples_of()
    ids, labels = changed["e1"][0]
    changed["e1"][0] = (ids, [-100, *labels[1:2], -100, *labels[3:]])
    for arguments, options, message in (
        ((tiny_llama(seed=1), examples_of()), {}, "values.jsonl holds reference values made with another model"),
        ((tiny_llama(), examples_of()), {"template": "chatml"}, "made with another template"),
        ((tiny_llama(), changed), {}, "other ids or labels for example 'e1'"),
    ):
        with pytest.raises(DataError, match=message):
            reference_columns(*arguments, file, **options)
        assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "example 'a' has 0 sequences"),
        ([([5, 6], [5, 7])], "labels that are neither"),
        ([([5, 6], [5])], "labels that are neither"),
        ([([5, 1000], [-100, 1000])], "1000"),
        ([([5] * 4000, [5] * 4000)], "reads at most"),
    ],
)
def test_examples_that_cannot_be_meant(tmp_path: Any, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reference_columns(tiny_llama(), {"a": rows}, tmp_path / "values.jsonl")
    assert not (tmp_path / "values.jsonl").exists()


def test_the_column_is_checked_to_be_there_and_to_fit() -> None:
    reference, model, batch = Reference.from_column("reference"), tiny_llama(), batch_of()
    reference.check(model)
    column = torch.tensor([[-1.5], [-2.5]])
    assert reference.sums(model, {**batch, "reference": column}).tolist() == [-1.5, -2.5]
    grouped = {"input_ids": torch.zeros(2, 6, 5, dtype=torch.int64), "reference": torch.zeros(2, 6)}
    assert reference.sums(model, grouped).shape == (12,)
    flat = {"input_ids": batch["input_ids"][:1], "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1]])}
    assert reference.sums(model, {**flat, "reference": torch.zeros(3)}).shape == (3,)
    for value, message in (
        (None, "no column 'reference'.*reference_columns.*remove_unused_columns=False"),
        (torch.zeros(2, dtype=torch.int64), "column 'reference' is torch.int64"),
        (torch.zeros(3), "3 values.*for 2 sequences"),
        (torch.tensor([1.0, float("nan")]), "not finite"),
    ):
        with pytest.raises(DataError, match=message):
            reference.sums(model, batch if value is None else {**batch, "reference": value})
    with pytest.raises(PluginIncompatible, match="no distributions; give a model"):
        reference.run(model, batch, lambda hidden, head: hidden)


# -- in a session, and in several processes -----------------------------------------------------------------------


class Preference:
    """A loss of two rows against a reference; how often it was asked for is counted."""

    traits = paperhooks.Traits(training=True, writes=frozenset({"objective"}))

    def __init__(self, reference: Reference) -> None:
        self.reference, self.asked = reference, 0

    @paperhooks.hookimpl
    def setup(self, view: Any) -> None:
        self.reference.check(view)

    @paperhooks.hookimpl
    def compute_loss(self, context: LossContext) -> Tensor:
        self.asked += 1
        own = sequence_logprobs(context.model, context.inputs).sum
        margins = own - self.reference.sums(context.model, context.inputs).to(own.device)
        return -nn.functional.logsigmoid(margins[0] - margins[1]).float()


def loss_of(model: Any, reference: Reference, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor], int]:
    method = Preference(reference)
    model.zero_grad()
    with paperhooks.attach(model, method) as session:
        loss = compute_loss(session, LossContext(Wrapper(model), batch, session))
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, method.asked


def test_every_kind_gives_one_loss_and_the_loss_hooks_are_asked_once() -> None:
    model, batch = adapted(lora_dropout=0.0), batch_of()
    column = {**batch, "reference": sums(tiny_llama(), batch)}
    kinds = (Reference.of(tiny_llama()), Reference.without_adapters(), Reference.from_column("reference"))
    found = [loss_of(model, kind, column) for kind in kinds]
    assert [asked for _, _, asked in found] == [1, 1, 1]
    for value, grads, _ in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-6)
        assert grads.keys() == found[0][1].keys()
        for name, each in grads.items():
            torch.testing.assert_close(each, found[0][1][name], rtol=1e-5, atol=1e-6)


def test_a_method_is_refused_when_attached_with_a_reference_that_would_move_along() -> None:
    model = tiny_llama()
    with pytest.raises(PluginIncompatible, match="would move along"):
        paperhooks.attach(model, Preference(Reference.of(model)))
    with pytest.raises(PluginIncompatible, match="has no adapters"):
        paperhooks.attach(model, Preference(Reference.without_adapters()))


class Noise:
    """Changes what every layer gives."""

    traits = paperhooks.Traits(training=True)

    @paperhooks.hookimpl
    def post_layer(self, site: Any, call: Any, hidden_states: Tensor) -> Tensor:
        return hidden_states * 1.1


def test_attached_methods_act_on_the_same_model_and_not_on_another() -> None:
    model, batch = adapted(), batch_of()
    same, other = Reference.without_adapters(), Reference.of(tiny_llama())
    plain = sums(tiny_llama(), batch)
    with paperhooks.attach(model, Noise()):
        torch.testing.assert_close(other.sums(model, batch), plain)
        changed = same.sums(model, batch)
    base = tiny_llama()
    with paperhooks.attach(base, Noise()):
        torch.testing.assert_close(changed, sums(base, batch))
    assert not torch.allclose(changed, plain, atol=1e-3)


def in_two_processes(folder: str) -> None:
    """Adapters switched inside DistributedDataParallel, which goes on to synchronise; columns computed once."""
    from torch.distributed import get_rank
    from torch.nn.parallel import DistributedDataParallel

    model, batch = adapted(lora_dropout=0.0), batch_of()
    known, wrapped = sums(tiny_llama(), batch), DistributedDataParallel(model, find_unused_parameters=True)
    for _ in range(2):
        for kind in (Reference.without_adapters(), Reference.of(tiny_llama())):
            loss = (sequence_logprobs(wrapped, batch).sum * (get_rank() + 1)).sum()
            torch.testing.assert_close(kind.sums(wrapped, batch), known)
            wrapped.zero_grad()
            loss.backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            model.zero_grad()
            (sequence_logprobs(model, batch).sum * 1.5).sum().backward()
            for one, other in zip(grads, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    found = reference_columns(tiny_llama(), examples_of(), f"{folder}/values.jsonl", unit=1)
    assert len(found) == 5


def test_two_processes(tmp_path: Any) -> None:
    with RankPool(2) as ranks:
        ranks.run(in_two_processes, str(tmp_path), limit=120)
    assert len((tmp_path / "values.jsonl").read_text().splitlines()) == 5
