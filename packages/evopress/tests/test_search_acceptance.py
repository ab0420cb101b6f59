"""After a search the live model, its choice, the artefact, exports and the told score are one thing; all is undone."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import paperhooks
import pytest
import torch
from paperhooks import Artefact, CompressionRequest, ModelView, Traits, hookimpl
from paperhooks.io import number
from paperhooks.testing import MethodContract, fingerprint, run_python, tiny_llama, tiny_text, tiny_vlm
from paperhooks_evopress import GPTQ, Evaluator, EvoPress, SparseGPT, SublayerDrop
from paperhooks_evopress.export import skip_list, stock, zeroed
from safetensors.torch import load_file
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:a stage of .* tokens was asked for"),
    pytest.mark.filterwarnings("ignore:only one choice is within the budget"),
]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
LEVELS: dict[str, tuple[Any, ...]] = {
    "depth=0.5": (SublayerDrop(),),
    "sparsity=0.5": (SparseGPT(),),
    "bits=2.5": (GPTQ(group=16),),
    "bytes=56kB": (SublayerDrop(), SparseGPT(), GPTQ(widths=(2, 4), group=16)),
}


def texts(n: int = 8, length: int = 20) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (length + i,), generator=generator).tolist() for i in range(n)]


def compressed(model: nn.Module, target: str, **options: Any) -> Artefact:
    given = {"schedule": "quick", "generations": 3, "offspring": 6, "check_model": False, **options}
    out, levels = given.pop("out", None), given.pop("levels", ())
    return paperhooks.compress(
        model, EvoPress(**given), data=texts(), target=target, levels_from=levels, out=out, progress=False
    )


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def told_by(artefact: Artefact) -> dict[str, str]:
    """Module name to the label of its level."""
    return {name: each["label"] for name, each in artefact.data["levels"].items()}


@torch.no_grad()
def divergence(model: nn.Module, other: nn.Module) -> float:
    """Mean KL(model || other) of all predicted positions, in float64."""
    found = []
    for text in texts():
        ids = torch.tensor([text])
        p, q = (each(ids).logits[0, :-1].double().log_softmax(-1) for each in (model, other))
        found.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("target", LEVELS)
def test_all_that_is_told_of_a_search_is_one_thing(tmp_path: Path, target: str) -> None:
    model, fresh = tiny_llama(), tiny_llama()
    before = fingerprint(model)
    artefact = compressed(model, target, levels=LEVELS[target], out=tmp_path)
    choice, wanted = told_by(artefact), model(IDS).logits

    # The score is that of the live model, and of its choice in an evaluator that has seen nothing.
    assert divergence(fresh, model) == pytest.approx(artefact.data["final"], rel=1e-4)
    view = ModelView.from_model(tiny_llama())
    request = CompressionRequest("test", data=texts(), progress=False)
    request.offers = [_asked(method) for method in LEVELS[target]]
    with request.levels(view, list(choice)) as levels:
        levels.prepare(progress=False)
        evaluator = Evaluator(view, levels, [torch.tensor(text) for text in texts()], most_perplexity=float("inf"))
        assert evaluator.score([choice], evaluator.tokens, 3) == pytest.approx([artefact.data["final"]], rel=1e-6)
        levels.switch(choice)
        assert torch.equal(view.model(IDS).logits, wanted)

    # The artefact on disk, and the run's state, are of the same choice.
    saved = Artefact.load(tmp_path)
    assert told_by(saved) == choice
    state = json.loads((tmp_path / "search.json").read_text())
    assert state["history"][-1]["best"] == state["population"][0]
    saved.apply(fresh)
    assert torch.equal(fresh(IDS).logits, wanted)

    # A finished run is not searched again.
    again = tiny_llama()
    assert told_by(compressed(again, target, levels=LEVELS[target], out=tmp_path)) == choice
    assert torch.equal(again(IDS).logits, wanted)
    artefact.undo()
    assert fingerprint(model).differences(before) == []


def _asked(method: Any) -> Any:
    """How core asks a method for levels, whatever of the arguments it wants."""
    offer = method.compression_levels
    if isinstance(method, SublayerDrop):
        return lambda view, modules, request: offer(view, modules)
    return offer


FRESH = """
import sys
import torch
from paperhooks import Artefact
from paperhooks.testing import tiny_llama
from paperhooks_evopress.export import load_skipped
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
folder, ids = sys.argv[1], torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
found = {}
for name, read in (("stock", AutoModelForCausalLM.from_pretrained), ("zeroed", AutoModelForCausalLM.from_pretrained),
                   ("skip", load_skipped)):
    with torch.no_grad():
        found[name] = read(f"{folder}/{name}").eval()(ids).logits
model = tiny_llama()
Artefact.load(f"{folder}/run").apply(model)
with torch.no_grad():
    found["artefact"] = model(ids).logits
save_file({name: each.contiguous() for name, each in found.items()}, f"{folder}/found.safetensors")
"""


def test_a_fresh_process_reads_all_forms_of_a_depth(tmp_path: Path) -> None:
    model = tiny_llama()
    artefact = compressed(model, "depth=2", whole_layers=True, out=tmp_path / "run")
    for name, export in (("stock", stock), ("zeroed", zeroed), ("skip", skip_list)):
        export(model, artefact, tmp_path / name)
    with torch.no_grad():
        wanted = model(IDS).logits
    (tmp_path / "fresh.py").write_text(FRESH)
    run_python(tmp_path / "fresh.py", tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    assert sorted(found) == ["artefact", "skip", "stock", "zeroed"]
    for name, logits in found.items():
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_seed_decides_all_and_nothing_global_changes() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    runs = []
    for seed in (0, 0, 1):
        model = tiny_llama().train()
        model.model.layers[1].eval()
        modes = [module.training for module in model.modules()]
        method = EvoPress(schedule="quick", generations=3, offspring=6, check_model=False)
        artefact = paperhooks.compress(model, method, data=texts(), target="bits=2.5", seed=seed, progress=False)
        runs.append(artefact.data)
        assert [module.training for module in model.modules()] == modes
        torch.rand(3)  # what others draw between searches
        random.random()
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    method = EvoPress(schedule="quick", generations=1, offspring=4, check_model=False)
    paperhooks.compress(tiny_llama(), method, data=texts(), target="depth=1", progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


# -- every family ------------------------------------------------------------------------------------------------------

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "mixtral")
VISION = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl")


def model_of(family: str) -> nn.Module:
    return tiny_vlm(family, layers=3) if family in VISION else tiny_text(family, layers=3)


@pytest.mark.filterwarnings("ignore:.* do not begin with the token 1")
@pytest.mark.parametrize("family", [*FAMILIES, *VISION])
@pytest.mark.parametrize("target", ["depth=1", "sparsity=0.5", "bits=3"])
def test_every_family_is_searched(family: str, target: str) -> None:
    """Also the text part of vision-language models, whose vision tower is left as it is."""
    model, fresh = model_of(family), model_of(family)
    before = fingerprint(model)
    artefact = compressed(model, target, generations=1)
    layers = [name for name, module in model.named_modules() if any(module is each for each in text_layers(model))]
    assert all(name.startswith(tuple(layers)) for name in (*artefact.edits, *artefact.skipped))
    assert divergence(fresh, model) == pytest.approx(artefact.data["final"], rel=1e-4, abs=1e-7)
    assert artefact.data["cost"] <= sum_of(artefact.data["budget"]) * (1 + 1e-9)
    artefact.undo()
    assert fingerprint(model).differences(before) == []


def text_layers(model: nn.Module) -> list[nn.Module]:
    view = ModelView.from_model(model)
    return [*view.layers, *view.layer_list]


def sum_of(budget: Any) -> float:
    return sum(budget.values()) if isinstance(budget, dict) else budget


@pytest.mark.parametrize("target", ["depth=1", "sparsity=0.5", "bits=3"])
def test_text_that_is_read_both_ways_is_refused(target: str) -> None:
    model = tiny_vlm("paligemma", layers=2)
    before = fingerprint(model)
    with pytest.raises(paperhooks.UnsupportedModel, match="lets positions of a text see the tokens after them"):
        compressed(model, target)
    assert fingerprint(model).differences(before) == []


@pytest.mark.parametrize("family", ["opt", "bloom"])
def test_other_families_lose_no_sublayers_and_have_bits(family: str) -> None:
    model = tiny_text(family, layers=2)
    with pytest.raises(paperhooks.DataError, match="does not only add what its attention and its MLP give"):
        compressed(model, "depth=1")
    artefact = compressed(model, "bits=3", generations=1)
    assert artefact.edits
    artefact.undo()


# -- methods on a compressed model -------------------------------------------------------------------------------------


@cache
def made(target: str, options: tuple[tuple[str, Any], ...]) -> Artefact:
    """What a search does to a tiny model."""
    return compressed(tiny_text("llama", **dict(options)), target, levels=LEVELS[target], generations=1)


@dataclass(eq=False)
class Softer:
    """Scales what the layers from 2 on return."""

    factor: float = 0.9
    traits = Traits(
        layers=lambda site: site.index >= 2, beams=True, assisted=True, static_cache=True, chunked_prefill=True,
        training=True, compile=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.factor = number("factor", self.factor)

    @hookimpl
    def post_layer(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.factor


class TestMethodOnFewerSublayers(MethodContract):
    """Another method attached to a model whose sublayers were searched."""

    target = "depth=0.5"

    def make(self) -> Softer:
        return Softer()

    def model(self, **options: Any) -> Any:
        artefact = made(self.target, tuple(sorted(options.items())))
        found = tiny_text("llama", **options)
        artefact.apply(found)
        return found


class TestMethodOnFewerBits(TestMethodOnFewerSublayers):
    """The same where bits were searched."""

    target = "bits=2.5"
