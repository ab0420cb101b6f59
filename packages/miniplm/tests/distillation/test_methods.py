"""Distillation against the official values and gradients, its limits, and training with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import golden_miniplm as golden
import paperhooks
import pytest
import torch
from paperhooks import DataError, HooksTrainerMixin, LossContext, PluginIncompatible
from paperhooks.io import Ranks
from paperhooks.logprobs import Reference
from paperhooks.testing import (
    LargestTensor,
    LossContract,
    MethodContract,
    fingerprint,
    run_ranks,
    tiny_llama,
    tiny_text,
)
from paperhooks.training import compute_loss
from paperhooks_miniplm import (
    Distil,
    DistilTerm,
    MemoryRows,
    SelectedDataset,
    TrainingCollator,
    collate,
    distillation_loss,
)
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

COLLATOR = TrainingCollator(0, max_length=golden.MAX_LENGTH)
PARTS = {"lm": "lm_loss", "kd": "kd_loss", "entropy": "kd_entropy"}


class HooksTrainer(HooksTrainerMixin, Trainer):
    """What a user writes."""


def cases() -> list[tuple[str, float]]:
    names = (key.split(".mean.loss")[0] for key in golden.kd_loss() if key.endswith(".mean.loss"))
    return sorted((name.rpartition(".r")[0], float(name.rpartition(".r")[2])) for name in names)


def given(case: str) -> dict[str, Any]:
    names = {"student_logits": "student_logits", "teacher_logits": "teacher_logits", "labels": "label"}
    found = {name: golden.kd_loss()[f"{case}.{key}"] for name, key in names.items()}
    return {**found, "mask": golden.kd_loss()[f"{case}.loss_mask"]}


def batch(rows: slice = slice(0, 4)) -> dict[str, torch.Tensor]:
    return COLLATOR([ids for _, ids in golden.collate_inputs()["rows"]][rows])


def loss_of(model: Any, method: Distil, inputs: dict[str, Any], **counts: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and logged terms of one batch."""
    with paperhooks.attach(model, method) as session:
        context = LossContext(model, inputs, session, **counts)
        loss = compute_loss(session, context)
    assert loss.requires_grad
    return loss, logged(context)


def logged(context: LossContext) -> dict[str, float]:
    """Figures and terms by their last name."""
    found = {name: figure.mean for name, figure in context.figures.items()} | context.terms
    return {name.rpartition("/")[2]: float(value) for name, value in found.items()}


# -- given logits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 4, 1000])
@pytest.mark.parametrize(("case", "ratio"), cases())
def test_values_and_gradients_are_the_official_ones(case: str, ratio: float, chunk: int | None) -> None:
    values, gradients = (2e-3, 1e-4) if case == "half" else (1e-5, 1e-6)
    inputs, key = given(case), f"{case}.r{ratio}"
    logits = inputs.pop("student_logits").clone().requires_grad_()
    found = distillation_loss(logits, **inputs, weight=ratio, chunk=chunk)
    torch.testing.assert_close(found.loss[None], golden.kd_loss()[f"{key}.mean.loss"], rtol=0, atol=values)
    for name, official in PARTS.items():
        wanted = golden.kd_loss()[f"{key}.per_sequence.{official}"]
        torch.testing.assert_close(getattr(found, name), wanted, rtol=0, atol=values, msg=name)
    assert torch.equal(found.count, inputs["mask"].sum(1).long())
    (gradient,) = torch.autograd.grad(found.loss, logits)
    torch.testing.assert_close(gradient, golden.kd_loss()[f"{key}.grad_student_logits"], rtol=0, atol=gradients)


def test_all_official_cases_are_there() -> None:
    assert {case for case, _ in cases()} == {"plain", "masked", "student_neg_inf", "identical", "half", "bigger"}
    assert len(cases()) >= 12


def test_a_student_that_excludes_an_entry_gets_the_gradient_of_the_others() -> None:
    inputs = given("student_neg_inf")
    logits = inputs["student_logits"].clone().requires_grad_()
    found = distillation_loss(logits, inputs["teacher_logits"], inputs["labels"], weight=1.0)
    (gradient,) = torch.autograd.grad(found.loss, logits)
    p, q = inputs["teacher_logits"].softmax(-1), inputs["student_logits"].softmax(-1)
    there = inputs["student_logits"] > -torch.inf
    wanted = (q * (p * there).sum(-1, keepdim=True) - p) * there / inputs["labels"].numel()
    assert not bool(there.all())
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("divergence", ["cross_entropy", "forward", "reverse", "jsd"])
@pytest.mark.parametrize("excluded", ["student", "both"])
def test_excluded_entries_give_finite_values_and_gradients(divergence: str, excluded: str) -> None:
    inputs = given("student_neg_inf")
    logits = inputs["student_logits"].clone().requires_grad_()
    teacher = inputs["teacher_logits"].masked_fill(logits.isinf() & (excluded == "both"), -torch.inf)
    found = distillation_loss(logits, teacher, inputs["labels"], weight=1.0, divergence=divergence)
    (gradient,) = torch.autograd.grad(found.loss, logits)
    assert bool(torch.isfinite(found.loss))
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[logits.isinf()].abs().max()) == 0


def divergences(beta: float = 0.5, temperature: float = 1.0) -> dict[str, float]:
    """From the definitions in float64, mean over all positions."""
    inputs = given("plain")
    p, q = ((inputs[f"{who}_logits"].double() / temperature).softmax(-1) for who in ("teacher", "student"))
    kl = lambda a, b: float((a * (a.log() - b.log())).sum(-1).mean())  # noqa: E731
    middle = beta * p + (1 - beta) * q
    return {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": beta * kl(p, middle) + (1 - beta) * kl(q, middle),
        "cross_entropy": -float((p * q.log()).sum(-1).mean()),
    }


def plain(divergence: str, **options: Any) -> float:
    inputs = {name: value for name, value in given("plain").items() if name != "mask"}
    return distillation_loss(**inputs, weight=1.0, divergence=divergence, **options).loss.item()


@pytest.mark.parametrize("divergence", ["cross_entropy", "forward", "reverse", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_what_they_are_called(divergence: str, temperature: float) -> None:
    wanted = divergences(0.3, temperature)[divergence]
    assert plain(divergence, beta=0.3, temperature=temperature) == pytest.approx(wanted, rel=1e-5)


def test_the_jensen_shannon_divergence_has_the_two_kl_as_limits() -> None:
    forward, reverse = plain("forward"), plain("reverse")
    assert plain("jsd", beta=0.0) == forward
    assert plain("jsd", beta=1.0) == reverse
    assert plain("jsd", beta=1e-4) / 1e-4 == pytest.approx(forward, rel=0.03)
    assert plain("jsd", beta=1 - 1e-4) / 1e-4 == pytest.approx(reverse, rel=0.03)
    assert plain("jsd", beta=0.5) <= math.log(2)
    assert abs(forward - reverse) > 0.1


def test_reductions_differ_and_rows_without_target_do_not_count() -> None:
    inputs = given("masked")
    counts = inputs["mask"].sum(1)
    assert counts.tolist() == [5, 1, 6]
    rows = distillation_loss(**inputs)
    tokens = distillation_loss(**inputs, reduction="token_mean")
    per_row = 0.5 * (rows.lm + rows.kd)
    assert rows.loss.item() == pytest.approx(per_row.mean().item(), rel=1e-6)
    assert tokens.loss.item() == pytest.approx(float((per_row * counts).sum() / 12), rel=1e-6)
    inputs["mask"] = inputs["mask"].clone()
    inputs["mask"][1] = 0
    found = distillation_loss(**inputs)
    assert found.loss.item() == pytest.approx(float(per_row[[0, 2]].mean()), rel=1e-6)
    assert found.count.tolist() == [5, 0, 6]
    inputs["mask"][:] = 0
    for reduction in ("sequence_mean", "token_mean"):
        logits = inputs["student_logits"].clone().requires_grad_()
        found = distillation_loss(**{**inputs, "student_logits": logits}, reduction=reduction)
        assert found.loss.item() == 0
        assert found.count.tolist() == [0, 0, 0]
        assert not bool(torch.autograd.grad(found.loss, logits)[0].any())


def test_vocabularies_that_differ_by_padding_rows() -> None:
    inputs = given("plain")
    wanted = distillation_loss(**inputs)
    inputs["teacher_logits"] = torch.nn.functional.pad(inputs["teacher_logits"], (0, 2), value=3.0)
    with pytest.raises(DataError, match="the student gives 11 logits and the teacher 13"):
        distillation_loss(**inputs)
    torch.testing.assert_close(distillation_loss(**inputs, vocabulary=11).loss, wanted.loss)
    with pytest.raises(DataError, match="vocabulary is 12"):
        distillation_loss(**inputs, vocabulary=12)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"weight": 1.5}, ValueError, "weight is 1.5"),
        ({"beta": -0.1}, ValueError, "beta is -0.1"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"divergence": "revers"}, ValueError, "did you mean 'reverse'"),
        ({"reduction": "mean"}, ValueError, "reduction is 'mean'"),
        ({"labels": torch.zeros(3, 6, dtype=torch.long)}, DataError, r"labels cover positions \[3, 6\]"),
        ({"mask": torch.ones(3)}, DataError, r"mask cover positions \[3\]"),
        ({"teacher_logits": torch.zeros(2, 7, 11)}, DataError, "the teacher's logits cover"),
        ({"labels": torch.full((3, 7), 11)}, DataError, "label 11 is outside the student's vocabulary of 11"),
    ],
)
def test_wrong_arguments_are_named(changed, error, words) -> None:
    with pytest.raises(error, match=words):
        distillation_loss(**{**given("plain"), **changed})


# -- models ------------------------------------------------------------------------------------------------------------


def on_logits(student: Any, teacher: Any, rows: slice = slice(0, 4), **options: Any) -> Any:
    """The loss of official batches from full logits."""
    found = collate([ids for _, ids in golden.collate_inputs()["rows"]][rows], max_length=64, pad_id=0)
    inputs = {name: found[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        known = teacher(**inputs).logits
    return distillation_loss(student(**inputs).logits, known, found["label"], found["loss_mask"], **options)


@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse", "jsd"])
@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("chunk", [7, 512])
def test_hidden_states_in_chunks_give_the_loss_and_gradients_of_full_logits(divergence, reduction, chunk) -> None:
    options = {"divergence": divergence, "reduction": reduction, "weight": 0.3, "temperature": 1.5}
    one, two = golden.fresh("ref"), golden.fresh("ref")
    wanted = on_logits(one, golden.teacher(), **options)
    found, terms = loss_of(two, Distil(golden.teacher(), chunk=chunk, **options), batch())
    assert found.item() == pytest.approx(wanted.loss.item(), abs=1e-5)
    assert found.item() == pytest.approx(0.7 * terms["lm"] + 0.3 * terms["kd"], abs=1e-5)
    wanted.loss.backward()
    found.backward()
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert all(p.grad is None for p in golden.teacher().parameters())


def test_the_official_mask_needs_no_special_labels() -> None:
    inputs = batch(slice(2, 4))  # rows that begin with, and contain, the end token
    whole = {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}
    model, method = golden.fresh("ref"), Distil(golden.teacher())
    wanted, _ = loss_of(model, method, inputs)
    found, _ = loss_of(model, method, whole)
    unmasked, _ = loss_of(model, Distil(golden.teacher(), official_mask=False), whole)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-6)
    assert abs(unmasked.item() - wanted.item()) > 1e-2
    again, _ = loss_of(model, Distil(golden.teacher(), official_mask=False), inputs)
    assert again.item() == wanted.item()


def test_without_weight_it_is_the_language_model_loss_and_needs_no_teacher() -> None:
    model, inputs = golden.fresh("ref"), batch()
    found, terms = loss_of(model, Distil(weight=0.0, reduction="token_mean"), inputs)
    assert found.item() == pytest.approx(model(**inputs).loss.item(), abs=1e-5)
    assert set(terms) == {"lm"}
    rows, _ = loss_of(model, Distil(weight=0.0), inputs)
    assert rows.item() == pytest.approx(on_logits(model, model).lm.mean().item(), abs=1e-5)


def test_a_student_equal_to_its_teacher_has_no_divergence() -> None:
    model = golden.fresh("ref")
    entropy = on_logits(model, golden.ref()).entropy.mean().item()
    found, _ = loss_of(model, Distil(golden.ref(), weight=1.0), batch())
    assert found.item() == pytest.approx(entropy, abs=1e-5)
    for divergence in ("forward", "reverse", "jsd"):
        zero, _ = loss_of(model, Distil(golden.ref(), weight=1.0, divergence=divergence), batch())
        assert abs(zero.item()) < 1e-5
        zero.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-5


def test_rows_without_target_do_not_count_and_a_batch_of_them_is_refused() -> None:
    model, method = golden.fresh("ref"), Distil(golden.teacher())
    wanted, _ = loss_of(model, method, batch(slice(0, 2)))
    inputs = COLLATOR([*[ids for _, ids in golden.collate_inputs()["rows"]][:2], [0, 5], [7]])
    found, _ = loss_of(model, method, inputs, num_examples_in_batch=4)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-6)
    nothing = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
    with pytest.raises(DataError, match="no row of this batch of 4 has a token to predict"):
        loss_of(model, method, nothing)


def test_no_tensor_holds_the_logits_of_all_positions() -> None:
    inputs = COLLATOR([list(range(3, 68)) for _ in range(8)])
    rows, width = inputs["input_ids"].shape
    model, limit = golden.fresh("ref").train(), rows * (width - 1) * 512
    with paperhooks.attach(model, Distil(golden.teacher(), chunk=64)) as session, LargestTensor() as seen:
        compute_loss(session, LossContext(model, inputs, session)).backward()
    assert 64 * 512 <= seen.entries < limit
    assert any(p.grad is not None for p in model.parameters())
    with LargestTensor() as seen:
        model(**inputs)
    assert seen.entries >= limit, "the recorder sees the logits of the model itself"


def test_the_teacher_is_neither_copied_nor_changed_nor_part_of_the_student() -> None:
    model, teacher = golden.fresh("ref"), golden.fresh("teacher").train()
    names = [name for name, _ in model.named_modules()]
    model(**batch())
    before = fingerprint(model), fingerprint(teacher)
    modes = []
    teacher.register_forward_pre_hook(lambda module, _: modes.append((module.training, torch.is_grad_enabled())))
    with paperhooks.attach(model, Distil(teacher)) as session:
        loss = compute_loss(session, LossContext(model, batch(), session))
        assert [name for name, _ in model.named_modules()] == names
        assert sum(p.numel() for p in copy.deepcopy(model).parameters()) == sum(p.numel() for p in model.parameters())
    assert modes == [(False, False)] * 2  # the head's check and the batch
    assert teacher.training
    assert fingerprint(model).differences(before[0]) == []
    teacher._forward_pre_hooks.clear()
    assert fingerprint(teacher).differences(before[1]) == []
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision(dtype: torch.dtype) -> None:
    model = golden.fresh("ref")
    wanted, _ = loss_of(model, Distil(golden.teacher()), batch())
    found, _ = loss_of(model, Distil(golden.fresh("teacher").to(dtype)), batch())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), abs=2e-2)
    half = golden.fresh("ref").to(dtype)
    found, _ = loss_of(half, Distil(golden.teacher()), batch())
    assert found.item() == pytest.approx(wanted.item(), abs=2e-2)
    found.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in half.parameters())


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_other_families_learn_from_a_teacher(family: str) -> None:
    student, teacher = tiny_text(family), tiny_llama(seed=1)
    inputs = TrainingCollator(2)([[5, 6, 7, 2, 8, 9], [9, 8, 7]])
    found, terms = loss_of(student, Distil(teacher), inputs)
    found.backward()
    with torch.no_grad():
        logits = student(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        known = teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    wanted = distillation_loss(logits, known, inputs["labels"][:, 1:])
    assert found.item() == pytest.approx(wanted.loss.item(), rel=1e-4)
    assert terms["kd"] == pytest.approx(wanted.kd.mean().item(), rel=1e-4)


def test_a_reference_is_a_teacher_too() -> None:
    model = golden.fresh("ref")
    wanted, terms = loss_of(model, Distil(golden.teacher()), batch())
    found, others = loss_of(model, Distil(Reference.of(golden.teacher())), batch())
    assert found.item() == wanted.item()
    assert terms == others
    with pytest.raises(PluginIncompatible, match="no distributions"):
        paperhooks.attach(model, Distil(Reference.from_column("teacher")))
    with pytest.raises(PluginIncompatible, match="would move along"):
        paperhooks.attach(model, DistilTerm(Reference.of(model)))
    paperhooks.attach(model, Distil(Reference.of(model), weight=0)).close()  # is not asked


@pytest.mark.parametrize("method", [Distil, DistilTerm])
def test_a_student_learns_from_itself_without_adapters(method: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapters = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    student = peft.get_peft_model(golden.fresh("ref"), adapters)
    found = []
    for teacher in (golden.ref(), Reference.without_adapters()):
        student.zero_grad()
        own = method(teacher, weight=0.5, official_mask=False)
        with paperhooks.attach(student, own) as session:
            loss = compute_loss(session, LossContext(student, batch(), session))
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in student.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_models_and_teachers_that_do_not_fit_are_refused() -> None:
    model = golden.fresh("ref")
    for teacher in (None, "teacher"):
        with pytest.raises(PluginIncompatible, match="Distil needs a teacher"):
            paperhooks.attach(model, Distil(teacher))
    with pytest.raises(DataError, match="the student gives 512 logits and the teacher 100"):
        paperhooks.attach(model, Distil(tiny_llama()))
    with pytest.raises(DataError, match="id 437 is outside the teacher's vocabulary of 100"):
        loss_of(model, Distil(tiny_llama(), vocabulary=100), COLLATOR([[5, 437, 6]]))
    with pytest.raises(ValueError, match="chunk is 0"):
        Distil(chunk=0)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(DataError, match="names no end-of-sequence token"):
        paperhooks.attach(model, Distil(golden.teacher()))
    wanted, _ = loss_of(golden.fresh("ref"), Distil(golden.teacher()), batch())
    found, _ = loss_of(model, Distil(golden.teacher(), eos_token_id=0), batch())
    assert found.item() == wanted.item()


def test_a_vocabulary_padded_for_the_student_alone() -> None:
    model = golden.fresh("ref")
    with torch.no_grad():
        wanted = on_logits(model, golden.teacher())
    model.resize_token_embeddings(520, mean_resizing=False)
    found, terms = loss_of(model, Distil(golden.teacher(), vocabulary=512), batch())
    assert terms["kd"] == pytest.approx(wanted.kd.mean().item(), abs=1e-5)
    assert terms["lm"] > wanted.lm.mean().item(), "the padding rows take part in the language model's own loss"
    assert bool(torch.isfinite(found))


# -- as a term of another loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse", "jsd"])
@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
def test_a_term_adds_to_the_models_own_loss(divergence, reduction) -> None:
    options = {"divergence": divergence, "reduction": reduction, "temperature": 1.5}
    one, two = golden.fresh("ref"), golden.fresh("ref")
    kd = on_logits(one, golden.teacher(), weight=1.0, **options).loss
    wanted = one(**batch()).loss + 2.5 * kd
    found, terms = loss_of(two, DistilTerm(golden.teacher(), weight=2.5, chunk=7, **options), batch())
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert terms == {"kd": pytest.approx(2.5 * kd.item(), abs=1e-5)}
    wanted.backward()
    found.backward()
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_term_adds_to_the_loss_of_another_method_without_logits_of_all_positions() -> None:
    inputs = COLLATOR([list(range(3, 68)) for _ in range(8)])
    rows, width = inputs["input_ids"].shape
    model, other = golden.fresh("ref"), golden.fresh("ref")
    methods = Distil(weight=0.0, chunk=64), DistilTerm(golden.teacher(), weight=0.5, chunk=64)
    with paperhooks.attach(model, *methods) as session, LargestTensor() as seen:
        context = LossContext(model, inputs, session)
        found = compute_loss(session, context)
        found.backward()
    assert seen.entries < rows * (width - 1) * 512
    whole, _ = loss_of(other, Distil(golden.teacher(), weight=0.5), inputs)
    (2 * whole).backward()  # LM / 2 + KD / 2, twice
    lm, kd = (logged(context)[name] for name in ("lm", "kd"))
    assert found.item() == pytest.approx(lm + kd, abs=1e-5)
    assert 2 * whole.item() == pytest.approx(lm + 2 * kd, abs=1e-5)


def test_a_term_without_weight_needs_no_teacher_and_options_are_checked() -> None:
    model, inputs = golden.fresh("ref"), batch()
    found, terms = loss_of(model, DistilTerm(weight=0.0), inputs)
    assert found.item() == pytest.approx(model(**inputs).loss.item(), abs=1e-6)
    assert terms == {}
    with pytest.raises(PluginIncompatible, match="DistilTerm needs a teacher"):
        paperhooks.attach(model, DistilTerm())
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="at least 0"):
            DistilTerm(weight=weight)
    with pytest.raises(DataError, match="has a token to predict"):
        loss_of(model, DistilTerm(golden.teacher()), {**inputs, "labels": torch.full_like(inputs["labels"], -100)})


# -- training ----------------------------------------------------------------------------------------------------------


def trained(out: Path, method: Distil, rows: Any, **options: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Weights and log after training ``ref`` on rows of the corpus by their numbers, or on rows of ids."""
    model = golden.fresh("ref")
    arguments = {
        "output_dir": str(out), "use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 4,
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    given = isinstance(rows[0], list)
    data = SelectedDataset(MemoryRows(rows if given else golden.chunks()), None if given else rows)
    with paperhooks.attach(model, method):
        run = HooksTrainer(
            model=model,
            args=TrainingArguments(**{**arguments, **options}),
            train_dataset=data,
            data_collator=COLLATOR,
        )
        run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry]
    return torch.cat([p.detach().flatten() for p in model.parameters()]), log


def uneven() -> list[int]:
    """Four rows of very unequal numbers of scored tokens."""
    counts = golden.scores()["scored_tokens"].tolist()
    order = sorted((row for row in range(len(counts)) if counts[row]), key=counts.__getitem__)
    return [order[0], order[len(order) // 3], order[-1], order[40]]


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
def test_accumulated_micro_batches_of_a_term_equal_one_batch(reduction: str, tmp_path: Path) -> None:
    method = DistilTerm(golden.teacher(), reduction=reduction)
    whole, log = trained(tmp_path, method, uneven())
    for size in (1, 2):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        found, parts = trained(tmp_path, method, uneven(), **options)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
        for key in ("loss", "loss/miniplm/distil-term/kd"):
            assert parts[0][key] == pytest.approx(log[0][key], abs=1e-5), key


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
def test_accumulated_micro_batches_equal_one_batch(reduction: str, tmp_path: Path) -> None:
    method = Distil(golden.teacher(), reduction=reduction)
    whole, log = trained(tmp_path, method, uneven())
    start = torch.cat([p.detach().flatten() for p in golden.ref().parameters()])
    assert float((whole - start).abs().max()) > 1e-3, "nothing was trained"
    for size in (1, 2):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        found, parts = trained(tmp_path, method, uneven(), **options)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
        for key in ("loss", "loss/miniplm/distil/lm", "loss/miniplm/distil/kd"):
            assert parts[0][key] == pytest.approx(log[0][key], abs=1e-5), key
    rows = [golden.chunks()[row] for row in uneven()]
    wanted, terms = loss_of(golden.fresh("ref"), method, COLLATOR(rows))
    assert log[0]["loss"] == pytest.approx(wanted.item(), abs=1e-5)
    assert log[0]["loss/miniplm/distil/kd"] == pytest.approx(terms["kd"], abs=1e-5)


#: Of four rows the first and the last one have a target.
HALF_EMPTY = [golden.chunks()[5].tolist(), [0, 7], [3], golden.chunks()[40].tolist()]


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("kind", [Distil, DistilTerm])
def test_micro_batches_without_target_contribute_nothing(kind, reduction: str, tmp_path: Path) -> None:
    method = kind(golden.teacher(), reduction=reduction)
    whole, log = trained(tmp_path, method, HALF_EMPTY)
    for size in (2, 1):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        found, parts = trained(tmp_path, method, HALF_EMPTY, **options)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
        assert parts[0]["loss"] == pytest.approx(log[0]["loss"], abs=1e-5)
    with pytest.raises(DataError, match="no row of this optimiser step of 2 has a token to predict"):
        trained(tmp_path, method, HALF_EMPTY[1:3], per_device_train_batch_size=1, gradient_accumulation_steps=2)


def test_official_ends_leave_a_micro_batch_without_target_and_nothing_else_is_lost() -> None:
    """What only the method's own mask leaves out counts for nothing either, but for a step of its own."""
    model, ids = golden.fresh("ref"), torch.tensor([[0, 7]])
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    for method in (Distil(golden.teacher()), Distil(golden.teacher(), weight=0.0), DistilTerm(golden.teacher())):
        with pytest.raises(DataError, match="no row of this batch of 1 has a token to predict"):
            loss_of(model, method, inputs)
        model.zero_grad()
        loss, terms = loss_of(model, method, inputs, accumulation_steps=2)
        # A mean over nothing is none; the Trainer leaves it out.
        assert all(value == 0 or math.isnan(value) for value in terms.values())
        if isinstance(method, Distil):
            loss.backward()
            assert loss.item() == 0
            assert all(p.grad is not None and not bool(p.grad.any()) for p in model.parameters())


def test_evaluation_leaves_batches_without_target_out(tmp_path: Path) -> None:
    model, found = golden.fresh("ref"), []
    for rows in (HALF_EMPTY, [HALF_EMPTY[0], HALF_EMPTY[3]]):
        arguments = TrainingArguments(
            str(tmp_path), use_cpu=True, per_device_eval_batch_size=1, report_to="none", disable_tqdm=True
        )
        with paperhooks.attach(model, Distil(golden.teacher())):
            run = HooksTrainer(model, arguments, COLLATOR, eval_dataset=SelectedDataset(MemoryRows(rows)))
            found.append(run.evaluate()["eval_loss"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


KINDS = {"distil": Distil, "distil-term": DistilTerm}


def trained_together(kind: str, reduction: str, folder: str, rows: list | None = None, **options: Any) -> list[dict]:
    """One of two processes: train on two of four rows; the first one leaves the weights. Returns the log."""
    method = KINDS[kind](golden.teacher(), reduction=reduction)
    weights, log = trained(
        Path(folder) / "trainer", method, rows or uneven(), **{"per_device_train_batch_size": 2, **options}
    )
    if Ranks().first:
        save_file({"weights": weights}, Path(folder) / "weights.safetensors")
    return log


@pytest.mark.parametrize(
    ("kind", "reduction", "launcher"),
    [("distil", "sequence_mean", ""), ("distil", "token_mean", "torchrun"), ("distil-term", "sequence_mean", "")],
)
def test_two_processes_equal_one_big_batch(kind: str, reduction: str, launcher: Any, tmp_path: Path) -> None:
    method = KINDS[kind](golden.teacher(), reduction=reduction)
    wanted, whole = trained(tmp_path / "one", method, uneven())
    log, _ = run_ranks(trained_together, kind, reduction, tmp_path, launcher=launcher)
    torch.testing.assert_close(load_file(tmp_path / "weights.safetensors")["weights"], wanted, rtol=0, atol=1e-6)
    for key in (key for key in whole[0] if key.startswith("loss")):
        assert log[0][key] == pytest.approx(whole[0][key], abs=1e-5), key


def trained_with_an_idle_process(kind: str, folder: str) -> list[dict]:
    """Rows without target for the second process alone, in both micro-batches; and then in no process any."""
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    order = [HALF_EMPTY[0], HALF_EMPTY[1], HALF_EMPTY[3], HALF_EMPTY[2]]
    log = trained_together(kind, "sequence_mean", folder, order, train_sampling_strategy="sequential", **options)
    with pytest.raises(DataError, match="optimiser step of 4"):
        trained_together(kind, "sequence_mean", f"{folder}/none", 2 * HALF_EMPTY[1:3], **options)
    return log


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_targets_waits_for_the_other(kind: str, tmp_path: Path) -> None:
    wanted, whole = trained(tmp_path / "one", KINDS[kind](golden.teacher()), HALF_EMPTY)
    log, _ = run_ranks(trained_with_an_idle_process, kind, tmp_path)
    torch.testing.assert_close(load_file(tmp_path / "weights.safetensors")["weights"], wanted, rtol=0, atol=1e-6)
    assert log[0]["loss"] == pytest.approx(whole[0]["loss"], abs=1e-5)


def test_training_with_a_teacher_lowers_the_divergence(tmp_path: Path) -> None:
    method = Distil(golden.teacher(), weight=1.0, divergence="forward")
    options = {"max_steps": 25, "per_device_train_batch_size": 8, "optim": "adamw_torch", "learning_rate": 3e-3}
    _, log = trained(tmp_path, method, golden.stable_indices("0.5")[:64], **options)
    found = [entry["loss/miniplm/distil/kd"] for entry in log]
    assert sum(found[-5:]) / 5 < 0.85 * sum(found[:3]) / 3
    assert all(entry["loss"] == pytest.approx(entry["loss/miniplm/distil/kd"], abs=1e-4) for entry in log)


def documents(numbers: Sequence[int], flat: bool) -> dict[str, torch.Tensor]:
    """Documents of unequal lengths, a row each or all in one row."""
    rows = [[(7 * place + 11 * at) % 90 + 5 for place in range(4 + 3 * at)] for at in numbers]
    if flat:
        places = [place for row in rows for place in range(len(row))]
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row]]),
            "position_ids": torch.tensor([places]),
        }
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class TestDistilLossContract(LossContract):
    """A mean over documents, a row each."""

    flat = False

    def make(self) -> Distil:
        return Distil(tiny_llama(layers=2, seed=1), eos_token_id=2)

    def batch(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        return documents(numbers, self.flat)

    def others(self, method: Distil) -> Sequence[torch.nn.Module]:
        return [method.teacher]


class TestFlatDistilLossContract(TestDistilLossContract):
    """Documents that lie in one row count one by one."""

    flat = True


class TestDistilTermLossContract(TestDistilLossContract):
    """Beside the model's own loss, a mean over tokens."""

    def make(self) -> DistilTerm:
        return DistilTerm(tiny_llama(layers=2, seed=1), eos_token_id=2)


def test_documents_in_one_row_give_what_they_give_in_rows_of_their_own() -> None:
    found = []
    for flat in (False, True):
        model, method = tiny_llama(layers=2), Distil(tiny_llama(layers=2, seed=1), eos_token_id=2)
        loss, terms = loss_of(model, method, documents(range(4), flat))
        found.append([loss.item(), terms["lm"], terms["kd"]])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


class TestDistilContract(MethodContract):
    """Attached, it changes nothing but the loss."""

    changes_outputs = False

    def make(self) -> Distil:
        return Distil(tiny_llama(seed=1))


class TestDistilTermContract(MethodContract):
    """So does the term."""

    changes_outputs = False

    def make(self) -> DistilTerm:
        return DistilTerm(tiny_llama(seed=1))
