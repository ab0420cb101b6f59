"""Levels of many modules on a live model: switched freely, at exact cost, and undone bit for bit."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from compression_methods import LINEARS, UNITS, LeaveOut, Magnitude, Nearest
from paperhooks import Artefact, DataError, HookError, Level, ModelView, Traits, hookimpl
from paperhooks.errors import UnsupportedModel
from paperhooks.hooks import CompressionRequest, Levels
from paperhooks.models import calibrate
from paperhooks.testing import fingerprint, tiny_llama, tiny_text
from paperhooks.weights import Dense, WeightJournal
from torch import nn

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

IDS = torch.tensor([[5, 6, 7, 8, 9]])
UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"


def offered(model: nn.Module, *methods: object, pattern: str = LINEARS, **options) -> tuple[ModelView, Levels]:
    view = ModelView.from_model(model)
    offers = [lambda view, modules, request, own=own: _asked(own, view, modules, request) for own in methods]
    request = CompressionRequest("search", offers=offers, **options)
    return view, request.levels(view, [name for name, _ in view.modules(pattern)])


def _asked(method, view, modules, request):
    return (
        method.compression_levels(modules)
        if isinstance(method, Nearest)
        else method.compression_levels(view, modules, request)
    )


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("units", [LINEARS, UNITS], ids=["matrices", "sublayers too"])
def test_a_thousand_switches_leave_nothing_behind(units: str) -> None:
    """Levels of several methods together, at random; every choice gives what it gave before."""
    model = tiny_llama(layers=2)
    before, own, plain = fingerprint(model), logits(model), [p.data_ptr() for p in model.parameters()]
    _, levels = offered(model, Magnitude(), Nearest(), LeaveOut(), pattern=units)
    draw, seen = random.Random(0), {}
    names = list(levels)
    with levels:
        for _ in range(1000):
            some = draw.sample(names, draw.randint(0, 3))
            choice = {name: draw.choice(levels[name]).label for name in some}
            levels.switch(choice)
            assert levels.choice == choice
            if draw.random() < 0.05:
                key = tuple(sorted(choice.items()))
                found = logits(model)
                assert torch.equal(seen.setdefault(key, found), found)
        levels.switch({names[0]: levels[names[0]][-1].label})
        assert not torch.equal(logits(model), own)
    assert fingerprint(model) == before
    assert torch.equal(logits(model), own)
    assert [p.data_ptr() for p in model.parameters()] == plain, "the very memory that was there"


def test_a_part_of_what_is_left_out_costs_nothing_and_is_written_to_nobody() -> None:
    model = tiny_llama(layers=2)
    before, own = fingerprint(model), logits(model)
    view, levels = offered(model, Nearest(), LeaveOut(), pattern=UNITS)
    mlp, layer = "model.layers.0.mlp", "model.layers.0"
    matrices = {f"{mlp}.{name}": "3 bits" for name in ("gate_proj", "up_proj", "down_proj")}
    other = {DOWN: "2 bits"}
    with levels:
        levels.switch({**other, mlp: "left out"})
        without = logits(model)
        cost = levels.cost({**other, mlp: "left out"})
        levels.switch({**other, **matrices, mlp: "left out"})
        assert torch.equal(logits(model), without)
        assert levels.choice == {**other, **matrices, mlp: "left out"}
        assert levels.cost(levels.choice) == cost == levels.level(DOWN, "2 bits").cost["bytes"]
        levels.switch({**other, **matrices, mlp: "kept"})
        with_codes = logits(model)
        levels.switch({**other, **matrices, mlp: "left out", layer: "left out"})
        assert levels.cost(levels.choice) == cost
        assert view.layer_types == ("skipped", "full_attention")
        levels.switch({**other, **matrices})
        assert torch.equal(logits(model), with_codes)
        assert not torch.equal(with_codes, own)
        levels.switch({**other, **matrices, mlp: "left out"})
        levels.write(view.journal, method="search")
    assert set(view.journal.changed) == {f"{DOWN}.weight"}
    assert view.journal.structure.skipped == (mlp,)
    assert torch.equal(logits(model), without)
    view.journal.undo()
    assert fingerprint(model) == before


def test_costs_of_units_that_contain_one_another_add_up() -> None:
    """Everything kept costs what the decoder's layers hold, whatever is a unit of its own."""
    model = tiny_llama(layers=2)
    size = sum(p.numel() for p in model.model.layers.parameters())
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    for pattern in (r"model\.layers\.\d+", r"model\.layers\.\d+(\.(mlp|self_attn))?"):
        _, levels = offered(model, LeaveOut(), pattern=pattern)
        kept = dict.fromkeys(levels, "kept")
        assert [levels.cost(kept, kind) for kind in ("parameters", "bytes", "flops")] == [size, 4 * size, 2 * matrices]
        assert levels.cost({**kept, "model.layers.1": "left out"}, "parameters") == size // 2
    _, levels = offered(model, Nearest(), LeaveOut(), pattern=UNITS)
    assert levels.cost({}, "parameters", whole=True) == size
    small = levels.level(UP, "2 bits").cost["bytes"]
    assert levels.cost({UP: "2 bits"}, whole=True) == 4 * (size - 64 * 32) + small
    assert levels.cost({UP: "2 bits", "model.layers.0.mlp": "left out"}, whole=True) == 4 * (size - 3 * 64 * 32)
    assert levels.cost({UP: "2 bits", "model.layers.0": "left out"}, whole=True) == 2 * size
    _, levels = offered(model, Magnitude(), LeaveOut(), pattern=UNITS)
    choice = {n: "zeros 0.0" if ".proj" in n or "_proj" in n else "kept" for n in levels}
    assert levels.cost(choice, "parameters") == size


def test_no_parameter_has_its_values_from_two_levels() -> None:
    model = tiny_llama(layers=1)
    before, view = fingerprint(model), ModelView.from_model(model)
    weight, other = (model.get_parameter(f"model.layers.0.mlp.{n}_proj.weight") for n in ("up", "gate"))
    own = {"up": weight.detach().clone(), "gate": other.detach().clone()}

    def times(factor: float, *names: str) -> dict[str, Dense]:
        prefix = "" if not names else "{}_proj."
        return {f"{prefix.format(n)}weight": Dense(own[n] * factor) for n in names or ("up",)}

    offers = {
        "model.layers.0.mlp": [
            Level("x", "both", {}, partial(times, 2.0, "up", "gate")),
            Level("x", "gate", {}, partial(times, 3.0, "gate")),
        ],
        UP: [Level("x", "four", {}, partial(times, 4.0))],
    }
    with Levels(view, offers) as levels:
        said = r"up_proj\.weight would have values from 'both' of model\.layers\.0\.mlp and from 'four' of .*choose one"
        with pytest.raises(DataError, match=said):
            levels.switch({"model.layers.0.mlp": "both", UP: "four"})
        for choice, up, gate in (
            ({"model.layers.0.mlp": "both"}, 2.0, 2.0),
            ({"model.layers.0.mlp": "gate", UP: "four"}, 4.0, 3.0),
            ({UP: "four"}, 4.0, 1.0),
            ({"model.layers.0.mlp": "both"}, 2.0, 2.0),
            ({}, 1.0, 1.0),
        ):
            levels.switch(choice)
            assert torch.equal(weight, own["up"] * up)
            assert torch.equal(other, own["gate"] * gate)
    assert fingerprint(model) == before


@pytest.mark.parametrize("early", [True, False], ids=["prepared", "when wanted"])
def test_levels_of_a_unit_and_of_what_is_skipped_in_it(early: bool) -> None:
    """A unit's values are made and moved also where a part of it is skipped meanwhile."""
    model = tiny_llama(layers=1)
    before, view = fingerprint(model), ModelView.from_model(model)
    layer, mlp = "model.layers.0", "model.layers.0.mlp"

    def doubled() -> dict[str, Dense]:
        return {"mlp.up_proj.weight": Dense(model.model.layers[0].mlp.up_proj.weight.detach() * 2)}

    offers = {layer: [Level("x", "double", {}, doubled)], mlp: [Level("x", "out", {}, skip=True)]}
    with Levels(view, offers) as levels:
        if early:
            levels.prepare(progress=False)
        found = {}
        for choice in ({mlp: "out"}, {layer: "double", mlp: "out"}, {mlp: "out"}, {layer: "double"}, {mlp: "out"}, {}):
            levels.switch(choice)
            key = tuple(sorted(choice))
            assert torch.equal(found.setdefault(key, logits(model)), logits(model))
        assert torch.equal(found[(mlp,)], found[layer, mlp])
        assert not torch.equal(found[(layer,)], found[()])
    assert fingerprint(model) == before


def test_what_others_do_to_a_parameter_between_levels_is_theirs() -> None:
    model = tiny_llama(layers=1)
    view, weight = ModelView.from_model(model), model.get_parameter("model.layers.0.mlp.up_proj.weight")
    own = weight.detach().clone()
    offers = {UP: [Level("x", "double", {}, lambda: {"weight": Dense(own * 2)})]}
    with Levels(view, offers) as levels:
        levels.switch({UP: "double"})
        with torch.no_grad():
            weight.zero_()  # of this stay alone
        levels.switch({})
        assert torch.equal(weight, own)
        levels.switch({UP: "double"})
        assert torch.equal(weight, own * 2)
        levels.switch({})
        weight.data = own * 5
        levels.switch({UP: "double"})
    assert torch.equal(weight, own * 5)
    with Levels(view, offers) as levels:
        levels.switch({UP: "double"})
        model.bfloat16()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_levels_that_skip_what_cannot_be_skipped_are_refused() -> None:
    view = ModelView.from_model(tiny_llama(layers=1))
    with pytest.raises(UnsupportedModel, match="up_proj is no layer, attention or MLP"):
        Levels(view, {UP: [Level("x", "out", {}, skip=True)]})
    with pytest.raises(HookError, match="the level 'out' of 'x' skips its module and has values for it too"):
        Level("x", "out", {}, dict, skip=True)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_error_in_the_middle_puts_back_what_was_left_out(error: BaseException) -> None:
    model = tiny_llama(layers=2)
    before = fingerprint(model)
    view, levels = offered(model, Nearest(), LeaveOut(), pattern=UNITS)

    def breaks() -> dict[str, Dense]:
        raise error

    offers = {**levels, DOWN: [Level("x", "breaks", {}, breaks), *levels[DOWN]]}
    with Levels(view, offers) as levels:
        levels.switch({"model.layers.0.self_attn": "left out", UP: "2 bits"})
        at = logits(model)
        with pytest.raises(type(error)):
            levels.switch({"model.layers.0": "left out", DOWN: "breaks"})
        assert torch.equal(logits(model), at)
        levels.switch({})
    assert fingerprint(model) == before


def test_a_level_gives_its_values_and_costs_their_bytes() -> None:
    model = tiny_llama(layers=2)
    _, levels = offered(model, Magnitude(), Nearest())
    for name in levels:
        weight = model.get_parameter(f"{name}.weight").detach().clone()
        for level in levels[name]:
            packed = levels.packed(name, level.label)
            if level.prepare is None:
                assert not packed
                continue
            assert packed["weight"].nbytes == level.cost["bytes"]
            with levels:
                levels.switch({name: level.label})
                assert torch.equal(model.get_parameter(f"{name}.weight"), packed["weight"].unpack())
            if level.method == "nearest":
                step = (weight.amax() - weight.amin()) / (2 ** level.options["width"] - 1)
                assert float((packed["weight"].unpack() - weight).abs().max()) <= float(step) * 0.51
    choice = {UP: "3 bits", DOWN: "zeros 0.5"}
    total = sum(levels.level(name, label).cost["bytes"] for name, label in choice.items())
    assert levels.cost(choice) == total > levels.cost(choice, "codes")
    with pytest.raises(DataError, match=f"the level '3 bits' of {UP} tells no 'flops'; it tells"):
        levels.cost(choice, "flops")


def test_levels_are_made_once_and_from_the_module_s_own_weights() -> None:
    model, calls = tiny_llama(layers=2), []
    view = ModelView.from_model(model)
    weight = model.get_parameter(f"{UP}.weight")
    own = weight.detach().clone()

    def made(factor: float) -> dict[str, Dense]:
        calls.append(factor)
        return {"weight": Dense(weight.detach() * factor)}

    offers = {UP: [Level("x", str(f), {}, partial(made, f)) for f in (2.0, 3.0)]}
    with Levels(view, offers) as levels:
        for label in ("2.0", "3.0", "2.0", "3.0"):
            levels.switch({UP: label})
            assert torch.equal(weight, own * float(label)), "not of the other level's weights"
    assert calls == [2.0, 3.0]
    assert torch.equal(weight, own)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_the_model_where_it_was(error: BaseException) -> None:
    model = tiny_llama(layers=2)
    before = fingerprint(model)
    view, levels = offered(model, Magnitude(), Nearest())

    def breaks() -> dict[str, Dense]:
        raise error

    offers = {**levels, DOWN: [Level("x", "breaks", {}, breaks), *levels[DOWN]]}
    with Levels(view, offers) as levels:
        levels.switch({UP: "2 bits", DOWN: "zeros 0.5"})
        at = logits(model)
        with pytest.raises(type(error)):
            levels.switch({UP: "4 bits", DOWN: "breaks"})
        assert levels.choice == {UP: "2 bits", DOWN: "zeros 0.5"}
        assert torch.equal(logits(model), at)
        levels.switch({UP: "4 bits"})
    assert fingerprint(model) == before


def test_no_file_is_opened_in_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(layers=2)
    _, levels = offered(model, Nearest())
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("a file was opened"))
    monkeypatch.setattr("io.open", lambda *a, **k: pytest.fail("a file was opened"))
    with levels:
        for label in ("2 bits", "3 bits", "2 bits"):
            levels.switch(dict.fromkeys(levels, label))


def test_the_journal_hears_of_the_final_choice_alone() -> None:
    model, choice = tiny_llama(layers=2), {UP: "3 bits", DOWN: "zeros 0.75"}
    before = fingerprint(model)
    _, levels = offered(model, Magnitude(), Nearest())
    journal = WeightJournal(model)
    with levels:
        levels.switch({UP: "2 bits", DOWN: "zeros 0.5"})
        levels.switch(choice)
        wanted = logits(model)
        levels.write(journal, method="search")
    assert set(journal.changed) == {f"{name}.weight" for name in choice}
    assert torch.equal(logits(model), wanted)
    journal.undo()
    assert fingerprint(model) == before


def test_what_cannot_be_chosen_or_made_is_refused() -> None:
    model = tiny_llama(layers=2)
    view, levels = offered(model, Nearest())
    with pytest.raises(DataError, match=f"there are no levels of 'model.layers.0.mlp.up'; did you mean '{UP}'"):
        levels.switch({"model.layers.0.mlp.up": "2 bits"})
    with pytest.raises(DataError, match=f"{UP} has no level '5 bits'; did you mean"):
        levels.switch({UP: "5 bits"})
    odd = {
        "shape": ({"weight": Dense(torch.zeros(2, 2))}, r"\[2, 2\]; expected torch.float32 \[64, 32\]"),
        "dtype": ({"weight": Dense(torch.zeros(64, 32).half())}, "are torch.float16"),
        "name": ({"bias": Dense(torch.zeros(64))}, r"gives Dense for 'bias'; expected .* of its parameters weight"),
        "kind": ({"weight": torch.zeros(64, 32)}, r"gives Tensor for 'weight'; expected packed values \(Quantised"),
        "bare": (Dense(torch.zeros(64, 32)), "gives Dense; expected a mapping such as"),
        "none": (None, "gives NoneType; expected a mapping"),
    }  # fmt: skip
    for label, (values, said) in odd.items():
        offers = {UP: [Level("x", label, {}, lambda values=values: values)]}
        with pytest.raises(HookError, match=said), Levels(view, offers) as made:
            made.switch({UP: label})
    dear = Level("x", "cheap", {"bytes": 8191}, lambda: {"weight": Dense(torch.zeros(64, 32))})
    with pytest.raises(HookError, match=f"'cheap' of {UP} by 'x' costs 8191 bytes, and its values take 8192"):
        Levels(view, {UP: [dear]}).switch({UP: "cheap"})
    with pytest.raises(ZeroDivisionError) as caught:
        Levels(view, {UP: [Level("x", "raises", {}, lambda: 1 // 0)]}).switch({UP: "raises"})
    assert caught.value.__notes__ == [f"paperhooks: raised by prepare of 'raises' of {UP} by 'x'"]
    assert torch.equal(logits(model), logits(tiny_llama(layers=2)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cost": 5}, r"the level '3 bits' of 'x' costs 5; expected numbers of 0 or more by kind"),
        ({"cost": {"bytes": float("nan")}}, "costs {'bytes': nan}"),
        ({"cost": {"bytes": -4}}, "costs {'bytes': -4}"),
        ({"label": 3}, "has the label 3; expected text"),
        ({"label": ""}, "has the label ''; expected text, and some of it"),
        ({"prepare": {"weight": None}}, "has dict for prepare; expected a function"),
    ],
)
def test_a_level_is_checked_when_it_is_made(given: dict, said: str) -> None:
    with pytest.raises(HookError, match=said):
        Level(**{"method": "x", "label": "3 bits", "cost": {}, **given})


def test_a_choice_is_written_once() -> None:
    model = tiny_llama(layers=2)
    _, levels = offered(model, Nearest())
    journal = WeightJournal(model)
    with levels:
        levels.switch({UP: "2 bits"})
        levels.write(journal)
        levels.switch({DOWN: "2 bits"})
        with pytest.raises(DataError, match="a choice of these levels is written already; undo it first"):
            levels.write(journal)
        journal.undo()
        levels.switch({DOWN: "2 bits"})
        levels.write(journal)
        assert set(levels.chosen) == {DOWN}
    journal.undo()


def test_modules_that_share_a_parameter_are_refused() -> None:
    model = tiny_text("gemma2", layers=1)
    tied = tiny_llama(layers=1)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    level = Level("x", "half", {})
    with pytest.raises(DataError, match=r"model\.embed_tokens and lm_head share a parameter; leave one"):
        Levels(ModelView.from_model(tied), {"lm_head": [level], "model.embed_tokens": [level]})
    with pytest.raises(DataError, match=r"lm_head\.weight is model\.embed_tokens\.weight too, .* leave lm_head out"):
        Levels(ModelView.from_model(tied), {"lm_head": [level]})
    with pytest.raises(LookupError, match="has no module"):
        Levels(ModelView.from_model(model), {"nowhere": [level]})


def test_parameters_that_are_not_in_memory_are_refused() -> None:
    model = tiny_llama(layers=1)
    name = "model.layers.0.mlp.up_proj"
    model.get_submodule(name).to("meta")
    offers = {name: [Level("x", "zero", {}, lambda: {"weight": Dense(torch.zeros(64, 32))})]}
    with pytest.raises(UnsupportedModel, match=r"up_proj\.weight is on the meta device \(offloaded or not"):
        Levels(ModelView.from_model(model), offers).switch({name: "zero"})


@dataclass(eq=False)
class Calibrated:
    """Reads the data once for all modules that it offers levels for."""

    passes: int = 0
    traits = Traits()

    @hookimpl
    def compression_levels(self, view, modules, request):
        seen = dict.fromkeys(modules, 0)

        def count(name, module, hidden, batch):
            seen[name] += 1

        calibrate(view, request.batches(), modules, count, progress=False)
        self.passes += 1
        return {name: [Level("calibrated", f"of {n}", {"bytes": n})] for name, n in seen.items()}


def test_a_method_with_calibration_reads_the_data_once() -> None:
    method = Calibrated()
    _, levels = offered(tiny_llama(layers=2), method, data=[[5, 6, 7], [8, 9]])
    assert method.passes == 1
    assert len(levels) == 14
    assert all(one.label == "of 2" for own in levels.values() for one in own)


def test_weights_may_be_on_a_device(accelerator: torch.device) -> None:
    """Offered, switched, written and kept as on the CPU, for weights that are elsewhere."""
    model, plain = tiny_llama(layers=2).to(accelerator), tiny_llama(layers=2)
    (_, levels), (_, ours) = offered(model, Magnitude(), Nearest()), offered(plain, Magnitude(), Nearest())
    journal = WeightJournal(model)
    choice = {UP: "3 bits", DOWN: "zeros 0.5"}
    before = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    with levels, ours:
        levels.switch(choice)
        ours.switch(choice)
        for name in choice:
            here, there = (one.get_parameter(f"{name}.weight").detach() for one in (model, plain))
            assert here.device.type == accelerator.type
            torch.testing.assert_close(here.cpu(), there, rtol=0, atol=1e-6)
        levels.write(journal, method="search")
        artefact = Artefact.from_journal(journal, method="search", packed=levels.written)
    assert all(edit.packed is not None for edit in artefact.edits.values())
    journal.undo()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach().cpu(), before[name]), name


def test_prepared_levels_are_kept_and_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch) -> None:
    model, calls = tiny_llama(layers=2), []
    before = fingerprint(model)

    class Counting(Nearest):
        @hookimpl
        def compression_levels(self, modules):
            def counted(name, label, prepare):
                calls.append((name, label))
                if len(calls) == 5:
                    raise KeyboardInterrupt
                return prepare()

            found = super().compression_levels(modules)
            return {
                name: [replace(each, prepare=partial(counted, name, each.label, each.prepare)) for each in own]
                for name, own in found.items()
            }

    def all_logits(levels):
        with levels:
            found = []
            for label in ("2 bits", "4 bits"):
                levels.switch(dict.fromkeys(levels, label))
                found.append(logits(model))
            return found

    wanted = all_logits(offered(model, Nearest())[1])
    options = {"decides": {"group": 16}, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        offered(model, Counting())[1].prepare(tmp_path, **options)
    assert len(list(tmp_path.glob("units/*.safetensors"))) == 1
    _, levels = offered(model, Counting())
    levels.switch({})
    levels.prepare(tmp_path, **options)
    assert len(calls) == 5 + 13 * 3, "the module that was done is not made again"
    again = offered(model, Counting())[1]
    again.prepare(tmp_path, **options)
    assert len(calls) == 5 + 13 * 3
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("a file was opened in a switch"))
    for held in (levels, again):
        assert all(torch.equal(one, other) for one, other in zip(all_logits(held), wanted, strict=True))
    monkeypatch.undo()
    assert fingerprint(model) == before
    for other, said in (
        (lambda: offered(model, Counting())[1].prepare(tmp_path, decides={"group": 8}, progress=False), "group = 16"),
        (lambda: offered(model, Nearest((2, 3)))[1].prepare(tmp_path, **options), "levels ="),
        (lambda: offered(tiny_llama(layers=2, seed=1), Nearest())[1].prepare(tmp_path, **options), "model ="),
    ):
        with pytest.raises(DataError, match=f"holds prepared levels of another run: .*{said}"):
            other()


def test_levels_are_prepared_in_memory_where_no_folder_is_given() -> None:
    model = tiny_llama(layers=1)
    _, levels = offered(model, Nearest(), LeaveOut(), pattern=UNITS)
    levels.prepare(progress=False)
    calls = []
    made = Levels(ModelView.from_model(model), {UP: [Level("x", "n", {}, lambda: calls.append(1) or {})]})
    made.prepare(progress=False)
    made.switch({UP: "n"})
    assert calls == [1]
