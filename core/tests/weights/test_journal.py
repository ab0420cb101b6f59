"""Undoing weight edits beside others who write: only what is still the journal's own is restored, the rest is named.

And an undo, or an edit, that was interrupted at any point can be finished.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from types import FrameType

import paperhooks
import pytest
import torch
from paperhooks import ModelError, WeightJournal
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks.weights.entries import Change, Digests
from torch import nn

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

#: More entries than one block of digests has, and no multiple of it.
LARGE = (300, 500)
EDITS = ["dense", "large", "sparse", "sparse then dense", "dense then sparse"]


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def model_of(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module with one weight of random values and a few odd ones."""
    module = nn.Module()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight.view(-1)[:6] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-41, 3e38])
    module.weight = nn.Parameter(weight.to(dtype))
    return module


def edited(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, WeightJournal]:
    """A model with an open edit of one of EDITS, and the model as it was."""
    shape = LARGE if kind == "large" else (40, 50)
    model, plain = model_of(*shape, dtype=dtype), model_of(*shape, dtype=dtype)
    journal = WeightJournal(model)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    some = torch.arange(0, model.weight.numel(), 3)
    if kind == "sparse then dense":
        journal.scale_sparse("weight", some, 0.0)
    if "dense" in kind or kind == "large":
        journal.write("weight", values)
    if kind.endswith("sparse"):
        journal.write_sparse("weight", some, values.flatten()[some])
        journal.scale_sparse("weight", some[4:] + 1, 0.3)
    assert bits(model.weight) != bits(plain.weight)
    return model, plain, journal


def undo_silently(journal: WeightJournal) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        journal.undo()
    assert not journal.changed


def undo_naming(journal: WeightJournal, words: str) -> str:
    """Undo with one warning; the second undo has nothing to say."""
    with pytest.warns(UserWarning, match=words) as found:
        journal.undo()
    assert len(found) == 1
    assert found[0].filename == __file__
    undo_silently(journal)
    return str(found[0].message)


# -- others have written ----------------------------------------------------------------------------------------------


def step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.square().nan_to_num().sum().backward()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()


def zeros_and_ones(model: nn.Module) -> None:
    """Values that many others become when they are rounded."""
    model.weight.data = (torch.arange(model.weight.numel()) % 2).to(model.weight).view(model.weight.shape)


OTHERS: dict[str, Callable[[nn.Module], object]] = {
    "an optimiser step": step,
    "a loaded state": lambda model: model.load_state_dict({"weight": torch.full_like(model.weight, 0.7)}),
    "a merge": lambda model: model.weight.data.add_(0.5),
    "assigned data": lambda model: setattr(model.weight, "data", torch.full_like(model.weight, 0.7)),
    "round values": zeros_and_ones,
    "another shape": lambda model: setattr(model.weight, "data", torch.full((3, 4), 0.7)),
    "integers": lambda model: setattr(model.weight, "data", torch.ones_like(model.weight, dtype=torch.int32)),
    "a step after a cast": lambda model: step(model.double()),
    "swapped tensors": lambda model: torch.utils.swap_tensors(model.weight, nn.Parameter(torch.ones(40, 50))),
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("other", OTHERS)
def test_what_somebody_else_has_written_stays_and_is_named(kind: str, other: str) -> None:
    model, _, journal = edited(kind)
    with torch.no_grad():
        model.weight.nan_to_num_(1.0, 1.0, 1.0)  # infinities do not change by a step
    model.requires_grad_(other not in ("integers",))
    with torch.enable_grad():
        OTHERS[other](model)
    theirs, parameter = bits(model.weight), model.weight
    message = undo_naming(journal, r"weight \(\d+ of \d+ edited entries\)")
    assert bits(model.weight) == theirs
    assert model.weight is parameter
    assert "load the weights again" in message
    assert "journal.keep()" in message


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_entries_that_are_still_the_journals_own_are_restored(kind: str) -> None:
    model, plain, journal = edited(kind)
    wanted = plain.weight.detach().clone()
    with torch.no_grad():
        for row, column in ((0, 6), (7, 1), (39, 48)):
            wanted[row, column] = model.weight[row, column] = 7.0
    total = journal.changed["weight"].entries
    undo_naming(journal, rf"weight \(3 of {total} edited entries\)")
    assert bits(model.weight) == bits(wanted)


def test_large_dense_edits_are_restored_in_blocks_and_keep_no_second_copy() -> None:
    model, plain, journal = edited("large")
    (written,) = journal.changed["weight"].written
    assert isinstance(written, Digests)
    assert not any(isinstance(value, torch.Tensor) for value in vars(written).values())
    wanted = plain.weight.detach().clone()
    with torch.no_grad():
        model.weight.view(-1)[65536] = 7.0
        wanted.view(-1)[65536 : 2 * 65536] = model.weight.view(-1)[65536 : 2 * 65536]
    undo_naming(journal, r"weight \(65536 of 150000 edited entries\)")
    assert bits(model.weight) == bits(wanted)


@torch.no_grad()
def test_the_model_computes_with_new_values_inside_of_autocast() -> None:
    """Which keeps what it has cast of a parameter until the block ends."""
    model, ids = tiny_llama(layers=2), torch.tensor([[5, 6, 7]])
    weight, journal = model.model.layers[0].mlp.up_proj.weight, WeightJournal(model)
    fresh = tiny_llama(layers=2)
    fresh.model.layers[0].mlp.up_proj.weight.mul_(2)
    with torch.autocast("cpu", torch.bfloat16):
        before, wanted = model(ids).logits, fresh(ids).logits
        journal.write(weight, weight.detach() * 2)
        assert torch.equal(model(ids).logits, wanted)
        journal.undo()
        assert torch.equal(model(ids).logits, before)
    assert not torch.equal(before, wanted)


def test_old_values_that_came_back_by_themselves_are_fine() -> None:
    for kind in EDITS:
        model, plain, journal = edited(kind)
        model.load_state_dict(plain.state_dict())
        undo_silently(journal)
        assert bits(model.weight) == bits(plain.weight)


def test_several_parameters_are_named_in_one_warning_and_the_others_restored() -> None:
    model, plain = tiny_llama(), tiny_llama()
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    journal = WeightJournal(model)
    for name in names:
        journal.write(name, torch.zeros_like(model.get_parameter(name)))
    with torch.no_grad():
        for name in (names[0], names[2]):
            model.get_parameter(name).add_(1)
    message = undo_naming(journal, "undo of weight edits left alone")
    assert [name in message for name in names] == [True, False, True, False]
    for name in names:
        stayed = torch.ones_like(model.get_parameter(name))
        wanted = stayed if name in (names[0], names[2]) else plain.get_parameter(name)
        assert bits(model.get_parameter(name)) == bits(wanted)


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("again", ["dense", "sparse"])
def test_an_edit_over_what_somebody_else_wrote_gives_theirs_back(kind: str, again: str) -> None:
    model, _, journal = edited(kind)
    with torch.no_grad():
        model.weight.nan_to_num_(1.0, 1.0, 1.0).mul_(1.5)
    theirs = model.weight.detach().clone()
    if again == "dense":
        journal.write("weight", torch.zeros_like(theirs))
    else:
        journal.scale_sparse("weight", torch.tensor([3, 9, 10, 1999]), 0.0)
    undo_naming(journal, r"weight \(\d+ of \d+ edited entries\)")
    assert bits(model.weight) == bits(theirs)


def test_an_edit_over_some_entries_of_others_counts_those() -> None:
    model, plain, journal = edited("sparse")
    wanted = plain.weight.detach().clone()
    with torch.no_grad():
        wanted.view(-1)[9] = model.weight.view(-1)[9] = 7.0
    journal.scale_sparse("weight", torch.tensor([9, 12]), 0.0)
    journal.write("weight", torch.zeros(40, 50))
    undo_naming(journal, r"weight \(1 of 2000 edited entries\)")
    assert bits(model.weight) == bits(wanted)


# -- casts ------------------------------------------------------------------------------------------------------------


CASTS: dict[str, tuple[torch.dtype, Callable[[nn.Module], object]]] = {
    "double": (torch.float32, nn.Module.double),
    "half": (torch.float32, nn.Module.half),
    "bfloat16": (torch.float32, nn.Module.bfloat16),
    "half and float": (torch.float32, lambda model: model.half().float()),
    "bfloat16 and double": (torch.float32, lambda model: model.bfloat16().double()),
    "double and float": (torch.float32, lambda model: model.double().float()),
    "float from bfloat16": (torch.bfloat16, nn.Module.float),
    "half from bfloat16": (torch.bfloat16, nn.Module.half),
    "double from half": (torch.float16, nn.Module.double),
    "bfloat16 from half": (torch.float16, nn.Module.bfloat16),
    "half from double": (torch.float64, nn.Module.half),
    "float from float8": (torch.float8_e4m3fn, nn.Module.float),
}


def assert_cast_alike(weight: torch.Tensor, wanted: torch.Tensor) -> None:
    """The same bits but for payloads of NaN, which casts do not promise to keep."""
    assert weight.dtype == wanted.dtype
    assert torch.equal(weight.isnan(), wanted.isnan())
    assert bits(weight.nan_to_num(0.0)) == bits(wanted.nan_to_num(0.0))


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("cast", CASTS)
def test_after_a_cast_the_model_is_what_the_cast_makes_of_the_original(kind: str, cast: str) -> None:
    dtype, move = CASTS[cast]
    model, plain, journal = edited(kind, dtype)
    parameter = model.weight
    move(model)
    move(plain)
    undo_silently(journal)
    assert_cast_alike(model.weight, plain.weight)
    assert model.weight is parameter


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("cast", ["double", "half", "float from bfloat16"])
def test_edits_before_and_after_a_cast_are_undone(kind: str, cast: str) -> None:
    dtype, move = CASTS[cast]
    model, plain, journal = edited(kind, dtype)
    move(model)
    move(plain)
    assert_cast_alike(journal.original("weight"), plain.weight)
    journal.scale_sparse("weight", torch.tensor([9, 10, 4]), 0.5)
    assert_cast_alike(journal.original("weight"), plain.weight)
    journal.write("weight", torch.ones_like(model.weight))
    undo_silently(journal)
    assert_cast_alike(model.weight, plain.weight)


def test_pruned_entries_are_restored_after_a_cast() -> None:
    """Zero is zero in every dtype, so nothing but the dtype tells that there was a cast."""
    model, plain = model_of(4, 5), model_of(4, 5)
    journal = WeightJournal(model)
    journal.scale_sparse("weight", torch.arange(0, 20, 2), 0.0)
    model.half()
    undo_silently(journal)
    assert_cast_alike(model.weight, plain.half().weight)


def test_a_rounded_value_alone_is_no_sign_of_a_cast() -> None:
    model = model_of(4, 5)
    journal = WeightJournal(model)
    journal.write_sparse("weight", torch.tensor([9]), torch.tensor([1.001]))
    with torch.no_grad():
        model.weight.view(-1)[9] = torch.tensor(1.001).bfloat16().float()
    undo_naming(journal, r"weight \(1 of 1 edited entries\)")
    assert model.weight.view(-1)[9].item() == 1.0


def test_a_change_too_small_for_the_old_dtype_is_noticed_after_a_cast() -> None:
    for kind in ("dense", "large", "sparse"):
        model, plain, journal = edited(kind, torch.bfloat16)
        model.float()
        with torch.no_grad():
            theirs = model.weight.view(-1)[9].mul_(1.0001).clone()
        undo_naming(journal, r"weight \(1 of \d+ edited entries\)")
        assert model.weight.view(-1)[9] == theirs
        assert bits(model.weight.view(-1)[10:]) == bits(plain.float().weight.view(-1)[10:])


def test_tied_weights_stay_tied_over_a_cast() -> None:
    model, plain = tiny_llama(tie_word_embeddings=True), tiny_llama(tie_word_embeddings=True)
    journal = WeightJournal(model)
    journal.write("lm_head.weight", torch.zeros_like(model.lm_head.weight))
    model.half()
    undo_silently(journal)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for (name, one), other in zip(model.named_parameters(), plain.half().parameters(), strict=True):
        assert bits(one) == bits(other), name


def test_an_edit_again_after_another_shape_is_refused() -> None:
    model, _, journal = edited("sparse")
    model.weight.data = torch.ones(2, 3)
    for edit in (
        lambda: journal.write("weight", torch.zeros(2, 3)),
        lambda: journal.scale_sparse("weight", torch.tensor([0]), 0.0),
        lambda: journal.original("weight"),
    ):
        with pytest.raises(ModelError, match=r"weight is torch.float32 \[2, 3\].*edited as torch.float32 \[40, 50\]"):
            edit()
    assert model.weight.tolist() == [[1.0] * 3] * 2


# -- other Parameter objects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EDITS)
def test_an_exchanged_parameter_is_named_and_the_edited_one_restored(kind: str) -> None:
    model, plain, journal = edited(kind)
    before, model.weight = model.weight, nn.Parameter(model.weight.detach().clone())
    theirs = bits(model.weight)
    undo_naming(journal, r"weight \(weight is another Parameter now\)")
    assert bits(model.weight) == theirs
    assert bits(before) == bits(plain.weight)


def test_a_state_loaded_by_assignment_exchanges_parameters() -> None:
    model, _, journal = edited("dense")
    model.load_state_dict({"weight": torch.ones(40, 50)}, assign=True)
    undo_naming(journal, r"weight \(weight is another Parameter now\)")
    assert bits(model.weight) == bits(torch.ones(40, 50))


def test_a_parameter_that_was_removed_is_named() -> None:
    model, plain, journal = edited("sparse")
    kept = model.weight
    del model.weight
    undo_naming(journal, r"weight \(weight is no longer in the model\)")
    assert bits(kept) == bits(plain.weight)


def test_a_tie_that_was_cut_is_named_and_one_end_restored() -> None:
    model, plain = tiny_llama(tie_word_embeddings=True), tiny_llama(tie_word_embeddings=True)
    journal = WeightJournal(model)
    journal.write("lm_head.weight", torch.zeros_like(model.lm_head.weight))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    message = undo_naming(journal, r"model.embed_tokens.weight \(lm_head.weight is another Parameter now\)")
    assert "entries" not in message.partition("All else")[0]
    assert bits(model.model.embed_tokens.weight) == bits(plain.model.embed_tokens.weight)
    assert not bool(model.lm_head.weight.any())


def test_layers_that_moved_up_are_no_other_parameters() -> None:
    model, plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2)
    plain.load_state_dict(model[1].state_dict())
    journal = WeightJournal(model)
    journal.write("1.weight", torch.zeros(2, 2))
    del model[0]
    undo_silently(journal)
    assert bits(model[0].weight) == bits(plain.weight)


# -- adapters ---------------------------------------------------------------------------------------------------------

Q = "model.layers.1.self_attn.q_proj"


def with_lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
        return peft.get_peft_model(model, config)


def with_edits(model: nn.Module) -> WeightJournal:
    """Edits a weight that gets an adapter, some entries of another such, and a weight that gets none."""
    journal = WeightJournal(model)
    journal.write(f"{Q}.weight", torch.full_like(model.get_parameter(f"{Q}.weight"), 0.25))
    journal.scale_sparse("model.layers.2.self_attn.q_proj.weight", torch.arange(0, 500, 2), 0.0)
    journal.scale_sparse("model.layers.1.mlp.up_proj.weight", torch.arange(0, 500, 2), 0.0)
    return journal


def test_edits_below_an_adapter_are_undone() -> None:
    model, plain = tiny_llama(), with_lora(tiny_llama())
    journal = with_edits(model)
    wrapped = with_lora(model)
    assert f"{Q}.base_layer.weight" in dict(model.named_parameters())
    undo_silently(journal)
    for (name, one), other in zip(wrapped.named_parameters(), plain.parameters(), strict=True):
        assert bits(one) == bits(other), name


def test_a_merged_adapter_is_not_overwritten_and_named() -> None:
    model = tiny_llama()
    journal = with_edits(model)
    merged = with_lora(model).merge_and_unload()
    theirs = {name: bits(parameter) for name, parameter in merged.named_parameters()}
    message = undo_naming(journal, rf"{Q}.weight \(1024 of 1024 edited entries\)")
    assert "model.layers.2.self_attn.q_proj.weight (250 of 250 edited entries)" in message
    assert "up_proj" not in message
    changed = [name for name, parameter in merged.named_parameters() if bits(parameter) != theirs[name]]
    assert changed == ["model.layers.1.mlp.up_proj.weight"]
    assert bits(merged.get_parameter(changed[0])) == bits(tiny_llama().get_parameter(changed[0]))


def test_an_optimiser_step_while_attached_is_kept_and_closing_does_not_raise() -> None:
    class Prune:
        traits = paperhooks.Traits(writes=frozenset({"weights"}))

        @paperhooks.hookimpl
        def setup(self, view):
            view.journal.scale_sparse(f"{Q}.weight", torch.arange(0, 500, 2), 0.0)

    model = tiny_llama()
    session = paperhooks.attach(model, Prune())
    tokens = torch.tensor([[1, 2, 3, 4]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    trained = fingerprint(model)
    with pytest.warns(UserWarning, match=rf"{Q}.weight \(\d+ of 250 edited entries\)"):
        session.close()
    changed = [place for place in fingerprint(model).differences(trained) if place.endswith(":bits")]
    assert changed in ([], [f"{Q}.weight:bits"])  # an entry without a gradient may still be the journal's own


# -- what cannot be undone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True], ids=["another object", "the same object"])
def test_an_offloaded_parameter_is_an_error_after_the_others_are_restored(swap: bool) -> None:
    model, plain = tiny_llama(), tiny_llama()
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    journal = WeightJournal(model)
    for name in names:
        journal.write(name, torch.zeros_like(model.get_parameter(name)))
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        model.model.layers[1].to("meta")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    with torch.no_grad():
        model.get_parameter(names[2]).add_(1)
    with pytest.raises(ModelError, match=rf"{names[1]} is on the meta device.*{names[2]} \(2048 of 2048"):
        journal.undo()
    assert bits(model.get_parameter(names[0])) == bits(plain.get_parameter(names[0]))
    undo_silently(journal)


def test_what_could_not_be_restored_for_another_reason_can_be_tried_again(monkeypatch) -> None:
    model, plain = tiny_llama(), tiny_llama()
    journal = with_edits(model)
    original = Change.restore

    def fail(change: Change) -> int:
        if change.name == f"{Q}.weight":
            raise torch.OutOfMemoryError("no memory")
        return original(change)

    monkeypatch.setattr(Change, "restore", fail)
    with pytest.raises(ModelError, match=rf"{Q}.weight could not be restored .*no memory.*undo again") as info:
        journal.undo()
    assert isinstance(info.value.__cause__, torch.OutOfMemoryError)
    assert list(journal.changed) == [f"{Q}.weight"]
    monkeypatch.undo()
    undo_silently(journal)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert bits(one) == bits(other), name


def test_warnings_that_are_errors_come_after_the_work() -> None:
    model, plain = tiny_llama(), tiny_llama()
    journal = with_edits(model)
    with torch.no_grad():
        model.get_parameter(f"{Q}.weight").add_(1)
    with pytest.raises(UserWarning, match="1024 of 1024"):
        undo_silently(journal)
    undo_silently(journal)
    different = [n for (n, a), b in zip(model.named_parameters(), plain.parameters()) if bits(a) != bits(b)]
    assert different == [f"{Q}.weight"]


# -- interrupts -------------------------------------------------------------------------------------------------------


class Interrupt:
    """Raises KeyboardInterrupt at the k-th instruction of paperhooks or of torch's Python that ``work`` reaches."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0

    def run(self, work: Callable[[], object]) -> bool:
        """Whether the work was interrupted; False when it has fewer instructions."""
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    def _called(self, frame: FrameType, event: str, arg: object):
        if "/paperhooks/" not in frame.f_code.co_filename and "/torch/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        return self._reached

    def _reached(self, frame: FrameType, event: str, arg: object):
        if event == "opcode":
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt
        return self._reached


def instructions(work: Callable[[], Callable[[], object]]) -> int:
    """How many instructions the work has that ``work`` prepares, once torch has done what it does but once."""
    work()()
    counter = Interrupt(0)
    counter.run(work())
    return counter.seen


def several() -> tuple[nn.Module, WeightJournal]:
    """Weights a (small), b (small, transposed) and c (large), in modules of their own; c is also tied to d."""
    model = nn.ModuleDict({name: nn.Linear(4, 5, bias=False) for name in "abcd"})
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("a", (4, 5)), ("b", (4, 5)), ("c", (260, 260))):
        model[name].weight = nn.Parameter(torch.randn(shape, generator=generator))
    model["b"].weight = nn.Parameter(model["b"].weight.detach().t())
    model["d"].weight = model["c"].weight
    return model, WeightJournal(model)


def edit_in_many_ways(journal: WeightJournal) -> None:
    journal.write("a.weight", torch.ones(4, 5))
    journal.write_sparse("b.weight", torch.tensor([7, 2]), torch.tensor([5.0, 6.0]))
    journal.write("c.weight", torch.zeros(260, 260))
    journal.scale_sparse("b.weight", torch.tensor([2, 3]), 0.5)
    journal.scale_sparse("d.weight", torch.tensor([4, 70000 - 3000]), -2.0)
    journal.write_sparse("a.weight", torch.tensor([1]), torch.tensor([9.0]))
    journal.write("b.weight", torch.full((5, 4), 3.0))
    journal.write("a.weight", torch.full((4, 5), 2.0))


def moments(total: int, many: int) -> range:
    """About ``many`` of ``total`` instructions, with a step that has no factor in common with loops."""
    return range(1, total + 1, max(1, total // many) | 1)


def test_an_interrupted_edit_is_undone() -> None:
    total = instructions(lambda: partial(edit_in_many_ways, several()[1]))
    assert total > 1500
    for at in moments(total, 250):
        model, journal = several()
        before = fingerprint(model)
        assert Interrupt(at).run(partial(edit_in_many_ways, journal))
        if at % 2:
            edit_in_many_ways(journal)  # goes on after the interrupt
        undo_silently(journal)
        assert fingerprint(model) == before, at


def test_an_interrupted_undo_can_be_finished() -> None:
    def begun() -> tuple[nn.Module, WeightJournal]:
        model, journal = several()
        edit_in_many_ways(journal)
        return model, journal

    total = instructions(lambda: begun()[1].undo)
    assert total > 500
    for at in moments(total, 250):
        model, journal = begun()
        assert Interrupt(at).run(journal.undo)
        Interrupt(at // 2).run(journal.undo)  # a second time
        undo_silently(journal)
        assert [bits(p) for p in model.parameters()] == [bits(p) for p in several()[0].parameters()], at


def test_an_interrupted_undo_still_names_what_others_wrote() -> None:
    def begun() -> tuple[nn.Module, WeightJournal]:
        model, journal = several()
        edit_in_many_ways(journal)
        model.half()
        with torch.no_grad():
            model["b"].weight[0, 1] = 7.0
            model["c"].weight[3, 4] = 7.0
        return model, journal

    model, journal = begun()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        journal.undo()
        total = instructions(lambda: begun()[1].undo)
    wanted, message = [bits(p) for p in model.parameters()], str(found[0].message)
    assert "b.weight (1 of 20" in message
    assert "c.weight (65536 of 67600" in message
    for at in moments(total, 100):
        model, journal = begun()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert Interrupt(at).run(journal.undo)
            journal.undo()
        assert message in {str(each.message) for each in found}, at
        assert [bits(p) for p in model.parameters()] == wanted, at
        undo_silently(journal)


def test_a_system_exit_is_no_failure_to_restore(monkeypatch) -> None:
    model, journal = several()
    edit_in_many_ways(journal)

    def leave(change: Change) -> int:
        raise SystemExit(3)

    monkeypatch.setattr(Change, "restore", leave)
    with pytest.raises(SystemExit):
        journal.undo()
    assert list(journal.changed) == ["a.weight", "b.weight", "c.weight"]
    monkeypatch.undo()
    undo_silently(journal)
    assert [bits(p) for p in model.parameters()] == [bits(p) for p in several()[0].parameters()]


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("cast", ["double", "half", "half and float", "float from bfloat16"])
def test_casts_and_moves_to_a_gpu_are_followed(accelerator, kind: str, cast: str) -> None:
    dtype, move = CASTS[cast]
    model, plain, journal = edited(kind, dtype)
    move(model.to(accelerator))
    move(plain.to(accelerator))
    journal.scale_sparse("weight", torch.tensor([9, 10]), 0.5)
    with torch.no_grad():
        plain.weight[-1, -1] = model.weight[-1, -1] = 7.0
    model.cpu()
    with pytest.warns(UserWarning, match=r"weight \(\d+ of"):
        journal.undo()
    if kind != "large":
        assert_cast_alike(model.weight, plain.cpu().weight)
