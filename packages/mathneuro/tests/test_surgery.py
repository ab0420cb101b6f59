"""Editing: exact undo, refusals, rounding, artefacts, training of a selection and nothing else."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import paperhooks
import pytest
import torch
from paperhooks import Artefact, ArtefactError, DataError, ModelError, PluginConflict, UnsupportedModel
from paperhooks.testing import fingerprint, tiny_text
from paperhooks_mathneuro import (
    EditWarning,
    MathNeuro,
    TrainOnlyCallback,
    apply,
    collect,
    load_selection,
    select,
    train_only,
)
from paperhooks_mathneuro.selection import weights_of
from paperhooks_mathneuro.surgery import _stochastic

ONE = [[1, 5, 6, 7, 8, 9], [1, 10, 11], [1, 12, 13, 14], [1, 15, 3, 4]]
TWO = [[1, 55, 56, 57], [1, 60, 61, 70, 71], [1, 62, 63, 64, 50, 51]]


def selected(model, ratio: float = 0.05, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return select(model, *(collect(model, rows, progress=False) for rows in (ONE, TWO)), ratio=ratio, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_edits_scale_the_set_and_nothing_else_and_are_undone(family: str, dtype: torch.dtype) -> None:
    model = tiny_text(family, layers=2).to(dtype)
    selection, before = selected(model), fingerprint(model)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = {m.name: selection.mask(m, w) for m, w in weights_of(model, selection.matrices)}
    with apply(model, selection, 1.5) as surgery:
        assert surgery.entries == sum(int(mask.sum()) for mask in masks.values()) > 0
        touched = set()
        for matrix in selection.matrices:
            now, then, mask = (
                matrix.of(model.get_parameter(matrix.parameter)),
                matrix.of(old[matrix.parameter]),
                masks[matrix.name],
            )
            assert torch.equal(now, torch.where(mask, (then.float() * 1.5).to(dtype), then))
            touched.add(matrix.parameter)
        assert all(torch.equal(p, old[name]) for name, p in model.named_parameters() if name not in touched)
        assert fingerprint(model) != before
    assert fingerprint(model) == before


def test_a_scale_of_zero_prunes_and_an_exception_undoes() -> None:
    model = tiny_text(layers=2)
    selection, before = selected(model), fingerprint(model)

    def prune_and_fail() -> None:
        with apply(model, selection):
            for matrix in selection.matrices:
                weight = model.get_parameter(matrix.name)
                assert int((weight == 0).sum()) == selection.about["counts"][matrix.name]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        prune_and_fail()
    assert fingerprint(model) == before


def test_twice_and_undo_without_apply_are_refused() -> None:
    model = tiny_text(layers=2)
    selection = selected(model)
    surgery = apply(model, selection)
    with pytest.raises(ModelError, match="is applied to this model; undo it first"):
        apply(model, selection)
    with pytest.raises(ModelError, match="undo it first"):
        apply(model, selection, force=True)
    with pytest.raises(ArtefactError, match="undo it"):
        apply(copy.deepcopy(model), selection)  # a copy of the edited model is no original
    surgery.undo()
    with pytest.raises(ModelError, match="is not applied now"):
        surgery.undo()
    with pytest.raises(ModelError, match="is not applied now"):
        surgery.artefact()
    with apply(model, selection):
        pass


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), "1", None])
def test_scales_that_are_no_numbers_are_refused(scale) -> None:
    model = tiny_text(layers=1)
    selection, before = selected(model), fingerprint(model)
    with pytest.raises(ValueError, match="scale is"):
        apply(model, selection, scale)
    with pytest.raises(ValueError, match="rounding is 'up'"):
        apply(model, selection, rounding="up")
    assert fingerprint(model) == before


def test_a_scale_of_one_does_nothing_and_says_so() -> None:
    model = tiny_text(layers=1)
    selection, before = selected(model), fingerprint(model)
    with pytest.warns(EditWarning, match="the scale is 1"), apply(model, selection, 1.0):
        assert fingerprint(model) == before


def test_other_weights_are_refused_unless_forced() -> None:
    model = tiny_text(layers=2)
    selection = selected(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    before = fingerprint(model)
    with pytest.raises(ArtefactError, match=r"pass force=True"):
        apply(model, selection)
    with apply(model, selection, force=True) as surgery:
        assert surgery.entries
    assert fingerprint(model) == before


def test_attached_and_offloaded_models_are_refused_and_nothing_is_written() -> None:
    from accelerate import cpu_offload

    model = tiny_text(layers=2)
    selection = selected(model)

    class Idle:
        traits = paperhooks.Traits()

        @paperhooks.hookimpl
        def post_layer(self, hidden_states):
            return None

    with paperhooks.attach(model, Idle()):
        model(torch.tensor([[1, 2]]))
        with pytest.raises(ModelError, match="attached to a session"):
            apply(model, selection)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModel, match="on the meta device"):
        apply(model, selection)


# -- low precision ----------------------------------------------------------------------------------------------------


def test_factors_near_one_in_bfloat16_are_what_they_are_and_said() -> None:
    model = tiny_text(layers=2).bfloat16()
    selection = selected(model)
    with pytest.warns(EditWarning, match=r"the factor 1\.01 comes out between 1\.00\d+ and 1\.01\d+"):
        surgery = apply(model, selection, 1.01)
    least, mean, largest = surgery.effective
    assert 1.003 < least < 1.0095 < largest < 1.016
    assert mean == pytest.approx(1.0097, abs=8e-4)
    surgery.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", EditWarning)
        with apply(tiny := tiny_text(layers=2), selected(tiny), 1.01) as exact:
            assert exact.effective == pytest.approx((1.01, 1.01, 1.01), abs=1e-6)


def test_stochastic_rounding_is_right_on_average_and_seeded() -> None:
    values = torch.full((40_000,), 1.0 + 1 / 512)  # a quarter of the way from 1 to the next bfloat16
    found = _stochastic(values, torch.bfloat16, torch.Generator().manual_seed(0))
    assert sorted(found.unique().tolist()) == [1.0, 1.0078125]
    assert float(found.double().mean()) == pytest.approx(1.0 + 1 / 512, abs=1e-4)
    exact = torch.tensor([1.0, -0.5, 0.0])
    assert torch.equal(_stochastic(exact, torch.bfloat16, torch.Generator()).float(), exact)
    model = tiny_text(layers=2).bfloat16()
    selection, before = selected(model, 0.3), fingerprint(model)
    results = []
    for seed in (1, 1, 2):
        with apply(model, selection, 1.01, rounding="stochastic", seed=seed) as surgery:
            results.append(fingerprint(model))
            assert surgery.effective[1] == pytest.approx(1.01, abs=1e-3)
    assert results[0] == results[1] != results[2]
    assert fingerprint(model) == before


# -- files ------------------------------------------------------------------------------------------------------------


def test_an_edited_checkpoint_is_an_ordinary_one_and_can_be_taken_back(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny_text(layers=2).save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    selection = selected(model)
    with apply(model, selection, 0.5) as surgery:
        model.save_pretrained(tmp_path / "edited")
        surgery.reversal().save(tmp_path / "edited" / "undo.safetensors")
        artefact = load(surgery.artefact().save(tmp_path / "edit"))
        logits = model(torch.tensor([[1, 2, 3]])).logits
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert torch.equal(edited(torch.tensor([[1, 2, 3]])).logits, logits)
    load(tmp_path / "edited" / "undo.safetensors").apply(edited)
    assert all(torch.equal(a, b) for a, b in zip(edited.parameters(), model.parameters(), strict=True))
    journal = artefact.apply(model)
    assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, logits)
    journal.undo()
    with pytest.raises(ArtefactError, match="holds the artefact's values already"):
        load(tmp_path / "edited" / "undo.safetensors").apply(model)


def load(path: Path) -> Artefact:
    return Artefact.load(path)


def test_compress_does_it_in_one_call(tmp_path: Path) -> None:
    model = tiny_text(layers=2)
    before, wanted = fingerprint(model), selected(model, 0.1)
    data = {"target": ONE, "reference": TWO}
    artefact = paperhooks.compress(model, "mathneuro", data=data, out=tmp_path, progress=False, ratio=0.1, scale=1.25)
    edited = fingerprint(model)
    with apply(tiny_text(layers=2), wanted, 1.25) as surgery:
        assert all(torch.equal(a, b) for a, b in zip(surgery.model.parameters(), model.parameters(), strict=True))
    assert artefact.data["share"] == pytest.approx(sum(wanted.about["counts"].values()) / 36864 * 2, rel=0.6)
    stored = load_selection(tmp_path / "selection.safetensors")
    assert stored.about["counts"] == wanted.about["counts"]
    artefact.undo()
    assert fingerprint(model) == before
    again = paperhooks.compress(model, "mathneuro", data=data, out=tmp_path, progress=False, ratio=0.1, scale=1.25)
    assert fingerprint(model) == edited
    again.undo()
    several = paperhooks.compress(
        model, MathNeuro(combine="intersection"), data={**data, "other": TWO[:1]}, target="0.2", progress=False
    )
    assert several.data["selection"] == "target - (reference & other) @ 0.2"
    several.undo()
    assert fingerprint(model) == before


def test_compress_refuses_what_it_cannot_contrast() -> None:
    model = tiny_text(layers=1)
    before = fingerprint(model)
    for data in (ONE, {"target": ONE}, {"a": ONE, "b": TWO}):
        with pytest.raises(DataError, match="with the target and at least one reference"):
            paperhooks.compress(model, "mathneuro", data=data, progress=False)
    with pytest.raises(DataError, match=r"is a ratio such as 0\.05, not '3bit'"):
        paperhooks.compress(model, "mathneuro", data={"target": ONE, "reference": TWO}, target="3bit", progress=False)
    with pytest.raises(ValueError, match="ratio is 2"):
        MathNeuro(ratio=2)
    with pytest.raises(ValueError, match="scale is nan"):
        MathNeuro(scale=float("nan"))
    assert fingerprint(model) == before


def test_compat_scores_untied_heads_and_exact_does_not() -> None:
    model = tiny_text(layers=1)
    for mode, wanted in (("compat", True), ("exact", False)):
        artefact = paperhooks.compress(
            model, "mathneuro", data={"target": ONE, "reference": TWO}, mode=mode, ratio=0.1, progress=False
        )
        assert ("lm_head.weight" in artefact.edits) == wanted
        artefact.undo()


def test_two_methods_do_not_edit_one_parameter() -> None:
    from paperhooks import WeightJournal
    from paperhooks_mathneuro.surgery import edit

    model = tiny_text(layers=1)
    journal = WeightJournal(model)
    name = "model.layers.0.self_attn.q_proj.weight"
    journal.write_sparse(name, torch.tensor([0]), torch.tensor([1.0]), method="other")
    with pytest.raises(PluginConflict, match="mathneuro writes"):
        edit(journal, selected(tiny_text(layers=1)), 0.0)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_only_the_set_is_trained(family: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    model = tiny_text(family, layers=2)
    selection = selected(model, 0.1)
    masks = {m.name: selection.mask(m, w) for m, w in weights_of(model, selection.matrices)}
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    rows = [{"input_ids": row + [9] * (6 - len(row)), "labels": row + [9] * (6 - len(row))} for row in ONE]
    arguments = TrainingArguments(
        tmp_path, max_steps=3, learning_rate=1e-2, weight_decay=0.5, per_device_train_batch_size=2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    callback = TrainOnlyCallback()
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_list(rows), callbacks=[callback])
    with train_only(model, selection):
        trainer.train()
    moved = 0
    for matrix in selection.matrices:
        now, then = matrix.of(model.get_parameter(matrix.parameter)), matrix.of(old[matrix.parameter])
        assert torch.equal(now[~masks[matrix.name]], then[~masks[matrix.name]])
        moved += int((now != then).sum())
    assert moved > 0.5 * sum(selection.about["counts"].values())
    edited = {m.parameter for m in selection.matrices}
    assert all(torch.equal(p, old[n]) for n, p in model.named_parameters() if n not in edited)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == required
    assert any(group["weight_decay"] == 0.5 for group in trainer.optimizer.param_groups)


def test_an_empty_set_is_not_trained() -> None:
    model = tiny_text(layers=1)
    one = collect(model, ONE, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = select(model, one, one)
    with pytest.raises(ModelError, match="nothing to train"), train_only(model, empty):
        pass


# -- a planted skill --------------------------------------------------------------------------------------------------


def planted():
    """A tiny Llama with a skill: tokens 3 to 45 drive one channel, whose column of down_proj says token 77.

    Dimension 0 of the stream marks the skill's tokens. Nothing else reads or writes it.
    """
    model = tiny_text(layers=2)
    channel = 11
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.0
        model.model.embed_tokens.weight[3:46, 0] = 2.0
        for layer in model.model.layers:
            for module in (
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
            ):
                module.weight[:, 0] = 0.0
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight[0] = 0.0
        mlp = model.model.layers[1].mlp
        for module, value in ((mlp.gate_proj, 3.0), (mlp.up_proj, 3.0)):
            module.weight[channel] = 0.0
            module.weight[channel, 0] = value
        said = model.lm_head.weight[77].clone()
        said[0] = 0.0
        mlp.down_proj.weight[:, channel] = said
        model.lm_head.weight[:, 0] = 0.0
    return model, channel


def test_a_planted_skill_is_found_and_removed_and_nothing_else() -> None:
    from paperhooks_mathneuro import control

    model, channel = planted()
    generator = torch.Generator().manual_seed(0)
    skill = [[1, *torch.randint(3, 46, (9,), generator=generator).tolist()] for _ in range(6)]
    other = [[1, *torch.randint(50, 95, (9,), generator=generator).tolist()] for _ in range(6)]
    name = "model.layers.1.mlp.down_proj.weight"
    sides = [
        collect(model, rows, progress=False, include=r"layers\.1\.mlp\.down_proj") for rows in (skill[:4], other[:4])
    ]
    found = select(model, *sides, ratio=1 / 64)  # as many entries as a column has
    (matrix,) = found.matrices
    mask = found.mask(matrix, model.get_parameter(name).detach())
    assert int(mask.sum()) > 25
    assert set(mask.nonzero()[:, 1].tolist()) == {channel}

    def logits(rows):
        with torch.no_grad():
            return model(torch.tensor(rows)).logits

    before = logits(skill[4:]), logits(other[4:])
    lead = (before[0][..., 77] - before[0].mean(-1)).mean()
    with apply(model, found):
        after = logits(skill[4:]), logits(other[4:])
    gone = (after[0][..., 77] - after[0].mean(-1)).mean()
    assert float(lead) > 1.0
    assert float(gone) < 0.3 * float(lead)
    torch.testing.assert_close(after[1], before[1], atol=1e-5, rtol=0)
    with apply(model, control(found, "random")):
        random = logits(skill[4:])
    assert float((random[..., 77] - random.mean(-1)).mean()) > 0.8 * float(lead)
