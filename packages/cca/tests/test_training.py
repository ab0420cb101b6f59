"""Training with the method attached: gradients, checkpointing, the stock Trainer, and the mark on the checkpoint."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from oracle_cca import reference_logits
from paperhooks import attach
from paperhooks.errors import UnsupportedGeneration
from paperhooks.testing import fingerprint, tiny_vlm, vlm_inputs
from paperhooks.training import HooksTrainerMixin
from paperhooks_cca import CCA, mark, read_mark
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

PARTS = ((3, 16, 5), (2, 16, 4, 16, 3), (9,))
quiet = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")


def labelled(inputs):
    """Labels on the text behind the first two tokens; padding and placeholders excluded."""
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == 95), -100)
    labels[:, :2] = -100
    return labels


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_loss_of_a_right_padded_batch_is_that_of_its_rows():
    model = tiny_vlm("llava", layers=3).train()
    batch = vlm_inputs(model, PARTS, pad="right")
    with attach(model, CCA()):
        loss = model(**batch, labels=labelled(batch), use_cache=False).loss
        total, count = 0.0, 0
        for row in range(len(PARTS)):
            alone = vlm_inputs(model, PARTS, pad="right", rows=slice(row, row + 1))
            labels = labelled(alone)
            n = int((labels[:, 1:] != -100).sum())
            total += n * float(model(**alone, labels=labels, use_cache=False).loss.detach())
            count += n
    assert float(loss.detach()) == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_equal_those_of_explicit_positions_and_mask_and_survive_checkpointing(reentrant):
    model = tiny_vlm("llava", layers=3).train()
    alone = vlm_inputs(model, PARTS, rows=slice(1, 2))
    ids, features = alone["input_ids"][0], list(alone["mm_encoder_outputs"]["image"].pooler_output)
    labels = labelled(alone)
    expected = cross_entropy(reference_logits(model, ids, features)[:-1], labels[0, 1:], ignore_index=-100)
    expected.backward()
    by_hand = gradients(model)
    model.zero_grad()
    with attach(model, CCA()):
        model(**alone, labels=labels, use_cache=False).loss.backward()
        plain = gradients(model)
        model.zero_grad()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.get_input_embeddings().weight.requires_grad_(True)
        loss = model(**alone, labels=labels, use_cache=False).loss
    loss.backward()  # after the session has closed
    checkpointed = gradients(model)
    assert plain.keys() == checkpointed.keys() == by_hand.keys()
    for name, value in plain.items():
        assert torch.isfinite(value).all()
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(value, by_hand[name], atol=1e-4, rtol=1e-3)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-4)


@pytest.mark.parametrize("impl", list(CheckpointImpl))
def test_wrapped_layers_that_fill_a_cache_train_alike(impl):
    """Stock models make a cache in training; the second call of a layer finds it filled by the first."""
    model = tiny_vlm("llava", layers=3).train()
    inputs = vlm_inputs(model, PARTS, pad="right")
    labels = labelled(inputs)
    with attach(model, CCA()):
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        plain = gradients(model)
        model.zero_grad()
        model.get_input_embeddings().weight.requires_grad_(True)
        layers = set(model.get_decoder().layers)
        apply_activation_checkpointing(
            model, lambda layer: checkpoint_wrapper(layer, impl), check_fn=lambda module: module in layers
        )
        output = model(**inputs, labels=labels)
        output.loss.backward()
    wrapped = {name.replace("_checkpoint_wrapped_module.", ""): value for name, value in gradients(model).items()}
    assert wrapped.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(wrapped[name], value, atol=1e-6, rtol=1e-5)
    with attach(model, CCA()):
        again = model(inputs["input_ids"][:, :2], past_key_values=output.past_key_values)
        with pytest.raises(UnsupportedGeneration, match=r"reads a cache that was filled before .* use_cache=False"):
            again.logits.sum().backward()


def test_the_stock_trainer_trains_and_the_checkpoint_says_how(tmp_path):
    model = tiny_vlm("llava", layers=2)

    def collate(rows):
        batch = vlm_inputs(model, PARTS[:2], pad="right", seed=rows[0])
        return {**batch, "labels": labelled(batch)}

    before = {n: p.clone() for n, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=1, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False, learning_rate=1e-3,
    )  # fmt: skip
    with warnings.catch_warnings(), attach(model, CCA()):
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(pin_memory|use_reentrant|tokenizer|AccelerateState).*")
        Trainer(model=model, args=arguments, train_dataset=[1, 2, 3], data_collator=collate).train()
        model.save_pretrained(tmp_path / "model")
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["paperhooks"]["cca"] == CCA().settings
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert read_mark(loaded) == CCA().settings
    with warnings.catch_warnings(), attach(loaded, CCA()), torch.no_grad():
        warnings.simplefilter("error")
        loaded(**vlm_inputs(loaded, PARTS))
    assert read_mark(loaded) == CCA().settings, "detaching leaves the checkpoint's own mark"


@quiet
def test_a_trained_model_keeps_its_mark_and_one_that_was_only_read_does_not(tmp_path):
    model = tiny_vlm("llava", layers=2).train()
    batch = vlm_inputs(model, PARTS[:2], pad="right")
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    with attach(model, CCA()):
        model(**batch, labels=labelled(batch)).loss.backward()
    assert read_mark(model) is None, "gradients alone change nothing"
    with attach(model, CCA(scheme="reverse")):
        with torch.no_grad():
            model(**batch)
        optimiser.step()
    assert read_mark(model) is None, "the step was not the method's"
    with attach(model, CCA(scheme="reverse")) as session:
        model(**batch, labels=labelled(batch)).loss.backward()
        optimiser.step()
    assert read_mark(model) == session.methods["cca"].settings
    model.save_pretrained(tmp_path)
    assert read_mark(LlavaForConditionalGeneration.from_pretrained(tmp_path)) == session.methods["cca"].settings


def test_a_model_without_a_mark_is_warned_about_once_in_inference_and_not_in_training():
    model = tiny_vlm("llava", layers=2)
    with attach(model, CCA()), torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(input_ids=torch.ones(1, 4, dtype=torch.int64))  # text says nothing about it
        with pytest.warns(UserWarning, match="was not trained with CCA"):
            model(**vlm_inputs(model, PARTS))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**vlm_inputs(model, PARTS))
    with attach(model.train(), CCA()), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**vlm_inputs(model, PARTS))
        with torch.no_grad():
            model.eval()(**vlm_inputs(model, PARTS))


def test_a_mark_of_other_settings_is_warned_about():
    model = tiny_vlm("llava", layers=2)
    mark(model, CCA(scheme="reverse").settings)
    with pytest.warns(UserWarning, match=r"trained with cca.*'reverse'.*attached with.*'concentric'"):
        attach(model, CCA())


@quiet
def test_marks_come_and_go_without_a_trace():
    model = tiny_vlm("llava", layers=2)
    before = fingerprint(model)
    undo = mark(model, CCA().settings)
    assert read_mark(model) == CCA().settings
    undo()
    assert fingerprint(model).differences(before) == []
    model.config.paperhooks = {"other": {"a": 1}}
    with attach(model, CCA()), torch.no_grad():
        model(**vlm_inputs(model, PARTS))
        assert set(model.config.paperhooks) == {"other", "cca"}
    assert model.config.paperhooks == {"other": {"a": 1}}


def test_labels_on_placeholders_are_warned_about():
    model = tiny_vlm("llava", layers=2).train()
    inputs = vlm_inputs(model, PARTS[:1])
    with attach(model, CCA()), pytest.warns(UserWarning, match="16 image tokens have labels; set them to -100"):
        model(**inputs, labels=inputs["input_ids"])


@quiet
@pytest.mark.parametrize("given", ["nothing", "ones", "explicit"])
def test_jumping_positions_are_not_taken_for_packed_rows(given):
    """Without a mask and a cache the library reads a jump in the positions as the start of another sequence."""
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, PARTS[:1])
    expected = reference_logits(
        model, inputs["input_ids"][0], list(inputs["mm_encoder_outputs"]["image"].pooler_output)
    )
    mask = {"nothing": None, "ones": inputs["attention_mask"], "explicit": inputs["attention_mask"].bool()}[given]
    for mode in (model.eval(), model.train()):
        with attach(mode, CCA()), torch.no_grad():
            found = mode(**{**inputs, "attention_mask": mask}, use_cache=False).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@quiet
def test_one_model_of_two_in_a_process():
    one, two = tiny_vlm("llava", layers=2), tiny_vlm("llava", layers=2)
    with torch.no_grad():
        plain = two(**vlm_inputs(two, PARTS)).logits
        with attach(one, CCA()):
            other = one(**vlm_inputs(one, PARTS)).logits
            assert torch.equal(two(**vlm_inputs(two, PARTS)).logits, plain)
        assert not torch.allclose(other, plain, atol=1e-3)


@quiet
def test_the_model_without_its_head_is_attached_as_well():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, PARTS)
    with attach(model, CCA()), torch.no_grad():
        whole = model(**inputs).logits
        base = model.model(**inputs).last_hidden_state
    torch.testing.assert_close(model.lm_head(base), whole)


@quiet
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_has_no_nan_and_kernels_agree(dtype):
    found = []
    for kernel in ("sdpa", "eager"):
        model = tiny_vlm("llava", layers=3, attn_implementation=kernel).to(dtype)
        with attach(model, CCA()), torch.no_grad():
            out = model(**vlm_inputs(model, PARTS))
        real = vlm_inputs(model, PARTS)["attention_mask"].bool()
        assert torch.isfinite(out.logits).all()
        found.append(out.logits.float()[real])
    scale = found[0].abs().max()
    assert float((found[0] - found[1]).abs().max() / scale) < 0.05


@quiet
def test_compiled_without_one_graph_gives_the_same():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, PARTS)
    with attach(model, CCA()), torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(torch.compile(model, backend="eager")(**inputs).logits, expected)
    torch.compiler.reset()


def test_the_mark_lies_beside_a_sharded_checkpoint(tmp_path):
    """Where the Trainer leaves the model to its shards, it writes no config at all."""

    class HooksTrainer(HooksTrainerMixin, Trainer):
        pass

    model = tiny_vlm("llava", layers=2)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with attach(model, CCA()):
        trainer = HooksTrainer(model=model, args=arguments)
        trainer.is_fsdp_enabled = True
        trainer.accelerator.state.fsdp_plugin = SimpleNamespace(state_dict_type="SHARDED_STATE_DICT")
        trainer.save_model(str(tmp_path / "shards"))
    assert [file.name for file in (tmp_path / "shards").iterdir()] == ["config.json"]
    assert type(model.config).from_pretrained(tmp_path / "shards").paperhooks == {"cca": CCA().settings}
