"""Compression from the call to the file and back, calibration, levels, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import paperhooks
import pytest
import torch
from compression_methods import LINEARS, Answers, Descent, Greedy, Halve, LeaveOut, Magnitude, Nearest
from paperhooks import (
    Artefact,
    ArtefactError,
    DataError,
    HookError,
    Level,
    ModelView,
    PluginConflict,
    PluginInfo,
    Traits,
    hookimpl,
)
from paperhooks.compression import compress
from paperhooks.errors import PluginError, PluginIncompatible, PluginNotFound
from paperhooks.hooks import CompressionRequest
from paperhooks.io import model_digest
from paperhooks.models import calibrate
from paperhooks.models.batches import token_batches
from paperhooks.plugins import catalog
from paperhooks.reports import Paragraph
from paperhooks.testing import TEXT_FAMILIES, fingerprint, tiny_llama, tiny_text, tiny_vlm, vlm_inputs
from paperhooks.weights import Dense
from torch import nn

DATA = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def installed():
    """The test's methods under names, as an installed plugin would offer them."""
    methods = {n: f"compression_methods:{c}" for n, c in (("magnitude", "Magnitude"), ("greedy", "Greedy"))}
    remove = catalog().register(PluginInfo("testzip", 1, "Compression methods of the tests.", methods=methods))
    yield
    remove()


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def squeeze(model: nn.Module, out: Path | None = None, method: object | None = None, **options) -> Artefact:
    given = {"data": DATA, "target": 0.6, "out": out, "levels_from": [Magnitude()], "progress": False, **options}
    return compress(model, method or Greedy(), **given)


def test_compress_undo_load_and_apply(tmp_path: Path) -> None:
    model, fresh = tiny_llama(layers=2), tiny_llama(layers=2)
    model(input_ids=torch.tensor([[1, 2]]))
    before = fingerprint(model)
    artefact = squeeze(model, tmp_path)
    linears = [m.weight for _, m in ModelView.from_model(model).modules(LINEARS)]
    kept = sum(int((w != 0).sum()) for w in linears) / sum(w.numel() for w in linears)
    assert 0.5 < kept <= 0.6
    levels = set(artefact.data["levels"].values())
    assert len(levels) > 1, "a search that treats all modules alike searches nothing"
    loaded = Artefact.load(tmp_path)
    loaded.apply(fresh)
    assert same_weights(fresh, model)
    assert loaded.tensors["norms"].shape == (14,)
    artefact.undo()
    assert fingerprint(model) == before
    with pytest.raises(ArtefactError, match="has other values"):
        loaded.apply(tiny_llama(layers=2, seed=1))
    with pytest.raises(ArtefactError, match="has other values"):
        loaded.apply(tiny_llama(layers=3))


def test_methods_by_name_with_options(installed, tmp_path: Path) -> None:
    one, two = tiny_llama(layers=2), tiny_llama(layers=2)
    artefact = compress(
        one,
        "testzip/greedy",
        data=DATA,
        target=0.7,
        levels_from=["testzip/magnitude"],
        pattern=".*up_proj",
        progress=False,
    )
    squeeze(two, method=Greedy(pattern=".*up_proj"), target=0.7)
    assert same_weights(one, two)
    assert artefact.method == "testzip/greedy"
    assert artefact.options == {"pattern": ".*up_proj"}
    assert "up_proj" in str(set(artefact.edits))
    with pytest.raises(PluginError, match="no option 'patern'; did you mean 'pattern'"):
        compress(one, "testzip/greedy", patern="x")
    with pytest.raises(PluginNotFound, match="nonsense"):
        compress(one, "nonsense")
    with pytest.raises(
        PluginIncompatible, match="magnitude does not compress models; it implements compression_levels"
    ):
        compress(one, "testzip/magnitude")


def test_the_run_folder_holds_artefact_result_and_report(tmp_path: Path) -> None:
    squeeze(tiny_llama(layers=2), tmp_path, seed=3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["seed"] == 3
    assert result["inputs"]["method"]["class"] == "compression_methods:Greedy"
    assert result["results"]["parameters"] == len(Artefact.load(tmp_path / "artefact.safetensors").edits)
    assert "compress" in result["timings"]
    assert f"{UP}.weight" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").exists()
    assert json.loads((tmp_path / "artefact.json").read_text())["method"] == "greedy"


def test_a_finished_run_is_applied_again_and_other_inputs_are_refused(tmp_path: Path) -> None:
    model, again = tiny_llama(layers=2), tiny_llama(layers=2)
    squeeze(model, tmp_path)
    content = (tmp_path / "artefact.safetensors").read_bytes()
    greedy = Greedy()
    artefact = squeeze(again, tmp_path, method=greedy)
    assert greedy.calibrations == 0
    assert same_weights(model, again)
    artefact.undo()
    assert same_weights(again, tiny_llama(layers=2))
    for change in ({"target": 0.9}, {"data": DATA[:2]}, {"seed": 1}, {"levels_from": [Magnitude((0.0, 0.9))]}):
        other = tiny_llama(layers=2)
        with pytest.raises(DataError, match="holds a run with"):
            squeeze(other, tmp_path, **change)
        assert same_weights(other, again)
    with pytest.raises(DataError, match=r"inputs\.model"):
        squeeze(tiny_llama(layers=2, seed=5), tmp_path)
    assert (tmp_path / "artefact.safetensors").read_bytes() == content


def test_an_interrupted_run_restores_the_model_and_goes_on(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    before = fingerprint(model)
    method = Greedy()
    method.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        squeeze(model, tmp_path, method=method)
    assert fingerprint(model) == before
    assert not (tmp_path / "artefact.safetensors").exists()
    again = Greedy()
    found = squeeze(model, tmp_path, method=again)
    assert again.calibrations == 0
    clean = tiny_llama(layers=2)
    wanted = squeeze(clean)
    assert same_weights(model, clean)
    assert found.data == wanted.data


def test_everything_about_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_llama(layers=2).train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    state = torch.random.get_rng_state()
    squeeze(model).undo()
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


# -- levels ---------------------------------------------------------------------------------------------------------


def test_levels_of_several_methods_are_collected_in_order_and_switched_freely() -> None:
    model, seen = tiny_llama(layers=2), {}

    def search(view, request):
        levels = request.levels(view, [UP])
        seen.update(levels)
        module = view.model.get_submodule(UP)
        original = module.weight.detach().clone()
        with levels:
            for level in [*levels[UP], *reversed(levels[UP])]:
                levels.switch({UP: level.label})
            assert torch.equal(module.weight, original)  # "zeros 0.0" came last
            levels.switch({UP: "half"})
            assert torch.equal(module.weight, original / 2)
            levels.write(view.journal)
        assert torch.equal(module.weight, original / 2)
        return request.artefact(view)

    artefact = squeeze(model, method=Answers(search), levels_from=[Magnitude(), Halve()])
    assert [level.label for level in seen[UP]] == ["zeros 0.0", "zeros 0.25", "zeros 0.5", "zeros 0.75", "half"]
    assert [level.method for level in seen[UP]][-2:] == ["magnitude", "halve"]
    assert artefact.method == "answers"
    artefact.undo()
    assert same_weights(model, tiny_llama(layers=2))


def test_an_artefact_of_levels_holds_them_packed(tmp_path: Path) -> None:
    """A whole model at 3 bits: the file is as small, and gives the same logits elsewhere."""
    model, fresh, ids = tiny_llama(layers=2), tiny_llama(layers=2), torch.tensor([[5, 6, 7]])

    def search(view, request):
        with request.levels(view, [name for name, _ in view.modules(LINEARS)]) as levels:
            levels.switch(dict.fromkeys(levels, "3 bits"))
            levels.write(view.journal)
            return request.artefact(view, data={"levels": dict.fromkeys(levels, "3 bits")}, levels=levels)

    artefact = squeeze(model, tmp_path / "packed", method=Answers(search), levels_from=[Nearest()])
    assert len(artefact.edits) == 14
    assert all(edit.packed is not None and edit.values is None for edit in artefact.edits.values())
    entries = sum(edit.entries for edit in artefact.edits.values())
    packed = sum(edit.packed.nbytes for edit in artefact.edits.values())
    assert packed < entries * 4 / 4
    loaded = Artefact.load(tmp_path / "packed")
    loaded.apply(fresh)
    assert torch.equal(fresh(ids).logits, model(ids).logits)
    loaded.undo()
    assert same_weights(fresh, tiny_llama(layers=2))
    artefact.undo()
    assert same_weights(model, tiny_llama(layers=2))
    with pytest.raises(ArtefactError, match="has other values"):
        loaded.apply(tiny_llama(layers=2, seed=3))


def test_a_greedy_search_over_all_kinds_ends_in_an_artefact_that_reloads(tmp_path: Path) -> None:
    """Zeros, bits and left out sublayers against one budget of bytes; the file gives the same logits elsewhere."""
    model, fresh, ids = tiny_llama(layers=2), tiny_llama(layers=2), torch.tensor([[5, 6, 7, 9]])
    before, known = fingerprint(model), fingerprint(fresh)
    providers = {"levels_from": [Magnitude(shares=(0.0, 0.25, 0.5)), Nearest(widths=(2,)), LeaveOut()]}
    artefact = squeeze(model, tmp_path / "run", method=Descent(), target=0.5, **providers)
    kinds = {told["method"] for told in artefact.data["levels"].values()}
    assert kinds == {"magnitude", "nearest", "leave_out"}, "the budget is one that asks for all of them"
    assert artefact.skipped
    skipped = tuple(artefact.skipped)
    assert not [name for name in artefact.edits if name.startswith(skipped)], "written to nobody"
    wanted = model(ids).logits
    for path in (tmp_path / "run", tmp_path / "run" / "artefact.safetensors"):
        other = Artefact.load(path)
        other.apply(fresh)
        assert torch.equal(fresh(ids).logits, wanted)
        with pytest.raises(ArtefactError, match=r"applied before|is skipped in this model already"):
            Artefact.load(tmp_path / "run").apply(fresh)
        other.undo()
        assert fingerprint(fresh) == known
    artefact.undo()
    assert fingerprint(model) == before
    again = squeeze(model, tmp_path / "run", method=Descent(), target=0.5, **providers)  # finished: applied again
    assert torch.equal(model(ids).logits, wanted)
    again.undo()
    assert fingerprint(model) == before
    report = (tmp_path / "run" / "report.md").read_text()
    assert "What is left out" in report
    assert all(name in report for name in skipped)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["results"]["skipped"] == list(skipped)
    with pytest.raises(ArtefactError, match=r"has other (values|weights) than"):
        Artefact.load(tmp_path / "run").apply(tiny_llama(layers=2, seed=3))


def test_an_artefact_may_only_leave_out(tmp_path: Path) -> None:
    """Nothing is written, and what was edited before it was left out is known by its weights before that."""

    def search(view, request):
        view.journal.write("model.layers.1.mlp.up_proj.weight", torch.zeros(64, 32))
        view.journal.structure.skip("model.layers.1")
        view.journal.structure.skip("model.layers.0.mlp")
        return request.artefact(view)

    model, ids = tiny_llama(layers=2), torch.tensor([[5, 6, 7, 9]])
    artefact = squeeze(model, tmp_path / "a", method=Answers(search), levels_from=[])
    wanted = model(ids).logits
    loaded, fresh = Artefact.load(tmp_path / "a"), tiny_llama(layers=2)
    assert "2 modules skipped" in str(loaded)
    loaded.apply(fresh)
    assert torch.equal(fresh(ids).logits, wanted)
    artefact.undo()
    assert same_weights(model, tiny_llama(layers=2))
    only = Artefact(method="x", skipped={"model.layers.0.mlp": loaded.skipped["model.layers.0.mlp"]})
    only.model_class = loaded.model_class
    file = only.save(tmp_path / "only.safetensors")
    other = tiny_llama(layers=2)
    Artefact.load(file).apply(other).undo()
    assert same_weights(other, tiny_llama(layers=2))
    with pytest.raises(ArtefactError, match=r"model\.layers\.0\.mlp has other weights than in the model"):
        Artefact.load(file).apply(tiny_llama(layers=2, seed=1))
    only.skipped = {"model.layers.0.ffn": ""}
    with pytest.raises(ArtefactError, match=r"this model has no module model\.layers\.0\.ffn, which the"):
        only.apply(other)


def test_a_search_may_name_the_levels_for_a_target_and_add_to_the_report(tmp_path: Path) -> None:
    class Search(Descent):
        def default_levels(self, view, target):
            return [LeaveOut()] if target < 1 else []

        @hookimpl
        def compression(self, view, request):
            request.blocks.append(Paragraph("What the search says."))
            return super().compression(view, request)

    model = tiny_llama(layers=2)
    artefact = squeeze(model, tmp_path / "a", method=Search(), target=0.6, levels_from=())
    assert {each["method"] for each in artefact.data["levels"].values()} == {"leave_out"}
    assert str(artefact).endswith("LlamaForCausalLM, levels of leave_out")
    report = (tmp_path / "a" / "report.md").read_text()
    assert report.index("What the search says.") < report.index("What is left out.")
    inputs = json.loads((tmp_path / "a" / "result.json").read_text())["inputs"]
    assert [each["class"] for each in inputs["levels_from"]] == ["compression_methods:LeaveOut"]
    artefact.undo()
    artefact = squeeze(model, method=Search(), target=0.8, levels_from=[Nearest(widths=(2, 4))])
    assert {each["method"] for each in artefact.data["levels"].values()} == {"nearest"}
    artefact.undo()
    with pytest.raises(PluginIncompatible, match="nolevels in levels_from offers no levels"):
        squeeze(model, levels_from=[Magnitude(), NoLevels()])


class NoLevels:
    traits = Traits()

    @hookimpl
    def compute_loss(self):
        return None


@pytest.mark.parametrize("fails", [True, False], ids=["raises", "returns"])
def test_a_search_that_leaves_the_model_at_a_choice_is_cleaned_up(fails: bool) -> None:
    """Neither an error nor a forgotten ``write`` leaves values that nobody could undo."""

    def search(view, request):
        levels = request.levels(view, [UP])
        levels.switch({UP: "2 bits"})
        if fails:
            raise RuntimeError("no")
        return request.artefact(view)

    model = tiny_llama(layers=2)
    if fails:
        with pytest.raises(RuntimeError, match="no"):
            squeeze(model, method=Answers(search), levels_from=[Nearest()])
    else:
        assert str(squeeze(model, method=Answers(search), levels_from=[Nearest()])).startswith(
            "weights of answers: nothing written of"
        )
    assert same_weights(model, tiny_llama(layers=2))


NAME = "model.layers.1.mlp.up_proj"


class Measures:
    """Looks at what the model gives at a level and calibrates, as searches do."""

    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression(self, view, request):
        ids, seen = torch.tensor([[5, 6, 7]]), []
        with torch.no_grad(), request.levels(view, [NAME]) as levels:
            for label in (None, "half", None):
                levels.switch({} if label is None else {NAME: label})
                seen.append(view.model(ids).logits)
            calibrate(view, [{"input_ids": ids}], [NAME], lambda *_: None, progress=False)
            levels.switch({NAME: "half"})
            levels.write(view.journal, method=request.method)
        assert torch.equal(seen[0], seen[2])
        return request.artefact(view, data={"moved": not torch.equal(seen[0], seen[1])}, levels=levels)

    @hookimpl
    def compression_levels(self, modules):
        def prepare():
            return {"weight": Dense(modules[NAME].weight.detach() / 2)}

        return {NAME: [Level("measures", "half", {}, prepare)]}


@pytest.mark.parametrize("block", ["autocast", "inference"])
def test_levels_are_measured_inside_of_autocast_and_inference_mode(block: str) -> None:
    """Autocast would go on with casts of the old weights, and tensors of inference mode could not be calibrated on."""
    model, ids = tiny_llama(layers=2), torch.tensor([[5, 6, 7]])
    before = fingerprint(model)
    with torch.autocast("cpu", torch.bfloat16) if block == "autocast" else torch.inference_mode():
        wanted = model(ids).logits
        artefact = compress(model, Measures(), progress=False)
        assert torch.is_autocast_cache_enabled()
        assert torch.is_inference_mode_enabled() == (block == "inference")
        assert not torch.equal(model(ids).logits, wanted)
    assert artefact.data["moved"]
    model(ids, labels=ids).loss.backward()  # its parameters take gradients as before
    model.zero_grad()
    artefact.undo()
    assert fingerprint(model).differences(before) == []


def test_a_checkpoint_without_what_is_skipped_is_warned_of(tmp_path: Path) -> None:
    def search(view, request):
        view.journal.structure.skip("model.layers.0.mlp")
        return request.artefact(view)

    model = tiny_llama(layers=2)
    artefact = squeeze(model, tmp_path / "a", method=Answers(search), levels_from=[])
    with pytest.warns(UserWarning, match="are skipped, and their weights are not in its state dict: a checkpoint"):
        model.save_pretrained(tmp_path / "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_digest(model)
        artefact.undo()
        model.state_dict()
    with pytest.raises(ArtefactError, match="it was not applied here, or is undone already"):
        artefact.undo()


def test_packed_values_that_were_edited_further_are_refused() -> None:
    def search(view, request):
        with request.levels(view, [UP]) as levels:
            levels.switch({UP: "3 bits"})
            levels.write(view.journal)
            view.journal.scale_sparse(f"{UP}.weight", torch.tensor([0]), 2.0)
            return request.artefact(view, levels=levels)

    model = tiny_llama(layers=2)
    with pytest.raises(ArtefactError, match=f"the packed values of {UP}.weight are not those that were written"):
        squeeze(model, method=Answers(search), levels_from=[Nearest()])
    assert same_weights(model, tiny_llama(layers=2))


def test_offers_that_are_no_levels_are_refused() -> None:
    view = ModelView.from_model(tiny_llama(layers=2))
    level = Level("x", "half", {"bytes": 1})
    for answer, said in (
        (["50%"], "returned list; expected a mapping of module names to levels, or None"),
        ({UP: ["50%"]}, f"gave str for {UP}; expected a sequence of Level"),
        ({"lm_head": [level]}, "offers levels of 'lm_head', which it was not asked about"),
        ({UP: [level, level]}, f"two levels of {UP} are called 'half'"),
    ):
        with pytest.raises(HookError, match=said):
            CompressionRequest("x", offers=[lambda *_, answer=answer: answer]).levels(view, [UP])
    assert dict(CompressionRequest("x", offers=[lambda *_: None]).levels(view, [UP])) == {UP: ()}


def test_generators_are_private_and_seeded() -> None:
    draws = [torch.rand(3, generator=CompressionRequest("x", seed=s).generator()).tolist() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


# -- answers that cannot be used ---------------------------------------------------------------------------------------


def test_an_answer_that_is_no_artefact_is_refused_and_undone() -> None:
    def edits(view, request):
        view.journal.write(f"{UP}.weight", torch.zeros(64, 32))

    model = tiny_llama(layers=2)
    with pytest.raises(HookError, match="compression of 'answers' returned NoneType; expected an Artefact"):
        compress(model, Answers(edits))
    assert same_weights(model, tiny_llama(layers=2))


def test_an_artefact_that_lacks_an_edit_is_refused_and_undone() -> None:
    def forgets(view, request):
        artefact = request.artefact(view)
        view.journal.write(f"{UP}.weight", torch.zeros(64, 32))
        return artefact

    model = tiny_llama(layers=2)
    with pytest.raises(HookError, match=f"differ at {UP}.weight"):
        compress(model, Answers(forgets))
    assert same_weights(model, tiny_llama(layers=2))


def test_a_method_may_leave_the_edit_to_core() -> None:
    def plans(view, request):
        view.journal.write(f"{UP}.weight", torch.zeros(64, 32))
        artefact = request.artefact(view)
        view.journal.undo()
        return artefact

    model = tiny_llama(layers=2)
    artefact = compress(model, Answers(plans))
    assert not bool(model.get_parameter(f"{UP}.weight").any())
    artefact.undo()
    assert same_weights(model, tiny_llama(layers=2))


def test_attached_models_repeated_methods_and_double_options_are_refused() -> None:
    from methods import Damp

    model = tiny_llama(layers=4)
    with paperhooks.attach(model, Damp()):
        model(input_ids=torch.tensor([[1, 2]]))
        with pytest.raises(PluginConflict, match="attached to a session"):
            compress(model, Greedy())
    with pytest.raises(PluginConflict, match="magnitude was given twice"):
        squeeze(model, levels_from=[Magnitude(), Magnitude()])
    with pytest.raises(PluginError, match=r"options \['pattern'\] were given beside an instance"):
        compress(model, Greedy(), pattern="x")


# -- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_calibration_streams_the_inputs_of_linear_layers(family: str) -> None:
    model = tiny_text(family, layers=2)
    view = ModelView.from_model(model)
    kinds = (nn.Linear, *(c for c in {type(m) for m in model.modules()} if c.__name__ == "Conv1D"))
    names = [n for n, m in model.named_modules() if isinstance(m, kinds)]
    found: dict[str, torch.Tensor] = {}

    def keep(name, module, hidden, batch):
        assert not hidden.requires_grad
        found.setdefault(name, hidden)

    calls = calibrate(view, token_batches(DATA, batch_size=3), names, keep, progress=False)
    assert set(calls) == set(names)
    assert set(found) == {n for n, c in calls.items() if c}
    width = {n: getattr(m, "in_features", None) or m.weight.shape[0] for n, m in model.named_modules() if n in found}
    assert all(hidden.shape[-1] == width[n] for n, hidden in found.items())
    assert len(found) == len(names)


def test_calibration_of_a_vision_language_model() -> None:
    model = tiny_vlm("llava")
    view, names = ModelView.from_model(model), []
    inputs = vlm_inputs(model, [[3, 16, 5]])
    calibrate(view, [inputs], [n for n, _ in view.modules(r".*q_proj")], lambda n, *_: names.append(n), progress=False)
    assert sum("language_model" in n for n in names) == 6
    assert not any("vision" in n for n in names)  # the features were given


def test_a_calibration_batch_without_tokens_is_named() -> None:
    view = ModelView.from_model(tiny_llama(layers=1))
    full = {"input_ids": torch.tensor([[5, 6]])}
    for odd in (
        {},
        {"input_ids": torch.zeros(0, 3, dtype=torch.long)},
        {"input_ids": torch.zeros(1, 0, dtype=torch.long)},
    ):
        with pytest.raises(DataError, match="calibration batch 1 has no tokens; expected input_ids"):
            calibrate(view, [full, odd], [UP], lambda *a: None, progress=False)


def test_errors_in_calibration_name_module_and_batch_and_leave_nothing() -> None:
    model = tiny_llama(layers=2).train()
    model(input_ids=torch.tensor([[1, 2]]))
    before = fingerprint(model)
    view = ModelView.from_model(model)

    def fail(name, module, hidden, batch):
        if batch.number == 1:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as caught:
        calibrate(view, token_batches(DATA), [UP], fail, progress=False)
    assert caught.value.__notes__ == [f"paperhooks: raised on the input of {UP} in calibration batch 1"]
    with pytest.raises(LookupError, match=r"has no module 'model\.layers\.0\.mlp\.upproj'; did you mean"):
        calibrate(view, token_batches(DATA), ["model.layers.0.mlp.upproj"], fail)
    with pytest.raises(DataError, match="no calibration batch"):
        calibrate(view, [], [UP], fail, progress=False)
    assert fingerprint(model) == before


def test_batches_are_padded_cut_and_masked(caplog) -> None:
    with caplog.at_level("INFO", "paperhooks.models.batches"):
        batches = token_batches(DATA, max_length=3, batch_size=2)
    assert batches[0]["input_ids"].tolist() == [[5, 6, 7], [9, 10, 0]]
    assert batches[0]["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batches[1]["input_ids"].tolist() == [[11, 12, 13]]
    assert "1 of 3 calibration sequences were cut to 3 tokens" in caplog.text
    ready = {"input_ids": torch.ones(2, 3, dtype=torch.int64), "pixel_values": torch.zeros(1)}
    assert token_batches([ready])[0] == ready

    def tokenizer(text):
        return {"input_ids": [ord(c) for c in text]}

    texts = token_batches(
        ["ab", {"text": "c"}, {"input_ids": [7]}, torch.tensor([8, 9])], tokenizer=tokenizer, batch_size=4
    )
    assert texts[0]["input_ids"].tolist() == [[97, 98], [99, 0], [7, 0], [8, 9]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "is empty"),
        ([[1], []], "record 1 has no tokens"),
        (["text"], "record 0 is text; pass tokenizer"),
        ([{"other": 1}], "record 0 is dict; expected a text"),
        ([torch.zeros(3)], "record 0 is Tensor"),
    ],
)
def test_calibration_data_that_cannot_be_used_is_named(data, words: str) -> None:
    with pytest.raises(DataError, match=words):
        token_batches(data)


def test_text_without_a_tokenizer_and_missing_data_are_named() -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        squeeze(tiny_llama(layers=2), data=None)
    with pytest.raises(DataError, match="no name to find a tokenizer by"):
        squeeze(tiny_llama(layers=2), data=["hello"])
    model = tiny_llama(layers=2)
    model.config._name_or_path = "folder/that/is/missing"
    with pytest.raises(DataError, match="no tokenizer was found at folder/that/is/missing"):
        squeeze(model, data=[{"text": "hello"}])


def test_data_may_be_a_file_or_have_parts(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in DATA))
    seen = {}

    def reads(view, request):
        seen["one"], seen["two"] = request.batches("one"), request.batches("two", batch_size=3)
        with pytest.raises(DataError, match="has the parts 'one', 'two'; choose one"):
            request.batches()
        with pytest.raises(DataError, match=r"pass data=\{'three': \[\.\.\.\]"):
            request.batches("three")
        return Artefact("answers", kind="notes")

    compress(tiny_llama(layers=2), Answers(reads), data={"one": file, "two": DATA}, out=tmp_path / "run")
    assert [b["input_ids"].tolist()[0] for b in seen["one"]] == DATA
    assert seen["two"][0]["input_ids"].shape == (3, 4)
    file.write_text(file.read_text() + json.dumps({"input_ids": [1]}) + "\n")
    with pytest.raises(DataError, match="holds a run with"):
        compress(tiny_llama(layers=2), Answers(reads), data={"one": file, "two": DATA}, out=tmp_path / "run")


def test_texts_are_tokenized() -> None:
    def tokenizer(text):
        return {"input_ids": [ord(c) - 90 for c in text]}

    one, two = tiny_llama(layers=2), tiny_llama(layers=2)
    squeeze(one, data=["hello", "abc"], tokenizer=tokenizer)
    squeeze(two, data=[tokenizer("hello")["input_ids"], tokenizer("abc")["input_ids"]])
    assert same_weights(one, two)
