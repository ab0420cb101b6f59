"""Log-probabilities and divergences in chunks against full logits, for every family."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from paperhooks import DataError, ModelView, UnsupportedModel
from paperhooks.logprobs import Head, divergence_of, next_token_labels, sequence_logprobs, token_logprobs
from paperhooks.logprobs.divergence import kl_divergence
from paperhooks.models import last_hidden_state
from paperhooks.testing import (
    TEXT_FAMILIES,
    VLM_FAMILIES,
    LargestTensor,
    host_waits,
    tiny_llama,
    tiny_text,
    tiny_vlm,
    vlm_inputs,
)
from torch import nn

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

PADDED = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0]])


def random_ids(rows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(ids: torch.Tensor, mask: torch.Tensor, side: str) -> dict[str, torch.Tensor]:
    """The right-padded batch with its padding on ``side``."""
    ids = ids * mask
    if side == "left":
        shifts = (mask.shape[1] - mask.sum(1)).tolist()
        ids = torch.stack([row.roll(n) for row, n in zip(ids, shifts)])
        mask = torch.stack([row.roll(n) for row, n in zip(mask, shifts)])
    return {"input_ids": ids, "attention_mask": mask}


def full_logprobs(model, inputs, labels):
    """What the module computes, the plain way: [B, T] with zeros where there is no label."""
    logits = model(**inputs, use_cache=False).logits.double()
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.where(labels != -100, 0.0)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_text_families_equal_full_logits(family: str) -> None:
    model, ids = tiny_text(family), random_ids()
    inputs = {"input_ids": ids, "attention_mask": PADDED}
    with torch.no_grad():
        found = sequence_logprobs(model, inputs, chunk=3)
        labels = next_token_labels(ModelView.from_model(model), inputs)
        wanted = full_logprobs(model, inputs, labels)
    assert found.count.tolist() == [8, 4]
    torch.testing.assert_close(found.tokens.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sum, wanted.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean, wanted.sum(1) / torch.tensor([8, 4]), rtol=1e-5, atol=1e-5)
    assert found.sum.dtype == torch.float64


@pytest.mark.parametrize("family", VLM_FAMILIES)
def test_vision_language_families_equal_full_logits_and_skip_image_tokens(family: str) -> None:
    model = tiny_vlm(family)
    inputs = vlm_inputs(model, [[3, 16, 5], [2, 16, 3]], pad="right")
    view = ModelView.from_model(model)
    with torch.no_grad():
        found = sequence_logprobs(view, inputs)
        labels = next_token_labels(view, inputs)
        wanted = full_logprobs(model, inputs, labels)
    assert found.count.tolist() == [2 + 5, 1 + 3]
    torch.testing.assert_close(found.tokens.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_sums_do_not_depend_on_padding_side_batch_or_chunk(family: str) -> None:
    model, ids = tiny_text(family), random_ids()
    head = Head.from_model(model)
    with torch.no_grad():
        right = sequence_logprobs(model, padded(ids, PADDED, "right"), head=head)
        left = sequence_logprobs(model, padded(ids, PADDED, "left"), head=head, chunk=1)
        alone = [sequence_logprobs(model, {"input_ids": ids[i : i + 1, :n]}, head=head) for i, n in ((0, 9), (1, 5))]
    assert left.count.tolist() == right.count.tolist() == [int(a.count) for a in alone]
    torch.testing.assert_close(left.sum, right.sum, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(torch.cat([a.sum for a in alone]), right.sum, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "model_class", "options", "scale", "softcap"),
    [
        ("CohereConfig", "CohereForCausalLM", {"logit_scale": 0.25}, 0.25, None),
        ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 4.0}, 0.25, None),
        ("Gemma2Config", "Gemma2ForCausalLM", {"final_logit_softcapping": 2.0, "head_dim": 8}, 1.0, 2.0),
    ],
)
def test_scaled_and_capped_heads_are_recognised(config, model_class, options, scale, softcap) -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "initializer_range": 0.2}
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config)(**sizes, **options)).eval()
    head = Head.from_model(model)
    assert (head.scale, head.softcap) == (scale, softcap)
    inputs = {"input_ids": random_ids()}
    with torch.no_grad():
        torch.testing.assert_close(
            head.logits(last_hidden_state(model, inputs)), model(**inputs).logits, rtol=1e-5, atol=1e-5
        )


def test_an_unknown_head_is_refused_with_the_difference() -> None:
    model = tiny_llama()

    class Model(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + 1.5
            return output

    model.__class__ = Model
    with pytest.raises(UnsupportedModel, match=r"differs by 1\.5"):
        Head.from_model(model)


def test_the_self_check_leaves_mode_hooks_and_random_state() -> None:
    model = tiny_llama().train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    before = torch.random.get_rng_state()
    Head.from_model(model)
    assert [m.training for m in model.modules()] == modes
    assert not model.model._forward_hooks
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradients_equal_the_plain_way() -> None:
    model, other = tiny_llama(), tiny_llama()
    inputs = {"input_ids": random_ids(), "attention_mask": PADDED}
    labels = next_token_labels(ModelView.from_model(model), inputs)
    sequence_logprobs(model, inputs, chunk=3).mean.sum().backward()
    (full_logprobs(other, inputs, labels).sum(1) / torch.tensor([8, 4])).sum().backward()
    for (name, found), wanted in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=name)


class _Watched(nn.Linear):
    """A head that notes how many rows it saw at once."""

    def forward(self, x):
        self.most = max(getattr(self, "most", 0), x.shape[:-1].numel())
        return super().forward(x)


def test_the_head_never_sees_more_than_a_chunk_also_in_the_backward_pass() -> None:
    module = _Watched(8, 50)
    hidden = torch.randn(4, 25, 8, requires_grad=True)
    kept: list[int] = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values = token_logprobs(hidden, Head(module), torch.randint(0, 50, (4, 25)), chunk=7, limit=0)
    assert sum(kept) < 100 * 50, "as much as the logits of all rows was kept for the backward pass"
    values.sum().backward()
    assert module.most == 7
    assert hidden.grad is not None


@pytest.mark.parametrize("vocabulary", [5000, 4096, 7])
@pytest.mark.parametrize("form", [(True, 1.0, None), (False, 0.5, 3.0)], ids=["bias", "scale-and-cap"])
def test_without_gradient_a_linear_head_is_read_in_slices_of_the_vocabulary(vocabulary: int, form) -> None:
    bias, scale, softcap = form
    torch.manual_seed(0)
    module = nn.Linear(16, vocabulary, bias=bias)
    hidden, targets = torch.randn(40, 16) * 4, torch.randint(0, vocabulary, (40,))
    targets[:2] = torch.tensor([0, vocabulary - 1])
    head = Head(module, scale, softcap)
    wanted = head.logits(hidden).double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    with torch.no_grad(), LargestTensor() as seen:
        found = token_logprobs(hidden, head, targets)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=2e-6)
    assert seen.entries <= max(40 * 1024, module.weight.numel())
    with torch.inference_mode():
        assert torch.equal(head.logprobs(hidden, targets), found)
    assert found.dtype == torch.float32
    torch.testing.assert_close(head.logprobs(hidden, targets), found, rtol=1e-6, atol=2e-6)  # with gradient


def test_a_head_that_somebody_hooked_or_patched_is_called() -> None:
    torch.manual_seed(0)
    module, hidden, targets = nn.Linear(8, 30), torch.randn(5, 8), torch.arange(5)
    handle = module.register_forward_hook(lambda _, __, logits: logits * 2)
    doubled = Head(module, 2.0)
    with torch.no_grad():
        hooked = Head(module).logprobs(hidden, targets)
        handle.remove()
        torch.testing.assert_close(hooked, doubled.logprobs(hidden, targets))
        module.forward = lambda h: nn.functional.linear(h, module.weight)
        patched = Head(module).logprobs(hidden, targets)
    assert not torch.allclose(patched, doubled.logprobs(hidden, targets))
    wanted = nn.functional.linear(hidden, module.weight).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(patched, wanted)


def test_labels_come_from_shift_labels_labels_or_ids() -> None:
    view = ModelView.from_model(tiny_llama())
    ids = torch.tensor([[5, 6, 7]])
    labels = torch.tensor([[-100, 6, 8]])
    assert next_token_labels(view, {"input_ids": ids}).tolist() == [[6, 7, -100]]
    assert next_token_labels(view, {"input_ids": ids, "labels": labels}).tolist() == [[6, 8, -100]]
    assert next_token_labels(view, {"input_ids": ids, "shift_labels": labels}).tolist() == [[-100, 6, 8]]
    left = {"input_ids": ids, "labels": ids, "attention_mask": torch.tensor([[0, 1, 1]])}
    assert next_token_labels(view, left).tolist() == [[-100, 7, -100]]
    with pytest.raises(DataError, match="neither input_ids"):
        next_token_labels(view, {"inputs_embeds": torch.zeros(1, 3, 4)})


def test_rows_without_targets_give_zero_and_finite_gradients() -> None:
    model, ids = tiny_llama(), random_ids()
    labels = ids.clone()
    labels[1] = -100
    found = sequence_logprobs(model, {"input_ids": ids, "labels": labels})
    assert found.count.tolist() == [8, 0]
    assert found.sum[1] == found.mean[1] == 0
    nothing = sequence_logprobs(model, {"input_ids": ids, "labels": torch.full_like(ids, -100)})
    (found.mean.sum() + nothing.mean.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_wrong_labels_and_shapes_are_named() -> None:
    head, hidden = Head(nn.Linear(4, 10)), torch.zeros(2, 3, 4)
    with pytest.raises(DataError, match="label 10 is outside the 10 entries"):
        token_logprobs(hidden, head, torch.full((2, 3), 10))
    with pytest.raises(DataError, match=r"labels are \[2, 4\]"):
        token_logprobs(hidden, head, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="chunk is 0"):
        token_logprobs(hidden, head, torch.zeros(2, 3, dtype=torch.int64), chunk=0)


def test_bfloat16_sums_in_float32() -> None:
    model = tiny_llama().to(torch.bfloat16)
    inputs = {"input_ids": random_ids()}
    with torch.no_grad():
        found = sequence_logprobs(model, inputs)
        wanted = model(**inputs).logits.float()[:, :-1].log_softmax(-1)
    chosen = wanted.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0].double().sum(1)
    torch.testing.assert_close(found.sum, chosen, rtol=1e-4, atol=1e-3)


# -- divergences --------------------------------------------------------------------------------------------------


def plain_divergence(p, q, direction, beta=0.5):
    """The definitions on full log-probabilities, in float64."""
    p, q = p.double(), q.double()
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1)  # noqa: E731
    middle = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": beta * kl(p, middle) + (1 - beta) * kl(q, middle),
        "cross_entropy": -(p.exp() * q).sum(-1),
    }[direction]


@pytest.mark.parametrize("direction", ["forward", "reverse", "jsd", "cross_entropy"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_and_gradients_equal_full_logits(direction: str, temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = Head(nn.Linear(6, 20)), Head(nn.Linear(9, 20), scale=1.5, softcap=3.0)
    h, g = torch.randn(2, 5, 6), torch.randn(2, 5, 9)
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]])
    options = {"direction": direction, "temperature": temperature, "beta": 0.3}
    one, two = h.clone().requires_grad_(), h.clone().requires_grad_()
    found = kl_divergence(one, student, g, teacher, mask=mask, chunk=3, **options)
    p = (teacher.logits(g) / temperature).log_softmax(-1)
    q = (student.logits(two) / temperature).log_softmax(-1)
    wanted = plain_divergence(p, q, direction, 0.3) * mask
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(v.sum(), [x, student.module.weight]) for v, x in ((found, one), (wanted, two))]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_divergence_of_a_model_with_itself_is_zero_and_infinite_logits_are_no_nan() -> None:
    torch.manual_seed(0)
    head = Head(nn.Linear(4, 8))
    masked = copy.deepcopy(head.module)
    with torch.no_grad():
        masked.bias[2] = -torch.inf
    h = torch.randn(3, 4, requires_grad=True)
    assert float(kl_divergence(h, head, h, head).detach().abs().max()) < 1e-6
    found = kl_divergence(h, head, h.detach(), Head(masked))
    assert bool(found.isfinite().all())
    (gradient,) = torch.autograd.grad(found.sum(), h)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("direction", ["forward", "reverse", "jsd", "cross_entropy"])
def test_an_entry_that_neither_has_adds_nothing_and_gives_no_nan_in_the_gradient(direction: str) -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(4, 8), nn.Linear(4, 8)
    h, options = torch.randn(3, 4, requires_grad=True), {"direction": direction, "beta": 0.3}
    smaller = [nn.Linear(4, 7), nn.Linear(4, 7)]
    with torch.no_grad():
        for large, small in zip((one, two), smaller, strict=True):
            large.bias[7] = -torch.inf
            small.weight.copy_(large.weight[:7])
            small.bias.copy_(large.bias[:7])
    found = kl_divergence(h, Head(one), h.detach(), Head(two), **options)
    wanted = kl_divergence(h, Head(smaller[0]), h.detach(), Head(smaller[1]), **options)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), h), torch.autograd.grad(wanted.sum(), h))


def test_entries_that_the_student_excludes_may_be_skipped() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    q = torch.tensor([[0.5, 0.5, 0.0]]).log()
    for direction, held in (("forward", 0.5 * 0 + 0.25 * math.log(0.5)), ("cross_entropy", 0.75 * math.log(2))):
        assert divergence_of(p, q, direction).isinf().all()
        assert float(divergence_of(p, q, direction, skip_excluded=True)) == pytest.approx(held)
    assert torch.equal(divergence_of(p, q, "reverse", skip_excluded=True), divergence_of(p, q, "reverse"))


def test_vocabularies_that_differ_by_padding_rows() -> None:
    torch.manual_seed(0)
    small, large = nn.Linear(4, 8), nn.Linear(4, 10)
    h = torch.randn(3, 4)
    with pytest.raises(DataError, match="the student gives 8 logits and the teacher 10"):
        kl_divergence(h, Head(small), h, Head(large))
    found = kl_divergence(h, Head(small), h, Head(large), vocabulary=8)
    wanted = plain_divergence(large(h)[:, :8].log_softmax(-1), small(h).log_softmax(-1), "forward")
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="vocabulary is 9"):
        kl_divergence(h, Head(small), h, Head(large), vocabulary=9)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"direction": "backward"}, ValueError, "direction is 'backward'"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"direction": "jsd", "beta": 1.0}, ValueError, "beta is 1.0"),
        ({"mask": torch.ones(4)}, DataError, "mask cover positions"),
    ],
)
def test_wrong_options_of_divergences_are_named(options, error, words) -> None:
    head, h = Head(nn.Linear(4, 8)), torch.zeros(3, 4)
    with pytest.raises(error, match=words):
        kl_divergence(h, head, h, head, **options)


def test_offloaded_weights_are_used_where_accelerate_brings_them() -> None:
    from accelerate import cpu_offload

    model, inputs = tiny_llama(), {"input_ids": random_ids()}
    with torch.no_grad():
        wanted = sequence_logprobs(model, inputs).sum
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert model.lm_head.weight.is_meta
        found = sequence_logprobs(model, inputs).sum
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_compiled_models_and_data_parallel_wrappers_give_the_same() -> None:
    model, inputs = tiny_llama(), {"input_ids": random_ids()}
    with torch.no_grad():
        wanted = sequence_logprobs(model, inputs).sum
        compiled = torch.compile(model, backend="eager")
        compiled(**inputs)
        for _ in range(2):
            assert torch.equal(sequence_logprobs(compiled, inputs).sum, wanted)
        assert torch.equal(sequence_logprobs(torch.nn.DataParallel(model), inputs).sum, wanted)
        assert torch.equal(compiled(**inputs).logits, model(**inputs).logits)


def test_hidden_states_of_an_attached_model_are_those_after_its_hooks() -> None:
    import paperhooks
    from methods import Damp

    model, inputs = tiny_llama(), {"input_ids": random_ids()}
    with paperhooks.attach(model, Damp()), torch.no_grad():
        found = sequence_logprobs(model, inputs)
        wanted = full_logprobs(model, inputs, next_token_labels(ModelView.from_model(model), inputs))
    torch.testing.assert_close(found.tokens.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_the_sums_of_the_cpu(accelerator, dtype: torch.dtype) -> None:
    model, inputs = tiny_llama(), {"input_ids": random_ids(), "attention_mask": PADDED}
    with torch.no_grad():
        wanted = sequence_logprobs(model, inputs)
        placed = {name: value.to(accelerator) for name, value in inputs.items()}
        found = sequence_logprobs(model.to(accelerator, dtype), placed, chunk=3)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    assert found.sum.device == found.count.device == accelerator
    torch.testing.assert_close(found.sum.cpu(), wanted.sum, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.count.cpu(), wanted.count)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_memory_on_a_gpu_is_bounded_by_the_chunk() -> None:
    rows, vocabulary, chunk = 4096, 32768, 256
    head = Head(nn.Linear(64, vocabulary, bias=False, device="cuda"))
    hidden = torch.randn(rows, 64, device="cuda", requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    token_logprobs(hidden, head, labels, chunk=chunk).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 0.5 * rows * vocabulary * 4, "half of one full float32 logit tensor"


def test_the_host_waits_once_for_log_probabilities(emulated) -> None:
    model = tiny_llama().to(emulated)
    inputs = {"input_ids": random_ids().to(emulated), "attention_mask": PADDED.to(emulated)}
    head = Head.from_model(model)
    with torch.no_grad(), host_waits() as waits:
        sequence_logprobs(model, inputs, head=head)
    assert waits.total - waits.at("transformers/") == 1, str(waits)


@pytest.mark.parametrize("direction", ["forward", "reverse", "jsd", "cross_entropy"])
@pytest.mark.parametrize("place", ["emulated:0", "emulated:1", "cpu"])
def test_divergences_from_a_teacher_on_any_device(emulated, place: str, direction: str) -> None:
    found = []
    for own, other in (("cpu", "cpu"), (emulated, place)):
        torch.manual_seed(0)
        student, teacher = nn.Linear(6, 20), nn.Linear(4, 20)
        h, g = torch.randn(2, 5, 6).to(own).requires_grad_(), torch.randn(2, 5, 4).to(other)
        mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]).to(own)
        heads = Head(student.to(own)), Head(teacher.to(other))
        values = kl_divergence(h, heads[0], g, heads[1], mask=mask, direction=direction, chunk=3)
        values.sum().backward()
        assert values.device == h.grad.device == h.device
        found.append((values.detach().cpu(), h.grad.cpu(), student.weight.grad.cpu()))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
