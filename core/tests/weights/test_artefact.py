"""The weight journal: every edit undone bit for bit; artefacts: the same edit elsewhere, or a refusal."""

from __future__ import annotations

import json
import warnings

import paperhooks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import Artefact, ArtefactError, PluginConflict, UnsupportedModel, WeightJournal
from paperhooks.io import tensor_digest
from paperhooks.testing import fingerprint, tiny_llama, tiny_text
from paperhooks.weights import Masked, Quantised
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
NAME = "model.layers.1.mlp.up_proj.weight"


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bit pattern at all: NaN with payloads, infinities, negative zeros, denormals."""
    size = torch.empty(0, dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8, generator=generator)
    return raw.view(dtype)


def holder(weight: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_dense_and_sparse_edits_are_undone_bit_for_bit(dtype: torch.dtype, layout: str) -> None:
    weight = random_bits((6, 8), dtype)
    if layout == "transposed":
        weight = random_bits((8, 6), dtype).t()
    elif layout == "strided":
        weight = random_bits((6, 16), dtype)[:, ::2]
    module = holder(weight)
    before, strides = bits(module.weight), module.weight.stride()
    for edit in ("dense", "sparse", "both"):
        journal = WeightJournal(module)
        if edit != "dense":
            journal.write_sparse("weight", torch.tensor([0, 7, 8, 47]), torch.ones(4))
            assert module.weight[0, 7].float() == module.weight[1, 0].float() == module.weight[5, 7].float() == 1
        if edit != "sparse":
            journal.write("weight", torch.zeros(6, 8))
            assert not bool(module.weight.float().any())
        assert bits(journal.original("weight")) == before
        journal.undo()
        assert bits(module.weight) == before
        assert module.weight.stride() == strides
        assert not journal.changed


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 19), min_size=0, max_size=20)), max_size=6))
def test_any_sequence_of_edits_is_undone(edits) -> None:
    module = holder(random_bits((4, 5), torch.bfloat16))
    before, journal = bits(module.weight), WeightJournal(module)
    for number, (dense, positions) in enumerate(edits):
        index = torch.tensor(sorted(positions, reverse=True), dtype=torch.int64)
        if dense:
            journal.write("weight", torch.full((4, 5), float(number)))
        elif number % 2:
            journal.scale_sparse("weight", index, 3.0)
        else:
            journal.write_sparse("weight", index, torch.full((len(index),), float(number)))
        assert bits(journal.original("weight")) == before
    journal.undo()
    assert bits(module.weight) == before


def test_tied_weights_are_saved_once_and_stay_tied() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    before = fingerprint(model)
    journal = WeightJournal(model)
    journal.write("lm_head.weight", torch.zeros_like(model.lm_head.weight))
    journal.write("model.embed_tokens.weight", torch.ones_like(model.lm_head.weight))
    assert list(journal.changed) == ["model.embed_tokens.weight"]
    assert journal.changed["model.embed_tokens.weight"].names == ("model.embed_tokens.weight", "lm_head.weight")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    journal.undo()
    assert fingerprint(model) == before


def test_sparse_edits_keep_only_what_they_touch_and_round_once() -> None:
    model = tiny_llama().to(torch.bfloat16)
    parameter = model.get_parameter(NAME)
    journal, old = WeightJournal(model), parameter.detach().clone()
    journal.scale_sparse(NAME, torch.tensor([5, 3]), 1.1)
    journal.scale_sparse(parameter, torch.tensor([3, 4]), 1.1)
    change = journal.changed[NAME]
    assert change.index.tolist() == [3, 4, 5]
    assert change.entries == 3
    wanted = (old.flatten()[[4, 5]].float() * 1.1).to(torch.bfloat16)
    assert torch.equal(parameter.flatten()[[4, 5]], wanted)
    assert torch.equal(parameter.flatten()[6:], old.flatten()[6:])


def test_scaling_by_zero_clears_nan() -> None:
    module = holder(torch.tensor([torch.nan, -2.0]))
    WeightJournal(module).scale_sparse("weight", torch.tensor([0, 1]), 0.0)
    assert module.weight.tolist() == [0.0, 0.0]


def test_values_may_be_a_view_of_the_parameter_itself() -> None:
    module = holder(torch.arange(9.0).reshape(3, 3))
    journal = WeightJournal(module)
    journal.write("weight", module.weight.t())
    assert torch.equal(module.weight, torch.arange(9.0).reshape(3, 3).t())
    journal.undo()
    assert torch.equal(module.weight, torch.arange(9.0).reshape(3, 3))


def test_two_methods_on_one_parameter_are_a_conflict_while_open() -> None:
    model = tiny_llama()
    journal = WeightJournal(model)
    values = torch.zeros_like(model.get_parameter(NAME))
    journal.write(NAME, values, method="one")
    with pytest.raises(PluginConflict, match=r"two writes model.* which one has edited"):
        journal.write_sparse(NAME, torch.tensor([0]), torch.ones(1), method="two")
    journal.undo()
    journal.write(NAME, values, method="two")
    journal.keep()
    journal.writer = "one"
    journal.write(NAME, values)
    assert journal.changed[NAME].method == "one"


def test_what_is_not_plain_floating_point_is_refused() -> None:
    module = nn.Module()
    module.codes = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    module.far = nn.Parameter(torch.zeros(4, device="meta"))
    journal = WeightJournal(module)
    with pytest.raises(UnsupportedModel, match=r"codes is Parameter torch.uint8.*dequantize=True"):
        journal.write("codes", torch.zeros(4))
    with pytest.raises(UnsupportedModel, match="far is on the meta device"):
        journal.write("far", torch.zeros(4))
    assert not journal.changed


@pytest.mark.parametrize(
    ("index", "values", "error", "words"),
    [
        (torch.tensor([0, 99999]), torch.ones(2), IndexError, "0 to 99999"),
        (torch.tensor([-1, 2]), torch.ones(2), IndexError, "-1 to 2"),
        (torch.tensor([1, 1]), torch.ones(2), ValueError, "repeat"),
        (torch.tensor([1, 2]), torch.ones(3), ValueError, "values for 2 positions"),
        (torch.tensor([1.0]), torch.ones(1), ValueError, r"must be int64 \[n\]"),
    ],
)
def test_wrong_sparse_edits_are_named_and_change_nothing(index, values, error, words) -> None:
    model = tiny_llama()
    before = fingerprint(model)
    journal = WeightJournal(model)
    with pytest.raises(error, match=words):
        journal.write_sparse(NAME, index, values)
    with pytest.raises(ValueError, match="not"):
        journal.write(NAME, torch.zeros(3))
    with pytest.raises(LookupError, match=r"no parameter 'model.layers.1.mlp.upp_proj.weight'; did you mean"):
        journal.write("model.layers.1.mlp.upp_proj.weight", torch.zeros(3))
    with pytest.raises(LookupError, match="is no parameter of this"):
        journal.write(nn.Parameter(torch.zeros(3)), torch.zeros(3))
    assert fingerprint(model) == before
    assert not journal.changed


def test_a_session_undoes_its_views_journal() -> None:
    from dataclasses import dataclass

    @dataclass(eq=False)
    class Zero:
        traits = paperhooks.Traits(writes=frozenset({"weights"}))

        @paperhooks.hookimpl
        def setup(self, view):
            view.journal.write(NAME, torch.zeros_like(view.model.get_parameter(NAME)), method="zero")

    model = tiny_llama()
    before = fingerprint(model)
    with paperhooks.attach(model, Zero()):
        assert not bool(model.get_parameter(NAME).any())
    assert fingerprint(model) == before


# -- artefacts ----------------------------------------------------------------------------------------------------


def edited(model: nn.Module) -> Artefact:
    """Edits a dense and a sparse parameter and the tied embedding."""
    journal = WeightJournal(model)
    journal.write(NAME, torch.full_like(model.get_parameter(NAME), 0.5), method="test")
    journal.scale_sparse("model.layers.0.self_attn.q_proj.weight", torch.tensor([9, 1, 700]), -0.0, method="test")
    journal.scale_sparse("lm_head.weight", torch.tensor([4]), 2.0, method="test")
    options = {"ratio": 0.5, "layers": (1, 2)}
    return Artefact.from_journal(
        journal, method="test", options=options, data={"levels": {"a": 1}}, tensors={"c": torch.arange(3.0)}
    )


@pytest.mark.parametrize("where", ["one.safetensors", "folder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_artefact_reproduces_the_edit_on_a_fresh_model(tmp_path, where: str, dtype: torch.dtype) -> None:
    model, fresh = (tiny_llama(tie_word_embeddings=True).to(dtype) for _ in range(2))
    original, artefact = fingerprint(fresh), edited(model)
    file = artefact.save(tmp_path / where)
    assert file.suffix == ".safetensors"
    loaded = Artefact.load(tmp_path / where)
    assert loaded.options == {"ratio": 0.5, "layers": [1, 2]}
    assert loaded.data == {"levels": {"a": 1}}
    assert loaded.tensors["c"].tolist() == [0.0, 1.0, 2.0]
    assert loaded.versions["paperhooks"] == paperhooks.__version__
    journal = loaded.apply(fresh)
    for (name, a), b in zip(model.named_parameters(), fresh.parameters()):
        assert bits(a) == bits(b), name
    assert fresh.lm_head.weight is fresh.model.embed_tokens.weight
    assert journal is loaded.journal
    loaded.undo()
    assert fingerprint(fresh) == original


def test_sparse_artefacts_hold_positions_and_values_only(tmp_path) -> None:
    model = tiny_llama()
    journal = WeightJournal(model)
    journal.scale_sparse(NAME, torch.tensor([8, 2]), 0.0)
    file = Artefact.from_journal(journal, method="test").save(tmp_path / "a.safetensors")
    with safe_open(file, framework="pt") as handle:
        assert {n: handle.get_tensor(n).numel() for n in handle.keys()} == {"index/" + NAME: 2, "values/" + NAME: 2}  # noqa: SIM118


def test_packed_weights_are_stored_packed_and_written_as_they_were(tmp_path) -> None:
    """Of a matrix for each of several experts, quantised, and of another without its negative values."""
    shape = (3, 16, 64)
    model, fresh = (holder(torch.randn(shape, generator=torch.Generator().manual_seed(0))) for _ in range(2))
    for module in (model, fresh):
        module.other = nn.Parameter(module.weight.detach()[0].clone(), requires_grad=False)
    original, old = fresh.weight.detach().clone(), model.other.detach().clone()
    codes = torch.randint(0, 8, shape, generator=torch.Generator().manual_seed(1))
    scales = torch.rand(3, 16, 2, generator=torch.Generator().manual_seed(2))
    packed = {
        "weight": Quantised.of(codes, scales, torch.ones(3, 16, 2), 3, 32),
        "other": Masked.of(old, old > 0),
    }
    journal = WeightJournal(model)
    for name, each in packed.items():
        journal.write(name, each.unpack())
    artefact = Artefact.from_journal(journal, method="test", packed=packed)
    file = artefact.save(tmp_path / "a.safetensors")
    assert file.stat().st_size < 3000 + sum(each.nbytes for each in packed.values())
    loaded = Artefact.load(file)
    assert [edit.values for edit in loaded.edits.values()] == [None, None]
    loaded.apply(fresh)
    assert bits(fresh.weight) == bits(model.weight)
    assert bits(fresh.other) == bits(model.other)
    loaded.undo()
    assert bits(fresh.weight) == bits(original)
    again = loaded.save(tmp_path / "b.safetensors")
    assert again.read_bytes() == file.read_bytes()
    with torch.no_grad():
        model.weight[2, 3, 4] += 1
    with pytest.raises(ArtefactError, match="the packed values of weight are not those"):
        Artefact.from_journal(journal, method="test", packed=packed)


def test_another_model_is_refused_naming_the_difference_and_stays_untouched(tmp_path) -> None:
    file = edited(tiny_llama()).save(tmp_path / "a.safetensors")
    artefact = Artefact.load(file)
    seeded, narrow, half = tiny_llama(seed=1), tiny_llama(num_key_value_heads=4), tiny_llama().half()
    changed, family = tiny_llama(), tiny_text("qwen2")
    with torch.no_grad():
        changed.get_parameter(NAME)[0, 0] += 1
    cases = [
        (seeded, "has other values"),
        (narrow, "has other values"),
        (half, r"torch.float16 .* was made from torch.float32"),
        (changed, rf"{NAME} has other values"),
        (family, "belongs to a LlamaForCausalLM, not to a Qwen2ForCausalLM"),
    ]
    for model, words in cases:
        before = fingerprint(model)
        with pytest.raises(ArtefactError, match=words):
            artefact.apply(model)
        assert fingerprint(model) == before
    model = tiny_llama()
    artefact.apply(model)
    with pytest.raises(ArtefactError, match="applied before"):
        artefact.apply(model)


def test_the_weights_decide_and_another_config_around_them_is_warned_of(tmp_path) -> None:
    model, other, saved = tiny_llama(), tiny_llama(), tiny_llama()
    artefact = edited(model)
    other.config.rope_parameters["rope_theta"] = 5e5
    other.config.new_default = 1
    with pytest.warns(UserWarning, match=r"rope_parameters\.rope_theta = 10000\.0, not 500000\.0; new_default = None"):
        artefact.check(other)
    saved.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # saving completes the config, which is no difference
        Artefact.load(artefact.save(tmp_path / "a.safetensors")).apply(type(saved).from_pretrained(tmp_path))


def test_equal_artefacts_are_equal_files(tmp_path) -> None:
    files = [edited(tiny_llama()).save(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_journal_conflict_is_found_before_anything_is_written(tmp_path) -> None:
    model = tiny_llama()
    artefact = Artefact.load(edited(tiny_llama()).save(tmp_path / "a.safetensors"))
    journal = WeightJournal(model)
    last = model.lm_head.weight
    journal.write(last, last.detach().clone(), method="other")
    before = fingerprint(model)
    with pytest.raises(PluginConflict, match="other has edited"):
        artefact.apply(model, journal)
    assert fingerprint(model) == before


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 0.999), flip=st.booleans())
def test_a_cut_or_changed_file_is_refused_and_kept(tmp_path_factory, share: float, flip: bool) -> None:
    file = edited(tiny_llama(layers=2)).save(tmp_path_factory.mktemp("a") / "a.safetensors")
    content = bytearray(file.read_bytes())
    at = int(share * len(content))
    if flip:
        content[at] ^= 1
    else:
        del content[at:]
    file.write_bytes(content)
    with pytest.raises(ArtefactError):
        Artefact.load(file)
    assert file.read_bytes() == bytes(content)


def test_files_that_are_no_artefacts_are_refused(tmp_path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "json.safetensors", {"paperhooks": json.dumps([1])})
    for name in ("text", "plain", "json"):
        with pytest.raises(ArtefactError, match="expected an artefact"):
            Artefact.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtefactError, match="expected an artefact"):
        Artefact.load(tmp_path / "missing.safetensors")


def test_a_forged_edit_cannot_fail_half_way() -> None:
    model = tiny_llama()
    artefact = edited(tiny_llama())
    edit = artefact.edits["lm_head.weight"]
    object.__setattr__(edit, "index", torch.tensor([10**9]))
    before = fingerprint(model)
    with pytest.raises(ArtefactError, match="positions or values that do not fit"):
        artefact.apply(model)
    assert fingerprint(model) == before


def test_an_artefact_without_edits_or_journal_says_so() -> None:
    with pytest.raises(ArtefactError, match="holds no weight edits"):
        Artefact("test", kind="recipe").apply(tiny_llama())
    with pytest.raises(ArtefactError, match="was not applied here"):
        Artefact("test").undo()


def test_saving_fails_without_harming_an_older_file(tmp_path, monkeypatch) -> None:
    artefact = edited(tiny_llama())
    file = artefact.save(tmp_path / "a.safetensors")
    content = file.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        artefact.save(file)
    assert file.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_digests_see_dtype_shape_and_bits() -> None:
    one = torch.zeros(4)
    assert tensor_digest(one) == tensor_digest(one.clone())
    others = [one.half(), one.reshape(2, 2), -one, torch.zeros(5)]
    assert len({tensor_digest(t) for t in [one, *others]}) == 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_edits_on_a_gpu_are_undone_also_after_a_move(accelerator, dtype: torch.dtype) -> None:
    module = holder(random_bits((6, 8), dtype).to(accelerator))
    before, journal = bits(module.weight.cpu()), WeightJournal(module)
    journal.write_sparse("weight", torch.tensor([3, 40]), torch.ones(2))
    journal.write("weight", torch.zeros(6, 8))
    module.cpu()
    journal.undo()
    assert bits(module.weight) == before


def test_an_artefact_made_on_a_gpu_is_that_of_the_cpu(accelerator, tmp_path) -> None:
    made = []
    for place in ("cpu", accelerator):
        model = tiny_llama(layers=2).to(place)
        journal = WeightJournal(model)
        journal.scale_sparse(NAME, torch.tensor([3, 40]), 0.5, method="halve")
        journal.write("lm_head.weight", torch.zeros_like(model.lm_head.weight), method="halve")
        made.append(Artefact.from_journal(journal, method="halve"))
        made[-1].save(tmp_path / torch.device(place).type)
    files = [next((tmp_path / torch.device(place).type).glob("*.safetensors")) for place in ("cpu", accelerator)]
    assert files[0].read_bytes() == files[1].read_bytes()
    fresh = tiny_llama(layers=2).to(accelerator)
    before = fingerprint(fresh)
    Artefact.load(tmp_path / "cpu").apply(fresh).undo()
    assert fingerprint(fresh) == before


@pytest.mark.parametrize("around", [None, "LlamaMLP", "LlamaDecoderLayer"])
def test_what_is_skipped_of_an_offloaded_model_is_known_by_its_weights(around: str | None) -> None:
    """Wherever accelerate keeps them: for each matrix, or for a module that is skipped or around one."""
    hooks = pytest.importorskip("accelerate.hooks")
    artefacts = []
    for offload in (True, False):
        model = tiny_text("llama", layers=3)
        plain = tiny_text("llama", layers=3)
        if offload:
            hooks.attach_align_device_hook(
                model, execution_device="cpu", offload=True, weights_map=dict(plain.state_dict()),
                preload_module_classes=None if around is None else [around],
            )  # fmt: skip
        journal = WeightJournal(model)
        for name in ("model.layers.1", "model.layers.0.mlp"):
            journal.structure.skip(name)
        artefacts.append(Artefact.from_journal(journal, method="test"))
    assert artefacts[0].skipped == artefacts[1].skipped
    artefacts[0].apply(tiny_text("llama", layers=3))
    with pytest.raises(ArtefactError, match=r"model\.layers\.1 has other weights"):
        artefacts[0].apply(tiny_text("llama", layers=3, seed=1))
