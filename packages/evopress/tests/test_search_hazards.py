"""What a search gets that it cannot use, or that is at the edge of what it can: a named error, or the right result."""

from __future__ import annotations

import random
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paperhooks
import pytest
import torch
from paperhooks import (
    Artefact,
    DataError,
    HookError,
    Level,
    ModelView,
    PluginConflict,
    Traits,
    UnsupportedModel,
    hookimpl,
)
from paperhooks.hooks import Levels
from paperhooks.testing import Dropper, fingerprint, run_ranks, tiny_llama, tiny_text
from paperhooks_evopress import GPTQ, EvoPress, SparseGPT, SublayerDrop, Target, problem
from torch import nn
from torch.distributed.fsdp import fully_shard

# A stop for what would hang, not a measurement: each case takes about a second.
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:a stage of .* tokens was asked for"),
    pytest.mark.filterwarnings("ignore:only one choice is within the budget"),
]

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def ids(n: int = 6, length: int = 20) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (length + i,), generator=generator).tolist() for i in range(n)]


def search(**options: Any) -> EvoPress:
    return EvoPress(**{"schedule": "quick", "generations": 1, "offspring": 4, "check_model": False, **options})


def compressed(model: nn.Module, target: str, *, levels: Any = (), data: Any = None, **options: Any) -> Artefact:
    out, tokenizer = options.pop("out", None), options.pop("tokenizer", None)
    return paperhooks.compress(
        model, search(**options), data=ids() if data is None else data, target=target, levels_from=levels, out=out,
        tokenizer=tokenizer, progress=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_global_changes():
    """One thread, and the random numbers of torch, numpy and Python as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.set_num_threads(threads)
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert all(np.array_equal(one, other) for one, other in zip(before[2], after[2], strict=True))


# -- models ------------------------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    return tiny_llama(layers=3)


def filled(name: str, value: float) -> nn.Module:
    model = plain()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


class PackedLinear(nn.Linear):
    """A linear layer whose weights are codes of 8 bits, as quantising libraries have them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        values = linear.weight.detach()
        self.scale = float(values.abs().max() / 127)
        self.weight = nn.Parameter((values / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype) * self.scale)


def quantised() -> nn.Module:
    model = plain()
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, PackedLinear(linear))
    return model


def offloaded() -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    model = plain()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def gemma() -> nn.Module:
    return tiny_text("gemma2", layers=2)


class Begins:
    """A tokenizer that puts a token before every text."""

    bos_token_id = 1

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(3 + ord(letter) % 80 for letter in text)]}


def attached() -> nn.Module:
    model = plain()
    paperhooks.attach(model, Dropper())
    return model


def on_meta() -> nn.Module:
    return plain().to("meta")


class Alike:
    """Levels of the name that others use too."""

    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression_levels(self, modules):
        costs = {"codes": 10**6, "bytes": 10**6}
        return {name: [Level("alike", "3 bits", costs)] for name, m in modules.items() if isinstance(m, nn.Linear)}


class Silent(Alike):
    """Levels that do not tell the cost which a target budgets."""

    @hookimpl
    def compression_levels(self, modules):
        return {name: [Level("silent", "free", {"bytes": 8})] for name in modules}


# -- refusals ----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any], type[Exception], str]] = {
    # targets outside of what levels allow
    "bits too low": (plain, "bits=1.5", {}, DataError, r"bits=1.5 cannot be met: it is below .* bits from 2 to 6"),
    "bits too high": (plain, "bits=7", {}, DataError, r"bits=7 cannot be met: it is above .* bits from 2 to 6"),
    "sparsity too high": (
        plain, "sparsity=0.9", {"levels": [SparseGPT(sparsities=(0, 0.5))]}, DataError,
        r"it is above .* sparsity from 0 to 0.5",
    ),
    "sparsity too low": (
        plain, "sparsity=0.1", {"levels": [SparseGPT(sparsities=(0.25, 0.5))]}, DataError,
        r"it is below .* sparsity from 0.25 to 0.5",
    ),
    "bytes too few": (plain, "bytes=10kB", {}, DataError, r"bytes from 26496 to 137088; 26496 bytes are in parts"),
    "parameters too few": (
        plain, "parameters=0.2", {"levels": [SparseGPT(sparsities=(0.5,))]}, DataError, "parameters from 0.5 to 1",
    ),
    "flops of levels that save none": (plain, "flops=0.5", {"levels": [GPTQ()]}, DataError, "flops from 1 to 1"),
    "sparsity of one": (plain, "sparsity=1", {}, DataError, "the share of zeros"),
    "sparsity that is no number": (plain, "sparsity=nan", {}, DataError, "a finite number"),
    "a negative depth": (plain, "depth=-0.1", {}, DataError, "a finite number of 0 or more"),
    "half a layer": (plain, "depth=1.5", {}, DataError, "a whole number"),
    # fewer legal units than wanted
    "more than there are": (
        plain, "depth=4", {}, DataError,
        r"leaves out 4 of 3 .* 'attention', and 3 can be: model.layers.0.self_attn, model.layers.1",
    ),
    "nothing may go": (
        lambda: tiny_text("opt", layers=2), "depth=1", {}, DataError,
        r"nothing can be left out of OPT.*layers.0.self_attn: OPTDecoderLayer does not only add",
    ),
    "nothing may go of a parallel family": (
        lambda: tiny_text("bloom", layers=2), "depth=1", {}, DataError, "BloomBlock does not only add",
    ),
    # levels
    "no levels of this kind": (plain, "bits=3", {"levels": [SublayerDrop()]}, DataError, "nobody offers levels"),
    "levels that tell no such cost": (plain, "bits=3", {"levels": [Silent()]}, DataError, "'free' .* tells no 'codes'"),
    "one method twice": (plain, "bits=3", {"levels": [GPTQ(), GPTQ()]}, PluginConflict, "given twice"),
    "one label twice": (
        plain, "bits=3", {"levels": [GPTQ(), Alike()]}, HookError, "two levels of .* are called '3 bits'",
    ),
    # text
    "no text": (plain, "bits=3", {"data": []}, DataError, "calibration data is empty"),
    "an empty text": (plain, "bits=3", {"data": [[], [5, 6, 7]]}, DataError, "record 0 has no tokens; leave it out"),
    "texts of one token": (plain, "depth=1", {"data": [[5], [6]]}, DataError, "none of 2 .* has 2 tokens or more"),
    "ids of another tokenizer": (plain, "depth=1", {"data": [[5, 600]]}, DataError, "the id 600; the model has 0 to"),
    "ids that are no integers": (plain, "bits=3", {"data": [[5.5, 6.5]]}, DataError, "record 0 is list"),
    "texts without a tokenizer": (plain, "bits=3", {"data": ["a text"]}, DataError, "tokenizer"),
    # models
    "a model that guesses": (plain, "depth=1", {"check_model": True}, DataError, "itself has a perplexity of"),
    "a model that gives NaN": (
        lambda: filled("model.layers.1.mlp.up_proj.weight", float("nan")), "depth=1", {}, DataError,
        "not finite on .*load it in float32 or bfloat16",
    ),
    "weights that are infinite": (
        lambda: filled("model.layers.1.mlp.up_proj.weight", float("inf")), "bits=3", {}, DataError,
        "not finite on .*load it in float32 or bfloat16",
    ),
    "quantised for bits": (quantised, "bits=3", {}, DataError, r"q_proj.weight is torch.int8, and looks quantised"),
    "quantised for sparsity": (quantised, "sparsity=0.5", {}, DataError, "looks quantised already; load the model un"),
    "offloaded for bits": (offloaded, "bits=3", {}, UnsupportedModel, "q_proj are on the device meta; load the model"),
    "on meta for bits": (on_meta, "bits=3", {}, UnsupportedModel, "are on the device meta"),
    "on meta for a depth": (on_meta, "depth=1", {}, UnsupportedModel, "meta"),
    "attached": (attached, "depth=1", {}, PluginConflict, "attached to a session; close it"),
    "too little memory": (plain, "depth=1", {"teacher_bytes": 100}, DataError, "at least 12800 are needed"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(case: str) -> None:
    make, target, options, error, said = REFUSED[case]
    model = make()
    before = fingerprint(model) if not any(p.is_meta for p in model.parameters()) else None
    with pytest.raises(error, match=said):
        compressed(model, target, **options)
    if before is not None:
        assert fingerprint(model).differences(before) == []


def test_a_tied_head_is_not_compressed_twice() -> None:
    """Nor asked about: a search of bits has the layers' matrices alone, and levels of both would be one parameter's."""
    model = tiny_llama(layers=2, tie_word_embeddings=True)
    before = model.lm_head.weight.clone()
    artefact = compressed(model, "bits=3")
    assert not any("lm_head" in name or "embed" in name for name in artefact.edits)
    assert torch.equal(model.lm_head.weight, before)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    artefact.undo()
    view = ModelView.from_model(model)
    offers = {name: [Level("x", "own", {"bytes": 1})] for name in ("lm_head", "model.embed_tokens")}
    with pytest.raises(DataError, match=r"embed_tokens and lm_head share a parameter|lm_head and model.embed_tokens"):
        Levels(view, offers)
    with pytest.raises(DataError, match=r"lm_head\.weight is model\.embed_tokens\.weight too"):
        Levels(view, {"lm_head": offers["lm_head"]})


def test_fused_matrices_without_a_common_level_are_named() -> None:
    view = ModelView.from_model(plain())
    cost = {"codes": 512, "bytes": 512}
    offers = {
        f"model.layers.0.self_attn.{name}_proj": [Level("x", label, cost)]
        for name, label in zip("qkv", "aab", strict=True)
    }
    with pytest.raises(DataError, match=r"q_proj, .*k_proj, .*v_proj are fused and have no level in common"):
        problem(view, Levels(view, offers), Target.of("bits=3"), fuse="vllm")


def shard() -> str:
    """In a process of a group: what a search says of a model that is sharded."""
    model = plain()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    said = []
    for target in ("depth=1", "bits=3"):
        try:
            compressed(model, target)
        except UnsupportedModel as error:
            said.append(str(error))
    return " | ".join(said)


def test_a_sharded_model_is_refused() -> None:
    (said,) = run_ranks(shard, count=1)
    assert said.count("|") == 1
    assert "FSDP2" in said


def with_seed_of_rank(target: str) -> str:
    """In a process of a group: what a search says of another process that does something else."""
    rank = torch.distributed.get_rank()
    try:
        paperhooks.compress(
            plain(), search(generations=2), data=ids(), target=target if rank else "bits=2.5", seed=rank,
            progress=False,
        )  # fmt: skip
    except DataError as error:
        return str(error)
    return "it ran"


@pytest.mark.parametrize("target", ["bits=2.5", "bits=3"])
def test_processes_that_search_differently_are_refused(target: str) -> None:
    """Values of one candidate would stand for those of another."""
    said = run_ranks(with_seed_of_rank, target)
    assert "rank 1 asks for other candidates than rank 0" in said[0]
    assert "rank 0 asks for other candidates than rank 1" in said[1]


# -- what is at the edge, and right ------------------------------------------------------------------------------------


def test_a_database_of_another_model_or_of_other_text_is_refused(tmp_path: Path) -> None:
    compressed(plain(), "bits=3", out=tmp_path / "run")
    for model, options, said in (
        (tiny_llama(layers=3, seed=1), {}, "model"),
        (plain(), {"data": ids(5)}, "data"),
    ):
        with pytest.raises(DataError, match=said):
            compressed(model, "bits=3", out=tmp_path / "run", **options)
    # The database alone, in a folder of a run that says nothing of it.
    for number, (model, options, said) in enumerate(
        [
            (tiny_llama(layers=3, seed=1), {}, r"database.* model"),
            (plain(), {"data": ids(5)}, r"database.* calibration"),
            (plain(), {"levels": [GPTQ(group=16)]}, r"database.* levels"),
        ]
    ):
        shutil.copytree(tmp_path / "run" / "database", tmp_path / str(number) / "database")
        before = fingerprint(model)
        with pytest.raises(DataError, match=said):
            compressed(model, "bits=3", out=tmp_path / str(number), **options)
        assert fingerprint(model).differences(before) == []


def within(artefact: Artefact) -> None:
    budgets = artefact.data["budget"]
    total = sum(budgets.values()) if isinstance(budgets, dict) else budgets
    assert artefact.data["cost"] <= total * (1 + 1e-9)


def skips(number: int) -> Callable[[Artefact], None]:
    def check(artefact: Artefact) -> None:
        assert len(artefact.skipped) == number

    return check


def bits(average: float) -> Callable[[Artefact], None]:
    """Nearer to the target than one step of the smallest unit, and not above."""

    def check(artefact: Artefact) -> None:
        sizes = {name: edit.entries for name, edit in artefact.edits.items()}
        widths = {name: artefact.data["levels"][name.rpartition(".")[0]]["options"]["width"] for name in sizes}
        spent = sum(sizes[name] * widths[name] for name in sizes)
        total = sum(sizes.values())
        steps = [w - n for n, w in zip(sorted(set(widths.values())), sorted(set(widths.values()))[1:], strict=False)]
        assert spent <= average * total
        assert spent > average * total - min(sizes.values()) * max(steps or [1])

    return check


def zeros(share: float) -> Callable[[Artefact], None]:
    def check(artefact: Artefact) -> None:
        chosen = artefact.data["levels"].values()
        total = sum(each["cost"]["zeros"] + each["cost"]["parameters"] for each in chosen)
        assert sum(each["cost"]["zeros"] for each in chosen) == round(share * total)

    return check


WORKS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any], Callable[[Artefact], None], str]] = {
    "k of 0": (plain, "depth=0", {}, skips(0), "only one choice"),
    "k of n": (plain, "depth=3", {}, skips(6), "only one choice"),
    "a share just below a whole number": (plain, "depth=0.3333333333333333", {}, skips(2), ""),
    "0 generations": (plain, "bits=2.5", {"generations": 0}, bits(2.5), ""),
    "0 generations of a depth": (plain, "depth=1", {"generations": 0}, skips(2), ""),
    "one level": (plain, "bits=3", {"levels": [GPTQ(widths=(3,))]}, bits(3), "only one choice"),
    "the lowest level": (plain, "bits=2", {}, bits(2), "only one choice"),
    "the highest level": (plain, "bits=6", {}, bits(6), "only one choice"),
    "a whole number between levels": (plain, "bits=5", {"levels": [GPTQ(widths=(4, 8))]}, bits(5), ""),
    "a number that rounds up past all levels": (plain, "bits=4.75", {"levels": [GPTQ(widths=(4, 8))]}, bits(4.75), ""),
    "between levels and groups of one name": (plain, "bits=2.5", {"exchange": "name"}, bits(2.5), ""),
    "between levels, all with all": (plain, "bits=2.5", {"exchange": "none"}, bits(2.5), ""),
    "fewer states than offspring": (
        lambda: tiny_llama(layers=2), "depth=1", {"generations": 2, "offspring": 30}, skips(2), "",
    ),
    "one child": (plain, "bits=3", {"offspring": 1}, bits(3), ""),
    "no step allowed": (plain, "bits=3", {"max_level": 0}, bits(3), ""),
    "no deviation allowed": (plain, "bits=3", {"max_deviation": 0}, bits(3), ""),
    "one step allowed": (plain, "bits=3", {"max_level": 1, "max_deviation": 2}, bits(3), ""),
    "sparsity of 0": (plain, "sparsity=0", {}, zeros(0), "only one choice"),
    "nearly all zeros": (plain, "sparsity=0.99", {}, zeros(0.99), ""),
    "more bytes than there are": (plain, "bytes=5MB", {}, skips(0), "only one choice"),
    "bytes of the parts without levels": (plain, "bytes=26496", {}, skips(6), "only one choice"),
    "no parameters": (plain, "parameters=0", {}, skips(6), "only one choice"),
    "all operations": (plain, "flops=1", {}, skips(0), "only one choice"),
    "more tokens than there are": (plain, "depth=0.34", {"data": ids(2)}, skips(2), "a stage of .* was asked for"),
    "some texts of one token": (plain, "depth=1", {"data": [[5], *ids()]}, skips(2), "1 of 7 .* fewer than 2 tokens"),
    "the shortest text": (plain, "depth=1", {"data": [[5, 6]]}, skips(2), ""),
    "texts longer than the model reads": (
        lambda: tiny_llama(layers=3, max_position_embeddings=16), "depth=1", {}, skips(2), "",
    ),
    "groups that do not divide the columns": (plain, "bits=3", {"levels": [GPTQ(group=12)]}, bits(3), ""),
    "a zero row": (lambda: with_row(0.0), "bits=3", {}, bits(3), ""),
    "a constant row": (lambda: with_row(0.5), "bits=3", {}, bits(3), ""),
    "a constant row to prune": (lambda: with_row(0.5), "sparsity=0.5", {}, zeros(0.5), ""),
    "dead inputs": (lambda: with_dead_inputs(), "bits=3", {}, bits(3), ""),
    "dead inputs to prune": (lambda: with_dead_inputs(), "sparsity=0.5", {}, zeros(0.5), ""),
    "half precision on a CPU": (lambda: plain().half(), "bits=3", {}, bits(3), ""),
    "half precision to prune": (lambda: plain().half(), "sparsity=0.5", {}, zeros(0.5), ""),
    "bfloat16": (lambda: plain().bfloat16(), "bits=3", {}, bits(3), ""),
    "in train mode": (lambda: plain().train(), "depth=1", {}, skips(2), ""),
    "quantised for a depth": (quantised, "depth=1", {}, skips(2), ""),
    "Conv1D": (lambda: tiny_text("gpt2", layers=2), "bits=3", {}, within, ""),
    "fused q, k, v": (lambda: tiny_text("phi3", layers=2), "bits=3", {"fuse": "vllm"}, within, ""),
    "experts in one parameter": (lambda: tiny_text("mixtral", layers=2), "bits=3", {}, within, ""),
    "experts to prune": (lambda: tiny_text("mixtral", layers=2), "sparsity=0.5", {}, within, ""),
    "a Gemma with BOS": (gemma, "depth=1", {"data": [[1, *text] for text in ids()]}, skips(2), ""),
    "a Gemma without BOS": (gemma, "depth=1", {}, skips(2), r"6 of 6 .* token 1 \(BOS\)"),
    "ids without the BOS of a given tokenizer": (plain, "depth=1", {"tokenizer": Begins()}, skips(2), r"token 1 \(BOS"),
    "texts with a tokenizer that puts it there": (
        plain, "depth=1", {"tokenizer": Begins(), "data": ["one text", "and another"]}, skips(2), "",
    ),
}  # fmt: skip


def with_row(value: float) -> nn.Module:
    model = plain()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = value
    return model


def with_dead_inputs() -> nn.Module:
    model = plain()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3:6] = 0
    return model


@pytest.mark.parametrize("case", WORKS)
def test_what_is_at_the_edge_is_right(case: str) -> None:
    make, target, options, check, warned = WORKS[case]
    model = make()
    before, modes = fingerprint(model), [module.training for module in model.modules()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        artefact = compressed(model, target, **options)
    within(artefact)
    check(artefact)
    told = [str(each.message) for each in caught]
    assert not warned or any(re.search(warned, text) for text in told)
    expected = ("was asked for", "only one choice", *[warned] * bool(warned))
    assert [text for text in told if not any(re.search(each, text) for each in expected)] == []
    assert bool(model(IDS).logits.isfinite().all())
    artefact.undo()
    assert fingerprint(model).differences(before) == []
    assert [module.training for module in model.modules()] == modes


def test_offloaded_models_lose_sublayers() -> None:
    model, wanted = offloaded(), plain()
    found, beside = compressed(model, "depth=1"), compressed(wanted, "depth=1")
    assert found.skipped == beside.skipped
    assert found.data["final"] == beside.data["final"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_stay_as_they_are() -> None:
    peft = pytest.importorskip("peft")
    model = plain()
    own = compressed(plain(), "bits=3")
    with torch.random.fork_rng(devices=[]):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(model, config).eval()
    before = {name: values.clone() for name, values in wrapped.state_dict().items()}
    artefact = compressed(wrapped, "bits=3")
    assert {name.replace(".base_layer", "") for name in artefact.edits} == set(own.edits)
    assert artefact.data["cost"] == own.data["cost"]
    for name, values in wrapped.state_dict().items():
        assert torch.equal(values, before[name]) == ("lora_" in name or "_proj" not in name), name
    artefact.undo()
    assert all(torch.equal(values, before[name]) for name, values in wrapped.state_dict().items())


def test_two_searches_in_one_process_do_not_meet() -> None:
    first = compressed(plain(), "bits=2.5").data
    other = tiny_text("gpt2", layers=2)
    one = compressed(other, "sparsity=0.5")
    again = compressed(plain(), "bits=2.5").data
    assert again == first
    one.undo()


def test_a_compressed_model_can_be_compressed_again() -> None:
    model = plain()
    before = fingerprint(model)
    depth = compressed(model, "depth=1")
    gone = set(depth.skipped)
    more = compressed(model, "depth=1")
    assert len(more.skipped) == 2
    assert gone.isdisjoint(more.skipped)
    rounded = compressed(model, "bits=3")
    assert not any(name.startswith(tuple({*gone, *more.skipped})) for name in rounded.edits)
    for artefact in (rounded, more, depth):
        artefact.undo()
    assert fingerprint(model).differences(before) == []


def test_long_texts_are_divided_and_each_part_begins_as_the_text_does() -> None:
    from paperhooks import CompressionRequest
    from paperhooks_evopress.evaluator import sequences

    view = ModelView.from_model(tiny_llama(layers=1, max_position_embeddings=16))
    text = [1, *range(3, 40)]
    found = sequences(view, CompressionRequest("test", data=[text, [5, 6], list(range(3, 20))]), 2048)
    assert [part.tolist() for part in found] == [
        text[:16], [1, *text[16:31]], [1, *text[31:]], [5, 6], list(range(3, 19)),
    ]  # fmt: skip
    assert all(len(part) <= 10 for part in sequences(view, CompressionRequest("test", data=[text]), 10))
